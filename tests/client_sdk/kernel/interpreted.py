"""Sums of the Triton kernel in Triton's interpreter on the CPU, and the same sums in float64; started by `test_kernel`.

    TRITON_INTERPRET=1 python -m tests.client_sdk.kernel.interpreted

Prints a JSON object: for each case the sums of each tensor, those of the oracle, and the scale of each sum, which is
the sum of the absolute values of its terms. A process of its own, because triton reads the variable on import.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from client_sdk.stats import chunk_table
from client_sdk.stats.chunk_table import ChunkTable
from client_sdk.stats.entry import Entry
from client_sdk.stats.kernel_code import KINDS, covers
from client_sdk.stats.measurement_plan import MeasurementPlan
from client_sdk.stats.sums import FLAT, SUMS
from tests.support.kernel_cases import ABSOLUTE, ADAM, TERMS, cases, entry, oracle

torch.set_num_threads(1)
CPU = torch.device("cpu")


def kernel(entries: Sequence[Entry]) -> Tensor:
    """Return the sums of all entries by the kernel, [P, len(SUMS)]."""
    terms = torch.tensor([TERMS] * len(entries), dtype=torch.float64)
    table = torch.full((len(entries), len(SUMS)), -1.0, dtype=torch.float64)
    positions = range(len(entries))
    ChunkTable(entries, positions, positions, CPU).measure(entries, terms, table)
    return table


def plan_with_uncovered() -> dict[str, Any]:
    """Measure entries of which the kernel covers a part, and say which, beside the table and the oracle."""
    chunk_table.is_available = lambda device: True
    spread = torch.randn(400)[::2]
    strided = entry(ADAM, 200)._replace(grad=spread)
    entries = [entry(ADAM, 700), strided, entry(ADAM, 0), entry(ADAM, 64, of=Tensor.double), entry(ADAM, 40, seed=3)]
    plan = MeasurementPlan(entries)
    (table,) = plan.measure(entries, {CPU: torch.tensor([TERMS] * len(entries), dtype=torch.float64)})
    grown = [entries[0]._replace(grad=torch.randn(1400)[::2]), *entries[1:]]
    return {
        "covered": [covers(entry, KINDS) for entry in entries],
        "got": table.values.tolist(),
        "want": [oracle(entry, FLAT) for entry in entries],
        "fits": [plan.fits(entries), plan.fits(grown)],
    }


def main() -> None:
    """Print the results of all cases."""
    chunk_table.chunk_lengths = (512, 2**14)  # little work, and 65 chunks for the largest tensor
    found: dict[str, Any] = {}
    for case in cases():
        assert all(covers(entry, KINDS) for entry in case.entries)
        table = kernel(case.entries)
        found[case.name] = {
            "got": table.tolist(),
            "want": [oracle(entry, FLAT) for entry in case.entries],
            "scale": [oracle(entry, ABSOLUTE) for entry in case.entries],
            "again": case.name != "adam" or torch.equal(table.nan_to_num(7.0), kernel(case.entries).nan_to_num(7.0)),
        }
    print(json.dumps({"cases": found, "plan": plan_with_uncovered()}))


if __name__ == "__main__":
    main()
