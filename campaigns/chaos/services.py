"""The server under test: a process that is restarted whenever it ends, as under systemd or Docker."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

UP_TIMEOUT = 90.0  # seconds
STOP_TIMEOUT = 30.0  # seconds
RESTART_DELAY = 0.3  # seconds after an unexpected end


class Supervised:
    """A program that prints a line with its URL once it serves, and is restarted whenever it ends, until `stop`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Prepare to run ``command``, whose standard error is appended to ``log``."""
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._up = threading.Event()
        self._stopping = threading.Event()
        self._delay = RESTART_DELAY
        self._keeper = threading.Thread(target=self._keep, name="supervisor")
        self.starts = 0
        """Number of times that the program has been started."""

    def start(self) -> None:
        """Start the program and wait until it serves."""
        self._keeper.start()
        self.wait_up()

    def wait_up(self) -> None:
        """Wait until the program serves. Raises `TimeoutError` if it does not within `UP_TIMEOUT`."""
        if not self._up.wait(UP_TIMEOUT):
            raise TimeoutError(f"{self._command} does not serve; see {self._log}")

    def kill(self, delay: float) -> None:
        """Send SIGKILL once the program serves; it is restarted after ``delay`` seconds."""
        self.wait_up()
        assert self._process is not None
        self._up.clear()
        self._delay = delay
        self._process.kill()

    def pause(self) -> None:
        """Send SIGSTOP once the program serves, so that it hangs and keeps its state."""
        self.wait_up()
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the program after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Send SIGTERM and do not restart the program."""
        self._stopping.set()
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._keeper.ident is not None:
            self._keeper.join(STOP_TIMEOUT)

    def _keep(self) -> None:
        with self._log.open("ab") as log:
            while not self._stopping.is_set():
                self._process = subprocess.Popen(
                    self._command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True
                )
                self.starts += 1
                assert self._process.stdout is not None
                with self._process.stdout as printed:
                    for text in printed:
                        if "http://" in text:
                            self._up.set()
                self._process.wait()
                self._up.clear()
                delay, self._delay = self._delay, RESTART_DELAY
                self._stopping.wait(delay)
