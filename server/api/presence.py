"""Work that ends when the client who asked for it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from server.errors import ApiError

Answer = TypeVar("Answer")


async def while_present(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """What the work gives. It is cancelled, with the statement that it waits for, when the client is gone before.

    Raises `ApiError` then, which nobody will read.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_departure(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "client_gone", "the client left before the answer was there")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
