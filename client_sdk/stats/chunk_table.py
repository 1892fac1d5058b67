"""The chunk table: which coordinates of which tensor each program of the Triton kernel reads.

Owns the layout of the work on one device and its launch; `triton_kernel` has the device code. The table stays on the
device as long as the plan does. Each step uploads the addresses of the tensors, as gradients are usually allocated
anew, and nothing on the host waits for the device.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from client_sdk.stats.entry import Entry
from client_sdk.stats.kernel_code import addresses_of, code_of, existing_bits, layout_of
from client_sdk.stats.kernel_error import KernelError
from client_sdk.stats.sums import SUMS

chunk_lengths = (2**12, 2**16)
"""Least and greatest number of coordinates of a chunk; a test makes them small."""
CHUNKS_WANTED: Final = 8192
"""Number of chunks at which they get longer; enough to keep the largest devices busy to the end."""
_ALIGNMENT: Final = 16  # bytes, for the widest loads
_OPTIONS: Final = {"num_warps": 4, "enable_fp_fusion": True}  # the default of the latter depends on the version


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
            raise _refused(error) from error
        members = [entries[position] for position in positions]
        sizes = np.array([member.parameter.numel() for member in members], np.int64)
        self._length = _chunk_length(int(sizes.sum()))
        counts = -(-sizes // self._length)
        first = np.concatenate([[0], np.cumsum(counts)])
        starts = (np.arange(first[-1]) - np.repeat(first[:-1], counts)) * self._length

        def sent(values: Any, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(np.asarray(values)).to(dtype).to(device)

        self._positions = list(positions)
        self._layouts = [layout_of(member) for member in members]
        self._device = device
        self._sizes = sent(sizes, torch.int64)
        self._first_chunk = sent(first, torch.int32)
        self._chunk_tensor = sent(np.repeat(np.arange(len(members)), counts), torch.int32)
        self._chunk_start = sent(starts, torch.int64)
        self._rows = sent(rows, torch.int32)
        self._members = sent(positions, torch.int64)
        self._codes = sent([code_of(member) for member in members], torch.int32)
        self._existing = sent([existing_bits(member.flags) for member in members], torch.int32)
        self._constants = sent([(member.flags.intake, member.flags.folded) for member in members], torch.float32)

    def fits(self, entries: Sequence[Entry]) -> bool:
        """Return whether the tensors have the sizes, dtypes and orders in memory for which the table was made."""
        return all(
            layout_of(entries[position]) == layout
            for position, layout in zip(self._positions, self._layouts, strict=True)
        )

    def measure(self, entries: Sequence[Entry], terms: Tensor, table: Tensor) -> None:
        """Write the sums of the tensors into their rows of ``table``, [P, len(SUMS)].

        ``terms`` are the `ELEMENTWISE_TERMS` of all entries, [P, 7]. The entries must fit (see `fits`). Raises
        `KernelError` if a kernel cannot be compiled or started.
        """
        on_host = np.array([addresses_of(entries[position]) for position in self._positions], np.int64)
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
            raise KernelError(
                f"triton raised {type(error).__name__}: {error}; install the triton that belongs to this torch"
            ) from error


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


def _refused(error: Exception) -> KernelError:
    return KernelError(f"triton raised {type(error).__name__}: {error}; install the triton that belongs to this torch")
