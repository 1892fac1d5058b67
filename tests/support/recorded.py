"""Recorded trainings, sent to a server as the training sent them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from websockets.sync.client import connect

from client_sdk.protocol import Layout, Optimizer, Record
from server.evaluation.recordings import read_recording
from server.models import Sample
from tests.support.embedded import Embedded
from tests.support.writer import Writer

BATCH = 100


@contextlib.contextmanager
def recording(server: Embedded, path: Path, run_id: str, *, until: int | None = None) -> Iterator[None]:
    """Send the records of a file as one run, or the first ``until`` of them, and stay connected while the block runs.

    A run of all records is finished before the block.
    """
    samples = read_recording(path).samples[:until]
    url = server.url.replace("http", "ws", 1) + "/api/v1/ingest"
    with connect(url, additional_headers={"Authorization": f"Bearer {server.token}"}, compression=None) as socket:
        writer = Writer(socket)
        layouts = (_layout(samples[0]),)
        writer.hello(run_id, writer=f"writer-of-{run_id}", name=run_id, project="recorded", layouts=layouts)
        for first in range(0, len(samples), BATCH):
            writer.commit(*map(_record, samples[first : first + BATCH]))
        if until is None:
            writer.finish()
        yield


def _layout(sample: Sample) -> Layout:
    layout = sample.layout
    assert layout is not None
    optimizer = layout.optimizer
    return Layout(
        id=0,
        layers=layout.layers,
        statistics=layout.statistics,
        sizes=layout.sizes,
        optimizer=None if optimizer is None else Optimizer(
            name=optimizer.name, family="adam", lr=optimizer.lr or 0.0, beta1=optimizer.beta1, beta2=optimizer.beta2
        ),
    )  # fmt: skip


def _record(sample: Sample) -> Record:
    block = None if sample.block is None else np.ascontiguousarray(sample.block, "<f4").tobytes()
    return Record(step=sample.step, time=sample.time, scalars=dict(sample.scalars), layout=0, block=block)
