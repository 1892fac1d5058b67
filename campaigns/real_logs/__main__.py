"""Replay a folder of real training logs through the detectors and alerts, and judge what they say.

    python -m campaigns.real_logs [FOLDER] [--labels FILE] [--details] [--jobs N]

Prints tables for each kind of log and the goals, and exits with 1 if a goal is missed. README.md describes the folder,
the labels and the measures.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from campaigns.real_logs.goals import Goal, goals
from campaigns.real_logs.judge import KindScore, add_up, judge
from campaigns.real_logs.labels import Labels
from campaigns.real_logs.logs import find_logs, read_logs
from campaigns.real_logs.replay import Replayed, replay
from campaigns.real_logs.report import details, goal_lines, tables

ROOT: Final = Path(__file__).parents[2]
SHARED: Final = ROOT.parent / "shared" / "real-logs"
"""The public half of the real logs, where it is present."""
OWN: Final = ROOT / "tests" / "data" / "real-logs"
"""Ten small logs of our own."""
LABELS: Final = "labels.json"
"""Name of the file of labels in a folder of logs."""


def judged(folder: Path, labels: Labels, jobs: int = 1) -> dict[str, KindScore]:
    """Replay all logs of a folder and return their scores by kind.

    Raises `ValueError` if the folder has no logs, and `ImportFileError` if one cannot be read.
    """
    work = [(folder, path) for path in find_logs(folder)]
    return add_up(judge(replayed, labels.of(replayed.name)) for replayed in _replayed(work, jobs))


def _replayed(work: list[tuple[Path, Path]], jobs: int) -> Iterator[Replayed]:
    if jobs <= 1:
        for one in work:
            yield from _replay_file(one)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(_replay_file, work, chunksize=2):
            yield from found


def _replay_file(work: tuple[Path, Path]) -> list[Replayed]:
    return [replay(log) for log in read_logs(*work)]


def main(arguments: list[str] | None = None) -> int:
    """Judge the folder that the command line names and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.real_logs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder of logs; default: the public half, or our own")
    parser.add_argument("--labels", type=Path, help=f"file of labels; default: {LABELS} of the folder, or that of here")
    parser.add_argument("--details", action="store_true", help="list the misses and the false messages")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that replay at the same time")
    options = parser.parse_args(arguments)
    folder = options.folder or (SHARED if SHARED.is_dir() else OWN)
    file = options.labels or next((p for p in (folder / LABELS,) if p.is_file()), Path(__file__).with_name(LABELS))
    began = time.monotonic()
    try:
        kinds = judged(folder, Labels.read(file), options.jobs)
    except (ValueError, OSError) as error:
        print(f"real-logs: {error}", file=sys.stderr)
        return 2
    took = time.monotonic() - began
    outcomes = [(score.name, goal) for score in kinds.values() for goal in goals(score)]
    records = sum(score.records for score in kinds.values())
    print(f"{folder}: {records:,} records in {took:.1f} s\n")
    _print(tables(kinds.values()))
    _print(goal_lines(outcomes))
    if options.details:
        _print(details(kinds.values()))
    return _exit_code(goal for _, goal in outcomes)


def _exit_code(outcomes: Iterable[Goal]) -> int:
    return 0 if all(goal.is_met for goal in outcomes) else 1


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
    print()


if __name__ == "__main__":
    sys.exit(main())
