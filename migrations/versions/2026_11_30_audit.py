"""Add what the checks of the audit found, how often they ran, and which findings a project has dismissed.

Revision ID: 0014
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0012"
branch_labels: str | None = None
depends_on: str | None = None

RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "audit_findings",
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("layers", sa.JSON(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("found_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_audit_findings_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_audit_findings"),
    )
    op.create_table(
        "audit_runs",
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("writer_id", RowId, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_audit_runs_run_id_runs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["writer_id"], ["writers.id"], name="fk_audit_runs_writer_id_writers", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "writer_id", "name", name="pk_audit_runs"),
    )
    op.create_index("ix_audit_runs_writer_id", "audit_runs", ["writer_id"])
    op.create_table(
        "audit_dismissals",
        sa.Column("project", sa.String(length=256), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("dismissed_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("project", "name", name="pk_audit_dismissals"),
    )


def downgrade() -> None:
    # What was found and dismissed is lost; the events of the findings stay.
    op.drop_table("audit_dismissals")
    op.drop_index("ix_audit_runs_writer_id", table_name="audit_runs")
    op.drop_table("audit_runs")
    op.drop_table("audit_findings")
