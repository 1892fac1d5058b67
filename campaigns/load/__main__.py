"""``python -m campaigns.load``: load a server with many runs at once, and measure what that takes.

Synthetic writers send over real websockets, each a run of its own: by default 200 runs × 1 step/s × 100 layers × 12
statistics for a minute. The target is `spikewatch up` on SQLite, servers on a Postgres and a Redis of this test
(``--target local``), or the stack of docker-compose.yml (``--target compose``). Everything is on this machine,
including the writers. The exit code is 1 if a step is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import numpy as np
import psutil

from campaigns.load.plan import Report, WriterPlan, run_id
from campaigns.load.targets import Backlog, Target, compose_target, embedded_target, local_target
from campaigns.load.viewer import Viewer, watching

PROCESSES = 2  # processes of writers
WATCHED = 10  # runs whose live messages are followed
LEAD_TIME = 5.0  # seconds for the writers to start, in addition to a fiftieth of a second for each run
SAMPLE_EVERY = 5.0  # seconds
DRAIN_TIMEOUT = 120.0  # seconds for the compaction to catch up after the end
REPORT_TIMEOUT = 120.0  # seconds after the last step
READERS = 4  # concurrent requests while the steps are counted


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Resources of the target at one moment."""

    at: float
    """Seconds since the first step."""
    memory: dict[str, float]
    """Memory of each service in MiB."""
    backlog: Backlog
    """Work that the compaction has not done yet."""


@dataclass(kw_only=True)
class Outcome:
    """Measurements of one load test."""

    reports: list[Report]
    """Reports of the processes of writers."""
    seen: list[float]
    """Seconds from the logging of each step of a watched run until the live socket announced it."""
    resyncs: int
    """Number of times that the live viewer was too slow."""
    samples: list[Sample]
    """Samples of the target's resources."""
    core_seconds: dict[str, float]
    """Processor time of each service in seconds."""
    drained_after: float | None
    """Seconds from the last acknowledgement until every step was in a tile, or None if that took too long."""
    stored: dict[str, int] = field(default_factory=dict)
    """Number of steps that the API returns for each run."""


