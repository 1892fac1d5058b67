"""The training under test: its incarnations, one after the other, and the ledger of the records that they logged."""

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

STEP_TIMEOUT = 60.0  # seconds within which a live training must make progress
END_TIMEOUT = 90.0  # seconds
UNLIMITED = resource.RLIM_INFINITY


class Training:
    """A training that can be killed and restarted, and the ledger of its records."""

    def __init__(self, run_id: str, environment: Mapping[str, str], rate: float, clock: Path, log: Path) -> None:
        """Prepare a training of ``rate`` steps a second; the standard error of its trainers is appended to ``log``."""
        self.run_id = run_id
        self.entries: list[Entry] = []
        """Logged records in their order."""
        self.starts: list[int] = []
        """First step of each incarnation."""
        self.dropped: int | None = None
        """Number of records that the SDK counted as lost, known after `finish`."""
        self.logged = 0
        """Number of records that the current incarnation has logged."""
        self.acknowledged = 0
        """Number of records of the current incarnation that are acknowledged."""
        self._environment = dict(environment)
        self._rate = rate
        self._clock = clock
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def pid(self) -> int:
        """Process id of the current trainer."""
        assert self._process is not None
        return self._process.pid

    @property
    def next_step(self) -> int:
        """Step after the last logged one."""
        return self.entries[-1].step + 1 if self.entries else 0

    def start(self, first_step: int) -> None:
        """Start the next incarnation at ``first_step``."""
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
        """Send SIGKILL and return when all lines of the ledger have been read."""
        assert self._process is not None
        self._process.kill()
        self._await_end()

    def finish(self) -> None:
        """Ask the trainer to call `finish`, and wait for its end."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._await_end()

    def end(self) -> None:
        """Kill the trainer if it still runs, so that a failed campaign leaves no process behind."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def limit_files(self, size: int) -> None:
        """Limit the files of the trainer to ``size`` bytes, which has the effect of a full disk."""
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))

    def wait_for_entries(self, count: int) -> None:
        """Wait until ``count`` records are logged. Raises `TimeoutError` if the training makes no progress."""
        self._wait(lambda: len(self.entries) >= count, f"{count} steps; there are {len(self.entries)}")

    def wait_for_acknowledgement(self) -> None:
        """Wait until all records logged so far are acknowledged. Raises `TimeoutError` if that takes too long."""
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
                    return  # a killed process may leave a partial line in the pipe
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
        """Run `python -m client_sdk sync`, as a user would after a crash, and return whether nothing is left."""
        deadline = time.monotonic() + END_TIMEOUT
        while time.monotonic() < deadline:
            command = [sys.executable, "-m", "client_sdk", "sync", str(directory), "--url", url]
            with self._log.open("ab") as log:
                done = subprocess.run(command, env=self._environment, stdout=log, stderr=log, check=False, timeout=120)
            if done.returncode == 0:
                return True
            time.sleep(1.0)
        return False
