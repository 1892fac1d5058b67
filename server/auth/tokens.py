"""Credentials: random tokens and logins, stored only as SHA-256 digests, and the principals that they identify."""

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

from server.errors import ApiError, DatabaseError
from server.log_actions import LogAction
from server.models import Principal, Scope

logger = logging.getLogger(__name__)

TOKEN_PREFIX = "sw_"  # noqa: S105 - not a secret: it lets secret scanners recognise one
SESSION_PREFIX = "sws_"
TOKEN_CACHE = 5.0  # seconds for which a lookup is cached; a revoked credential works at most that much longer
TOUCH_EVERY = 60.0  # seconds between two updates of a token's last use
MAX_TOKEN_CHARS = 512
MAX_CACHED = 4096
INVALID = 'Bearer error="invalid_token"'
"""Header WWW-Authenticate for a credential that was sent but is not valid (RFC 6750, section 3)."""
UNAUTHENTICATED = "send a token: Authorization: Bearer TOKEN (create one with `spikewatch token create`)"
UNKNOWN = (
    "the server does not know this token: check that it is complete and of this server "
    "(create one with `spikewatch token create`)"
)
WAS_REVOKED = "this token was revoked; get a new one (create one with `spikewatch token create`)"
LOGIN_ENDED = "this login has ended; log in again"
REVOKED = "the token was revoked or the login has ended; get a new token (create one with `spikewatch token create`)"


def new_token() -> str:
    """Return a new token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def new_session() -> str:
    """Return a new login credential of 256 random bits."""
    return SESSION_PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """Return the digest that the database stores. Tokens are random, so that no salt and no slow hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def proof_of(session: str, secret: str) -> str:
    """Return a proof that a login was opened with this secret of the settings.

    The proof reveals nothing about the secret without the credential of the session, which is not in the database. A
    leaked database therefore does not allow guessing the password.
    """
    return hmac.new(session.encode(), secret.encode(), hashlib.sha256).hexdigest()


