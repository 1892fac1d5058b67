"""All instruments of a run, combined into one layout, one block and one set of scalars for each step.

A GAN has two models and two calls of `watch`, but a record has one block. The set stacks the rows of the
instruments, takes the union of their statistics (NaN where an instrument has none) and keeps layer names unique. Pure;
the instruments do the measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import ConfigurationError
from client_sdk.measurement import Instrument, Measurement, Pending
from client_sdk.protocol import HISTOGRAM_BINS, MAX_LAYERS, MAX_NAME_CHARS, MAX_STATISTICS, Audit, Histograms, Layout

_FLOAT = np.dtype("<f4")
_COUNT = np.dtype("<u4")


class InstrumentSet:
    """A fixed set of instruments with their common layout; attaching another instrument requires a new set."""

    def __init__(self, instruments: Sequence[Instrument], layout_id: int) -> None:
        """Combine ``instruments``. Raises `ConfigurationError` if their common layout exceeds a limit of the wire."""
        self.instruments = tuple(instruments)
        """Instruments in the order in which they were attached."""
        self.layout = _combine([instrument.layout for instrument in instruments], layout_id)
        """Common layout of the instruments."""
        self._columns = [
            [self.layout.statistics.index(name) for name in instrument.layout.statistics] for instrument in instruments
        ]
        self._is_single = len(self.instruments) == 1
        self._shapes = [
            (len(instrument.layout.layers), len(instrument.layout.statistics)) for instrument in instruments
        ]
        ends = np.cumsum([len(instrument.layout.layers) for instrument in instruments]).tolist()
        self._rows = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def measure(
        self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None
    ) -> list[tuple[int, Pending]]:
        """Start the measurements of all instruments and return those that there are, with the instrument's position.

        Called on the training thread.
        """
        if self._is_single:
            only = self.instruments[0].measure(step, metrics, closure)
            return [] if only is None else [(0, only)]
        parts = []
        for position, instrument in enumerate(self.instruments):
            pending = instrument.measure(step, metrics, closure)
            if pending is not None:
                parts.append((position, pending))
        return parts

    @property
    def has_stepped(self) -> bool:
        """Whether the optimizer of any instrument has made a step since its last measurement."""
        return any(instrument.has_stepped for instrument in self.instruments)

    def settle(self) -> None:
        """Complete the measurements that wait for an optimizer's next step."""
        for instrument in self.instruments:
            instrument.settle()

    def observe(self, scalars: Mapping[str, float]) -> None:
        """Show all scalars of a record to the instruments."""
        for instrument in self.instruments:
            instrument.observe(scalars)

    def audit(self, step: int, scalars: Mapping[str, float]) -> Audit | None:
        """Return what the instruments say about the audit of a record, None for nothing."""
        found = [said for instrument in self.instruments if (said := instrument.audit(step, scalars)) is not None]
        if len(found) < 2:
            return found[0] if found else None
        runs: dict[str, int] = {}
        for said in found:
            runs |= said.runs
        return Audit(runs=runs, findings=tuple(finding for said in found for finding in said.findings))

    def read(
        self, pending: Sequence[tuple[int, Pending]]
    ) -> tuple[dict[str, float], memoryview | None, tuple[Histograms, ...]]:
        """Return the scalars, the block and the histograms of one step from the measurements that `measure` returned.

        With a single instrument the block is that instrument's own memory. The scalar `lr` of a second instrument is
        called `lr_2`. Raises `ValueError` if a block or histogram does not have the shape of its layout.
        """
        if self._is_single:  # the usual case, which runs within `log`
            only = pending[0][1].result()
            measured = {name: float(value) for name, value in only.scalars.items()} if only.scalars else {}
            return measured, None if only.block is None else self._checked(0, only.block).data, only.histograms
        parts = [(position, part.result()) for position, part in pending]
        scalars: dict[str, float] = {}
        for position, part in parts:
            for name, value in part.scalars.items():
                scalars[name if position == 0 else f"{name}_{position + 1}"] = float(value)
        return scalars, self._merge_blocks(parts), self._merge_histograms(parts)

    def _merge_blocks(self, parts: Sequence[tuple[int, Measurement]]) -> memoryview | None:
        blocks = [(position, self._checked(position, part.block)) for position, part in parts if part.block is not None]
        if not blocks:
            return None
        merged = np.full((len(self.layout.layers), len(self.layout.statistics)), np.nan, _FLOAT)
        for position, block in blocks:
            merged[self._rows[position], self._columns[position]] = block
        return merged.data

    def _checked(self, position: int, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a block as it is sent: float32 in row-major order; the same array if it already is."""
        if block.shape != self._shapes[position]:
            raise ValueError(f"the block has the shape {block.shape}, but its layout has {self._shapes[position]}")
        return np.ascontiguousarray(block, _FLOAT)

    def _merge_histograms(self, parts: Sequence[tuple[int, Measurement]]) -> tuple[Histograms, ...]:
        count = len(self.layout.layers)
        merged: dict[str, tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint32]]] = {}
        for position, part in parts:
            rows = self._rows[position]
            for histograms in part.histograms:
                low, high, counts = merged.setdefault(
                    histograms.which,
                    (
                        np.full(count, np.nan, _FLOAT),
                        np.full(count, np.nan, _FLOAT),
                        np.zeros((count, HISTOGRAM_BINS), _COUNT),
                    ),
                )
                low[rows] = np.frombuffer(histograms.low, _FLOAT)
                high[rows] = np.frombuffer(histograms.high, _FLOAT)
                counts[rows] = np.frombuffer(histograms.counts, _COUNT).reshape(-1, HISTOGRAM_BINS)
        return tuple(
            Histograms(which=which, low=low.tobytes(), high=high.tobytes(), counts=counts.tobytes())
            for which, (low, high, counts) in merged.items()
        )


def _combine(layouts: Sequence[Layout], layout_id: int) -> Layout:
    names: dict[str, None] = {}
    for position, layout in enumerate(layouts):
        for name in layout.layers:
            if not name or len(name) > MAX_NAME_CHARS:
                raise ConfigurationError(
                    f"the layer name {name[:32]!r}… has {len(name)} characters; use 1 to {MAX_NAME_CHARS}"
                )
            names[_apart(name, position, names)] = None
    statistics = tuple(dict.fromkeys(name for layout in layouts for name in layout.statistics))
    if len(names) > MAX_LAYERS:
        raise ConfigurationError(
            f"the run has {len(names)} layers; at most {MAX_LAYERS} are supported: use group='module' or your own "
            "grouping"
        )
    if len(statistics) > MAX_STATISTICS:
        raise ConfigurationError(
            f"the run has {len(statistics)} statistics; at most {MAX_STATISTICS} are supported: attach fewer models"
        )
    known = all(len(layout.sizes) == len(layout.layers) for layout in layouts)
    return msgspec.structs.replace(
        layouts[0],
        id=layout_id,
        layers=tuple(names),
        statistics=statistics,
        sizes=tuple(size for layout in layouts for size in layout.sizes) if known else (),
        optimizer=next((layout.optimizer for layout in layouts if layout.optimizer is not None), None),
    )


def _apart(name: str, position: int, taken: Mapping[str, None]) -> str:
    """Return ``name``, followed by the number of its instrument if another layer already has that name."""
    number = position + 1
    candidate = name
    while candidate in taken:
        suffix = f" ({number})"
        candidate = name[: MAX_NAME_CHARS - len(suffix)] + suffix
        number += 1
    return candidate
