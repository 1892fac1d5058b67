"""Add alert rules.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

FIRST_RULE = {
    "id": "no-data",
    "name": "No data for 10 minutes",
    "condition": "no-data",
    "value": 10.0,
    "level": "warning",
    "cooldown_minutes": 360.0,
}
"""Rules that every server starts with. Users may change, disable or delete them."""


def upgrade() -> None:
    op.add_column("monitors", sa.Column("revision", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("monitors", sa.Column("due_at", sa.Float(precision=53), nullable=True))
    op.create_index("ix_monitors_due_at", "monitors", ["due_at"])
    table = op.create_table(
        "rules",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("project", sa.String(length=256), nullable=True),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rules")),
    )
    op.bulk_insert(
        table, [{"id": FIRST_RULE["id"], "position": 0, "project": None, "body": FIRST_RULE, "updated_at": 0.0}]
    )


def downgrade() -> None:
    op.drop_table("rules")
    op.drop_index("ix_monitors_due_at", table_name="monitors")
    op.drop_column("monitors", "due_at")
    op.drop_column("monitors", "revision")
