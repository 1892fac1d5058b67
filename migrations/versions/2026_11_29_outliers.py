"""Add outliers of the losses, by which the runs of a project are compared.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None

RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PASSAGE = (
    ("first_step", sa.BigInteger()),
    ("last_step", sa.BigInteger()),
    ("interval", sa.BigInteger()),
    ("axis", sa.String(length=16)),
    ("first_position", sa.Float(precision=53)),
    ("last_position", sa.Float(precision=53)),
)
PARTIAL = (
    ("ix_outliers_position", ["project", "axis", "position"], sa.text("axis IS NOT NULL")),
    ("ix_outliers_sparse", ["project", "step"], sa.text("interval > 1")),
    ("ix_outliers_watched", ["project", "step"], sa.text("is_watched")),
    ("ix_outliers_large", ["project", "step"], sa.text("is_large")),
)


def upgrade() -> None:
    op.create_table(
        "outliers",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("project", sa.String(length=256), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("interval", sa.BigInteger(), nullable=False),
        sa.Column("deviations", sa.Float(precision=53), nullable=False),
        sa.Column("loss", sa.Float(precision=53), nullable=False),
        sa.Column("baseline", sa.Float(precision=53), nullable=False),
        sa.Column("is_quiet", sa.Boolean(), nullable=False),
        sa.Column("is_large", sa.Boolean(), nullable=False),
        sa.Column("axis", sa.String(length=16)),
        sa.Column("position", sa.Float(precision=53)),
        sa.Column("spacing", sa.Float(precision=53), nullable=False),
        sa.Column("pattern", sa.LargeBinary(), nullable=False),
        sa.Column("coincidence", sa.JSON(none_as_null=True)),
        sa.Column("is_watched", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_outliers_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outliers")),
        sa.UniqueConstraint("run_id", "attempt", "step", name=op.f("uq_outliers_run_id_attempt_step")),
    )
    op.create_index(op.f("ix_outliers_project_step"), "outliers", ["project", "step"])
    for name, columns, where in PARTIAL:
        op.create_index(name, "outliers", columns, sqlite_where=where, postgresql_where=where)
    for name, kind in PASSAGE:
        op.add_column("monitors", sa.Column(name, kind))
    op.add_column("alerts", sa.Column("outlier_step", sa.BigInteger()))
    op.add_column("alerts", sa.Column("coincidence", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    op.drop_column("alerts", "coincidence")
    op.drop_column("alerts", "outlier_step")
    for name, _ in reversed(PASSAGE):
        op.drop_column("monitors", name)
    op.drop_table("outliers")
