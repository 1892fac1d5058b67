"""The training under test: its incarnations, one after the other, and the ledger of what they logged."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from campaigns.chaos.ledger import Entry, parse

STEP_TIMEOUT = 60.0  # seconds in which a training that is alive must have gone on
END_TIMEOUT = 90.0  # seconds
UNLIMITED = resource.RLIM_INFINITY


class Training:
    def __init__(self, run_id: str, environment: Mapping[str, str], rate: float, clock: Path, log: Path) -> None:
        """``rate``: steps a second. ``log``: where the standard error of the trainers goes."""
        self.run_id = run_id
        self.entries: list[Entry] = []
        """Everything that was logged, in that order."""
        self.starts: list[int] = []
        """First step of each incarnation."""
        self.dropped: int | None = None
        """What the SDK counted as lost, said at the end."""
        self.logged = 0
        self.acknowledged = 0
        self._environment = dict(environment)
        self._rate = rate
        self._clock = clock
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def next_step(self) -> int:
        return self.entries[-1].step + 1 if self.entries else 0

    def start(self, first_step: int) -> None:
        number = str(len(self.starts))
        self.starts.append(first_step)
        self.logged = self.acknowledged = 0
        command = [
            sys.executable,
            "-m",
            "campaigns.chaos.trainer",
            self.run_id,
            number,
            str(first_step),
            str(self._rate),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(self._clock)],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="ledger")
        self._reader.start()

    def kill(self) -> None:
        """SIGKILL; returns when everything that it wrote down is read."""
        assert self._process is not None
        self._process.kill()
        self._await_end()

    def finish(self) -> None:
        """Let it end by itself, with `finish`."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._await_end()

    def end(self) -> None:
        """SIGKILL if it still runs: nothing is left behind when a campaign fails."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def limit_files(self, size: int) -> None:
        """No file of the trainer may grow beyond ``size`` bytes: to it the disk is full."""
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))

    def wait_for_entries(self, count: int) -> None:
        """Raises `TimeoutError` when the training does not go on."""
        self._wait(lambda: len(self.entries) >= count, f"{count} steps; there are {len(self.entries)}")

    def wait_for_acknowledgement(self) -> None:
        """Until everything logged so far is acknowledged. Raises `TimeoutError`."""
        logged = self.logged
        self._wait(lambda: self.acknowledged >= logged, f"the acknowledgement of record {logged}")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, STEP_TIMEOUT):
                raise TimeoutError(f"waited {STEP_TIMEOUT:g} s for {what}; see {self._log}")

    def _await_end(self) -> None:
        assert self._process is not None
        assert self._reader is not None
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._reader.join(10)
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for text in lines:
                if not text.endswith(b"\n"):
                    return  # the write of a killed process that did not fit the pipe
                with self._changed:
                    self._note(text)
                    self._changed.notify_all()

    def _note(self, text: bytes) -> None:
        match text.split():
            case [b"s", logged, acknowledged]:
                self.logged, self.acknowledged = int(logged), int(acknowledged)
            case [b"end", dropped]:
                self.dropped = int(dropped)
            case _:
                self.entries.append(parse(text))

    def deliver_the_rest(self, directory: Path, url: str) -> bool:
        """`python -m client_sdk sync`, as a user would after a crash. False when something is left."""
        deadline = time.monotonic() + END_TIMEOUT
        while time.monotonic() < deadline:
            command = [sys.executable, "-m", "client_sdk", "sync", str(directory), "--url", url]
            with self._log.open("ab") as log:
                done = subprocess.run(command, env=self._environment, stdout=log, stderr=log, check=False, timeout=120)
            if done.returncode == 0:
                return True
            time.sleep(1.0)
        return False
