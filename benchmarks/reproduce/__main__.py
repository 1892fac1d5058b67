"""Reproduce what the papers show: `python -m benchmarks.reproduce [--seeds N] [--only NAME …] [--write]`.

Each finding states what its paper says, what is measured, and the numbers that decide between pass and fail. With
``--write`` the report and its figures go to benchmarks/results. The exit status is 1 if a check fails that is not known
to fail.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.reproduce import edge_of_stability, frozen_quadratic, known_limits, remedies, tanh_spike, two_peaks
from benchmarks.reproduce.finding import Finding

RESULTS = Path(__file__).parents[1] / "results"
FINDINGS: dict[str, Callable[[Executor, int], Finding]] = {
    "tanh-spike": tanh_spike.measure,
    "edge-of-stability": edge_of_stability.measure,
    "remedies": remedies.measure,
    "two-peaks": two_peaks.measure,
    "frozen-quadratic": frozen_quadratic.measure,
    "known-limits": known_limits.measure,
}


def report(findings: list[Finding], command: str, minutes: float) -> str:
    """Return the Markdown page of all findings."""
    lines = [
        "# What the papers show, reproduced", "",
        f"`{command}`, {datetime.now(UTC).date()}, two processes of one thread each on a machine shared with other "
        f"work; it took {minutes:.0f} minutes. The figures do not depend on the machine's speed. What each number "
        "means is in "
        "[What Spikewatch measures](../../docs/explanation/science.md).", "",
        "| finding | checks passed | known not to reproduce |", "|---|---|---|",
        *(
            f"| {one.title} | {sum(check.passed for check in one.checks)} of {len(one.checks)} "
            f"| {sum(not check.passed and not check.reproduces for check in one.checks) or ''} |"
            for one in findings
        ),
        "",
        *(one.markdown() for one in findings),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Print the report and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each setting, 5 by default")
    parser.add_argument("--only", nargs="+", choices=FINDINGS, default=list(FINDINGS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"store the report and its figures in {RESULTS.name}/")
    options = parser.parse_args()
    began = time.monotonic()
    findings = []
    with ProcessPoolExecutor(
        options.processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for name in options.only:
            finding = FINDINGS[name](pool, options.seeds)
            findings.append(finding)
            print(finding.markdown(), flush=True)
    if options.write:
        figures = RESULTS / "reproduce"
        figures.mkdir(exist_ok=True)
        for finding in findings:
            (figures / f"{finding.name}.svg").write_text(finding.figure, encoding="utf-8")
        page = report(findings, "make reproduce", (time.monotonic() - began) / 60)
        (RESULTS / "reproduce.md").write_text(page, encoding="utf-8")
    failed = [finding.title for finding in findings if not finding.passed]
    print("as on the last page" if not failed else f"does not reproduce any more: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
