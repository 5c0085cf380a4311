"""How far another database has a journal's entries, for a file whose entries are forwarded."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("chains", sa.Column("shipped_seq", sa.BigInteger()))
