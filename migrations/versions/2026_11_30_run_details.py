"""Add the notes of a run, the time at which it was archived, and the environment of its writers.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("notes", sa.Text()))
    op.add_column("runs", sa.Column("archived_at", sa.Float(precision=53)))
    op.add_column("writers", sa.Column("environment", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    # The notes of people are lost, and archived runs are listed again.
    op.drop_column("writers", "environment")
    for name in ("archived_at", "notes"):
        op.drop_column("runs", name)
