"""Targets of a load test: the embedded server, servers on a local Postgres and Redis, or the stack of Compose."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

from benchmarks.ingest import free_port, serving
from campaigns.compose.engine import engine
from campaigns.compose.stack import running_stack
from server.storage.database import Database
from tests.support.embedded import COMMAND, embedded
from tests.support.postgres import Postgres
from tests.support.redis import Redis

TOKEN = "sw_load_" + "x" * 32
BACKLOG = "SELECT count(*), coalesce(sum(last_seq - first_seq + 1), 0) FROM segments"


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Segments and steps that are stored but not yet in tiles."""

    segments: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Target:
    """A running target of a load test."""

    urls: list[str]
    """URLs of its servers."""
    token: str
    """Token with the scope admin."""
    pids: Mapping[str, int]
    """Id of the first process of each service, whose descendants belong to the service."""
    backlog: Callable[[], Awaitable[Backlog]]
    """Function that reads the backlog of the compaction."""

    def memory(self) -> dict[str, float]:
        """Return the memory of each service in MiB; shared memory is divided between the processes that share it."""
        return {name: sum(_pss(one) for one in _tree(pid)) / 2**20 for name, pid in self.pids.items()}

    def core_seconds(self) -> dict[str, float]:
        """Return the processor time of each service so far in seconds, without its processes that have ended."""
        return {name: sum(_cpu(one) for one in _tree(pid)) for name, pid in self.pids.items()}


@contextlib.contextmanager
def embedded_target(directory: Path) -> Iterator[Target]:
    """Run `spikewatch up` on SQLite."""
    file = directory / "data" / "spikewatch.sqlite3"

    def backlog() -> Backlog:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return _backlog(connection.execute(BACKLOG).fetchone())

    with embedded(directory) as server:
        yield Target(
            urls=[server.url],
            token=server.token,
            pids={"spikewatch up": server.process.pid},
            backlog=lambda: asyncio.to_thread(backlog),
        )


@contextlib.contextmanager
def local_target(directory: Path, servers: int) -> Iterator[Target]:
    """Run servers on a Postgres and a Redis of this test, without a proxy in front."""
    with contextlib.ExitStack() as stack:
        postgres, redis = Postgres(), Redis()
        stack.callback(postgres.stop)
        stack.callback(redis.stop)
        url = postgres.create_database()
        environment = {
            "SPIKEWATCH_HOME": str(directory),
            "SPIKEWATCH_ADMIN_TOKEN": TOKEN,
            "SPIKEWATCH_DATABASE_URL": url,
            "SPIKEWATCH_REDIS_URL": redis.url,
        }
        subprocess.run([*COMMAND, "migrate"], env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
        pids, urls = {"postgres": postgres.pid, "redis": redis.pid}, []
        for number in range(servers):
            urls.append(f"http://127.0.0.1:{free_port()}")
            port = {"SPIKEWATCH_PORT": urls[-1].rpartition(":")[2]}
            pids[f"server {number + 1}"] = stack.enter_context(
                serving([*COMMAND, "serve"], environment | port, f"{urls[-1]}/readyz")
            )
        database = Database(url)

        async def backlog() -> Backlog:
            async with database.read() as connection:
                return _backlog((await connection.execute(text(BACKLOG))).one())

        yield Target(urls=urls, token=TOKEN, pids=pids, backlog=backlog)


@contextlib.contextmanager
def compose_target(servers: int) -> Iterator[Target]:
    """Run the stack of docker-compose.yml, which has one address."""
    with engine() as environment, running_stack(environment, servers=servers) as stack:

        def backlog() -> Backlog:
            query = ["psql", "--username=spikewatch", "--tuples-only", "--no-align", f"--command={BACKLOG}"]
            return _backlog(stack.compose("exec", "-T", "postgres", *query).strip().split("|"))

        login_url = stack.compose("exec", "-T", "server", "spikewatch", "login-url").strip()
        yield Target(
            urls=[stack.url],
            token=login_url.partition("token=")[2],
            pids=stack.pids(),
            backlog=lambda: asyncio.to_thread(backlog),
        )


def _backlog(row: Sequence[Any]) -> Backlog:
    return Backlog(segments=int(row[0]), steps=int(row[1]))


def _tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _pss(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
