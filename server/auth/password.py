"""The password of the dashboard: kept as a salted scrypt hash, compared in constant time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets

# RFC 7914's interactive parameters (16 MiB, some 50 ms): each guess costs as much, and logins are rare.
_COST = {"n": 2**14, "r": 8, "p": 1}
MAX_CHARS = 1024


class Password:
    def __init__(self, plain: str) -> None:
        self._salt = secrets.token_bytes(16)
        self._hash = self._derive(plain)

    async def is_right(self, guess: str) -> bool:
        """Whether it is the password. Takes tens of milliseconds, in a thread."""
        if len(guess) > MAX_CHARS:
            return False
        return hmac.compare_digest(await asyncio.to_thread(self._derive, guess), self._hash)

    def _derive(self, text: str) -> bytes:
        return hashlib.scrypt(text.encode("utf-8", "surrogatepass"), salt=self._salt, **_COST)
