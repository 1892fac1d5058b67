"""uvicorn's HTTP protocol, with a deadline for the head of the first request: who says nothing is let go."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def hasty_protocol(seconds: float) -> type[HttpToolsProtocol]:
    """The protocol class for `uvicorn.Config(http=…)`; a silent connection is closed after so many seconds.

    uvicorn itself bounds how long a connection may rest between two requests, and not how long the first may take.
    """

    class HastyProtocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadline = self.loop.call_later(seconds, transport.close)

        def on_headers_complete(self) -> None:
            self._deadline.cancel()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._deadline.cancel()
            super().connection_lost(exc)

    return HastyProtocol
