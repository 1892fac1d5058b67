"""Logins of browsers: a token or the password buys a credential of its own, which the login cookie holds.

A login can do what its token can, and ends with it. Tries are counted for each address and, for passwords, in all.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from server.auth.password import Password
from server.auth.throttle import Throttle
from server.auth.tokens import SESSION_PREFIX, Authenticator, Identity, digest_of, new_session, proof_of
from server.errors import ApiError

logger = logging.getLogger(__name__)

HASHES_AT_ONCE = 2
"""Guesses of the password that are hashed at the same time; more wait."""
ALL_ADDRESSES = 20
"""So many times the tries of one address are allowed to all of them together, for the password."""
WRONG = "this token or password opens nothing here"


@dataclass(frozen=True, kw_only=True)
class LoginSettings:
    password: str | None = field(default=None, repr=False)
    days: float
    attempts: int
    """Wrong ones that an address may make at once; one more comes back every ``window / attempts`` seconds."""
    window: float
    """Seconds."""


@dataclass(frozen=True, kw_only=True)
class Login:
    credential: str = field(repr=False)
    identity: Identity


class LoginStore(Protocol):
    """`storage.sessions` has one."""

    async def create(
        self, digest: str, *, kind: str, token_id: int | None, proof: str | None, now: float, expires_at: float
    ) -> None: ...
    async def delete(self, digest: str) -> None: ...


class Logins:
    def __init__(
        self,
        authenticator: Authenticator,
        store: LoginStore,
        settings: LoginSettings,
        *,
        count: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``count``: told "opened", "refused" or "throttled" of every try."""
        self._count = count
        self._authenticator = authenticator
        self._store = store
        self._settings = settings
        self._password = None if settings.password is None else Password(settings.password)
        self._clock = clock
        refill = settings.attempts / settings.window
        self._of_address = Throttle(settings.attempts, refill, monotonic)
        self._of_all = Throttle(ALL_ADDRESSES * settings.attempts, ALL_ADDRESSES * refill, monotonic)
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)

    async def open(self, secret: str, address: str) -> Login:
        """Raises `ApiError` for a wrong secret and for too many of them, and `DatabaseError`.

        ``address``: of the browser; addresses that one household or machine commands count as one.
        """
        # Tokens cannot be guessed, so that whoever has one is never kept out by what others try from the same address.
        identity = None if secret.startswith(SESSION_PREFIX) else await self._authenticator.identity(secret)
        if identity is not None:
            return await self._remember(secret, "admin" if identity.token_id is None else "token", identity.token_id)
        await self._check_password(secret, _network(address))
        return await self._remember(secret, "password", None)

    async def close(self, credential: str) -> None:
        """End the login. Raises `DatabaseError`."""
        await self._store.delete(digest_of(credential))
        self._authenticator.forget()

    async def _check_password(self, secret: str, network: str) -> None:
        # Taken before the answer is known and given back where it was right: many tries at once count like one by one.
        buckets = [(self._of_address, network), (self._of_all, "all")]
        for throttle, key in buckets if self._password is not None else buckets[:1]:
            self._check(throttle.take(key), network)
        if self._password is not None:
            async with self._hashing:
                right = await self._password.is_right(secret)
            if right:
                for throttle, key in buckets:
                    throttle.give_back(key)
                return
        self._count("refused")
        logger.warning("a login was refused", extra={"action": "login_refused", "address": network})
        raise ApiError(401, "wrong_credentials", WRONG)

    async def _remember(self, secret: str, kind: str, token_id: int | None) -> Login:
        now = self._clock()
        credential = new_session()
        await self._store.create(
            digest_of(credential),
            kind=kind,
            token_id=token_id,
            proof=proof_of(credential, secret) if token_id is None else None,
            now=now,
            expires_at=now + self._settings.days * 86_400,
        )
        identity = await self._authenticator.identity(credential)
        if identity is None:
            raise ApiError(401, "wrong_credentials", WRONG)  # the token was revoked this very moment
        self._count("opened")
        logger.info("a login began", extra={"action": "login", "kind": kind, "token_id": token_id})
        return Login(credential=credential, identity=identity)

    def _check(self, wait: float, network: str) -> None:
        if wait <= 0:
            return
        seconds = math.ceil(wait)
        self._count("throttled")
        logger.warning("too many logins fail", extra={"action": "login_throttled", "address": network})
        raise ApiError(
            429, "too_many_attempts", f"too many wrong tries; wait {seconds} s and try again", retry_after=seconds
        )


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))
