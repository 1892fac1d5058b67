"""Processes that form a gloo process group and run functions of the tests on all of their ranks."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Final

ANSWER_TIMEOUT: Final = 100.0  # seconds for one case on all ranks
END_TIMEOUT: Final = 30.0  # seconds

PRELOADED: Final = ["tests.client_sdk.distributed.trainings", "torch._dynamo", "client_sdk.stats.numba_kernel"]
"""Modules that the common parent of all ranks imports. Names that are added before the first pool starts count.

The first optimizer of a process imports `torch._dynamo`, which takes longer than the rest of torch, and `watch` numba.
"""
Case = Callable[..., Any]
"""Function of a module, called with its rank and the number of ranks, whose result can be pickled."""


class RankFailure(Exception):  # noqa: N818 - named after what it is
    """A case that raised on a rank, with its traceback."""


class RankPool:
    """Ranks of one process group. They stay alive from case to case, as importing torch takes seconds."""

    def __init__(self, size: int) -> None:
        """Start ``size`` processes, whose common parent has imported what is `PRELOADED`."""
        context: ForkServerContext = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.size = size
        self._directory = tempfile.TemporaryDirectory(prefix="ranks-")
        self._pipes: list[Connection] = []
        self._processes: list[ForkServerProcess] = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (rank, size, str(Path(self._directory.name) / "store"), theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, case: Case, *arguments: Any, dead: Sequence[int] = (), **options: Any) -> list[Any]:
        """Run ``case`` on all ranks and return their results; None for the ranks that are to die in it."""
        for pipe in self._pipes:
            pipe.send((case, arguments, options))
        results: list[Any] = []
        for rank, pipe in enumerate(self._pipes):
            if rank in dead:
                results.append(None)
                continue
            if not pipe.poll(ANSWER_TIMEOUT):
                raise RankFailure(f"rank {rank} did not answer within {ANSWER_TIMEOUT:g} s")
            result, trouble = pipe.recv()
            if trouble:
                raise RankFailure(f"rank {rank}:\n{trouble}")
            results.append(result)
        return results

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(END_TIMEOUT)
            if process.is_alive():
                process.kill()
        self._directory.cleanup()


def _serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    """Run cases until the pool closes its end of the pipe."""
    import torch

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    while True:
        try:
            case, arguments, options = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((case(rank, size, *arguments, **options), ""))
        except Exception:
            pipe.send((None, traceback.format_exc()))
