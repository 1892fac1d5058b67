"""Puts each fault into a training, and prints how soon it is named, and what is found at healthy set-ups.

    python -m campaigns.audit [--only TEXT] [--healthy none|few|all] [--set-ups TEXT] [--write]

The exit code is 1 if a fault is not named within its steps, or if something is found at a healthy set-up.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

import torch

from campaigns.audit.distributed_faults import FAULTS as FAULTS_OF_RANKS
from campaigns.audit.distributed_faults import try_out_together
from campaigns.audit.fault import Injection
from campaigns.audit.faults import FAULTS
from campaigns.audit.healthy import Healthy, try_healthy
from campaigns.audit.page import page
from campaigns.audit.trial import try_out

RESULTS = Path("benchmarks/results/audit.md")
PAGE = Path("docs/reference/audit.md")
FAULT_COUNT = 18


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.audit", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose name or check has this text")
    parser.add_argument("--healthy", default="all", choices=("none", "few", "all"), help="healthy set-ups to run")
    parser.add_argument("--set-ups", default="", metavar="TEXT", help="healthy set-ups whose name or section has it")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS} and {PAGE}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, named, all_named = [], set(), True
    for number, name, check, within, after, others in _tried(options.only):
        is_named = after is not None and 1 <= after <= within and not others
        all_named = all_named and is_named
        if is_named:
            named.add(number)
        row = f"| {number} | {name} | `{check}` | {within} | {'not named' if after is None else after} |"
        rows.append(row + (f" also found: {', '.join(others)}" if others else ""))
        print(rows[-1], flush=True)
    healthy = Healthy()
    if options.healthy != "none":
        healthy = try_healthy(
            everything=options.healthy == "all", only=options.set_ups, report=lambda line: print(line, flush=True)
        )
    summary = (
        f"{len(named)} of {FAULT_COUNT} faults are named in time; {healthy.count} healthy set-ups have "
        f"{len(healthy.findings)} findings after {healthy.runs:,} runs of the checks."
    )
    print(f"\n{summary}")
    for line in (*healthy.findings, *healthy.troubles):
        print(f"  {line}")
    if options.write and not options.only:
        PAGE.write_text(page(), encoding="utf-8")
        RESULTS.write_text(_document(rows, summary, healthy), encoding="utf-8")
    return int(not all_named or bool(healthy.findings))


def _tried(only: str) -> list[tuple[int, str, str, int, int | None, list[str]]]:
    found = []
    for injection in FAULTS:
        if _is_chosen(injection, only):
            trial = try_out(injection)
            others = sorted(set(trial.findings) - {injection.check})
            found.append(
                (injection.number, injection.name, injection.check, injection.within, trial.named_after, others)
            )
    if any(only.lower() in f"{name} {check}".lower() for _, name, check, _, _ in FAULTS_OF_RANKS):
        found += [row for row in try_out_together() if only.lower() in f"{row[1]} {row[2]}".lower()]
    return sorted(found, key=lambda row: row[0])


def _is_chosen(injection: Injection, only: str) -> bool:
    return only.lower() in f"{injection.name} {injection.check}".lower()


def _document(rows: list[str], summary: str, healthy: Healthy) -> str:
    lines = [
        "# The audit: how soon faults are named",
        "",
        f"Made by `make audit-table` on {date.today():%Y-%m-%d} with torch {torch.__version__}. {summary}",
        "",
        "Each fault is put into a training of milliseconds. *Within* and *named after* are steps of the optimizer,",
        "from the first one at which the fault can be seen, which is counted.",
        "",
        "| | fault | check | within | named after |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "## Healthy set-ups",
        "",
        f"{healthy.count} trainings without a fault, with the default rhythm and with every step measured: "
        f"{', '.join(healthy.groups) or 'none'}.",
        "",
        *(f"- {line}" for line in (healthy.findings or ["no findings"])),
        *(f"- not run: {line}" for line in healthy.troubles),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
