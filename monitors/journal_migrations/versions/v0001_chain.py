"""The chain: entries, and the head of each journal."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "chains",
        sa.Column("journal", sa.String(36), primary_key=True),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("head_seq", sa.BigInteger(), nullable=False),
        sa.Column("head_hash", sa.String(64), nullable=False),
    )
    op.create_table(
        "entries",
        sa.Column("journal", sa.String(36), primary_key=True),
        sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("alert_id", sa.String(36)),
        sa.Column("request_id", sa.Text()),
        sa.Column("label", sa.Text()),
        sa.Column("monitor", sa.Text()),
        sa.Column("level", sa.String(16)),
        sa.Column("state", sa.String(16)),
        sa.Column("verdict", sa.String(16)),
    )
    op.create_index("entries_by_time", "entries", ["kind", "time_us", "id"])
    op.create_index("entries_by_alert", "entries", ["alert_id", "kind"])
    op.create_index("entries_by_request", "entries", ["request_id"])
