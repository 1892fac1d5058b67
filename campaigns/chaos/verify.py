"""Comparison of the records in the database and the API with those that the ledger of a campaign says were logged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from campaigns.chaos.ledger import LAYERS, STATISTICS, Entry, digest, expected, instrument, metrics
from client_sdk.protocol import Layout
from server.models import Sample
from server.pipeline.samples import samples
from server.storage.database import Database
from server.storage.layouts import LayoutStore
from server.storage.measurements.history import HistoryReader

WINDOW = 2_000  # steps of one request
Key = tuple[int, int]
"""Incarnation and step of a record."""


@dataclass(kw_only=True)
class Found:
    """Records of the run that were found in the database or the API."""

    counts: Counter[Key] = field(default_factory=Counter)
    """Number of times that each record was found."""
    wrong: set[Key] = field(default_factory=set)
    """Records whose bits differ from those that were logged."""

    def add(self, key: Key, *, is_exact: bool) -> None:
        """Count a record; ``is_exact`` says whether its bits are those that were logged."""
        self.counts[key] += 1
        if not is_exact:
            self.wrong.add(key)


async def in_database(url: str, run_id: str) -> Found:
    """Return the records of the run in segments and tiles, compared bit by bit."""
    found = Found()
    database = Database(url)
    try:
        layouts: dict[int, dict[int, Layout]] = {}
        for item in await LayoutStore(database).of_run(run_id):
            layouts.setdefault(item.writer_id, {})[item.layout.id] = item.layout
        async for piece in HistoryReader(database).pieces(run_id):
            for sample in samples(piece.columns, piece.attempt, layouts[piece.writer_id]):
                scalars = dict(sample.scalars)
                key = (int(scalars["incarnation"]), sample.step)
                bits = digest(sample.step, scalars, _block_of(sample))
                found.add(key, is_exact=bits == expected(*key))
    finally:
        await database.close()
    return found


def _block_of(sample: Sample) -> NDArray[np.float32]:
    """Return the block of a sample, [layers, statistics], as it was logged."""
    columns = [sample.statistic(name) for name in STATISTICS]
    return np.stack([column for column in columns if column is not None], axis=1)


def in_api(api: httpx.Client, run_id: str) -> Found:
    """Return the records of every attempt that the API returns in buckets of one step."""
    found = Found()
    for item in api.get(f"/runs/{run_id}").raise_for_status().json()["attempts"]:
        for key, is_exact in _exported(api, run_id, item["first_step"], item["last_step"], item["attempt"]):
            found.add(key, is_exact=is_exact)
    return found


def shown(api: httpx.Client, run_id: str, last_step: int) -> dict[int, int]:
    """Return the incarnation that a page shows at each step if it asks for no particular attempt."""
    return {step: incarnation for (incarnation, step), _ in _exported(api, run_id, 0, last_step, None)}


def should_be_shown(entries: Sequence[Entry], starts: Sequence[int]) -> dict[int, int]:
    """Return the incarnation that a page should show at each step.

    It is the last one that logged the step, unless a later one began before the step and never reached it.
    """
    ceilings = [min(starts[number + 1 :], default=2**62) for number in range(len(starts))]
    return {entry.step: entry.incarnation for entry in entries if entry.step < ceilings[entry.incarnation]}


def _exported(api: httpx.Client, run_id: str, first: int, last: int, attempt: int | None) -> Iterator[tuple[Key, bool]]:
    """Yield the key of each step, and whether its numbers are those that were logged."""
    for begin in range(first, last + 1, WINDOW):
        where = {"from": begin, "to": min(last, begin + WINDOW - 1), "attempt": attempt}
        query = {key: value for key, value in where.items() if value is not None}
        series = _get(api, f"/runs/{run_id}/series", query | {"keys": "loss,odd,incarnation", "points": WINDOW})
        if not series["series"]["incarnation"]["step"]:
            continue
        assert series["bucket_steps"] == 1
        maps = [
            _get(api, f"/runs/{run_id}/heatmap", query | {"stat": name, "columns": WINDOW, "reduce": "last"})
            for name in STATISTICS
        ]
        blocks = [np.frombuffer(item["z"], "<f4").reshape(len(LAYERS), -1) for item in maps]
        steps = {step: at for at, step in enumerate(maps[0]["step"])}
        scalars = {name: dict(zip(of["step"], of["last"], strict=True)) for name, of in series["series"].items()}
        for step, incarnation in scalars["incarnation"].items():
            key = (int(incarnation), step)
            block = np.stack([values[:, steps[step]] for values in blocks], axis=1)
            yield key, _is_exact(key, scalars["loss"][step], scalars["odd"][step], block)


def _is_exact(key: Key, loss: float, odd: float | None, block: NDArray[np.float32]) -> bool:
    """Return whether the numbers of a record have the bits that were logged; JSON has null for non-finite numbers."""
    logged = metrics(*key)
    same_odd = odd is None if not math.isfinite(logged["odd"]) else _bits(odd) == _bits(logged["odd"])
    same_block = block.tobytes() == instrument(key[0]).block(key[1]).tobytes()
    return _bits(loss) == _bits(logged["loss"]) and same_odd and same_block


def _bits(value: float | None) -> bytes:
    return b"" if value is None else np.float64(value).tobytes()


def _get(api: httpx.Client, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
    answer = api.get(path, params=query, headers={"Accept": "application/msgpack"})
    answer.raise_for_status()
    if answer.headers["content-type"].startswith("application/msgpack"):
        return msgspec.msgpack.decode(answer.content)  # type: ignore[no-any-return]
    return answer.json()  # type: ignore[no-any-return]
