"""The ledger: a list of the logged records that is kept outside the SDK, one line for each call of `log` that returned.

A training is killed and started again; each start is an *incarnation*, counted from 0. The values of a record follow
from its incarnation and step, so that a record that was logged but never noted can be checked too.

    line = incarnation " " step " " digest "\\n"

The trainer writes a line with one `os.write` to its standard output, a pipe that outlives it.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.support.random_blocks import RandomInstrument, generator

LAYERS = ("embedding", "block", "head")
STATISTICS = ("grad_norm", "update_norm")
_SCALARS = struct.Struct("<qddd")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A record that was logged."""

    incarnation: int
    step: int
    digest: str
    """Digest of the exact bits of the record."""

    @property
    def key(self) -> tuple[int, int]:
        """Incarnation and step of the record."""
        return self.incarnation, self.step


def instrument(incarnation: int) -> RandomInstrument:
    """Return the instrument that one incarnation of the training uses."""
    return RandomInstrument(LAYERS, STATISTICS, key=incarnation)


def metrics(incarnation: int, step: int) -> dict[str, float]:
    """Return float64 metrics of full precision; `loss` is finite, `odd` sometimes is not."""
    random = generator(incarnation + 2**32, step)
    odd = float(random.choice([math.nan, math.inf, -math.inf, -0.0, 5e-324, random.random()]))
    return {"loss": float(random.normal(2.0, 0.5)), "odd": odd, "incarnation": float(incarnation)}


def digest(step: int, scalars: dict[str, float], block: NDArray[np.float32]) -> str:
    """Return the digest of the exact bits of a record: its step, three scalars and block [layers, statistics]."""
    head = _SCALARS.pack(step, scalars["loss"], scalars["odd"], scalars["incarnation"])
    return hashlib.blake2b(head + block.astype("<f4").tobytes(), digest_size=8).hexdigest()


def expected(incarnation: int, step: int) -> str:
    """Return the digest of the record that an incarnation logs at a step."""
    return digest(step, metrics(incarnation, step), instrument(incarnation).block(step))


def line(entry: Entry) -> bytes:
    """Return the line of the ledger for ``entry``."""
    return f"{entry.incarnation} {entry.step} {entry.digest}\n".encode("ascii")


def parse(text: bytes) -> Entry:
    """Return the entry of a line. Raises `ValueError` if ``text`` is not a line of the ledger."""
    incarnation, step, found = text.split()
    return Entry(incarnation=int(incarnation), step=int(step), digest=found.decode("ascii"))
