"""Add series of late records, which are merged into an attempt.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("merged_into", sa.Integer(), nullable=True))
    # A downgrade leaves series of late records behind. Each belongs to the attempt that was the latest when it began.
    attempts = sa.table(
        "attempts", *(sa.column(name) for name in ("run_id", "rank", "attempt", "started_at", "merged_into"))
    )
    earlier = attempts.alias("earlier")
    latest = (
        sa.select(sa.func.max(earlier.c.attempt))
        .where(
            earlier.c.run_id == attempts.c.run_id,
            earlier.c.rank == attempts.c.rank,
            earlier.c.attempt >= 0,
            earlier.c.started_at <= attempts.c.started_at,
        )
        .scalar_subquery()
    )
    op.execute(attempts.update().where(attempts.c.attempt < 0).values(merged_into=sa.func.coalesce(latest, 0)))


def downgrade() -> None:
    # Series of late records keep their negative numbers: the version before reads them as attempts before all others,
    # whose steps later attempts replace, so that it hides them.
    op.drop_column("attempts", "merged_into")
