"""Rollouts: states and traffic, reports and evidence, the journal, commands, webhooks, and the controller's lease."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def ordered_text() -> sa.Text:
    return sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def identity() -> sa.BigInteger:
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    steering()
    reports()
    record()
    webhooks()


def steering() -> None:
    op.create_table(
        "app_states",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("rollout", sa.BigInteger, nullable=True, comment="the rollout that is on its way; NULL: none"),
        sa.Column("state", sa.Text, nullable=False, comment="what the controller knows, as JSON"),
        sa.Column("traffic", sa.Text, nullable=True, comment="what routers follow, as JSON"),
    )
    op.create_table(
        "accepted_releases",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("body", sa.Text, nullable=False, comment="the release and its version's tags as JSON"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("for_s", sa.Float, nullable=False, comment="how long it was last taken for"),
        sa.Column("expires_s", sa.Float, nullable=False, comment="by the database's clock"),
    )


def reports() -> None:
    op.create_table(
        "router_reports",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("router", ordered_text(), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("stable", sa.BigInteger, nullable=True),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("spooled", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "arm_reports",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("rollout", sa.BigInteger, primary_key=True),
        sa.Column("arm", sa.Text, primary_key=True, comment="canary | control"),
        sa.Column("phase", sa.Text, nullable=False, comment="deploying | ready | failed"),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
    )
    op.create_table(
        "evidence",
        sa.Column("app", ordered_text(), primary_key=True),
        sa.Column("rollout", sa.BigInteger, primary_key=True),
        sa.Column("router", ordered_text(), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, comment="counts the router's blocks"),
        sa.Column("arm", sa.Text, nullable=False, comment="canary | control | shadow"),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False, comment="the block as JSON"),
    )


def record() -> None:
    op.create_table(
        "journal",
        sa.Column("id", identity(), primary_key=True, autoincrement=True),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("rollout", sa.BigInteger, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=True),
        sa.Column("details", sa.Text, nullable=False, comment="the decision's inputs as JSON"),
        sqlite_autoincrement=True,
    )
    op.create_index("journal_by_app", "journal", ["app", "id"])
    op.create_table(
        "verdicts",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("rollout", sa.BigInteger, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False, comment="what the evidence says now, as JSON"),
    )
    op.create_table(
        "commands",
        sa.Column("id", identity(), primary_key=True, autoincrement=True),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=True),
        sa.Column("handled_at", sa.Float, nullable=True, comment="by the database's clock; NULL: not yet"),
        sqlite_autoincrement=True,
    )
    op.create_index("commands_by_handled", "commands", ["handled_at", "id"])


def webhooks() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("delivery_id", sa.Text, primary_key=True),
        sa.Column("at_s", sa.Float, nullable=False),
    )
    op.create_index("webhook_deliveries_by_time", "webhook_deliveries", ["at_s"])
    op.create_table("nudges", sa.Column("app", sa.Text, primary_key=True))


def downgrade() -> None:
    for table in (
        "nudges", "webhook_deliveries", "commands", "verdicts", "journal", "evidence", "arm_reports", "router_reports",
        "leases", "accepted_releases", "app_states",
    ):  # fmt: skip
        op.drop_table(table)
