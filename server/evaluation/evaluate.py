"""The command `spikewatch evaluate`: reads recordings, scores the detectors and the plain rules, prints the tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from server.evaluation.evaluation import Evaluation, evaluate_directory
from server.evaluation.report import report
from server.evaluation.score_table import lines

SHIPPED: Final = Path(__file__).parent / "shipped"
"""Directory of the recordings that are part of the package; `benchmarks.ship_recordings` makes them."""


def main(
    directory: Path | None,
    *,
    jobs: int = 1,
    with_runs: bool = False,
    with_rules: bool = True,
    as_json: bool = False,
    plots: Path | None = None,
) -> int:
    """Evaluate, print the tables and return the exit code, which is 2 if there is nothing to evaluate on.

    Without a directory the recordings of the package are read.
    """
    try:
        evaluation = evaluate_directory(SHIPPED if directory is None else directory, jobs=jobs, with_rules=with_rules)
        if plots is not None:
            _write_plots(evaluation, plots)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"spikewatch evaluate: {error}\n")
        return 2
    if as_json:
        sys.stdout.write(json.dumps(report(evaluation), indent=2) + "\n")
        return 0
    sys.stdout.write("\n".join(lines(evaluation, with_runs=with_runs)) + "\n")
    if directory is None:
        sys.stdout.write("\nThese are the few recordings of the package; give a directory to evaluate on your own.\n")
    return 0


def _write_plots(evaluation: Evaluation, directory: Path) -> None:
    """Write both plots as pages, with one copy of Plotly beside them."""
    from server.evaluation.plots import band_figure, lead_figure  # Plotly takes a second to import

    directory.mkdir(parents=True, exist_ok=True)
    clear = evaluation.only(lambda truth: not truth.is_swell)
    for name, figure in (("lead-times", lead_figure(clear)), ("ranges", band_figure(clear))):
        figure.write_html(directory / f"{name}.html", include_plotlyjs="directory")
