"""Add why a run is not judged, and the name of its loss.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("stage_reason", sa.String(length=32)))
    op.add_column("runs", sa.Column("loss_name", sa.String(length=256)))
    op.add_column("runs", sa.Column("chosen_loss", sa.String(length=256)))


def downgrade() -> None:
    for name in ("chosen_loss", "loss_name", "stage_reason"):
        op.drop_column("runs", name)
