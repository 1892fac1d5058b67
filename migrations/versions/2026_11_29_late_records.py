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


def downgrade() -> None:
    # Series of late records keep their negative numbers: the version before reads them as attempts before all others.
    op.drop_column("attempts", "merged_into")
