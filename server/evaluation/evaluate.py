"""The command `spikewatch evaluate`: reads recordings, scores the detectors on them and prints the table."""

from __future__ import annotations

import sys
from pathlib import Path

from server.evaluation.recordings import read_recordings
from server.evaluation.score_table import lines
from server.evaluation.scores import Summary, score, summarise


def evaluate(directory: Path | None) -> Summary:
    """Score the detectors on every recording of a directory.

    Raises `ValueError` without a directory, or if it has no recordings.
    """
    if directory is None:
        raise ValueError("give the directory of recordings (*.npz) to evaluate on")
    return summarise([score(recording) for recording in read_recordings(directory)])


def main(directory: Path | None) -> int:
    """Evaluate, print the table and return the exit code, which is 2 if there is nothing to evaluate on."""
    try:
        summary = evaluate(directory)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"spikewatch evaluate: {error}\n")
        return 2
    sys.stdout.write("\n".join(lines(summary)) + "\n")
    return 0
