"""The download of a run, which the browser asks the dashboard for, because only it knows the viewer's credential."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from fastapi import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from dashboard.client import ApiError, ApiRefusedError
from dashboard.viewer import current_viewer
from dashboard.viewers import Viewers

PATH: Final = "/runs/{run_id}/export"
KEPT: Final = ("content-type", "content-disposition")
"""Headers of the API's answer that the browser receives."""


def export_of(viewers: Viewers) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of `PATH`, which passes on the export of the API piece by piece."""

    async def export(request: Request) -> Response:
        client = viewers.client(current_viewer.get())
        query = {name: value for name, value in request.query_params.items() if name in ("format", "layers")}
        try:
            answer = await client.open_export(request.path_params["run_id"], query)
        except ApiRefusedError as error:
            return PlainTextResponse(error.message, status_code=error.status)
        except ApiError as error:
            return PlainTextResponse(str(error), status_code=503, headers={"Retry-After": "5"})

        async def pieces() -> AsyncIterator[bytes]:
            try:
                # An export that breaks off raises here, so that the browser's download fails as well.
                async for piece in answer.aiter_bytes():
                    yield piece
            finally:
                await answer.aclose()

        headers = {name: answer.headers[name] for name in KEPT if name in answer.headers}
        return StreamingResponse(pieces(), headers={**headers, "Cache-Control": "no-store"})

    return export
