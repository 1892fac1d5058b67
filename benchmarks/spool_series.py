"""The scalars of an offline run as arrays, for benchmarks that read what the SDK logged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client_sdk.protocol import decode_record
from client_sdk.spool.directory import find_spools
from client_sdk.spool.spool import Spool


def series_of(directory: Path, steps: int) -> dict[str, NDArray[np.float64]]:
    """Return the scalars of the only run in ``directory`` by name, [steps] each; NaN where a record has none."""
    ((spool_directory, _),) = find_spools(directory)
    spool = Spool.open(spool_directory)
    found: dict[str, NDArray[np.float64]] = {}
    seq = 0
    while payloads := spool.read(seq, 8 * 1024 * 1024):
        seq += len(payloads)
        for logged in map(decode_record, payloads):
            for key, value in logged.scalars.items():
                found.setdefault(key, np.full(steps, np.nan))[logged.step] = value
    spool.release()
    return found
