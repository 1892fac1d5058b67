"""Add the loss that a person has chosen for a run or a project, and the step from which a run's loss was judged.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("loss_choice", sa.String(length=256)))
    op.add_column("runs", sa.Column("loss_since", sa.BigInteger()))
    op.create_table(
        "project_losses",
        sa.Column("project", sa.String(length=256), nullable=False),
        sa.Column("loss", sa.String(length=256), nullable=False),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_project_losses")),
    )


def downgrade() -> None:
    # The choices of people are lost: the version before knows only the choice of `init`.
    op.drop_table("project_losses")
    for name in ("loss_since", "loss_choice"):
        op.drop_column("runs", name)
