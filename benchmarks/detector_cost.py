"""Cost of the detectors: processor time of all of them together for one record, by what the record holds.

    python -m benchmarks.detector_cost [--records N] [--layers N] [--rounds N] [--profile ROW]

A record has 20 scalars, curvature among them at every fifth record, and, unless its row says otherwise, 12 statistics
of 300 layers. Records take the server's own path: the sums over the layers are computed for all records of a decoded
segment at once, then the suite reads one sample after the other. The rows differ in the size of the segments (64
records of a fast training, or single ones of a slow one), in how often layers are measured (`every="auto"` leaves out
up to 15 of 16 records), and in whether the stream is quiet or an alarm holds at nearly every record.

All rows are measured in turn, round by round, in pieces of 64 records. Of each piece its quickest round counts, because
other programs of the machine only add to it. Printed are microseconds of the thread's processor time for one record,
and their ratio to one pass of numpy over the block of one record (the sum of the squares of each statistic over the
layers, in float64), which is timed in the same way in the same rounds. Decoding the segments is no part of the
detectors and has a row of its own.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from client_sdk.protocol import Layout, Optimizer, Record
from server.detectors.detector_suite import DetectorSuite
from server.detectors.layer_sums import STATISTICS as READ_STATISTICS
from server.pipeline.packing import pack
from server.pipeline.samples import samples
from server.pyramid.columns import Columns, Payload

GOAL: Final = 150.0
"""Microseconds of one core for a record with 300 layers × 12 statistics."""
STATISTICS: Final = (
    *("grad_norm", "weight_norm", "update_norm", "update_ratio", "v_rms", "rms_ratio"),
    *("decoupling", "u_rms", "eps_fraction", "grad_momentum_cosine", "period_two", "nonfinite"),
)
OTHER_SCALARS: Final = 14
"""Number of scalars that the detectors do not read."""
PASS: Final = "one numpy pass over the block"
BATCH: Final = 64
"""Number of records in a segment of a fast training."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The records of one row, and how they are cut into segments."""

    name: str
    records: Sequence[Record]
    batch: int
    layout: Layout

    def segments(self) -> list[bytes]:
        """Return the payloads of the segments."""
        layouts, sent = {0: self.layout}, {0: len(STATISTICS)}
        return [
            draft.payload
            for start in range(0, len(self.records), self.batch)
            for draft in pack(start + 1, self.records[start : start + self.batch], layouts, sent)
        ]


def records(
    steps: int, layers: int, *, measured_every: int, growth: float = 0.0, is_stale: bool = False
) -> list[Record]:
    """Return records of a noisy loss; with ``growth`` the gradient climbs until the loss jumps, again and again.

    With ``is_stale`` the second moments lie far above the squared gradients, so that the predictor looks closer.

    ``measured_every`` is the number of records between two blocks, 0 for no blocks and no curvature.
    """
    random = np.random.default_rng(0)
    scale = np.exp(random.normal(0.0, 1.0, layers))
    found = []
    for step in range(1, steps + 1):
        phase = step % 60 if growth else 0
        gradient = math.exp(growth * max(phase - 20, 0) + 0.05 * random.standard_normal())
        decoupling = math.exp(0.3 * random.standard_normal()) * (1e-3 if is_stale else 1.0)
        if growth:
            decoupling = 1e-4 * gradient**2
        loss = (2.0 if growth and phase > 50 else 1.0) * math.exp(0.02 * random.standard_normal())
        scalars = {"loss": loss, "lr": 0.01, "grad_norm": gradient}
        scalars |= {f"metric/{number}": random.standard_normal() for number in range(OTHER_SCALARS)}
        if measured_every and step % 5 == 0:
            ratio = (1.02 if growth and phase > 20 else 0.7) * math.exp(0.03 * random.standard_normal())
            scalars |= {"lambda_max": 200 * ratio, "lambda_grad": 100.0, "stability_limit": 200.0}
        block = None
        if measured_every and step % measured_every == 0:
            norms = gradient * scale / math.sqrt(float(np.square(scale).sum()))
            columns = {
                "grad_norm": norms,
                "v_rms": norms / math.sqrt(1000.0 * decoupling),
                "decoupling": np.full(layers, decoupling),
                "nonfinite": np.zeros(layers),
                "eps_fraction": np.full(layers, 0.01),
            }
            other = np.exp(random.normal(-5.0, 1.0, layers))
            block = np.stack([columns.get(name, other) for name in STATISTICS], axis=1).astype("<f4").tobytes()
        found.append(
            Record(step=step, time=float(step), scalars=scalars, layout=None if block is None else 0, block=block)
        )
    return found


