"""Draw where predictions fail: the loss, the held loss and λ_max of recorded runs, with what was told and what came.

    python -m benchmarks.failures FIGURE.svg RECORDING.npz:FIRST:LAST …

Each part of a recording is a row of two panels. On the left the loss and, where directions were followed, the loss
that they hold, on a logarithmic axis, with a dot at the step of each alarm: green if it was early for a spike, red if
it was false, and a grey one at the onset of each labelled spike. On the right λ_max over its limit and the
period-two component.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.reproduce.figure import AMBER, BLUE, GREEN, GREY, PURPLE, RED, Mark, Panel, svg
from server.evaluation.alarms import replay
from server.evaluation.recording import Recording
from server.evaluation.recordings import read_recording
from server.evaluation.scores import score
from server.evaluation.truth import truth_of


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some steps of a recording."""

    path: Path
    first: int
    last: int


def part_of(text: str) -> Part:
    """Return the part that `PATH:FIRST:LAST` names.

    >>> part_of("a/net-s0.npz:100:300")
    Part(path=PosixPath('a/net-s0.npz'), first=100, last=300)
    """
    path, first, last = text.rsplit(":", 2)
    return Part(path=Path(path), first=int(first), last=int(last))


def panels(recording: Recording, first: int, last: int) -> list[Panel]:
    """Return the two panels of some steps of a recording."""
    found = score(truth_of(recording), replay(recording))
    shown = [sample for sample in recording.samples if first <= sample.step <= last]
    steps = np.array([sample.step for sample in shown])

    def scalar(name: str) -> NDArray[np.float64]:
        return np.array([sample.scalars.get(name, np.nan) for sample in shown], dtype=np.float64)

    losses = scalar("loss")

    def dots(at: set[int], colour: str, name: str) -> list[Mark]:
        chosen = np.isin(steps, sorted(at))
        return [Mark(x=steps[chosen], y=losses[chosen], colour=colour, name=name, kind="dots")] if chosen.any() else []

    early = {recall.alarm.step for recall in found.recalled}
    marks = [Mark(x=steps, y=losses, name="loss"), Mark(x=steps, y=scalar("mode_loss"), colour=AMBER, name="held loss")]
    marks += dots({event.onset for event in found.events}, GREY, "onset")
    marks += dots(early, GREEN, "early")
    marks += dots(set(found.false), RED, "false")
    ratio = scalar("lambda_max") / scalar("stability_limit")
    is_read = np.isfinite(ratio)
    return [
        Panel(title=f"{recording.name}", x_label="step", marks=_drawable(marks), logarithmic=True),
        Panel(
            title="λ_max over its limit, and period_two",
            x_label="step",
            marks=_drawable(
                [
                    Mark(x=steps[is_read], y=np.minimum(ratio[is_read], 3.0), colour=PURPLE, name="λ_max"),
                    Mark(x=steps, y=scalar("period_two"), colour=BLUE, name="period_two"),
                ]
            ),
            limits=(1.0,),
        ),
    ]


def _drawable(marks: list[Mark]) -> list[Mark]:
    """Return the marks that have a finite value."""
    return [mark for mark in marks if np.isfinite(np.asarray(mark.y, dtype=np.float64)).any()]


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", type=Path)
    parser.add_argument("parts", type=part_of, nargs="+", metavar="RECORDING:FIRST:LAST")
    options = parser.parse_args()
    rows = [panels(read_recording(part.path), part.first, part.last) for part in options.parts]
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    options.figure.write_text(svg(rows, "Predictions that failed"))


if __name__ == "__main__":
    main()
