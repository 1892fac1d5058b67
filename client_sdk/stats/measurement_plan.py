"""The plan of a measurement: large tensors in slices, small ones packed, a bounded number of coordinates at a time.

Owns the batching and its index tensors; `sums` has the formulas. A plan stays valid as long as the same tensors have
gradients, which in most runs is always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.optimizers import ELEMENTWISE_TERMS
from client_sdk.stats import chunk_table, host_table
from client_sdk.stats.chunk_table import ChunkTable
from client_sdk.stats.entry import Entry, compute_dtype, flat
from client_sdk.stats.host_table import HOST_KINDS, HostTable
from client_sdk.stats.kernel_code import KINDS, covers
from client_sdk.stats.sum_table import SumTable, wide_dtype
from client_sdk.stats.sums import FLAT, ROWS, SUM, SUMS, Coordinates, Flags, Terms, coordinate_sums, names_of

ROW_WIDTH: Final = 128  # coordinates of a packed row
CHUNK_CPU: Final = 2**17  # coordinates at a time, so that a temporary of 0.5 MiB stays in the processor's cache
CHUNK_DEVICE: Final = 2**21  # coordinates at a time, with about ten temporaries of 8 MiB
PACK_CPU: Final = 2**14  # coordinates below which tensors are packed, as copying costs less than separate calls
PACK_DEVICE: Final = 2**19  # coordinates, the same on a device


@dataclass(frozen=True, kw_only=True)
class _Pack:
    """Small tensors that are packed into R rows and measured together."""

    entries: tuple[int, ...]
    """Positions of the tensors in the list of all entries."""
    pads: Tensor
    """Number of zeros that complete the last row of each tensor, [len(entries)] in the dtype of the sums."""
    fillers: tuple[Tensor, ...]
    """Zeros in these numbers, in the dtype of the parameters."""
    owner: Tensor
    """Position within `entries` of each packed row, [R]."""
    source: Tensor
    """Position within the list of all entries of each packed row, [R]."""


@dataclass(frozen=True, kw_only=True)
class _Destination:
    """Cells of a device's table that the measured sums fill."""

    positions: NDArray[np.intp]
    """Position in the list of entries of each row of the table, [P]."""
    parameters: NDArray[np.intp]
    """Position of the parameter of each row, [P]."""
    cells: Tensor
    """Cell of each sum in the flattened table, in the order in which the sums are measured."""
    empty: Tensor
    """The table before the sums are filled in, [P, len(SUMS)]: NaN, and 0 for the sums of tensors without elements."""


class MeasurementPlan:
    """Batches for entries with given parameters and flags; valid for every later step with the same ones."""

    def __init__(self, entries: Sequence[Entry], tries_kernel: bool = True) -> None:
        """Divide ``entries`` into large tensors, measured one by one, and packs of small ones.

        With ``tries_kernel`` the tensors that the fused kernel covers go to it where there is one; `KernelError` if it
        cannot be used after all.
        """
        self._kernels: dict[torch.device, ChunkTable | HostTable] = {}
        self._single: dict[torch.device, list[int]] = {}
        self._packs: dict[torch.device, list[_Pack]] = {}
        groups: dict[tuple[torch.device, torch.dtype, Flags], list[int]] = {}
        members: dict[torch.device, list[int]] = {}
        kinds: dict[torch.device, Mapping[torch.dtype, int]] = {}
        fused: dict[torch.device, list[int]] = {}
        for position, entry in enumerate(entries):
            device = entry.parameter.device
            if device not in members:
                kinds[device] = _kernel_kinds(device) if tries_kernel else {}
            members.setdefault(device, []).append(position)
            if covers(entry, kinds[device]):
                fused.setdefault(device, []).append(position)
                continue
            limit = PACK_CPU if device.type == "cpu" else PACK_DEVICE
            if entry.parameter.numel() >= limit:
                self._single.setdefault(device, []).append(position)
            elif entry.parameter.numel():
                groups.setdefault((device, entry.parameter.dtype, entry.flags), []).append(position)
        for (device, _, _), positions in groups.items():
            for chunk in _chunks(positions, entries, chunk_size(device)):
                self._packs.setdefault(device, []).append(_pack(chunk, entries, device))
        self._destinations = {
            device: self._destination(device, positions, entries) for device, positions in members.items()
        }
        for device, positions in fused.items():
            row_of = {position: row for row, position in enumerate(members[device])}
            rows = [row_of[position] for position in positions]
            is_host = device.type == "cpu" and not chunk_table.is_available(device)
            self._kernels[device] = (
                HostTable(entries, positions, rows) if is_host else ChunkTable(entries, positions, rows, device)
            )

    def fits(self, entries: Sequence[Entry]) -> bool:
        """Return whether the tensors still lie in memory as they did when the plan was made."""
        return all(kernel.fits(entries) for kernel in self._kernels.values())

    def measure(self, entries: Sequence[Entry], terms: Mapping[torch.device, Tensor]) -> list[SumTable]:
        """Return the sums of all P entries; ``terms`` holds their `ELEMENTWISE_TERMS`, [P, 7], on each device.

        Raises `KernelError` if the fused kernel cannot be compiled or started.
        """
        tables: list[SumTable] = []
        for device, destination in self._destinations.items():
            sums = [_measure_pack(pack, entries, terms[device]) for pack in self._packs.get(device, ())]
            for position in self._single.get(device, ()):
                sums.append(_measure_single(entries[position], terms[device][position]))
            values = destination.empty.clone()
            if sums:
                values.view(-1).index_copy_(0, destination.cells, torch.cat(sums))
            if device in self._kernels:
                self._kernels[device].measure(entries, terms[device], values)
            tables.append(SumTable(positions=destination.positions, parameters=destination.parameters, values=values))
        return tables

    def _destination(self, device: torch.device, positions: list[int], entries: Sequence[Entry]) -> _Destination:
        row_of = {position: row for row, position in enumerate(positions)}
        measured = [pack.entries for pack in self._packs.get(device, ())]
        measured += [(position,) for position in self._single.get(device, ())]
        cells = [
            row_of[position] * len(SUMS) + SUM[name]
            for batch in measured
            for position in batch
            for name in names_of(entries[position].flags)
        ]
        empty = np.full((len(positions), len(SUMS)), np.nan)
        for position, row in row_of.items():
            if not entries[position].parameter.numel():
                empty[row, [SUM[name] for name in names_of(entries[position].flags)]] = 0.0
        return _Destination(
            positions=np.array(positions, np.intp),
            parameters=np.array([entries[position].parameter_index for position in positions], np.intp),
            cells=torch.tensor(cells, dtype=torch.int64, device=device),
            empty=torch.from_numpy(empty).to(wide_dtype(device)).to(device),
        )