def streams(steps: int, layers: int) -> list[Stream]:
    """Return the rows of the table."""
    optimizer = Optimizer(name="Adam", family="adam", lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8)
    layout = Layout(
        id=0,
        layers=tuple(f"blocks.{number}.weight" for number in range(layers)),
        statistics=STATISTICS,
        sizes=(1000,) * layers,
        optimizer=optimizer,
    )
    dense = records(steps, layers, measured_every=1)
    rows = (
        ("layers at every record", dense, BATCH),
        ("layers at every record, single records", dense, 1),
        ("layers at every 16th record", records(steps, layers, measured_every=16), BATCH),
        ("layers at every 16th record, single records", records(steps, layers, measured_every=16), 1),
        ("no layers, no curvature", records(steps, layers, measured_every=0), BATCH),
        ("v far above the gradients", records(steps, layers, measured_every=1, is_stale=True), BATCH),
        ("build-ups and spikes", records(steps, layers, measured_every=1, growth=0.15), BATCH),
    )
    return [Stream(name=name, records=of_row, batch=batch, layout=layout) for name, of_row, batch in rows]


def decoded(segments: Sequence[bytes]) -> list[Columns]:
    """Decode segments as the server does for the detectors."""
    only = frozenset(READ_STATISTICS)
    return [Payload(segment).columns(only) for segment in segments]


class Costs:
    """Processor time of the pieces of each row, in the quickest of the rounds."""

    def __init__(self) -> None:
        self._pieces: dict[str, dict[int, float]] = {}

    def time(self, row: str, piece: int, work: Callable[[], object]) -> None:
        """Do the work, and count its processor time as that of a piece of a row."""
        start = time.thread_time()
        work()
        taken = time.thread_time() - start
        pieces = self._pieces.setdefault(row, {})
        pieces[piece] = min(pieces.get(piece, taken), taken)

    def microseconds(self, row: str, records: int) -> float:
        """Return the time for each of so many records of a row."""
        return 1e6 * sum(self._pieces[row].values()) / records


def judge(suite: DetectorSuite, found: Sequence[Columns], layout: Layout) -> int:
    """Let a suite read records, and return the number of findings over all records."""
    return sum(
        len(suite.update(sample).findings)
        for columns in found
        for sample in samples(columns, 0, {0: layout}, summed=True)
    )


def pass_over(blocks: Sequence[np.ndarray]) -> float:
    """Sum the squares of each statistic over the layers of each block."""
    return sum(float(np.square(block, dtype=np.float64).sum(axis=1)[0]) for block in blocks)


def measure(costs: Costs, row: Stream, segments: Sequence[bytes], columns: Sequence[Columns]) -> int:
    """Time one round of a row, and return its number of findings."""
    suite, findings = DetectorSuite(), []
    at_once = BATCH // row.batch
    for piece in range(0, len(columns), at_once):
        part = columns[piece : piece + at_once]
        costs.time(row.name, piece, lambda: findings.append(judge(suite, part, row.layout)))  # noqa: B023
        costs.time(f"  decoding: {row.name}", piece, lambda: decoded(segments[piece : piece + at_once]))  # noqa: B023
    return sum(findings)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", type=int, metavar="ROW", help="profile this row, the first one is 0")
    options = parser.parse_args()
    rows = streams(options.records, options.layers)
    segments = [row.segments() for row in rows]
    columns = [decoded(of_row) for of_row in segments]
    if options.profile is not None:
        profile = cProfile.Profile()
        profile.runcall(judge, DetectorSuite(), columns[options.profile], rows[options.profile].layout)
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    blocks = [np.ones((len(STATISTICS), options.layers), dtype=np.float32) for _ in range(BATCH)]
    costs, findings = Costs(), {}
    for _ in range(options.rounds):
        for piece in range(4):
            costs.time(PASS, piece, lambda: pass_over(blocks))
        for row, of_row, ready in zip(rows, segments, columns, strict=True):
            findings[row.name] = measure(costs, row, of_row, ready)
    unit = costs.microseconds(PASS, 4 * BATCH)
    print(f"{options.layers} layers × {len(STATISTICS)} statistics, {options.records} records, {options.rounds} rounds")
    print(f"{'':55} {'µs a record':>11} {'× the pass':>10} {'findings':>9}")
    print(f"{PASS:55} {unit:11.1f} {1.0:10.1f}")
    for row in rows:
        for name in (row.name, f"  decoding: {row.name}"):
            taken = costs.microseconds(name, options.records)
            shown = f"{findings[name] / options.records:9.2f}" if name in findings else ""
            print(f"{name:55} {taken:11.1f} {taken / unit:10.1f} {shown}")
    slowest = max(costs.microseconds(row.name, options.records) for row in rows)
    print(f"slowest row: {slowest:.0f} µs a record (goal {GOAL:.0f} µs)")


if __name__ == "__main__":
    main()
