"""The movement of the weights in a step: those of a snapshot against those after the step.

Owns the sums over the sampled coordinates, and the judgement whether the optimizer's rule explains the movement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.optimizers import ELEMENTWISE_TERMS, TERM
from client_sdk.stats.entry import Entry, compute_dtype, flat
from client_sdk.stats.measurement_plan import ROW_WIDTH
from client_sdk.stats.snapshot import Sample
from client_sdk.stats.sum_table import wide_dtype
from client_sdk.stats.sums import Coordinates, Flags, Terms, scaled_update, unfolded

SAMPLES_AT_ONCE_CPU: Final = 2**16  # coordinates at a time, with about ten temporaries of 256 KiB
SAMPLES_AT_ONCE_DEVICE: Final = 2**18  # coordinates at a time, with about ten temporaries of 1 MiB

MOVED: Final = (
    "moved",     # Σ Δw², from the weights
    "expected",  # Σ Δw², from the formula
    "missed",    # Σ (Δw − Δw of the formula)²
    "rounding",  # Σ (ε·w)², ε = the relative rounding of the weights' dtype
    "pushed",    # count of coordinates whose update is not zero
    "stuck",     # count of those whose weight did not change
    "unscaled",  # Σ u² with u = −(Δw + lr·decoupled·w)/lr, w from before the step
)  # fmt: skip
"""Sums over the sampled coordinates of a tensor, times the stride of the sample."""
MOVE: Final = {name: position for position, name in enumerate(MOVED)}
"""Column of each of the `MOVED`."""


@dataclass(frozen=True, kw_only=True)
class Movement:
    """Sums of one step on their device."""

    positions: NDArray[np.intp]
    """Position of each tensor in the list of entries, [n]."""
    values: Tensor
    """Values of `MOVED`, [n, len(MOVED)] float64 (float32 on MPS)."""


class _Piece(NamedTuple):
    """Consecutive samples of one tensor."""

    position: int
    """Position in the list of entries."""
    at: int
    """Position in the list of sampled entries of this device."""
    start: int
    """Number of the first sample."""
    stop: int
    """Number of the sample after the last one."""


_Key = tuple[torch.device, torch.dtype, Flags]


def measure_movement(
    entries: Sequence[Entry], samples: Mapping[int, Sample], terms: Mapping[torch.device, Tensor]
) -> list[Movement]:
    """Return the sums of the sampled entries, one table for each device. Never synchronises a device.

    ``samples`` has the snapshot by the position of the entry, and ``terms`` the `TERMS` of all P entries,
    [P, len(TERMS)], on each device.
    """
    batches: dict[torch.device, dict[_Key, list[list[_Piece]]]] = {}
    filled: dict[_Key, int] = {}
    members: dict[torch.device, list[int]] = {}
    for position, sample in samples.items():
        entry = entries[position]
        device = entry.parameter.device
        at = len(members.setdefault(device, []))
        members[device].append(position)
        key = device, entry.parameter.dtype, entry.flags
        chunks = batches.setdefault(device, {}).setdefault(key, [[]])
        limit = SAMPLES_AT_ONCE_CPU if device.type == "cpu" else SAMPLES_AT_ONCE_DEVICE
        size = sample.before.numel()
        for start in range(0, size, limit):
            piece = _Piece(position, at, start, min(start + limit, size))
            filled[key] = filled.get(key, 0) + piece.stop - start + ROW_WIDTH
            if filled[key] > limit and chunks[-1]:
                chunks.append([])
                filled[key] = piece.stop - start + ROW_WIDTH
            chunks[-1].append(piece)
    found = []
    for device, groups in batches.items():
        values = torch.zeros(len(members[device]), len(MOVED), device=device, dtype=wide_dtype(device))
        for chunks in groups.values():
            for chunk in filter(None, chunks):
                _measure_chunk(chunk, entries, samples, terms[device], values)
        found.append(Movement(positions=np.array(members[device], np.intp), values=values))
    return found


def _measure_chunk(
    chunk: Sequence[_Piece], entries: Sequence[Entry], samples: Mapping[int, Sample], terms: Tensor, values: Tensor
) -> None:
    """Add the sums of some pieces of equal dtype and flags to ``values``, [n, len(MOVED)]."""
    device, leading = values.device, entries[chunk[0].position]
    dtype, flags = compute_dtype(leading.parameter), leading.flags
    gaps = [-(piece.stop - piece.start) % ROW_WIDTH for piece in chunk]
    fillers: dict[torch.dtype, list[Tensor]] = {}

    def rows_of(tensors: Sequence[Tensor]) -> Tensor:
        kind = tensors[0].dtype if all(tensor.dtype == tensors[0].dtype for tensor in tensors) else dtype
        if kind not in fillers:
            zeros = torch.zeros(ROW_WIDTH, device=device, dtype=kind)
            fillers[kind] = [zeros[:gap] for gap in gaps]
        pieces = [tensor if tensor.dtype == kind else tensor.to(kind) for tensor in tensors]
        return (
            torch.cat([part for pair in zip(pieces, fillers[kind], strict=True) for part in pair])
            .to(dtype)
            .view(-1, ROW_WIDTH)
        )

    def sampled(tensor: Tensor | None, piece: _Piece) -> Tensor:
        assert tensor is not None
        sample, values = samples[piece.position], flat(tensor)
        if sample.stride == 1:
            is_whole = piece.stop - piece.start == values.numel()
            return values if is_whole else values[piece.start : piece.stop]
        first = sample.start + piece.start * sample.stride
        return values[first : first + (piece.stop - piece.start - 1) * sample.stride + 1 : sample.stride]

    counts = [-(-(piece.stop - piece.start) // ROW_WIDTH) for piece in chunk]
    owner = torch.from_numpy(np.repeat([piece.at for piece in chunk], counts)).to(device, non_blocking=True)
    source = torch.from_numpy(np.repeat([piece.position for piece in chunk], counts)).to(device, non_blocking=True)
    strides = np.repeat([samples[piece.position].stride for piece in chunk], counts)
    table = terms.index_select(0, source).to(dtype)
    x = Coordinates(
        g=rows_of([sampled(entries[piece.position].grad, piece) for piece in chunk]),
        w=rows_of([sampled(entries[piece.position].parameter, piece) for piece in chunk]),
        m=rows_of([sampled(entries[piece.position].first, piece) for piece in chunk]) if flags.first else None,
        v=rows_of([sampled(entries[piece.position].second, piece) for piece in chunk]) if flags.second else None,
    )
    before = rows_of([samples[piece.position].before[piece.start : piece.stop] for piece in chunk])
    eps = torch.finfo(leading.parameter.real.dtype).eps
    moved = x.w - before
    lr, decay = (table[:, TERM[name]].unsqueeze(1) for name in ("lr", "decoupled"))
    nothing = torch.full_like(lr, torch.nan)
    expected = missed = unscaled = nothing
    if flags.updates:
        step = _formula_step(flags, table, x, before)
        expected, missed, pushed = step.square(), (moved - step).square(), step != 0
    else:
        pushed = x.g != 0
        if not is_rounded(leading.parameter):  # else Δw is not −lr·u but what rounding has made of it
            unscaled = ((moved + lr * decay * before) / lr).square()
    by_name = {
        "moved": moved.square(), "expected": expected, "missed": missed, "rounding": (eps * x.w).square(),
        "pushed": pushed, "stuck": pushed & (moved == 0), "unscaled": unscaled,
    }  # fmt: skip
    wide = values.dtype
    by_row = torch.stack([by_name[name].to(wide).sum(1) for name in MOVED], dim=1)
    values.index_add_(0, owner, by_row * torch.from_numpy(strides).to(wide).to(device).unsqueeze(1))


def _formula_step(flags: Flags, table: Tensor, x: Coordinates, before: Tensor) -> Tensor:
    """Return Δw as the formula gives it, in the shape of ``x``; ``table`` holds the `TERMS` of each row."""
    columns = Terms(**{name: table[:, at : at + 1] for at, name in enumerate(ELEMENTWISE_TERMS)})
    lr, decay = (table[:, TERM[name]].unsqueeze(1) for name in ("lr", "decoupled"))
    if flags.coupled:  # the weights from before the step are known here and need not be solved for
        x = unfolded(flags, x)
        e = (-x.g if flags.negated else x.g) + columns.coupled * before
        x, flags = replace(x, g=e), replace(flags, coupled=False, negated=False, folded=0.0)
    return -lr * (scaled_update(flags, columns, x) + decay * before)


def is_rounded(parameter: Tensor) -> bool:
    """Return whether a weight of this dtype is so coarse that rounding may swallow its update."""
    return parameter.dtype in (torch.bfloat16, torch.float16)


class Refutation(NamedTuple):
    """Evidence that weights moved otherwise than the formula says."""

    factor: float
    """Length of the movement over that of the formula, in the tensors that refute it."""
    cosine: float
    """Cosine between the two; near 1 if only the learning rate differs."""
    positions: tuple[int, ...] = ()
    """Positions of these tensors among those with a formula."""
    layers: tuple[str, ...] = ()
    """Layers of these tensors."""


class Finding(NamedTuple):
    """Judgement of one step by the sums of the sampled tensors."""

    is_refuted: bool
    """Whether the weights moved otherwise than the formula says, beyond rounding."""
    is_skipped: bool
    """Whether no weight moved although the formula says so, as in a step that an optimizer decided to leave out."""
    refutation: Refutation | None = None
    """Evidence of a refuted formula."""


def judge(moved: NDArray[np.float64], tolerance: NDArray[np.float64]) -> Finding:
    """Compare the movement with the formula.

    ``moved`` holds the `MOVED` of the tensors with a formula, [n, len(MOVED)], and ``tolerance`` the relative error
    that is accepted for each tensor, [n]. Tensors in which rounding of the weights hides the answer do not count, and
    neither do sums that are not finite.
    """
    with np.errstate(all="ignore"):
        expected, missed, rounding = (moved[:, MOVE[name]] for name in ("expected", "missed", "rounding"))
        is_clear = np.isfinite(missed) & (expected > 100.0 * rounding)
        if not is_clear.any():
            return Finding(is_refuted=False, is_skipped=False)
        if not moved[is_clear, MOVE["moved"]].any():
            return Finding(is_refuted=False, is_skipped=True)
        wrong = is_clear & (missed > tolerance**2 * expected + 4.0 * rounding)
        if not wrong.any():
            return Finding(is_refuted=False, is_skipped=False)
        came, said, error = (float(moved[wrong, MOVE[name]].sum()) for name in ("moved", "expected", "missed"))
        cosine = (came + said - error) / (2.0 * math.sqrt(came * said)) if came > 0 else 0.0
        found = Refutation(
            factor=math.sqrt(came / said),
            cosine=cosine,
            positions=tuple(np.flatnonzero(wrong).tolist()),
        )
        return Finding(is_refuted=True, is_skipped=False, refutation=found)