def _measure_pack(pack: _Pack, entries: Sequence[Entry], terms: Tensor) -> Tensor:
    """Return the sums of every tensor of ``pack``, [len(pack.entries) · number of sums]."""
    members = [entries[position] for position in pack.entries]
    flags = members[0].flags
    device, dtype = members[0].parameter.device, compute_dtype(members[0].parameter)

    def packed(tensors: list[Tensor | None]) -> Tensor:
        pieces: list[Tensor] = []
        for tensor, filler in zip(tensors, pack.fillers, strict=True):
            assert tensor is not None
            pieces += (flat(tensor), filler)
        return torch.cat(pieces).to(dtype).view(-1, ROW_WIDTH)

    rows = terms.to(dtype).index_select(0, pack.source)  # [R, 7]
    columns = Terms(**{name: rows[:, at : at + 1] for at, name in enumerate(ELEMENTWISE_TERMS)})
    x = Coordinates(
        g=packed([member.grad for member in members]),
        w=packed([member.parameter for member in members]),
        m=packed([member.first for member in members]) if flags.first else None,
        v=packed([member.second for member in members]) if flags.second else None,
    )
    sums = coordinate_sums(flags, columns, ROWS, x)
    by_row = torch.stack([value.to(dtype) for value in sums.values()], dim=1)  # [R, sums]
    wide = wide_dtype(device)
    values = torch.zeros(len(members), len(sums), device=device, dtype=wide)
    values.index_add_(0, pack.owner, by_row.to(wide))
    if "below" in sums:  # each zero that completes a row was counted as √v̂ < ε
        values[:, list(sums).index("below")] -= pack.pads
    return values.view(-1)


def _measure_single(entry: Entry, terms: Tensor) -> Tensor:
    """Return the sums of one tensor, [number of sums]; ``terms`` are its `ELEMENTWISE_TERMS`, [7]."""
    device, dtype = entry.parameter.device, compute_dtype(entry.parameter)
    row = terms.to(dtype)
    scalars = Terms(**{name: row[at] for at, name in enumerate(ELEMENTWISE_TERMS)})
    whole = entry.coordinates()
    wide = wide_dtype(device)
    values: Tensor | None = None
    step = chunk_size(device)
    space = torch.empty(2, min(step, whole.g.numel()), device=device, dtype=dtype)
    for start in range(0, whole.g.numel(), step):
        window = slice(start, start + step)
        own, other = space[:, : whole.g.numel() - start]
        x = Coordinates(
            g=whole.g[window].to(dtype),
            w=whole.w[window].to(dtype),
            m=None if whole.m is None else whole.m[window].to(dtype),
            v=None if whole.v is None else whole.v[window].to(dtype),
        )
        sums = coordinate_sums(entry.flags, scalars, FLAT, x, (own, other))
        chunk = torch.stack([value.to(wide) for value in sums.values()])
        values = chunk if values is None else values + chunk
    assert values is not None
    return values


def _kernel_kinds(device: torch.device) -> Mapping[torch.dtype, int]:
    """Return the dtypes that a fused kernel reads on ``device``; none if there is no kernel."""
    if chunk_table.is_available(device):
        return KINDS
    return HOST_KINDS if device.type == "cpu" and host_table.is_available() else {}


def chunk_size(device: torch.device) -> int:
    """Return the number of coordinates that are processed at a time on ``device``."""
    return CHUNK_CPU if device.type == "cpu" else CHUNK_DEVICE


def _pack(members: list[int], entries: Sequence[Entry], device: torch.device) -> _Pack:
    counts = [flat(entries[position].parameter).numel() for position in members]
    pads = [-count % ROW_WIDTH for count in counts]
    rows = [(count + pad) // ROW_WIDTH for count, pad in zip(counts, pads, strict=True)]
    owner = torch.from_numpy(np.repeat(np.arange(len(members)), rows)).to(device)
    source = torch.from_numpy(np.repeat(np.array(members), rows)).to(device)
    zeros = torch.zeros(ROW_WIDTH, device=device, dtype=entries[members[0]].parameter.real.dtype)
    fillers = tuple(zeros[:pad] for pad in pads)
    return _Pack(
        entries=tuple(members),
        pads=torch.tensor(pads, device=device, dtype=wide_dtype(device)),
        fillers=fillers,
        owner=owner,
        source=source,
    )


def _chunks(positions: Sequence[int], entries: Sequence[Entry], limit: int) -> list[list[int]]:
    chunks: list[list[int]] = [[]]
    filled = 0
    for position in positions:
        size = entries[position].parameter.numel() + ROW_WIDTH
        if filled + size > limit and chunks[-1]:
            chunks.append([])
            filled = 0
        chunks[-1].append(position)
        filled += size
    return chunks
