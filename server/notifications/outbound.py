"""POST requests to addresses that people entered: checked, limited in time and size, without following redirects."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from server.errors import ForbiddenAddressError
from server.notifications.addresses import GuardedResolver, check_url
from server.notifications.outcomes import Answer, retry_after

TIMEOUT: Final = 10.0
"""Deadline of one attempt in seconds, from the name lookup to the end of the answer."""
MAX_ANSWER: Final = 16_384  # bytes; the rest of a longer answer is not read
CODE_CHARS: Final = 120
USER_AGENT: Final = "Spikewatch"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    text: str


class Outbound:
    """Connection pool of all channels. Used from one event loop; `close` releases it."""

    def __init__(self, *, allow_private: bool, timeout: float = TIMEOUT) -> None:
        """``timeout`` is the deadline of one request in seconds."""
        self.allow_private = allow_private
        self.timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """HTTP session, created at first use because it belongs to the running event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=GuardedResolver(allow_private=self.allow_private), use_dns_cache=False, limit=50
                ),
                timeout=aiohttp.ClientTimeout(total=self.timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT},
            )
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Send a POST request and return the response. Raises the errors in `NETWORK_ERRORS`."""
        check_url(url, allow_private=self.allow_private)
        async with self.session.post(url, data=body, headers=headers, allow_redirects=False) as reply:
            content = await reply.content.read(MAX_ANSWER)
            return Reply(status=reply.status, headers=reply.headers, text=content.decode("utf-8", "replace"))

    async def ask(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a POST request and return its answer; network errors become answers too."""
        try:
            reply = await self.post(url, body, headers)
        except NETWORK_ERRORS as error:
            return answer_to(error)
        first = reply.text.strip().partition("\n")[0][:CODE_CHARS]
        return Answer(
            status=reply.status,
            code="" if reply.status < 300 else first,
            retry_after=retry_after(reply.headers.get("Retry-After"), time.time()),
        )


NETWORK_ERRORS: Final = (ForbiddenAddressError, aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError)
"""Errors that an attempt may raise. `ValueError` comes from host names that cannot be encoded for a lookup."""


def answer_to(error: Exception) -> Answer:
    """Return the answer for an attempt that raised. Its text never contains the URL, which may be secret."""
    if isinstance(error, ForbiddenAddressError):
        return Answer(status=None, code=str(error), forbidden=True)
    if isinstance(error, TimeoutError):
        return Answer(status=None, code="no answer in time")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Answer(status=None, code=f"the name {error.host} cannot be looked up")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return Answer(status=None, code="the certificate of the receiving service is not trusted")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Answer(status=None, code=f"no connection to {error.host} ({error.os_error.strerror or 'refused'})")
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError):
        return Answer(status=None, code="the connection was cut off")
    return Answer(status=None, code=f"the attempt failed ({type(error).__name__})")
