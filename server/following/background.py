"""A follower in a thread of its own, beside the server that it sends to."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

from server.errors import ServerError
from server.following.log_follower import LogFollower

STOP_TIMEOUT = 10.0  # seconds


class BackgroundFollower:
    """Runs a follower until it is stopped. An error ends the follower alone, and is told."""

    def __init__(self, follower: LogFollower, tell: Callable[[str], None]) -> None:
        self._follower = follower
        self._tell = tell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the follower, and wait for it."""
        if not self._started.wait(STOP_TIMEOUT) or self._loop is None or self._task is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(STOP_TIMEOUT)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except ServerError as error:
            self._tell(str(error))

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._follower.run())
        self._started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
