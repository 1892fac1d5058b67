"""A dispatcher in its own process, to be killed: `python -m tests.support.dispatcher_process DATABASE_URL API_URL`."""

from __future__ import annotations

import asyncio
import sys
import time

from server.notifications.dispatcher import Dispatcher
from server.storage.database import Database
from server.storage.outbox import OutboxStore
from tests.support.alerting import messenger


async def render_picture(run_id: str, step: int, predicted: tuple[int, int, int] | None) -> None:
    """Draw no picture."""
    del run_id, step, predicted


async def main(database_url: str, api_url: str) -> None:
    dispatcher = Dispatcher(
        OutboxStore(Database(database_url)), messenger(api_url), render_picture, time.time, poll=0.05
    )
    dispatcher.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
