"""Tries the set-ups that people train with, and prints a table of what holds.

    python -m campaigns.set_ups [--only TEXT] [--jobs N] [--page docs/reference/set-ups.md]

Each set-up is a small training in a process of its own, run bare and watched, against a real server; see `child`. The
exit code is 1 if one fails, and also if a listed gap is closed, so that the list stays honest.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path

import msgspec

from campaigns.set_ups import child
from campaigns.set_ups.catalogue import catalogue
from campaigns.set_ups.child import MARK
from campaigns.set_ups.page import page
from campaigns.set_ups.set_up import SetUp
from campaigns.set_ups.verdict import Verdict
from tests.support.server import RunningServer, running_server

TIMEOUT = 240  # seconds for one set-up
LIBRARIES = (
    "torch", "transformers", "trl", "peft", "lightning", "accelerate", "schedulefree", "prodigyopt",
    "pytorch_optimizer", "bitsandbytes", "deepspeed", "keras",
)  # fmt: skip


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.set_ups", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="set-ups whose name or section has this text")
    parser.add_argument("--jobs", type=int, default=2, help="set-ups at a time")
    parser.add_argument("--page", type=Path, help="write the table to this document")
    parser.add_argument("--details", action="store_true", help="print what the processes of failed set-ups wrote")
    options = parser.parse_args()
    chosen = [
        set_up
        for set_up in catalogue().set_ups.values()
        if options.only.lower() in f"{set_up.group} {set_up.name}".lower()
    ]
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as server:
        found = _try_all(chosen, server, Path(folder), jobs=options.jobs, prints_details=options.details)
        results = {}
        for set_up, verdict in zip(chosen, found, strict=True):
            results[set_up.name] = (set_up, verdict)
            print(f"{set_up.name:50} {verdict.result:5} {verdict.words}".rstrip(), flush=True)
    counts = [verdict.result for _, verdict in results.values()]
    print(f"\n{len(counts)} set-ups: {', '.join(f'{counts.count(each)} {each}' for each in ('pass', 'gap', 'fail'))}")
    if options.page is not None and not options.only:  # a part of the table is no page
        versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        options.page.write_text(page(results, versions, date.today()), encoding="utf-8")
    return int("fail" in counts)


def _try_all(
    set_ups: list[SetUp], server: RunningServer, folder: Path, *, jobs: int, prints_details: bool
) -> Iterator[Verdict]:
    os.environ |= {
        "SPIKEWATCH_URL": server.url,
        "SPIKEWATCH_TOKEN": server.token,
        "SPIKEWATCH_DIR": str(folder / "spool"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    # Each process is forked from one that has imported torch, which takes longer than most of the trainings.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([child.__name__])

    def run(set_up: SetUp) -> Verdict:
        written = folder / uuid.uuid4().hex
        process = context.Process(target=child.main_into, args=(set_up.name, str(written)))
        process.start()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
        trouble = written.with_suffix(".err").read_text(errors="replace") if written.exists() else ""
        if process.exitcode is not None and process.exitcode < 0:
            trouble += f"\nit was ended by signal {-process.exitcode}, after at most {TIMEOUT} seconds"
        verdict = read_verdict(written.read_text(errors="replace") if written.exists() else "", trouble, set_up.gap)
        if prints_details and verdict.result == "fail":
            print(f"== {set_up.name}\n{trouble}", file=sys.stderr)
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(run, set_ups)


def read_verdict(output: str, trouble: str, gap: str) -> Verdict:
    """Return the verdict that a process printed, in the light of the gap that is listed for its set-up."""
    lines = [line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK)]
    if len(lines) != 1:
        last = trouble.strip().splitlines()[-1:] or ["it printed nothing"]
        found = Verdict(result="fail", words=f"the process gave no verdict: {last[0]}")
    else:
        found = msgspec.json.decode(lines[0], type=Verdict)
    if not gap:
        return found
    if found.result == "pass":
        return Verdict(result="fail", words=f"the listed gap is closed, take it off the list: {gap}")
    return Verdict(result="gap", words=f"{gap} ({found.words})")


if __name__ == "__main__":
    sys.exit(main())
