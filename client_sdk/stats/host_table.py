"""The fused measurement on the CPU: which coordinates each thread reads.

Owns the layout of the work and its threads; `numba_kernel` has the compiled code. Nothing is copied: the kernel reads
the tensors where they lie.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from client_sdk.stats.entry import Entry
from client_sdk.stats.kernel_code import KINDS, addresses_of, code_of, layout_of
from client_sdk.stats.kernel_error import KernelError
from client_sdk.stats.sums import SUMS, names_of

HOST_KINDS: Final = {dtype: KINDS[dtype] for dtype in (torch.float32, torch.bfloat16)}
"""Dtypes that the kernel reads on the CPU."""
CHUNK: Final = 2**16  # coordinates of a chunk, which one thread sums
WORTH_THREADS: Final = 2**18  # coordinates below which one thread is quicker


class HostTable:
    """Work on the CPU for entries with given parameters and flags."""

    def __init__(self, entries: Sequence[Entry], positions: Sequence[int], rows: Sequence[int]) -> None:
        """Divide the tensors of the entries at ``positions`` into chunks; ``rows`` are their rows in the sum table.

        Raises `KernelError` if numba cannot be imported.
        """
        self._kernel = _kernel()
        members = [entries[position] for position in positions]
        self._positions = np.array(positions, np.intp)
        self._rows = torch.tensor(rows, dtype=torch.int64)
        self._layouts = [layout_of(member) for member in members]
        self._sizes = np.array([member.parameter.numel() for member in members], np.int64)
        counts = -(-self._sizes // CHUNK)
        self._first_chunk = np.concatenate([[0], np.cumsum(counts)])[:-1]
        self._tensors = np.repeat(np.arange(len(members), dtype=np.int64), counts)
        self._starts = (np.arange(len(self._tensors), dtype=np.int64) - self._first_chunk[self._tensors]) * CHUNK
        self._codes = np.array([code_of(member) for member in members], np.int64)
        self._constants = np.array([(member.flags.intake, member.flags.folded) for member in members], np.float64)
        self._missing = np.array([[name not in names_of(member.flags) for name in SUMS] for member in members])

    def fits(self, entries: Sequence[Entry]) -> bool:
        """Return whether the tensors have the sizes, dtypes and orders in memory for which the table was made."""
        return all(
            layout_of(entries[position]) == layout
            for position, layout in zip(self._positions, self._layouts, strict=True)
        )

    def measure(self, entries: Sequence[Entry], terms: Tensor, table: Tensor) -> None:
        """Write the sums of the tensors into their rows of ``table``, [P, len(SUMS)].

        ``terms`` are the `ELEMENTWISE_TERMS` of all entries, [P, 7]. The entries must fit (see `fits`). Raises
        `KernelError` if the kernel cannot be compiled.
        """
        addresses = np.array([addresses_of(entries[position]) for position in self._positions], np.int64)
        own_terms = terms.to(torch.float64).numpy()[self._positions]
        partials = np.empty((len(self._tensors), len(SUMS)))

        def add(first: int, last: int) -> None:
            self._kernel.sum_chunks(
                first, last, self._tensors, self._starts, CHUNK, self._sizes, self._codes, addresses, own_terms,
                self._constants, partials,
            )  # fmt: skip

        threads = torch.get_num_threads() if self._sizes.sum() >= WORTH_THREADS else 1
        try:
            if threads == 1:
                add(0, len(partials))
            else:
                bounds = np.linspace(0, len(partials), threads + 1).astype(np.int64).tolist()
                list(_pool(os.getpid(), threads).map(add, bounds[:-1], bounds[1:]))
        except Exception as error:
            raise _refused(error) from error
        values = np.add.reduceat(partials, self._first_chunk, axis=0)
        values[self._missing] = np.nan
        table.index_copy_(0, self._rows, torch.from_numpy(values))


def prepare() -> None:
    """Compile the kernel unless this machine has done so before, which takes some seconds; numba keeps the result.

    Raises `KernelError` if that fails.
    """
    one, numbers = np.zeros(1, np.int64), np.zeros((1, 7))
    try:
        _kernel().sum_chunks(
            0, 0, one, one, CHUNK, one, one, np.zeros((1, 4), np.int64), numbers, numbers, np.zeros((1, len(SUMS)))
        )
    except KernelError:
        raise
    except Exception as error:
        raise _refused(error) from error


def is_available() -> bool:
    """Return whether the kernel can be tried: numba is installed."""
    return importlib.util.find_spec("numba") is not None


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of ``process``; a process that was forked has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="spikewatch-statistics")


def _kernel() -> Any:
    try:
        return importlib.import_module("client_sdk.stats.numba_kernel")
    except Exception as error:
        raise _refused(error) from error


def _refused(error: Exception) -> KernelError:
    return KernelError(f"numba raised {type(error).__name__}: {error}; install a numba that fits this NumPy")
