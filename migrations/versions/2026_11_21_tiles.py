"""Add spans and tiles.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from server.errors import DatabaseError

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def _row_id() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "spans",
        sa.Column("id", _row_id(), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("writer_id", _row_id(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("width", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", _row_id(), nullable=True),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("steps", sa.LargeBinary(), nullable=False),
        sa.Column("times", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_spans_run_id_runs"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["writer_id"], ["writers.id"], name=op.f("fk_spans_writer_id_writers"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_spans")),
        sa.UniqueConstraint("writer_id", "level", "first_seq", name=op.f("uq_spans_writer_id_level_first_seq")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_spans_run_id_parent_id"), "spans", ["run_id", "parent_id"])
    has_parent = sa.text("parent_id IS NOT NULL")
    op.create_index("ix_spans_parent_id", "spans", ["parent_id"], sqlite_where=has_parent, postgresql_where=has_parent)
    op.create_table(
        "tiles",
        sa.Column("span_id", _row_id(), nullable=False),
        sa.Column("layout", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("present", sa.LargeBinary(), nullable=True),
        sa.Column("least", sa.LargeBinary(), nullable=True),
        sa.Column("greatest", sa.LargeBinary(), nullable=True),
        sa.Column("last", sa.LargeBinary(), nullable=True),
        sa.Column("nonfinite", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["span_id"], ["spans.id"], name=op.f("fk_tiles_span_id_spans"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("span_id", "layout", "name", name=op.f("pk_tiles")),
    )
    op.add_column("segments", sa.Column("checksum", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_segments_places",
        "segments",
        ["run_id", "rank", "writer_id", "attempt", "first_seq", "last_seq", "first_step", "last_step", "id"],
    )
    if op.get_bind().dialect.name == "postgresql":
        # Blobs are compressed already: store them outside the row without compressing them again.
        for table, columns in (
            ("segments", ("payload",)),
            ("spans", ("steps", "times")),
            ("tiles", ("present", "least", "greatest", "last", "nonfinite")),
        ):
            for column in columns:
                op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")


def downgrade() -> None:
    # Compacted records are in no segment any more, so dropping the tables would lose them.
    if op.get_bind().scalar(sa.text("SELECT 1 FROM spans LIMIT 1")) is not None:
        raise DatabaseError(
            "the runs are compacted, and the schema 0001 cannot hold that; restore a backup made before"
        )
    op.drop_index("ix_segments_places", table_name="segments")
    op.drop_column("segments", "checksum")
    op.drop_table("tiles")
    op.drop_table("spans")
