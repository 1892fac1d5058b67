"""The command `spikewatch evaluate`: reads recordings, scores the detectors and the plain rules, prints the tables."""

from __future__ import annotations

import sys
from pathlib import Path

from server.evaluation.evaluation import evaluate_directory
from server.evaluation.score_table import lines


def main(directory: Path | None, *, jobs: int = 1, with_runs: bool = False, with_rules: bool = True) -> int:
    """Evaluate, print the tables and return the exit code, which is 2 if there is nothing to evaluate on."""
    try:
        if directory is None:
            raise ValueError("give the directory of recordings (*.npz) to evaluate on")
        evaluation = evaluate_directory(directory, jobs=jobs, with_rules=with_rules)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"spikewatch evaluate: {error}\n")
        return 2
    sys.stdout.write("\n".join(lines(evaluation, with_runs=with_runs)) + "\n")
    return 0
