"""The endpoint ``POST /mcp``: the Model Context Protocol over streamable HTTP, with the tokens of the API.

The library is imported at the first request with a valid token, in a thread: it takes a second and 20 MB, which a
server without agents does not spend.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.agents.questions import Questions
from server.auth.tokens import Authenticator, bearer_token
from server.errors import ApiError
from server.models import Scope as TokenScope

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

START_TIMEOUT = 60.0  # seconds


class AgentEndpoint:
    """ASGI application that answers agents. `run` must be running meanwhile."""

    def __init__(self, questions: Callable[[], Questions], authenticator: Authenticator, version: str) -> None:
        """``questions`` is called when the protocol starts."""
        self._questions = questions
        self._authenticator = authenticator
        self._version = version
        self._asked = asyncio.Event()
        self._started = asyncio.Event()
        self._manager: StreamableHTTPSessionManager | None = None

    async def run(self) -> None:
        """Start the protocol when it is first asked for, and keep it running until cancelled."""
        await self._asked.wait()
        toolbox = await asyncio.to_thread(importlib.import_module, "server.agents.toolbox")
        manager: StreamableHTTPSessionManager = toolbox.make_session_manager(self._questions(), self._version)
        async with manager.run():
            self._manager = manager
            self._started.set()
            await asyncio.Event().wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises `DatabaseError`."""
        token = bearer_token(Request(scope).headers)
        principal = await self._authenticator.principal(token)
        if principal is None:
            raise await self._authenticator.refusal(token)
        if not principal.may(TokenScope.READ):
            raise ApiError(403, "forbidden", "this token may not read; use one with the scope read")
        self._asked.set()
        async with asyncio.timeout(START_TIMEOUT):
            await self._started.wait()
        assert self._manager is not None
        await self._manager.handle_request({**scope, "spikewatch.principal": principal}, receive, send)
