"""Work that is cancelled when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from server.errors import ApiError

Answer = TypeVar("Answer")


async def while_present(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Return the result of the work. When the client disconnects, the work is cancelled with the statement it awaits.

    Raises `ApiError` in that case, though no client receives it.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_departure(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "client_gone", "the client disconnected before the answer was ready")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
