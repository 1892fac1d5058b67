"""Store many scalars in one tile.

Revision ID: 0006
Revises: 0005

Before this revision a tile contained one scalar. Existing tiles are merged, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sqlalchemy as sa
from alembic import op
from numpy.typing import NDArray

from server.errors import DatabaseError
from server.pyramid.blobs import BlobError, unpack, unpack_last
from server.pyramid.buckets import Buckets, Canvas
from server.pyramid.columns import ScalarColumn
from server.pyramid.tiles import SCALARS, TileBlobs, scalar_tiles, tile_of_buckets, together, unpack_steps

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None

BATCH = 64  # spans
FIELDS = ("rows", "present", "least", "greatest", "last", "nonfinite")

spans = sa.table("spans", *(sa.column(name) for name in ("id", "level", "entries", "steps")))
tiles = sa.table(
    "tiles",
    *(sa.column(name) for name in ("span_id", "layout", "name", *FIELDS)),
    sa.column("names", sa.JSON(none_as_null=True)),
)


def upgrade() -> None:
    op.add_column("tiles", sa.Column("names", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("runs", sa.Column("repairs", sa.Integer(), nullable=False, server_default="0"))
    connection = op.get_bind()
    last = 0
    while True:
        query = sa.select(spans.c.id, spans.c.level, spans.c.entries, spans.c.steps).where(spans.c.id > last)
        found = connection.execute(query.order_by(spans.c.id).limit(BATCH)).all()
        if not found:
            return
        last = found[-1].id
        for span in found:
            same = (tiles.c.span_id == span.id) & (tiles.c.layout == SCALARS)
            held = connection.execute(sa.select(tiles).where(same).order_by(tiles.c.name)).all()
            if not held:
                continue
            made = _together(span, [row for row in held if row.last is not None])
            connection.execute(sa.delete(tiles).where(same))
            for first, tile in made.items():
                values = {name: getattr(tile, name) for name in FIELDS}
                names = list(tile.names or ())
                connection.execute(
                    tiles.insert().values(span_id=span.id, layout=SCALARS, name=first, names=names, **values)
                )


def downgrade() -> None:
    connection = op.get_bind()
    if connection.scalar(sa.text("SELECT 1 FROM tiles WHERE names IS NOT NULL LIMIT 1")) is not None:
        raise DatabaseError(
            "the runs are compacted as the schema 0005 cannot read them; restore a backup made before the upgrade"
        )
    op.drop_column("runs", "repairs")
    op.drop_column("tiles", "names")


def _together(span: Any, held: list[Any]) -> dict[str, TileBlobs]:
    """Return the merged tiles of a span, keyed by first name. Raises `DatabaseError`."""
    name = "steps"
    try:
        numbers = unpack_steps(span.steps)
        if span.level == 0:
            columns: dict[str, ScalarColumn] = {}
            for row in held:
                name = row.name
                present = np.zeros(span.entries, dtype=np.bool_)
                present[_present(row.present, span.entries)] = True
                columns[name] = ScalarColumn(present=present, values=unpack(row.last, "<f8")[0])
            return {key[1]: tile for key, tile in scalar_tiles(columns).items()}
        parts: dict[str, Buckets] = {}
        for row in held:
            name = row.name
            own = numbers[_present(row.present, len(numbers))]
            least, greatest = unpack(row.least, "<f8"), unpack(row.greatest, "<f8")
            parts[name] = Buckets(
                numbers=own,
                fields={"min": least, "max": greatest, "last": unpack_last(row.last, least, greatest)},
                nonfinite=None if row.nonfinite is None else unpack(row.nonfinite, "<i4").astype(np.int32),
            )
    except BlobError as error:
        raise DatabaseError(
            f"the tile {name!r} of span {span.id} is damaged ({error}): "
            "run `spikewatch doctor --repair` of the version before, then upgrade"
        ) from error
    made = {}
    for names in together(parts):
        canvas = Canvas(numbers, len(names), np.dtype("<f8"))
        for number, name in enumerate(names):
            canvas.put(parts[name], np.array([number]))
        made[names[0]] = tile_of_buckets(canvas.buckets().filled(), numbers, names)
    return made


def _present(blob: bytes | None, entries: int) -> NDArray[np.int64]:
    if blob is None:
        return np.arange(entries)
    found: NDArray[np.int64] = unpack(blob, "<u4")[0].astype(np.int64)
    return found
