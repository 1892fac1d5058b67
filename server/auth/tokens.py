"""Tokens: made at random, known by their SHA-256 alone, turned into principals."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers

from server.models import Principal, Scope

TOKEN_PREFIX = "sw_"  # noqa: S105 - not a secret: it lets secret scanners recognise one
TOKEN_CACHE = 5.0  # seconds for which a looked-up token is believed; a revoked one works no longer than that
TOUCH_EVERY = 60.0  # seconds between two notes of a token's use
MAX_TOKEN_CHARS = 512
UNAUTHENTICATED = "give a token: Authorization: Bearer TOKEN (spikewatch token create makes one)"


def new_token() -> str:
    """A token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """What the database keeps of a token. The token is random, so that no salt or slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class KnownToken(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def principal(self) -> Principal: ...


class TokenDirectory(Protocol):
    """Where tokens are kept; `storage.tokens` has one."""

    async def find(self, digest: str) -> KnownToken | None: ...
    async def touch(self, token_id: int, now: float) -> None: ...


class Authenticator:
    """Turns a token into a principal."""

    def __init__(
        self, directory: TokenDirectory | None, *, admin_token: str | None, clock: Callable[[], float] = time.time
    ) -> None:
        """``directory``: None where no other token than ``admin_token`` is known.

        ``admin_token``: one that opens everything and is in no database, as `spikewatch up` makes it."""
        self._directory = directory
        self._admin_digest = None if admin_token is None else digest_of(admin_token)
        self._clock = clock
        self._cache: dict[str, tuple[float, KnownToken | None]] = {}
        self._touched: dict[int, float] = {}

    async def principal(self, token: str | None) -> Principal | None:
        """None for a token that is missing, unknown or revoked. Raises `DatabaseError`."""
        if not token or len(token) > MAX_TOKEN_CHARS:
            return None
        digest = digest_of(token)
        if self._admin_digest is not None and hmac.compare_digest(digest, self._admin_digest):
            return Principal(scope=Scope.ADMIN)
        if self._directory is None:
            return None
        now = self._clock()
        cached = self._cache.get(digest)
        if cached is None or now - cached[0] > TOKEN_CACHE:
            if len(self._cache) > 1024:
                self._cache.clear()
            cached = self._cache[digest] = (now, await self._directory.find(digest))
        known = cached[1]
        if known is None or not hmac.compare_digest(known.digest, digest):
            return None
        if now - self._touched.get(known.id, float("-inf")) > TOUCH_EVERY:
            self._touched[known.id] = now
            await self._directory.touch(known.id, now)
        return known.principal


def bearer_token(headers: Headers) -> str | None:
    """The token of the header ``Authorization: Bearer TOKEN``."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