class KnownToken(Protocol):
    """Token as `TokenDirectory` returns it."""

    @property
    def id(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def principal(self) -> Principal: ...


class KnownSession(Protocol):
    """Login as `SessionDirectory` returns it."""

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
    """Storage of tokens, implemented by `storage.tokens`. Only `was_revoked` finds revoked tokens."""

    async def find(self, digest: str) -> KnownToken | None:
        """Return the token with this digest, or None."""
        ...

    async def was_revoked(self, digest: str) -> bool:
        """Return whether there was a token with this digest."""
        ...

    async def touch(self, token_id: int, now: float) -> None:
        """Record that the token was used."""
        ...

    async def filter_valid(self, digests: Collection[str]) -> set[str]:
        """Return the digests of those tokens that are still valid."""
        ...


class SessionDirectory(Protocol):
    """Storage of logins, implemented by `storage.sessions`. It does not find logins of revoked tokens."""

    async def find(self, digest: str) -> KnownSession | None:
        """Return the login with this digest, or None."""
        ...

    async def filter_valid(self, digests: Collection[str], now: float) -> set[str]:
        """Return the digests of those logins that are still valid."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Valid credential: its principal, and what ends it."""

    digest: str = field(repr=False)
    principal: Principal
    token_id: int | None = None
    """Id of the token, or of the token that opened the login; None for the token and the password of the settings."""
    expires_at: float | None = None
    """Unix time at which a login expires; None for a token, which is valid until it is revoked."""


class Authenticator:
    """Identifies the principal of a credential."""

    def __init__(
        self,
        tokens: TokenDirectory,
        sessions: SessionDirectory,
        *,
        admin_token: str | None,
        password: tuple[str, Scope] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Create an authenticator.

        ``admin_token`` grants everything and is not stored in the database; `spikewatch up` creates one. ``password``
        is that of the settings, together with the scope of its logins.
        """
        self._tokens = tokens
        self._sessions = sessions
        self._admin_token = admin_token
        self._admin_digest = None if admin_token is None else digest_of(admin_token)
        self._password = password
        self._clock = clock
        self._cache: dict[str, tuple[float, Identity | None]] = {}
        self._revoked: dict[str, tuple[float, bool]] = {}
        """Time of the lookup and whether the token was revoked, by digest, for refused tokens."""
        self._lookups: dict[str, asyncio.Task[Identity | None]] = {}
        self._generation = 0
        """Number of calls of `forget`."""
        self._touched: dict[int, float] = {}

    async def principal(self, token: str | None) -> Principal | None:
        """Return the principal of a credential, or None if it is missing, unknown, revoked or expired.

        Raises `DatabaseError`.
        """
        identity = await self.identity(token)
        return None if identity is None else identity.principal

    async def identity(self, token: str | None) -> Identity | None:
        """Return the identity of a credential, or None if it is missing, unknown, revoked or expired.

        Raises `DatabaseError`.
        """
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

    async def refusal(self, token: str | None) -> ApiError:
        """Return the answer to a credential for which `identity` returned None.

        Its message tells a missing, an unknown and a revoked token and a login that has ended apart; the code is
        "unauthenticated" for all of them. Only the holder of all 256 bits of a token learns that it was revoked, so the
        message helps nobody to guess one. Raises `DatabaseError`.
        """
        if not token:
            return ApiError(401, "unauthenticated", UNAUTHENTICATED)
        if token.startswith(SESSION_PREFIX):
            return ApiError(401, "unauthenticated", LOGIN_ENDED, authenticate=INVALID)
        was_revoked = len(token) <= MAX_TOKEN_CHARS and await self._was_revoked(digest_of(token))
        return ApiError(401, "unauthenticated", WAS_REVOKED if was_revoked else UNKNOWN, authenticate=INVALID)

    async def _was_revoked(self, digest: str) -> bool:
        now = self._clock()
        known = self._revoked.get(digest)
        if known is None or not 0 <= now - known[0] <= TOKEN_CACHE:
            if len(self._revoked) > MAX_CACHED:
                self._revoked.clear()
            known = self._revoked[digest] = (now, await self._tokens.was_revoked(digest))
        return known[1]

    async def _look_up(self, token: str, digest: str) -> Identity | None:
        """Look a credential up once for all concurrent callers: ten thousand connections of one token
        cause one query.
        """
        lookup = self._lookups.get(digest)
        if lookup is None:
            lookup = self._lookups[digest] = asyncio.create_task(self._find(token, digest))

            def done(finished: asyncio.Task[Identity | None]) -> None:
                if self._lookups.get(digest) is finished:
                    del self._lookups[digest]

            lookup.add_done_callback(done)
        return await asyncio.shield(lookup)

    async def _find(self, token: str, digest: str) -> Identity | None:
        asked_at, generation = self._clock(), self._generation
        is_session = token.startswith(SESSION_PREFIX)
        identity = await (self._find_session(token, digest) if is_session else self._find_token(digest))
        if generation == self._generation:  # Otherwise a credential was revoked during the lookup.
            if len(self._cache) > MAX_CACHED:
                self._cache.clear()
            self._cache[digest] = (asked_at, identity)
        return identity

    async def ended(self, identities: Sequence[Identity]) -> set[str]:
        """Return the digests of the identities that are no longer valid. Raises `DatabaseError`."""
        asked = {identity.digest: identity for identity in identities if identity.digest != self._admin_digest}
        logins = [digest for digest, identity in asked.items() if identity.expires_at is not None]
        living = await self._tokens.filter_valid([digest for digest in asked if digest not in set(logins)])
        living |= await self._sessions.filter_valid(logins, self._clock())
        return set(asked) - living

    def forget(self) -> None:
        """Discard all cached lookups, because a credential was revoked."""
        self._generation += 1
        self._cache.clear()
        self._revoked.clear()
        self._lookups.clear()

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
            # Changing the token or password in the settings ends the logins that the old one opened.
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
        except DatabaseError as error:  # A full disk does not prevent reading.
            logger.warning(
                "the use of a token cannot be recorded (%s)", error, extra={"action": LogAction.TOKEN_TOUCH_FAILED}
            )


_ADMIN = Principal(scope=Scope.ADMIN, key="admin", label="admin token")


def bearer_token(headers: Headers) -> str | None:
    """Return the token of the header ``Authorization: Bearer TOKEN``, or None if there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
