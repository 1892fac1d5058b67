"""Measures the spikes that the guard prevents and their cost: paired trainings of the same seed with and without it.

    python -m campaigns.guard_study [--case NAME …] [--remedy NAME …] [--seeds N] [--steps N] [--keep FILE]

Every training is run with each remedy (`remedies.REMEDIES`) from the same seed. ``--keep`` writes each outcome to a
file of JSON lines and does not repeat those that are in it. The exit code is 1 if advice changes a training by one bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.spike_trainings import CASES
from campaigns.guard_study.remedies import REMEDIES
from campaigns.guard_study.report import case_table, differing, remedy_table, time_ratio
from campaigns.guard_study.trial import Outcome, run

DEFAULT = (
    "regression-tanh", "regression-relu", "regression-silu-lr3e-2", "digits-squared", "cancer", "autoencoder",
    "digits-squared-batch-200", "regression-batch-128", "modular-addition", "transformer", "regression-b90-edge",
    "regression-batch-16-healthy", "digits-cross-entropy-healthy", "modular-addition-healthy",
    "transformer-b95-batch-16",
)  # fmt: skip
"""Cases that are tried unless others are asked for: full batches, mini-batches and controls."""


def main() -> None:
    """Run the trainings and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(DEFAULT))
    parser.add_argument("--remedy", nargs="+", choices=REMEDIES, default=list(REMEDIES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1_000, help="of each training at most")
    parser.add_argument("--keep", type=Path, help="file of the outcomes, which are not repeated")
    options = parser.parse_args()
    outcomes = _kept(options.keep)
    known = {(one.case, one.seed, one.remedy) for one in outcomes}
    for seed in range(options.seeds):
        for name in options.case:
            for remedy in dict.fromkeys(["none", *options.remedy]):
                if (name, seed, remedy) in known:
                    continue
                found = run(name, seed, remedy, steps=options.steps)
                outcomes.append(found)
                print(
                    f"{name}, seed {seed}, {remedy}: {len(found.heights)} spikes, {found.acts} acts, {found.final:.1e}",
                    file=sys.stderr,
                )
                if options.keep is not None:
                    with options.keep.open("ab") as file:
                        file.write(msgspec.json.encode(found) + b"\n")
    _print(outcomes, list(dict.fromkeys(["none", *options.remedy])))
    sys.exit(1 if differing(outcomes, "advise") else 0)


def _kept(path: Path | None) -> list[Outcome]:
    if path is None or not path.exists():
        return []
    return [msgspec.json.decode(line, type=Outcome) for line in path.read_bytes().splitlines()]


def _print(outcomes: Sequence[Outcome], remedies: Sequence[str]) -> None:
    labels = {name: REMEDIES[name].label for name in remedies if name != "none"}
    print("\n".join(remedy_table(outcomes, labels)))
    print()
    print("\n".join(case_table(outcomes, remedies)))
    print()
    for name in ("advise", "act"):
        print(
            f"{REMEDIES[name].label}: {time_ratio(outcomes, name):.2f} × the processor time; trainings without an act "
            f"that differ from the unguarded one: {', '.join(differing(outcomes, name)) or 'none'}"
        )


if __name__ == "__main__":
    main()
