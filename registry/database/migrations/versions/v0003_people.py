"""People: who is forgotten and how far that was carried out, and who was trained on; by pseudonym only."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def ordered_text() -> sa.Text:
    return sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "forgotten_people",
        sa.Column("app", sa.Text, primary_key=True, comment="empty: every app"),
        sa.Column("pseudonym", ordered_text(), primary_key=True),
        sa.Column("at_s", sa.Float, nullable=False, comment="when it was asked for, Unix seconds"),
    )
    op.create_table(
        "trained_people",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, primary_key=True, comment="of the data set"),
        sa.Column("pseudonym", ordered_text(), primary_key=True),
    )
    op.create_index("trained_people_by_person", "trained_people", ["pseudonym", "app"])


def downgrade() -> None:
    for table in ("trained_people", "forgotten_people"):
        op.drop_table(table)
