"""A viewer of the live socket, which records when each step of some runs was announced."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

from websockets.asyncio.client import connect


class Viewer:
    """Viewer of some runs, until it is cancelled."""

    def __init__(self, url: str, token: str, runs: Sequence[str]) -> None:
        """Prepare to view ``runs`` of the server at ``url``."""
        self._url = url.replace("http", "ws", 1) + f"/api/v1/live?runs={','.join(runs)}"
        self._headers = {"Authorization": f"Bearer {token}"}
        self.seen_at: dict[str, list[float]] = {run: [] for run in runs}
        """Unix time at which each step was announced, in the order of the steps, keyed by run."""
        self.resyncs = 0
        """Number of times that the server dropped live messages because this viewer was too slow."""

    async def run(self) -> None:
        """Read the live socket until cancelled."""
        async with connect(self._url, additional_headers=self._headers, max_size=None, max_queue=None) as socket:
            while True:
                self._note(json.loads(await socket.recv()))

    def _note(self, message: dict[str, object]) -> None:
        self.resyncs += message["type"] == "resync"
        if message["type"] == "advance":
            seen = self.seen_at[str(message["run_id"])]
            now, last = time.time(), int(str(message["step_to"]))
            seen.extend([now] * (last + 1 - len(seen)))


async def watching(viewer: Viewer, stop: asyncio.Event) -> None:
    """Run ``viewer`` until ``stop`` is set. Raises the error of the socket if it fails before."""
    task, stopping = asyncio.create_task(viewer.run()), asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    stopping.cancel()
    if task in done:
        await task
