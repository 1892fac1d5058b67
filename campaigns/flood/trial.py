"""One trial: a server, a training of one token, a flood of another, and what the server holds all the while."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import httpx

from campaigns.fuzz.siege import Footprint
from tests.support.embedded import Embedded

LINE_TIMEOUT = 300.0  # seconds for all connections to be tried, and for anything else that a process is to say
LOOK_EVERY = 0.2  # seconds
SETTLE = 90.0  # seconds in which the server must be back to what it held before
LEFT_OPEN = 16  # descriptors that may be open more than before: connections of the pool
KEPT = 256.0  # MiB: what the allocator keeps, which a second flood finds there, and 1,500 runs that said hello


@dataclass(frozen=True, kw_only=True)
class Trial:
    connections: int
    open_at_once: int
    """On the side of the flood, once all had been tried."""
    ends: Mapping[str, int]
    before: Footprint
    most: Footprint
    """The highest of each that was seen."""
    after: Footprint
    settled_after: float | None
    """Seconds from the end of the flood until descriptors and memory were back; None where they were not."""
    logged: int
    acknowledged: int
    dropped: int
    longest_wait: float
    """Seconds that the oldest step of the training waited for its acknowledgement."""
    stored: int
    """Steps that are stored once, in order and with their value."""
    flood_seconds: float

    @property
    def is_withstood(self) -> bool:
        return (
            self.logged == self.acknowledged == self.stored > 0 and self.dropped == 0 and self.settled_after is not None
        )

    def __str__(self) -> str:
        lines = [f"{self.connections:,} connections of one token, {self.open_at_once:,} at once"]
        lines[0] += f", for {self.flood_seconds:.0f} s"
        lines += [f"  {end:<54} {count:6,d}" for end, count in self.ends.items()]
        for name, one in (("before", self.before), ("at most", self.most), ("after", self.after)):
            lines.append(
                f"server {name + ':':<8} {one.mib:7.1f} MiB {one.descriptors:6,d} descriptors {one.threads:3d} threads"
            )
        back = "NOT BACK" if self.settled_after is None else f"back after {self.settled_after:.1f} s"
        lines.append(f"descriptors and memory when the flood has ended: {back}")
        lines.append(
            f"the training of another token: {self.logged:,} steps logged, {self.acknowledged:,} acknowledged, "
            f"{self.stored:,} stored once and in order, {self.dropped} dropped; "
            f"the longest wait for an acknowledgement {self.longest_wait:.2f} s"
        )
        lines.append("withstood" if self.is_withstood else "BROKEN")
        return "\n".join(lines)


def attempt(
    server: Embedded, *, connections: int, hold: float, rate: float, felt: Callable[[], bool] = lambda: True
) -> Trial:
    """``hold``: seconds that the flood stays after its last connection, and then until it is ``felt``. ``rate``: steps
    a second of the training."""
    training, flooding = _token(server, "beside"), _token(server, "project")
    port, pid = server.url.rsplit(":", 1)[1], server.process.pid
    watch = _Watch(pid)
    with tempfile.TemporaryDirectory(prefix="spikewatch-flood-") as spool:
        client = {"SPIKEWATCH_URL": server.url, "SPIKEWATCH_TOKEN": training, "SPIKEWATCH_DIR": spool}
        with _started("campaigns.flood.trainer", str(rate), **client) as trainer:
            run_id = watch.line_of(trainer)
            _wait_for_first_step(server, run_id)
            before = watch.most = Footprint.of(pid)
            began = time.monotonic()
            with _started("campaigns.flood.attackers", port, flooding, str(connections)) as attackers:
                open_at_once = json.loads(watch.line_of(attackers))["open"]
                watch.for_seconds(hold)
                watch.until(felt)
                _end(attackers)
                ends = json.loads(watch.line_of(attackers))
            flood_seconds = time.monotonic() - began
            settled_after = watch.until_back(before)
            _end(trainer)
            status = json.loads(watch.line_of(trainer))
    return Trial(
        connections=connections,
        open_at_once=open_at_once,
        ends=ends,
        before=before,
        most=watch.most,
        after=Footprint.of(pid),
        settled_after=settled_after,
        logged=status["logged"],
        acknowledged=status["acknowledged"],
        dropped=status["dropped"],
        longest_wait=status["longest_wait"],
        stored=_stored(server, run_id),
        flood_seconds=flood_seconds,
    )


class _Watch:
    """Looks at the server while it waits for others."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.most = Footprint.of(pid)

    def line_of(self, process: subprocess.Popen[str]) -> str:
        """The next line that it prints."""
        assert process.stdout is not None
        deadline = time.monotonic() + LINE_TIMEOUT
        while not select.select([process.stdout], [], [], LOOK_EVERY)[0]:
            assert time.monotonic() < deadline, "nothing was printed in time"
            self.look()
        line = process.stdout.readline()
        assert line, f"the process ended with {process.wait()}"
        return line.strip()

    def for_seconds(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_EVERY))
            self.look()

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LINE_TIMEOUT
        while not happened():
            assert time.monotonic() < deadline, "it did not happen in time"
            self.for_seconds(LOOK_EVERY)

    def until_back(self, before: Footprint) -> float | None:
        """The seconds until it holds about as much as before, or None. Memory goes back when the server next trims."""
        began = time.monotonic()
        while time.monotonic() - began < SETTLE:
            now = Footprint.of(self._pid)
            if now.descriptors <= before.descriptors + LEFT_OPEN and now.mib < before.mib + KEPT:
                return time.monotonic() - began
            time.sleep(LOOK_EVERY)
        return None

    def look(self) -> None:
        now, most = Footprint.of(self._pid), self.most
        self.most = Footprint(
            mib=max(now.mib, most.mib),
            descriptors=max(now.descriptors, most.descriptors),
            threads=max(now.threads, most.threads),
        )


@contextlib.contextmanager
def _started(module: str, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None  # `communicate` would flush it


def _token(server: Embedded, project: str) -> str:
    with server.api() as api:
        made = api.post("/tokens", json={"scope": "write", "project": project, "label": project})
        token: str = made.raise_for_status().json()["token"]
        return token


def _wait_for_first_step(server: Embedded, run_id: str) -> None:
    deadline = time.monotonic() + LINE_TIMEOUT
    with server.api() as api:
        while time.monotonic() < deadline:
            answer = api.get(f"/runs/{run_id}")
            if answer.status_code == httpx.codes.OK and answer.json()["last_step"] is not None:
                return
            time.sleep(LOOK_EVERY)
    raise AssertionError("the training did not begin")


def _stored(server: Embedded, run_id: str) -> int:
    """Steps, where each is there once, in order, and has the loss that says which it is; else 0."""
    with server.api() as api:
        text = api.get(f"/runs/{run_id}/export", params={"format": "csv"}).raise_for_status().text
    rows = list(csv.DictReader(io.StringIO(text)))
    is_whole = all((int(row["step"]), float(row["loss"])) == (n, 1.0 + n) for n, row in enumerate(rows))
    return len(rows) if is_whole else 0
