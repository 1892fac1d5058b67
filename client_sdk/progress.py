"""Progress of sending the remaining records, printed while `finish` waits.

Prints a bar that is redrawn in place on a terminal, a few lines elsewhere, and nothing if sending is quick.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final, TextIO

FIRST_DELAY: Final = 1.0  # seconds before anything is printed
REDRAW_INTERVAL: Final = 0.2  # seconds between two drawings of the bar
LINE_INTERVAL: Final = 10.0  # seconds between two lines if there is no terminal
WIDTH: Final = 24  # characters of the bar
KIBIBYTE: Final = 1024
MEBIBYTE: Final = 1024 * 1024


class Progress:
    """Progress of sending ``total`` bytes. Never raises."""

    def __init__(self, stream: TextIO | None, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Pass None as ``stream`` in a program without a console; nothing is printed then."""
        self._stream = stream
        self._total = total
        self._clock = clock
        self._began = clock()
        self._due = self._began + FIRST_DELAY
        self._is_terminal = False
        with contextlib.suppress(Exception):
            self._is_terminal = stream is not None and stream.isatty()
        self._has_written = False

    def show(self, left: int, *, connected: bool) -> None:
        """Print that ``left`` bytes are left, and whether a server accepts them, if the last output is old enough."""
        now = self._clock()
        if self._stream is None or now < self._due or not self._total:
            return
        self._due = now + (REDRAW_INTERVAL if self._is_terminal else LINE_INTERVAL)
        share = min(1.0, max(0.0, 1.0 - left / self._total))
        unit, name = (MEBIBYTE, "MiB") if self._total >= MEBIBYTE else (KIBIBYTE, "KiB")
        activity = "sending the remaining records" if connected else "waiting for a server"
        sent = f"{(self._total - left) / unit:.1f} of {self._total / unit:.1f} {name}"
        text = f"spikewatch: {activity}, {sent}, {share:4.0%}"
        if self._is_terminal:
            full = round(share * WIDTH)
            self._write(f"\r{text} [{'█' * full}{'·' * (WIDTH - full)}]")
        else:
            self._write(f"{text}\n")

    def close(self) -> None:
        """Move the cursor of a terminal to the beginning of a new line."""
        if self._has_written and self._is_terminal and self._stream is not None:
            self._write("\n")

    def _write(self, text: str) -> None:
        assert self._stream is not None
        try:
            self._stream.write(text)
            self._stream.flush()
        except Exception:
            self._stream = None  # closed, or without block characters in its encoding; not worth a warning
        else:
            self._has_written = True
