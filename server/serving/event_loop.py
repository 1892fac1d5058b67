"""The event loop of a server process: uvloop where it exists (Linux and macOS), asyncio's own loop elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

try:
    import uvloop
except ImportError:  # uvicorn installs it only where it is supported
    uvloop = None  # type: ignore[assignment,unused-ignore]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop for a server."""
    return asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a new event loop until it returns."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)
