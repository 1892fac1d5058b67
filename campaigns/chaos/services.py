"""The server under test: a process that is killed and comes back, as under systemd or Docker."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

UP_TIMEOUT = 90.0  # seconds
STOP_TIMEOUT = 30.0  # seconds
RESTART_DELAY = 0.3  # seconds, after an end that nobody asked for


class Supervised:
    """A program that prints a line with its URL once it serves. Started again whenever it ends, until `stop`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """``log``: where its standard error goes."""
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._up = threading.Event()
        self._stopping = False
        self._delay = RESTART_DELAY
        self._keeper = threading.Thread(target=self._keep, name="supervisor")
        self.starts = 0

    def start(self) -> None:
        self._keeper.start()
        self.wait_up()

    def wait_up(self) -> None:
        """Raises `TimeoutError` when it does not come up."""
        if not self._up.wait(UP_TIMEOUT):
            raise TimeoutError(f"{self._command} does not come up; see {self._log}")

    def kill(self, delay: float) -> None:
        """SIGKILL, once it is up; it is started again after ``delay`` seconds."""
        self.wait_up()
        assert self._process is not None
        self._up.clear()
        self._delay = delay
        self._process.kill()

    def pause(self) -> None:
        """SIGSTOP, once it is up: it answers nothing, and forgets nothing."""
        self.wait_up()
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, and no new start."""
        self._stopping = True
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
            while not self._stopping:
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
                time.sleep(delay)
