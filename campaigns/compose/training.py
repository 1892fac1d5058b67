"""The training outside the containers, and the ledger that it writes into a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STEP_TIMEOUT = 120.0  # seconds within which an awaited step must be logged


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """State after one call of `log`."""

    step: int
    """Step that was logged."""
    loss: float
    """Loss that was logged."""
    logged: int
    """Number of records logged so far."""
    acknowledged: int
    """Number of records acknowledged so far."""


class Training:
    """A training that starts at construction; call `end` when done."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        """Start the training, with its output in ``directory``/trainer.log."""
        self._log = directory / "trainer.log"
        self._entries: list[Entry] = []
        self._dropped: int | None = None
        self._has_ended = False
        self._changed = threading.Condition()
        reading, writing = os.pipe()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "campaigns.compose.trainer", str(writing)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
            )
        os.close(writing)
        self._reader = threading.Thread(target=self._read, args=(reading,), name="ledger")
        self._reader.start()

    def entries(self) -> list[Entry]:
        """Return the entries of the ledger so far."""
        with self._changed:
            return list(self._entries)

    def dropped(self) -> int:
        """Return the number of records that the SDK lost. Raises `RuntimeError` if the training did not finish."""
        self._reader.join()
        if self._dropped is None:
            raise RuntimeError(f"the training did not finish:\n{self._log.read_text()[-3000:]}")
        return self._dropped

    def wait_for_step(self, step: int) -> None:
        """Wait until ``step`` is logged.

        Raises `TimeoutError` if that takes too long, and `RuntimeError` if the training ends before.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended or self._has_logged(step), STEP_TIMEOUT)
            if self._has_logged(step):
                return
            error = RuntimeError if self._has_ended else TimeoutError
        raise error(f"the training did not reach step {step}:\n{self._log.read_text()[-3000:]}")

    def wait(self, timeout: float) -> None:
        """Wait until the training has ended by itself. Raises `subprocess.TimeoutExpired` if that takes too long."""
        self._process.wait(timeout)
        self._reader.join()

    def end(self) -> None:
        """Kill the training if it still runs, so that a failed campaign leaves no process behind."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _has_logged(self, step: int) -> bool:
        return bool(self._entries) and self._entries[-1].step >= step

    def _read(self, ledger: int) -> None:
        with open(ledger, encoding="ascii") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break  # a killed process may leave a partial line in the pipe
                with self._changed:
                    self._note(line.split())
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _note(self, words: list[str]) -> None:
        match words:
            case ["end", dropped]:
                self._dropped = int(dropped)
            case [step, loss, logged, acknowledged]:
                self._entries.append(
                    Entry(step=int(step), loss=float.fromhex(loss), logged=int(logged), acknowledged=int(acknowledged))
                )
