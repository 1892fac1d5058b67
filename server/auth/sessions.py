"""Logins of browsers: a signed cookie, nothing stored."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable


class Sessions:
    """Signed login cookies: ``EXPIRY.SIGNATURE``. Nothing is stored; a new secret ends all of them."""

    def __init__(self, secret: str, *, days: float, clock: Callable[[], float] = time.time) -> None:
        self._key = hashlib.sha256(b"spikewatch session\0" + secret.encode()).digest()
        self._clock = clock
        self.seconds = int(days * 86_400)

    def issue(self) -> str:
        expiry = str(int(self._clock()) + self.seconds)
        return f"{expiry}.{self._sign(expiry)}"

    def is_valid(self, value: str) -> bool:
        expiry, _, signature = value.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(expiry).encode()):
            return False
        return int(expiry) > self._clock()

    def _sign(self, expiry: str) -> str:
        return hmac.new(self._key, expiry.encode(), hashlib.sha256).hexdigest()
