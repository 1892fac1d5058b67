"""The code of a tensor: its flags and dtypes as one integer, which the fused kernels branch by. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from client_sdk.stats.entry import Entry
from client_sdk.stats.sums import SUM, Flags, names_of

BIT: Final = {
    "updates": 1, "first": 2, "second": 4, "squared": 8, "uses_gradient": 16, "divided": 32, "coupled": 64,
    "decoupled": 128, "negated": 256, "folded": 512,
}  # fmt: skip
"""Bit of each attribute of `sums.Flags` that decides a branch; "folded" is set where it is not 0."""
KIND_BITS: Final = 16
"""The lowest of the bits of the dtypes, two for each of g, w, m and v."""
KINDS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Numbers of the dtypes."""


def covers(entry: Entry, kinds: Mapping[torch.dtype, int]) -> bool:
    """Return whether a kernel can read the tensors of ``entry``: dtypes of ``kinds``, in one order of memory."""
    tensors = [tensor for tensor in (entry.grad, entry.parameter, entry.first, entry.second) if tensor is not None]
    if not entry.parameter.numel() or any(tensor.dtype not in kinds for tensor in tensors):
        return False
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    strides = entry.parameter.stride()
    return is_dense(entry.parameter) and all(tensor.stride() == strides for tensor in tensors)


def code_of(entry: Entry) -> int:
    """Return the flags of ``entry`` and the dtypes of its tensors."""
    code = sum(bit for name, bit in BIT.items() if getattr(entry.flags, name))
    for at, tensor in enumerate((entry.grad, entry.parameter, entry.first, entry.second)):
        code |= (0 if tensor is None else KINDS[tensor.dtype]) << (KIND_BITS + 2 * at)
    return code


def existing_bits(flags: Flags) -> int:
    """Return the sums that exist for ``flags``: bit i is set if number i of `SUMS` does."""
    return sum(1 << SUM[name] for name in names_of(flags))


def layout_of(entry: Entry) -> tuple[object, ...]:
    """Return everything about the memory of ``entry`` that must not change while a kernel's plan is used."""
    first, second = entry.first, entry.second
    return (
        entry.parameter.shape, entry.parameter.stride(), entry.parameter.dtype, entry.grad.stride(), entry.grad.dtype,
        None if first is None else (first.stride(), first.dtype),
        None if second is None else (second.stride(), second.dtype),
    )  # fmt: skip


def addresses_of(entry: Entry) -> tuple[int, int, int, int]:
    """Return the addresses of g, w, m and v; 0 for a moment that there is not."""
    return (
        entry.grad.data_ptr(),
        entry.parameter.data_ptr(),
        0 if entry.first is None else entry.first.data_ptr(),
        0 if entry.second is None else entry.second.data_ptr(),
    )


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether the elements of ``tensor`` fill one piece of memory without gaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
