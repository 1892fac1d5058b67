"""The training outside the containers, and the ledger that it writes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STEP_TIMEOUT = 120.0  # seconds in which a step that is waited for must come
LOOK_EVERY = 0.1  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What stood after one call of `log`."""

    step: int
    loss: float
    logged: int
    acknowledged: int


class Training:
    """Started at construction; `end` when done."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._ledger = directory / "ledger"
        self._log = directory / "trainer.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "campaigns.compose.trainer", str(self._ledger)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def entries(self) -> list[Entry]:
        return [
            Entry(step=int(step), loss=float.fromhex(loss), logged=int(logged), acknowledged=int(acknowledged))
            for step, loss, logged, acknowledged in (line.split() for line in self._lines() if line[0] != "e")
        ]

    def dropped(self) -> int:
        """What the SDK says that it lost. Raises `RuntimeError` for a training that did not come to its end."""
        last = self._lines()[-1].split()
        if last[0] != "end":
            raise RuntimeError(f"the training did not end in order:\n{self._log.read_text()[-3000:]}")
        return int(last[1])

    def wait_for_step(self, step: int) -> None:
        """Raises `TimeoutError`, and `RuntimeError` when the training ends before."""
        deadline = time.monotonic() + STEP_TIMEOUT
        while time.monotonic() < deadline:
            entries = self.entries()
            if entries and entries[-1].step >= step:
                return
            if self._process.poll() is not None:
                raise RuntimeError(f"the training ended before step {step}:\n{self._log.read_text()[-3000:]}")
            time.sleep(LOOK_EVERY)  # a file is all that two processes share
        raise TimeoutError(f"step {step} did not come in {STEP_TIMEOUT:g} s:\n{self._log.read_text()[-3000:]}")

    def wait(self, timeout: float) -> None:
        """Until it has ended by itself. Raises `subprocess.TimeoutExpired`."""
        self._process.wait(timeout)

    def end(self) -> None:
        """Nothing is left running when a test fails."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _lines(self) -> list[str]:
        if not self._ledger.exists():
            return []
        text = self._ledger.read_text(encoding="ascii")
        return text[: text.rfind("\n") + 1].splitlines()
