"""Fuzzing of a server: an attack, and a comparison of the server's resources and service before and after it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from campaigns.fuzz.attack import Tally, attack
from campaigns.fuzz.client import Socket
from campaigns.fuzz.mutations import hello
from client_sdk.protocol import Ack, Batch, Welcome, encode
from tests.support.embedded import Embedded
from tests.support.processes import resident_mib
from tests.support.writer import record

WARM_UP = 0.2  # share of the frames before the first measurement, when imports, pools and allocators have grown
GROWTH_LIMIT = 48.0  # MiB
LEFT_OPEN = 8  # descriptors that the server may have open in addition, for connections of its pool
CONNECTIONS_PER_SECOND = 1e6  # limit that the server's token needs, because nearly every frame takes a connection
SETTLE = 10.0  # seconds within which the sockets of the attack must be closed


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Resources that a process holds."""

    mib: float
    """Resident memory in MiB."""
    descriptors: int
    """Number of open file descriptors."""
    threads: int
    """Number of threads."""

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Return the current footprint of a process."""
        directory = Path(f"/proc/{pid}")
        return cls(
            mib=resident_mib(pid),
            descriptors=len(list((directory / "fd").iterdir())),
            threads=len(list((directory / "task").iterdir())),
        )


@dataclass(frozen=True, kw_only=True)
class FuzzReport:
    """Result of an attack on a server."""

    tally: Tally
    """Answers to the frames."""
    before: Footprint
    """Footprint of the server after the warm-up."""
    after: Footprint
    """Footprint of the server after the attack."""
    seconds: float
    """Duration of the attack."""
    still_serves: bool
    """Whether the server serves a valid client after the attack."""

    @property
    def is_passed(self) -> bool:
        """Whether every frame was answered correctly and the server has released what it held."""
        return (
            not self.tally.failures
            and self.still_serves
            and self.after.mib - self.before.mib < GROWTH_LIMIT
            and self.after.descriptors <= self.before.descriptors + LEFT_OPEN
        )

    def __str__(self) -> str:
        lines = [f"{self.tally.frames:,} mutated frames in {self.seconds:.0f} s"]
        lines += [f"  {outcome:<24} {count:8,d}" for outcome, count in self.tally.outcomes.most_common()]
        for name, one in (("before", self.before), ("after", self.after)):
            lines.append(f"server {name}: {one.mib:.1f} MiB, {one.descriptors} descriptors, {one.threads} threads")
        lines += [f"FAILED {failure}" for failure in self.tally.failures[:20]]
        lines.append("a valid client is served as before" if self.still_serves else "A VALID CLIENT IS NOT SERVED")
        return "\n".join(lines)


def fuzz_server(server: Embedded, *, frames: int, seed: int) -> FuzzReport:
    """Send ``frames`` mutated frames to ``server`` and return the report."""
    port, begin = int(server.url.rsplit(":", 1)[1]), time.monotonic()
    warm_up = asyncio.run(attack(port, server.token, frames=round(frames * WARM_UP), seed=-seed))
    before = _settled(server.process.pid)
    tally = asyncio.run(attack(port, server.token, frames=frames - warm_up.frames, seed=seed))
    tally.frames += warm_up.frames
    tally.outcomes += warm_up.outcomes
    tally.failures += warm_up.failures
    seconds = time.monotonic() - begin
    still_serves = asyncio.run(_is_served(port, server.token)) and _is_exported(server)
    after = _settled(server.process.pid)
    return FuzzReport(tally=tally, before=before, after=after, seconds=seconds, still_serves=still_serves)


def _settled(pid: int) -> Footprint:
    """Return the footprint of a process once the number of its descriptors has stopped falling."""
    deadline = time.monotonic() + SETTLE
    found = Footprint.of(pid)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        later = Footprint.of(pid)
        if later.descriptors >= found.descriptors:
            return later
        found = later
    return found


async def _is_served(port: int, token: str) -> bool:
    async with Socket(port, token) as socket:
        socket.send(hello("good", "good"))
        socket.send(encode(Batch(first_seq=1, records=tuple(record(step, step / 3) for step in range(100)))))
        return isinstance(await socket.answer(), Welcome) and await socket.answer() == Ack(seq=100)


def _is_exported(server: Embedded) -> bool:
    with server.api() as api:
        try:
            answer = api.get("/runs/good/series", params={"keys": "loss"}).raise_for_status().json()
        except httpx.HTTPStatusError:
            return False
    exported: list[float] = answer["series"]["loss"]["last"]
    return exported == [step / 3 for step in range(100)]