def main() -> int:
    """Run the load test that the command line describes and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.load", description=__doc__)
    parser.add_argument("--target", choices=["embedded", "local", "compose"], default="embedded")
    parser.add_argument("--servers", type=int, default=2, help="servers of the targets local and compose")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1.0, help="steps a second of each run")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--statistics", type=int, default=12)
    options = parser.parse_args()
    with _target(options) as target:
        outcome = asyncio.run(_load(target, options))
    return _report(outcome, options)


@contextlib.contextmanager
def _target(options: argparse.Namespace) -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="spikewatch-load-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        match options.target:
            case "embedded":
                with embedded_target(directory) as target:
                    yield target
            case "local":
                with local_target(directory, options.servers) as target:
                    yield target
            case _:
                with compose_target(options.servers) as target:
                    yield target


async def _load(target: Target, options: argparse.Namespace) -> Outcome:
    start_at = time.time() + LEAD_TIME + options.runs / 50
    bounds = np.linspace(0, options.runs, PROCESSES + 1).astype(int).tolist()
    plans = [
        WriterPlan(
            urls=target.urls,
            token=target.token,
            first=first,
            count=after - first,
            layers=options.layers,
            statistics=options.statistics,
            rate=options.rate,
            steps=round(options.seconds * options.rate),
            start_at=start_at,
        )
        for first, after in itertools.pairwise(bounds)
    ]
    watched = range(0, options.runs, max(1, options.runs // WATCHED))
    viewer = Viewer(target.urls[-1], target.token, [run_id(number) for number in watched])
    stop = asyncio.Event()
    samples: list[Sample] = []
    before = target.core_seconds()
    async with asyncio.TaskGroup() as background:
        background.create_task(watching(viewer, stop))
        background.create_task(_sample(target, start_at, samples, stop))
        try:
            deadline = start_at - time.time() + options.seconds + REPORT_TIMEOUT
            reports = await asyncio.gather(*(_write(plan, deadline) for plan in plans))
        finally:
            stop.set()
    after = target.core_seconds()
    drained_after = await _drained(target)
    samples.append(await _take(target, start_at))
    return Outcome(
        reports=reports,
        seen=[
            at - plans[0].due(number, step)
            for number in watched
            for step, at in enumerate(viewer.seen_at[run_id(number)])
        ],
        resyncs=viewer.resyncs,
        samples=samples,
        core_seconds={name: after[name] - before[name] for name in after},
        drained_after=drained_after,
        stored=await _count(target, options.runs),
    )


async def _write(plan: WriterPlan, timeout: float) -> Report:  # noqa: ASYNC109 - the timeout of another process
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "campaigns.load.writers", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(timeout):
            report, _ = await process.communicate(msgspec.json.encode(plan))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return msgspec.json.decode(report, type=Report)


async def _sample(target: Target, start_at: float, samples: list[Sample], stop: asyncio.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), SAMPLE_EVERY)
        samples.append(await _take(target, start_at))


async def _take(target: Target, start_at: float) -> Sample:
    memory = await asyncio.to_thread(target.memory)
    return Sample(at=time.time() - start_at, memory=memory, backlog=await target.backlog())


async def _drained(target: Target) -> float | None:
    """Wait for the compaction and return the seconds that it took, or None if it took too long."""
    begin = time.monotonic()
    while time.monotonic() - begin < DRAIN_TIMEOUT:
        if (await target.backlog()).segments == 0:
            return time.monotonic() - begin
        await asyncio.sleep(1.0)
    return None


async def _count(target: Target, runs: int) -> dict[str, int]:
    """Return the number of steps that the API returns for each run, each counted once."""
    headers = {"Authorization": f"Bearer {target.token}"}
    gate = asyncio.Semaphore(READERS)
    async with httpx.AsyncClient(
        base_url=f"{target.urls[0]}/api/v1", headers=headers, timeout=60, trust_env=False
    ) as api:

        async def steps(run: str) -> int:
            async with gate:
                answer = await api.get(f"/runs/{run}/series", params={"keys": "loss", "points": 10_000})
            if answer.status_code != httpx.codes.OK:
                return 0
            series = answer.json()["series"].get("loss", {"step": [], "last": []})
            # The loss of a step identifies it, so a wrong value counts as a missing step.
            return sum(last == 1.0 + step for step, last in zip(series["step"], series["last"], strict=True))

        names = [run_id(number) for number in range(runs)]
        return dict(zip(names, await asyncio.gather(*map(steps, names)), strict=True))


def _report(outcome: Outcome, options: argparse.Namespace) -> int:
    steps = round(options.seconds * options.rate)
    values = options.layers * options.statistics + 1
    commit = np.array([one for report in outcome.reports for one in report.commit])
    late = np.array([one for report in outcome.reports for one in report.late])
    seen = np.array(outcome.seen)
    errors = [error for report in outcome.reports for error in report.errors]
    missing = {run: steps - count for run, count in outcome.stored.items() if count != steps}
    servers = "" if options.target == "embedded" else f", {options.servers} servers"
    machine = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    print(
        f"load on {options.target}{servers}: {options.runs} runs × {options.rate:g} steps/s × {options.layers} layers "
        f"× {options.statistics} statistics for {options.seconds:g} s, everything on one machine of {machine}"
    )
    if commit.size:
        rate = commit.size / (options.seconds + commit.max())
        print(f"{'throughput':<26}{rate:,.0f} steps/s, {rate * values / 1e6:.2f} million values/s")
    for name, seconds in (("sent", late), ("commit", commit), ("end to end (live socket)", seen)):
        if seconds.size:
            p50, p95, p99, longest = 1000 * np.quantile(seconds, [0.5, 0.95, 0.99, 1.0])
            print(f"{name:<26}p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, max {longest:.0f} ms")
    for name, spent in sorted(outcome.core_seconds.items()):
        peak = max(sample.memory[name] for sample in outcome.samples)
        each = 1000 * spent / max(1, commit.size)
        print(f"{name:<26}{spent:.0f} s of processor time, {each:.2f} ms per step; memory at most {peak:.0f} MiB")
    print(
        f"{'not compacted after':<26}" + "  ".join(f"{s.at:.0f} s: {s.backlog.steps:,}" for s in outcome.samples[::2])
    )
    drained = "not in time" if outcome.drained_after is None else f"{outcome.drained_after:.0f} s after the last step"
    print(f"{'all compacted':<26}{drained}; the live viewer was {outcome.resyncs} times too slow")
    print(f"{'connections lost':<26}{sum(report.reconnects for report in outcome.reports)}, each reopened")
    print(f"{'steps sent / stored':<26}{options.runs * steps:,} / {sum(outcome.stored.values()):,}")
    for error in errors[:5]:
        print(f"  {error}")
    for run, count in list(missing.items())[:5]:
        print(f"  {run}: {count} missing")
    is_kept = not missing and not errors and len(outcome.stored) == options.runs
    print("nothing lost" if is_kept else f"BROKEN: {len(missing)} runs lack steps, {len(errors)} writers failed")
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
