"""The first schema: items, traces, feedback, expansions, API keys, and the counters that number changes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True, comment="items | live_items | feedback | expansions"),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "items",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("id", sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql"), primary_key=True),
        sa.Column("fields", sa.Text, nullable=False),
        sa.Column("attributes", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
    op.create_index("items_by_seq", "items", ["app", "seq"], unique=True)
    op.create_table(
        "traces",
        sa.Column("trace_id", sa.Text, primary_key=True),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("release", sa.Text, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False, comment="the trace as JSON"),
    )
    op.create_index("traces_by_time", "traces", ["app", "at_s"])
    op.create_table(
        "feedback",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False, comment="the event as JSON"),
    )
    op.create_index("feedback_by_seq", "feedback", ["app", "seq"], unique=True)
    op.create_index("feedback_by_trace", "feedback", ["trace_id"])
    op.create_table(
        "expansions",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("client", sa.Text, primary_key=True, comment="the user whose abbreviation it is"),
        sa.Column("token", sa.Text, primary_key=True),
        sa.Column("words", sa.Text, primary_key=True),
        sa.Column("count", sa.Integer, nullable=False, comment="how often it was learnt"),
        sa.Column("updated_seq", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("secret_sha256", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False, comment="JSON list"),
        sa.Column("apps", sa.Text, nullable=True, comment="JSON list; NULL: every app"),
        sa.Column("rate_per_s", sa.Float, nullable=True),
        sa.Column("burst", sa.Float, nullable=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float, nullable=True),
    )


def downgrade() -> None:
    for table in ("api_keys", "expansions", "feedback", "traces", "items", "counters"):
        op.drop_table(table)
