"""An attack with a look at the server before and after: what it holds, and whether it still serves."""

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

WARM_UP = 0.2  # share of the frames after which "before" is: imports, pools and allocators have grown by then
GROWTH_LIMIT = 48.0  # MiB
LEFT_OPEN = 8  # descriptors that may be open more than before: connections of the pool
OFTEN = 1e6  # connections a second that the token must be allowed: nearly every frame is one
SETTLE = 10.0  # seconds in which the sockets of the attack must be gone


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a process holds."""

    mib: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        there = Path(f"/proc/{pid}")
        return cls(
            mib=resident_mib(pid),
            descriptors=len(list((there / "fd").iterdir())),
            threads=len(list((there / "task").iterdir())),
        )


@dataclass(frozen=True, kw_only=True)
class Siege:
    tally: Tally
    before: Footprint
    after: Footprint
    seconds: float
    still_serves: bool

    @property
    def is_withstood(self) -> bool:
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
        lines.append("a good client is served as before" if self.still_serves else "A GOOD CLIENT IS NOT SERVED")
        return "\n".join(lines)


def besiege(server: Embedded, *, frames: int, seed: int) -> Siege:
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
    return Siege(tally=tally, before=before, after=after, seconds=seconds, still_serves=still_serves)


def _settled(pid: int) -> Footprint:
    """Once its descriptors no longer become fewer."""
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
