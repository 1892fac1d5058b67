"""One set-up in a process of its own: trains bare and watched, and prints the verdict as JSON.

    python -m campaigns.set_ups.child NAME

The server is found by the environment. Every rank of a set-up of several processes runs both trainings; rank 0 judges.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
import uuid
from typing import Final

import msgspec
import numpy as np
import torch
from torch.multiprocessing.spawn import start_processes

from campaigns.set_ups.catalogue import catalogue
from campaigns.set_ups.set_up import SetUp
from campaigns.set_ups.trial import Trial
from campaigns.set_ups.verdict import Stored, Verdict, judge
from client_sdk.read import Run, Server

MARK: Final = "verdict "
"""Beginning of the line that holds the verdict."""


class Heard(logging.Handler):
    """Warnings that the SDK gave, in its words, keyed by cause."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.messages[getattr(record, "action", "")] = record.getMessage().removeprefix("spikewatch: ")


def try_out(set_up: SetUp, project: str) -> Verdict:
    """Train bare and watched, and judge what the server has stored."""
    heard = Heard()
    logging.getLogger("client_sdk").addHandler(heard)
    bare, watched = (_trained(set_up, project, is_watched=is_watched) for is_watched in (False, True))
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return Verdict(result="pass")  # rank 0 has the records
    is_same = len(bare.weights) == len(watched.weights) and all(map(torch.equal, bare.weights, watched.weights))
    return judge(
        watched.truths,
        _stored(watched, project),
        needs=watched.needs,
        absent=watched.absent,
        tolerance=watched.tolerance,
        is_same=is_same,
        messages=heard.messages,
        says=set_up.says,
    )


def _trained(set_up: SetUp, project: str, *, is_watched: bool) -> Trial:
    torch.manual_seed(0)
    torch.compiler.reset()  # so that the second training compiles what the first did
    trial = Trial(project=project, is_watched=is_watched)
    set_up.train(trial)
    trial.end()
    return trial


def _stored(trial: Trial, project: str) -> Stored:
    reader = Server()
    (summary,) = reader.runs(project=project)
    run = reader.run(summary.id)
    layers: dict[str, dict[str, dict[int, float]]] = {}
    known = set(run.info["statistics"])
    for statistic in trial.needs:
        if statistic not in known:
            continue
        found = run.layers(statistic)
        layers[statistic] = {
            name: {
                int(step): float(value)
                for step, value in zip(found.step, found.values[:, column], strict=True)
                if not np.isnan(value)
            }
            for column, name in enumerate(found.layers)
        }
    steps, counts = np.unique(run.series("loss").step, return_counts=True)
    return Stored(
        layers=layers,
        lambda_max=_series(run, "lambda_max"),
        lr=_series(run, "lr"),
        losses=dict(zip(steps.tolist(), counts.tolist(), strict=True)),
    )


def _series(run: Run, name: str) -> dict[int, float]:
    """Return a scalar of the run by step; empty if it has none."""
    if name not in run.info["scalars"]:
        return {}
    found = run.series(name)
    return dict(zip(found.step.tolist(), found.value.tolist(), strict=True))


def _verdict_of(set_up: SetUp, project: str) -> Verdict:
    try:
        return try_out(set_up, project)
    except Exception as error:
        traceback.print_exc()
        return Verdict(result="fail", words=f"{type(error).__name__}: {' '.join(str(error).split())}")


def _rank(rank: int, name: str, project: str, port: int) -> None:
    set_up = catalogue().set_ups[name]
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(set_up.processes),
        "LOCAL_WORLD_SIZE": str(set_up.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    verdict = _verdict_of(set_up, project)
    if rank == 0:
        _print(verdict)
    torch.distributed.destroy_process_group()


def _print(verdict: Verdict) -> None:
    print(MARK + msgspec.json.encode(verdict).decode(), flush=True)


def main(name: str) -> None:
    """Try one set-up."""
    set_up = catalogue().set_ups[name]
    project = f"set-up {uuid.uuid4().hex}"
    torch.set_num_threads(1)
    if set_up.processes == 1:
        _print(_verdict_of(set_up, project))
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Nothing has run yet, so a fork is safe, and spares each rank the import of torch.
    start_processes(_rank, (name, project, port), nprocs=set_up.processes, start_method="fork")


def main_into(name: str, path: str) -> None:
    """Try one set-up, and write what is printed to ``path``, and errors beside it with the suffix .err."""
    for stream, suffix in ((sys.stdout, ""), (sys.stderr, ".err")):
        with open(path + suffix, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), stream.fileno())
    main(name)


if __name__ == "__main__":
    main(sys.argv[1])
