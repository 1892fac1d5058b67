"""Size of a value in bytes, on series that the SDK recorded here: codecs at level 0, and the higher levels.

python -m benchmarks.storage
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import zstandard
from numpy.typing import NDArray

from benchmarks.databases import fresh_database, sizes_of_levels
from benchmarks.recordings import NAMES, STEPS, Recording, load
from client_sdk.precision import EXACT, compact
from client_sdk.protocol import Hello, Layout
from server.pyramid.blobs import pack
from server.pyramid.columns import BlockColumns, Columns, ScalarColumn, pack_array
from server.pyramid.tiles import CAPACITY, span_of_records
from server.storage.measurements.compaction import Compactor
from server.storage.measurements.spans import AttemptSegments, SpanStore
from server.storage.runs import RunStore

Codec = Callable[[NDArray[np.float32]], bytes]
CODECS: dict[str, Codec] = {
    "zstd": lambda values: zstandard.ZstdCompressor(level=3).compress(values.tobytes()),
    "bytes grouped, zstd (segments)": lambda values: pack_array(values, "<f4"),
    "pcodec (tiles)": pack,
}


def rounded(recording: Recording) -> NDArray[np.float32]:
    """Return the statistics [statistics, layers, n] as the SDK sends them by default."""
    cube = compact(recording.cube)
    for number, name in enumerate(recording.statistics):
        if name in EXACT:
            cube[number] = recording.cube[number]
    return cube


def level_zero(cube: NDArray[np.float32], codec: Codec) -> float:
    """Return the bytes per value of tiles of 256 steps."""
    size = 0
    for values in cube:
        for start in range(0, STEPS, CAPACITY):
            size += len(codec(np.ascontiguousarray(values[:, start : start + CAPACITY])))
    return size / cube.size


async def levels(recording: Recording, cube: NDArray[np.float32]) -> list[tuple[int, bool, int]]:
    """Return the level, whether the tiles hold scalars, and their size in bytes, as stored in a database."""
    everywhere = np.ones(CAPACITY, dtype=np.bool_)
    async with fresh_database("sqlite") as database:
        layout = Layout(id=0, layers=recording.layers, statistics=recording.statistics)
        hello = Hello(version=1, run_id="run", writer="w", project="p", layouts=(layout,))
        writer = await RunStore(database).register(hello, 0.0)
        group = AttemptSegments(
            run_id="run",
            writer_id=writer.writer_id,
            rank=0,
            attempt=0,
            records=0,
            layers=len(recording.layers),
            is_closed=True,
            position=None,
        )
        store = SpanStore(database)
        for start in range(0, STEPS, CAPACITY):
            cut = slice(start, start + CAPACITY)
            columns = Columns(
                steps=np.arange(start, start + CAPACITY, dtype=np.int64),
                times=np.arange(start, start + CAPACITY, dtype=np.float64),
                scalars={
                    name: ScalarColumn(present=everywhere, values=values[cut])
                    for name, values in recording.scalars.items()
                    if len(values) == STEPS
                },
                blocks=(
                    BlockColumns(
                        layout=0,
                        layers=len(recording.layers),
                        rows=np.arange(CAPACITY, dtype=np.int32),
                        statistics={name: cube[at][:, cut] for at, name in enumerate(recording.statistics)},
                    ),
                ),
            )
            await store.replace_segments(group, [], [span_of_records(columns, start + 1)])
        await Compactor(store, 1.0).build_levels("run")
        return await sizes_of_levels(database)


def main() -> None:
    """Print the table of each recording."""
    for name in NAMES:
        recording = load(name)
        kinds = {"exact": recording.cube, "compact (2⁻¹²)": rounded(recording)}
        print(f"\n{name}: {len(recording.layers)} layers × {len(recording.statistics)} statistics, {STEPS:,} steps")
        print(f"| bytes a value, level 0 | {' | '.join(kinds)} |")
        print("|---|" + "---|" * len(kinds))
        for label, codec in CODECS.items():
            print(f"| {label} | {' | '.join(f'{level_zero(cube, codec):.2f}' for cube in kinds.values())} |")
        for kind, cube in kinds.items():
            found = asyncio.run(levels(recording, cube))
            for is_scalar, what in ((False, f"statistics, {kind}"), (True, "scalars")):
                sizes = [size for _, scalar, size in found if scalar is is_scalar]
                print(f"{what}: level 1 adds {sizes[1] / sizes[0]:.1%}; benchmarks.queries measures all levels")


if __name__ == "__main__":
    main()
