"""The server as all feeds of a follower see it: connections, the wait for a server that is away, and what is said."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from client_sdk.protocol import Alert, Hello
from server.errors import ConfigurationError, LinkError
from server.following.address import Address
from server.following.connection import WriterConnection

OPENING = 8  # connections that are opened at the same time
DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds between two tries, the last one for all further ones
REFUSED_DELAY = 60.0  # seconds until a server that refused the follower is asked again
TAKEN_DELAY = 5.0  # seconds
REFUSALS = frozenset({"unauthenticated", "forbidden"})


class ServerLink:
    """Opens connections, and says once that the server is away and once that it is back."""

    def __init__(self, address: Address, note: Callable[[str], None], on_alert: Callable[[str, Alert], None]) -> None:
        """``on_alert`` receives the name of the run and the alert."""
        self.address = address
        self._note = note
        self._on_alert = on_alert
        self._opening = asyncio.Semaphore(OPENING)
        self._has_answered = False
        self._said: str | None = None
        """Code of the error that was told about a server that is away; None while it answers."""

    async def open(self, hello: Hello) -> WriterConnection:
        """Connect a writer. Raises `LinkError`, or `ConfigurationError` if the first answer is a refusal."""
        name = hello.name or ""
        async with self._opening:
            try:
                connection = await WriterConnection.open(self.address, hello, lambda alert: self._on_alert(name, alert))
            except LinkError as error:
                if error.code in REFUSALS and not self._has_answered:
                    raise ConfigurationError(str(error)) from error
                raise
        self._has_answered = True
        if self._said is not None:
            self._said = None
            self._note(f"{self.address.url} answers again")
        return connection

    async def wait_after(self, error: LinkError, tries: int) -> None:
        """Report an error of a connection, and wait until the next try is due. ``tries`` counts those that failed."""
        if error.code not in ("closed", "going_away") or tries > 1:
            text = f"{error}; the logs are read on when the server takes what they hold"
            if error.code == "unreachable":
                text = f"{error}; start it with `spikewatch up`, or correct --url. The logs are read on when it answers"
            if self._said != error.code:
                self._said = error.code
                self._note(text)
        if error.code == "writer_taken":
            delay = TAKEN_DELAY
        elif error.code in REFUSALS:
            delay = REFUSED_DELAY
        else:
            delay = DELAYS[min(tries, len(DELAYS)) - 1] * random.uniform(0.5, 1.0)
        await asyncio.sleep(delay)
