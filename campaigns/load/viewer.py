"""Somebody who looks: the live socket, and when each step of some runs came out of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

from websockets.asyncio.client import connect


class Viewer:
    """Watches runs until it is cancelled."""

    def __init__(self, url: str, token: str, runs: Sequence[str]) -> None:
        self._url = url.replace("http", "ws", 1) + f"/api/v1/live?runs={','.join(runs)}"
        self._headers = {"Authorization": f"Bearer {token}"}
        self.seen_at: dict[str, list[float]] = {run: [] for run in runs}
        """Unix times, by step."""
        self.resyncs = 0
        """Times that the server dropped messages because this viewer was too slow."""

    async def run(self) -> None:
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
    """Until ``stop``. Raises what breaks the socket before."""
    task, stopping = asyncio.create_task(viewer.run()), asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    stopping.cancel()
    if task in done:
        await task
