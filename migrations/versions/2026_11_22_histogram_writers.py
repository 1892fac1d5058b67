"""Index the histograms of each writer.

Exports read the histograms of a writer in the order of its records. Without an index, the deletion of a writer also
had to search the histograms of all runs.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_index("ix_histograms_writer_id_attempt_step_id", "histograms", ["writer_id", "attempt", "step", "id"])


def downgrade() -> None:
    op.drop_index("ix_histograms_writer_id_attempt_step_id", "histograms")
