"""The chunk table: which coordinates of which tensor each program of the Triton kernel reads.

Owns the layout of the work on one device and its launch; `triton_kernel` has the device code. The table stays on the
device as long as the plan does. Each step uploads the addresses of the tensors, as gradients are usually allocated
anew, and nothing on the host waits for the device.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from client_sdk.stats.entry import Entry
from client_sdk.stats.sums import SUM, SUMS, Flags, names_of

KINDS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Numbers of the dtypes that the kernel reads."""
chunk_lengths = (2**12, 2**16)
"""Least and greatest number of coordinates of a chunk; a test makes them small."""
CHUNKS_WANTED: Final = 8192
"""Number of chunks at which they get longer; enough to keep the largest devices busy to the end."""
_ALIGNMENT: Final = 16  # bytes, for the widest loads
_KIND_BITS: Final = 16  # the lowest bit of the four dtypes in a tensor's code
_OPTIONS: Final = {"num_warps": 4, "enable_fp_fusion": True}  # the default of the latter depends on the version


def covers(entry: Entry) -> bool:
    """Return whether the kernel can read the tensors of ``entry``.

    It reads float32, bfloat16 and float16 in the order of memory, which must be the same for all of the tensors.
    """
    tensors = [tensor for tensor in (entry.grad, entry.parameter, entry.first, entry.second) if tensor is not None]
    if not entry.parameter.numel() or any(tensor.dtype not in KINDS for tensor in tensors):
        return False
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    strides = entry.parameter.stride()
    return _is_dense(entry.parameter) and all(tensor.stride() == strides for tensor in tensors)


class KernelError(Exception):
    """The kernel cannot be compiled or started on this device; torch operations have to measure instead."""


class ChunkTable:
    """Work of one device for entries with given parameters and flags."""

    def __init__(
        self, entries: Sequence[Entry], positions: Sequence[int], rows: Sequence[int], device: torch.device
    ) -> None:
        """Divide the tensors of the entries at ``positions`` into chunks; ``rows`` are their rows in the sum table.

        Raises `KernelError` if triton cannot be imported.
        """
        try:
            self._kernel = importlib.import_module("client_sdk.stats.triton_kernel")
        except Exception as error:
            raise KernelError(f"importing triton raised {type(error).__name__}: {error}") from error
        members = [entries[position] for position in positions]
        sizes = np.array([member.parameter.numel() for member in members], np.int64)
        self._length = _chunk_length(int(sizes.sum()))
        counts = -(-sizes // self._length)
        first = np.concatenate([[0], np.cumsum(counts)])
        starts = (np.arange(first[-1]) - np.repeat(first[:-1], counts)) * self._length

        def sent(values: Any, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(np.asarray(values)).to(dtype).to(device)

        self._positions = list(positions)
        self._layouts = [_layout(member) for member in members]
        self._device = device
        self._sizes = sent(sizes, torch.int64)
        self._first_chunk = sent(first, torch.int32)
        self._chunk_tensor = sent(np.repeat(np.arange(len(members)), counts), torch.int32)
        self._chunk_start = sent(starts, torch.int64)
        self._rows = sent(rows, torch.int32)
        self._members = sent(positions, torch.int64)
        self._codes = sent([_code(member, self._kernel.FLAGS) for member in members], torch.int32)
        self._existing = sent([_existing(member.flags) for member in members], torch.int32)
        self._constants = sent([(member.flags.intake, member.flags.folded) for member in members], torch.float32)

    def fits(self, entries: Sequence[Entry]) -> bool:
        """Return whether the tensors have the sizes, dtypes and orders in memory for which the table was made."""
        return all(
            _layout(entries[position]) == layout
            for position, layout in zip(self._positions, self._layouts, strict=True)
        )

    def measure(self, entries: Sequence[Entry], terms: Tensor, table: Tensor) -> None:
        """Write the sums of the tensors into their rows of ``table``, [P, len(SUMS)].

        ``terms`` are the `ELEMENTWISE_TERMS` of all entries, [P, 7]. The entries must fit (see `fits`). Raises
        `KernelError` if a kernel cannot be compiled or started.
        """
        addresses: list[tuple[int, int, int, int]] = []
        for position in self._positions:
            entry = entries[position]
            addresses.append(
                (
                    entry.grad.data_ptr(),
                    entry.parameter.data_ptr(),
                    0 if entry.first is None else entry.first.data_ptr(),
                    0 if entry.second is None else entry.second.data_ptr(),
                )
            )
        on_host = np.array(addresses, np.int64)
        is_aligned = not bool((on_host % _ALIGNMENT).any())
        sent = torch.from_numpy(on_host)
        if self._device.type == "cuda":
            sent = sent.pin_memory().to(self._device, non_blocking=True)
        partials = torch.empty(len(self._chunk_tensor), len(SUMS), device=self._device, dtype=torch.float32)
        own_terms = terms.index_select(0, self._members)
        try:
            with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
                self._kernel.sum_chunks[(len(partials),)](
                    partials, self._chunk_tensor, self._chunk_start, self._sizes, self._codes, sent, own_terms,
                    self._constants, self._length, aligned=is_aligned, block=self._kernel.BLOCK, **_OPTIONS,
                )  # fmt: skip
                self._kernel.add_chunks[(len(self._positions),)](
                    table, partials, self._first_chunk, self._rows, self._existing, **_OPTIONS
                )
        except Exception as error:
            raise KernelError(f"compiling it raised {type(error).__name__}: {error}") from error


def is_available(device: torch.device) -> bool:
    """Return whether the kernel can be tried on ``device``: a CUDA device where triton is installed.

    Triton's interpreter, which `TRITON_INTERPRET=1` selects, is far too slow for a training.
    """
    if device.type != "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return False
    return importlib.util.find_spec("triton") is not None


def _chunk_length(total: int) -> int:
    length, longest = chunk_lengths
    while length < longest and total > length * CHUNKS_WANTED:
        length *= 2
    return length


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the elements of ``tensor`` fill one piece of memory without gaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _existing(flags: Flags) -> int:
    return sum(1 << SUM[name] for name in names_of(flags))


def _code(entry: Entry, flags: Mapping[str, int]) -> int:
    """Return the flags of ``entry`` and the dtypes of its tensors as the kernel reads them."""
    code = sum(bit for name, bit in flags.items() if getattr(entry.flags, name))
    for at, tensor in enumerate((entry.grad, entry.parameter, entry.first, entry.second)):
        code |= (0 if tensor is None else KINDS[tensor.dtype]) << (_KIND_BITS + 2 * at)
    return code


def _layout(entry: Entry) -> tuple[object, ...]:
    """Return everything about the memory of ``entry`` that must not change while the table is used."""
    first, second = entry.first, entry.second
    return (
        entry.parameter.shape, entry.parameter.stride(), entry.parameter.dtype, entry.grad.stride(), entry.grad.dtype,
        None if first is None else (first.stride(), first.dtype),
        None if second is None else (second.stride(), second.dtype),
    )  # fmt: skip
