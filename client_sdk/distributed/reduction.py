"""The sum of one array over the ranks that watch a model, without making training wait.

Owns a process group of its own, on the host, so that no collective of training can interleave with ours, and a thread
that enters the collectives in the order in which they were submitted. It is gloo on every device: a failed collective
of NCCL ends the process, one of gloo raises here. A failure or a wait beyond the limit ends the reduction for good.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

REDUCTION_TIMEOUT: Final = 60.0  # seconds that the thread waits for the other ranks
Array = NDArray[np.float64]


class Reduced:
    """The sum of one submitted array, which may still be under way; implements `measurement.HostCopy`."""

    def __init__(self, fill: Callable[[], Array]) -> None:
        self.fill = fill
        """Function that returns this rank's array, after waiting for its copy from the device."""
        self._done = threading.Event()
        self._values: Array | None = None

    @property
    def values(self) -> Array | None:
        """The sum over all ranks; None until it is there, and if the reduction failed."""
        return self._values

    def ready(self) -> bool:
        """Return whether the sum is there or will never be."""
        return self._done.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until the sum is there or will never be, at most ``timeout`` seconds; return `ready`."""
        return self._done.wait(timeout)

    def finish(self, values: Array | None) -> None:
        """Give the sum, or None if there is none. Called once."""
        self._values = values
        self._done.set()


class Reduction:
    """Sums of arrays over some ranks. Every rank must submit arrays of the same shapes in the same order."""

    def __init__(
        self, store: Any, ranks: Sequence[int], rank: int, *, timeout: float = REDUCTION_TIMEOUT, prefix: str
    ) -> None:
        """Connect to the other ``ranks``, which must do the same, and start the thread.

        ``store`` is a `torch.distributed.Store` that all ranks share. Raises `RuntimeError` if a rank cannot be
        reached.
        """
        self._timeout = timedelta(seconds=timeout)
        distributed: Any = torch.distributed  # whose stubs lack both names
        self._group = distributed.ProcessGroupGloo(
            distributed.PrefixStore(f"{prefix}/gloo", store), list(ranks).index(rank), len(ranks), self._timeout
        )
        self.failure = ""
        """Reason for which no further sum will come, or empty."""
        self._jobs: queue.SimpleQueue[Reduced | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="spikewatch-reduction", daemon=True)
        self._thread.start()

    def submit(self, fill: Callable[[], Array]) -> Reduced:
        """Sum the array that ``fill`` returns over all ranks. Returns at once; ``fill`` runs on the thread."""
        job = Reduced(fill)
        if self.failure:
            job.finish(None)
        else:
            self._jobs.put(job)
        return job

    def close(self) -> None:
        """Let the thread end after what was submitted. Returns at once."""
        self._jobs.put(None)

    def join(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for the end of the thread after `close`."""
        self._thread.join(timeout)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self.failure:
                job.finish(None)
                continue
            try:
                values = np.ascontiguousarray(job.fill(), np.float64)
                self._group.allreduce([torch.from_numpy(values)]).wait(self._timeout)
                job.finish(values)
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                job.finish(None)
