"""Sessions: what was said in a conversation, so that the next query can go on from it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def ordered_text() -> sa.Text:
    return sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "session_turns",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("session", ordered_text(), nullable=False),
        sa.Column("person", sa.Text, nullable=False, comment="pseudonym; empty: nobody"),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False, comment="the turn as JSON"),
        sqlite_autoincrement=True,
    )
    op.create_index("session_turns_by_session", "session_turns", ["app", "session", "id"])


def downgrade() -> None:
    op.drop_table("session_turns")
