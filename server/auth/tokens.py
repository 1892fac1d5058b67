"""Credentials: tokens and logins, made at random, known by their SHA-256 alone, turned into principals."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from starlette.datastructures import Headers

from server.errors import DatabaseError
from server.models import Principal, Scope

logger = logging.getLogger(__name__)

TOKEN_PREFIX = "sw_"  # noqa: S105 - not a secret: it lets secret scanners recognise one
SESSION_PREFIX = "sws_"
TOKEN_CACHE = 5.0  # seconds for which a looked-up credential is believed; a revoked one works no longer than that
TOUCH_EVERY = 60.0  # seconds between two notes of a token's use
MAX_TOKEN_CHARS = 512
MAX_CACHED = 4096
UNAUTHENTICATED = "give a token: Authorization: Bearer TOKEN (spikewatch token create makes one)"
REVOKED = "the token was revoked or the login has ended; ask for a new one (spikewatch token create makes one)"


def new_token() -> str:
    """A token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def new_session() -> str:
    """The credential of a login: 256 random bits."""
    return SESSION_PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """What the database keeps of a token. The token is random, so that no salt or slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def proof_of(session: str, secret: str) -> str:
    """That a login was opened with this secret of the settings. Says nothing about the secret without the session's
    credential, which the database does not know: a leaked database gives a password away to no guessing."""
    return hmac.new(session.encode(), secret.encode(), hashlib.sha256).hexdigest()


class KnownToken(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def principal(self) -> Principal: ...


class KnownSession(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def proof(self) -> str | None: ...
    @property
    def token(self) -> KnownToken | None: ...
    @property
    def expires_at(self) -> float: ...


class TokenDirectory(Protocol):
    """Where tokens are kept; `storage.tokens` has one. Revoked ones are not found."""

    async def find(self, digest: str) -> KnownToken | None: ...
    async def touch(self, token_id: int, now: float) -> None: ...
    async def living(self, digests: Collection[str]) -> set[str]: ...


class SessionDirectory(Protocol):
    """Where logins are kept; `storage.sessions` has one. Those of a revoked token are not found."""

    async def find(self, digest: str) -> KnownSession | None: ...
    async def living(self, digests: Collection[str], now: float) -> set[str]: ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A valid credential: whose it is, and what ends it."""

    digest: str = field(repr=False)
    principal: Principal
    token_id: int | None = None
    """The token of the database that it is, or that opened the login. None for the one of the settings."""
    expires_at: float | None = None
    """Of a login, Unix time. None for a token, which ends when it is revoked."""


class Authenticator:
    """Turns a credential into a principal."""

    def __init__(
        self,
        tokens: TokenDirectory,
        sessions: SessionDirectory,
        *,
        admin_token: str | None,
        password: tuple[str, Scope] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``admin_token``: one that opens everything and is in no database, as `spikewatch up` makes it.

        ``password``: that of the settings, whose logins have this scope."""
        self._tokens = tokens
        self._sessions = sessions
        self._admin_token = admin_token
        self._admin_digest = None if admin_token is None else digest_of(admin_token)
        self._password = password
        self._clock = clock
        self._cache: dict[str, tuple[float, Identity | None]] = {}
        self._looking: dict[str, asyncio.Task[Identity | None]] = {}
        self._generation = 0
        """Counts the calls of `forget`."""
        self._touched: dict[int, float] = {}

    async def principal(self, token: str | None) -> Principal | None:
        """None for a credential that is missing, unknown, revoked or over. Raises `DatabaseError`."""
        identity = await self.identity(token)
        return None if identity is None else identity.principal

    async def identity(self, token: str | None) -> Identity | None:
        """As `principal`, with what the credential is."""
        if not token or len(token) > MAX_TOKEN_CHARS:
            return None
        digest = digest_of(token)
        if self._admin_digest is not None and hmac.compare_digest(digest, self._admin_digest):
            return Identity(digest=digest, principal=_ADMIN)
        now = self._clock()
        cached = self._cache.get(digest)
        if cached is not None and 0 <= now - cached[0] <= TOKEN_CACHE:
            identity = cached[1]
        else:
            identity = await self._look_up(token, digest)
        if identity is None or (identity.expires_at is not None and identity.expires_at <= now):
            return None
        if identity.token_id is not None:
            await self._touch(identity.token_id, now)
        return identity

    async def _look_up(self, token: str, digest: str) -> Identity | None:
        """Ask once for all who ask at the same time: ten thousand connections of one token are one query."""
        looking = self._looking.get(digest)
        if looking is None:
            looking = self._looking[digest] = asyncio.create_task(self._find(token, digest))

            def done(finished: asyncio.Task[Identity | None]) -> None:
                if self._looking.get(digest) is finished:
                    del self._looking[digest]

            looking.add_done_callback(done)
        return await asyncio.shield(looking)

    async def _find(self, token: str, digest: str) -> Identity | None:
        asked_at, generation = self._clock(), self._generation
        is_session = token.startswith(SESSION_PREFIX)
        identity = await (self._find_session(token, digest) if is_session else self._find_token(digest))
        if generation == self._generation:  # else something was revoked while this was read
            if len(self._cache) > MAX_CACHED:
                self._cache.clear()
            self._cache[digest] = (asked_at, identity)
        return identity

    async def ended(self, identities: Sequence[Identity]) -> set[str]:
        """Digests of those that are valid no longer. Raises `DatabaseError`."""
        asked = {identity.digest: identity for identity in identities if identity.digest != self._admin_digest}
        logins = [digest for digest, identity in asked.items() if identity.expires_at is not None]
        living = await self._tokens.living([digest for digest in asked if digest not in set(logins)])
        living |= await self._sessions.living(logins, self._clock())
        return set(asked) - living

    def forget(self) -> None:
        """Believe nothing that was looked up: something was revoked."""
        self._generation += 1
        self._cache.clear()
        self._looking.clear()

    async def _find_token(self, digest: str) -> Identity | None:
        known = await self._tokens.find(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            return None
        return Identity(digest=digest, principal=known.principal, token_id=known.id)

    async def _find_session(self, session: str, digest: str) -> Identity | None:
        known = await self._sessions.find(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            return None
        if known.token is not None:
            principal, token_id = known.token.principal, known.token.id
        else:
            secret, principal = self._of_settings(known.kind)
            # Another token or password in the settings ends the logins that the old one opened.
            if secret is None or not hmac.compare_digest(known.proof or "", proof_of(session, secret)):
                return None
            token_id = None
        return Identity(digest=digest, principal=principal, token_id=token_id, expires_at=known.expires_at)

    def _of_settings(self, kind: str) -> tuple[str | None, Principal]:
        if kind == "password" and self._password is not None:
            secret, scope = self._password
            return secret, Principal(scope=scope, key="password", label="password")
        return (self._admin_token, _ADMIN) if kind == "admin" else (None, _ADMIN)

    async def _touch(self, token_id: int, now: float) -> None:
        if abs(now - self._touched.get(token_id, float("-inf"))) <= TOUCH_EVERY:
            return
        self._touched[token_id] = now
        try:
            await self._tokens.touch(token_id, now)
        except DatabaseError as error:  # a full disk keeps nobody from reading
            logger.warning("the use of a token is not noted (%s)", error, extra={"action": "token_touch_failed"})


_ADMIN = Principal(scope=Scope.ADMIN, key="admin", label="admin token")


def bearer_token(headers: Headers) -> str | None:
    """The token of the header ``Authorization: Bearer TOKEN``."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
