"""Flooding of a server: a training with one token, a flood with another, and the server's resources meanwhile."""

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

from campaigns.fuzz.fuzz_server import Footprint
from tests.support.embedded import Embedded

LINE_TIMEOUT = 300.0  # seconds to try all connections, and for any other line that a process prints
SAMPLE_EVERY = 0.2  # seconds
SETTLE = 90.0  # seconds within which the server must release what it held
LEFT_OPEN = 16  # descriptors that the server may have open in addition, for connections of its pool
KEPT = 256.0  # MiB that the allocator keeps, which a second flood reuses, and for 1,500 runs registered by their hellos


@dataclass(frozen=True, kw_only=True)
class FloodReport:
    """Result of a flood."""

    connections: int
    """Number of connections that were tried."""
    open_at_once: int
    """Number of connections that were open once all had been tried."""
    ends: Mapping[str, int]
    """Number of connections for each kind and end."""
    before: Footprint
    """Footprint of the server before the flood."""
    peak: Footprint
    """Maximum of each resource that was sampled."""
    after: Footprint
    """Footprint of the server after the flood."""
    settled_after: float | None
    """Seconds from the end of the flood until descriptors and memory were released, or None if they were not."""
    logged: int
    """Number of steps that the training logged."""
    acknowledged: int
    """Number of steps that were acknowledged."""
    dropped: int
    """Number of steps that the SDK counted as lost."""
    longest_wait: float
    """Maximum time in seconds that a step of the training waited for its acknowledgement."""
    stored: int
    """Number of steps that are stored once, in order and with their value."""
    flood_seconds: float
    """Duration of the flood in seconds."""

    @property
    def is_passed(self) -> bool:
        """Whether every step of the training is stored and the server has released what it held."""
        return (
            self.logged == self.acknowledged == self.stored > 0 and self.dropped == 0 and self.settled_after is not None
        )

    def __str__(self) -> str:
        lines = [f"{self.connections:,} connections of one token, {self.open_at_once:,} at once"]
        lines[0] += f", for {self.flood_seconds:.0f} s"
        lines += [f"  {end:<54} {count:6,d}" for end, count in self.ends.items()]
        for name, one in (("before", self.before), ("peak", self.peak), ("after", self.after)):
            lines.append(
                f"server {name + ':':<8} {one.mib:7.1f} MiB {one.descriptors:6,d} descriptors {one.threads:3d} threads"
            )
        released = "NOT RELEASED" if self.settled_after is None else f"released after {self.settled_after:.1f} s"
        lines.append(f"descriptors and memory when the flood has ended: {released}")
        lines.append(
            f"the training with another token: {self.logged:,} steps logged, {self.acknowledged:,} acknowledged, "
            f"{self.stored:,} stored once and in order, {self.dropped} dropped; "
            f"the longest wait for an acknowledgement {self.longest_wait:.2f} s"
        )
        lines.append("passed" if self.is_passed else "BROKEN")
        return "\n".join(lines)


def flood_server(
    server: Embedded, *, connections: int, hold: float, rate: float, has_effect: Callable[[], bool] = lambda: True
) -> FloodReport:
    """Flood ``server`` with ``connections`` during a training of ``rate`` steps a second, and return the report.

    The flood stays for ``hold`` seconds after its last connection, and then until ``has_effect`` returns True.
    """
    training, flooding = _token(server, "alongside"), _token(server, "project")
    port, pid = server.url.rsplit(":", 1)[1], server.process.pid
    monitor = _Monitor(pid)
    with tempfile.TemporaryDirectory(prefix="spikewatch-flood-") as spool:
        client = {"SPIKEWATCH_URL": server.url, "SPIKEWATCH_TOKEN": training, "SPIKEWATCH_DIR": spool}
        with _started("campaigns.flood.trainer", str(rate), **client) as trainer:
            run_id = monitor.line_of(trainer)
            before = monitor.peak = Footprint.of(pid)
            began = time.monotonic()
            with _started("campaigns.flood.attackers", port, flooding, str(connections)) as attackers:
                open_at_once = json.loads(monitor.line_of(attackers))["open"]
                monitor.for_seconds(hold)
                monitor.until(has_effect)
                _end(attackers)
                ends = json.loads(monitor.line_of(attackers))
            flood_seconds = time.monotonic() - began
            settled_after = monitor.until_released(before)
            _end(trainer)
            status = json.loads(monitor.line_of(trainer))
    return FloodReport(
        connections=connections,
        open_at_once=open_at_once,
        ends=ends,
        before=before,
        peak=monitor.peak,
        after=Footprint.of(pid),
        settled_after=settled_after,
        logged=status["logged"],
        acknowledged=status["acknowledged"],
        dropped=status["dropped"],
        longest_wait=status["longest_wait"],
        stored=_stored(server, run_id),
        flood_seconds=flood_seconds,
    )


class _Monitor:
    """Sampling of the server's footprint while waiting for other processes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak = Footprint.of(pid)

    def line_of(self, process: subprocess.Popen[str]) -> str:
        """Return the next line that ``process`` prints."""
        assert process.stdout is not None
        deadline = time.monotonic() + LINE_TIMEOUT
        while not select.select([process.stdout], [], [], SAMPLE_EVERY)[0]:
            assert time.monotonic() < deadline, "nothing was printed in time"
            self.sample()
        line = process.stdout.readline()
        assert line, f"the process ended with {process.wait()}"
        return line.strip()

    def for_seconds(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, SAMPLE_EVERY))
            self.sample()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LINE_TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, "the flood had no effect in time"
            self.for_seconds(SAMPLE_EVERY)

    def until_released(self, before: Footprint) -> float | None:
        """Return the seconds until the server holds about as much as ``before``, or None if it does not in time.

        Memory is released when the server next trims its allocator.
        """
        began = time.monotonic()
        while time.monotonic() - began < SETTLE:
            now = Footprint.of(self._pid)
            if now.descriptors <= before.descriptors + LEFT_OPEN and now.mib < before.mib + KEPT:
                return time.monotonic() - began
            time.sleep(SAMPLE_EVERY)
        return None

    def sample(self) -> None:
        now, peak = Footprint.of(self._pid), self.peak
        self.peak = Footprint(
            mib=max(now.mib, peak.mib),
            descriptors=max(now.descriptors, peak.descriptors),
            threads=max(now.threads, peak.threads),
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


def _stored(server: Embedded, run_id: str) -> int:
    """Return the number of stored steps, or 0 if they are not complete, in order and with the loss of their step."""
    with server.api() as api:
        text = api.get(f"/runs/{run_id}/export", params={"format": "csv"}).raise_for_status().text
    rows = list(csv.DictReader(io.StringIO(text)))
    is_whole = all((int(row["step"]), float(row["loss"])) == (n, 1.0 + n) for n, row in enumerate(rows))
    return len(rows) if is_whole else 0
