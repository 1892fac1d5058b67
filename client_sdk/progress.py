"""How much is left to send, on the terminal, while `finish` waits for it.

Owns what is printed and when: a bar that is drawn over on a terminal, a few lines elsewhere, nothing when it is quick.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final, TextIO

PATIENCE: Final = 1.0  # seconds before anything is said
REDRAW: Final = 0.2  # seconds between pictures of the bar
REPEAT: Final = 10.0  # seconds between lines where there is no terminal
WIDTH: Final = 24  # characters of the bar
KIBIBYTE: Final = 1024
MEBIBYTE: Final = 1024 * 1024


class Progress:
    """Of sending ``total`` bytes. Never raises."""

    def __init__(self, stream: TextIO | None, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``stream`` None: there is nowhere to write to, as in a program without a console."""
        self._stream = stream
        self._total = total
        self._clock = clock
        self._began = clock()
        self._due = self._began + PATIENCE
        self._is_terminal = False
        with contextlib.suppress(Exception):
            self._is_terminal = stream is not None and stream.isatty()
        self._has_written = False

    def show(self, left: int, *, connected: bool) -> None:
        """Say that ``left`` bytes are left, and whether there is a server that takes them, if it is time to."""
        now = self._clock()
        if self._stream is None or now < self._due or not self._total:
            return
        self._due = now + (REDRAW if self._is_terminal else REPEAT)
        share = min(1.0, max(0.0, 1.0 - left / self._total))
        unit, name = (MEBIBYTE, "MiB") if self._total >= MEBIBYTE else (KIBIBYTE, "KiB")
        doing = "sending what is left" if connected else "waiting for a server"
        sent = f"{(self._total - left) / unit:.1f} of {self._total / unit:.1f} {name}"
        text = f"spikewatch: {doing}, {sent}, {share:4.0%}"
        if self._is_terminal:
            full = round(share * WIDTH)
            self._write(f"\r{text} [{'█' * full}{'·' * (WIDTH - full)}]")
        else:
            self._write(f"{text}\n")

    def close(self) -> None:
        """Leave the terminal with the cursor at the beginning of a line."""
        if self._has_written and self._is_terminal and self._stream is not None:
            self._write("\n")

    def _write(self, text: str) -> None:
        assert self._stream is not None
        try:
            self._stream.write(text)
            self._stream.flush()
        except Exception:
            self._stream = None  # closed, or of an encoding without blocks: progress is not worth a word
        else:
            self._has_written = True
