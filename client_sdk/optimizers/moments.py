"""Moments of the optimizer's state that are not kept as one tensor in the shape of the parameter.

A factored second moment (Adafactor) is a row and a column, and an 8-bit state (bitsandbytes) is a code for each
coordinate with a scale for each block. Both give the values of any range of coordinates, so that no tensor of the size
of the parameter is ever made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.optimizers.update_rule import UpdateRule

QUANTISED_BLOCK: Final = 256
"""Coordinates that share a scale in the 8-bit states of bitsandbytes."""


@dataclass(frozen=True, kw_only=True)
class FactoredMoment:
    """Second moment of a tensor [..., R, C] as v = rows · columns / norm."""

    rows: Tensor
    """Row means of v, [..., R], as a vector."""
    columns: Tensor
    """Column means of v, [..., C], as a vector."""
    norm: Tensor
    """Mean of the rows of each matrix, [...], as a vector."""
    height: int
    """Rows R of each matrix."""
    width: int
    """Columns C of each matrix."""

    def values(self, window: slice) -> Tensor:
        """Return v of the coordinates in ``window`` (start, stop and step), [n], in the order of the parameter."""
        start, stop, step = window.indices(self.rows.numel() * self.width)
        device, columns = self.rows.device, self.columns.view(-1, self.width)
        if step > 1:
            at = torch.arange(start, stop, step, device=device)
            row = at // self.width
            matrix = row // self.height
            return self.rows[row] * columns[matrix, at % self.width] / self.norm[matrix]
        first, last = start // self.width, -(-stop // self.width)  # whole rows, which need no index for each coordinate
        matrix = torch.arange(first, last, device=device) // self.height
        block = (self.rows[first:last] / self.norm[matrix]).unsqueeze(1) * columns[matrix]
        return block.view(-1)[start - first * self.width : stop - first * self.width]


@dataclass(frozen=True, kw_only=True)
class QuantisedMoment:
    """Moment with an 8-bit code for each coordinate: map[code] · scale of the coordinate's block."""

    codes: Tensor
    """Codes as a vector of uint8."""
    map: Tensor
    """Value of each of the 256 codes."""
    scales: Tensor
    """Scale of each block of `QUANTISED_BLOCK` coordinates."""

    def values(self, window: slice) -> Tensor:
        """Return the values of the coordinates in ``window`` (start, stop and step), [n]."""
        start, stop, step = window.indices(self.codes.numel())
        levels = self.map[self.codes[start:stop:step].to(torch.int64)]
        if step > 1:
            at = torch.arange(start, stop, step, device=self.codes.device)
            return levels * self.scales[at // QUANTISED_BLOCK]
        first, last = start // QUANTISED_BLOCK, -(-stop // QUANTISED_BLOCK)
        scales = self.scales[first:last].repeat_interleave(QUANTISED_BLOCK)
        return levels * scales[start - first * QUANTISED_BLOCK : stop - first * QUANTISED_BLOCK]


Moment = FactoredMoment | QuantisedMoment
"""A moment of which any range of coordinates can be computed."""


def first_moment(rule: UpdateRule, state: Mapping[str, Any], like: Tensor) -> Tensor | Moment | None:
    """Return m of a parameter whose local part is ``like``, or None if there is none."""
    return _moment(rule.first, state, like)


def second_moment(rule: UpdateRule, state: Mapping[str, Any], like: Tensor) -> Tensor | Moment | None:
    """Return v of a parameter whose local part is ``like``, or None if there is none."""
    if rule.kind == "adafactor" and state.get("row_var") is not None:
        rows, columns = state["row_var"], state["col_var"]  # [..., R, 1] and [..., 1, C]
        norm = rows.mean(dim=-2).clamp(min=rule.eps)
        return _factored(rows.reshape(-1), columns.reshape(-1), norm.reshape(-1), like)
    if rule.kind == "transformers_adafactor" and state.get("exp_avg_sq_row") is not None:
        rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]  # [..., R] and [..., C]
        return _factored(rows.reshape(-1), columns.reshape(-1), rows.mean(dim=-1).reshape(-1), like)
    return _moment(rule.second, state, like)


def dense(moment: Tensor | Moment) -> Tensor:
    """Return all values of a moment as one vector."""
    return moment.reshape(-1) if isinstance(moment, Tensor) else moment.values(slice(None))


def _factored(rows: Tensor, columns: Tensor, norm: Tensor, like: Tensor) -> FactoredMoment | None:
    if like.dim() < 2 or rows.device != like.device or rows.numel() * like.shape[-1] != like.numel():
        return None  # a shard of a distributed parameter
    return FactoredMoment(rows=rows, columns=columns, norm=norm, height=like.shape[-2], width=like.shape[-1])


def _moment(key: str | None, state: Mapping[str, Any], like: Tensor) -> Tensor | QuantisedMoment | None:
    tensor = None if key is None else state.get(key)
    if not isinstance(tensor, Tensor):
        return None
    held: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    if held.dtype == torch.uint8 and key is not None:
        return _quantised(key, held, state, like)
    is_usable = held.is_floating_point() or held.is_complex()
    return held if is_usable and held.shape == like.shape and held.device == like.device else None


def _quantised(key: str, codes: Tensor, state: Mapping[str, Any], like: Tensor) -> QuantisedMoment | None:
    number = key.removeprefix("state")
    levels, scales = state.get(f"qmap{number}"), state.get(f"absmax{number}")
    if not isinstance(levels, Tensor) or not isinstance(scales, Tensor) or codes.device != like.device:
        return None
    if codes.numel() != like.numel() or scales.numel() * QUANTISED_BLOCK < codes.numel():
        return None
    return QuantisedMoment(codes=codes.reshape(-1), map=levels, scales=scales)
