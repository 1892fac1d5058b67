"""Password of the dashboard: kept as a salted scrypt hash, compared in constant time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets

# RFC 7914's parameters for interactive logins (16 MiB, about 50 ms). They make guessing expensive; logins are rare.
_COST = {"n": 2**14, "r": 8, "p": 1}
MAX_CHARS = 1024


class Password:
    """Hash of a password."""

    def __init__(self, plain: str) -> None:
        self._salt = secrets.token_bytes(16)
        self._hash = self._derive(plain)

    async def is_right(self, guess: str) -> bool:
        """Return whether the guess is the password. Takes tens of milliseconds, in a thread."""
        if len(guess) > MAX_CHARS:
            return False
        return hmac.compare_digest(await asyncio.to_thread(self._derive, guess), self._hash)

    def _derive(self, text: str) -> bytes:
        return hashlib.scrypt(text.encode("utf-8", "surrogatepass"), salt=self._salt, **_COST)
