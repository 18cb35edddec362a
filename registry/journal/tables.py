"""The tables of rollouts in the one database. Migrations create them; a test holds the two together.

Times are Unix seconds. JSON is kept as text, as it was written, so that it can be compared and handed on unparsed.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, Table, Text
from sqlalchemy.dialects import postgresql

from registry.database import metadata

# Routers are paged through in code point order, which is what Python and SQLite compare by
OrderedText = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# SQLite counts up by itself only in a column of exactly this type
Identity = BigInteger().with_variant(Integer, "sqlite")

app_states = Table(
    "app_states",
    metadata,
    Column("app", Text, primary_key=True),
    Column("rollout", BigInteger, nullable=True, comment="the rollout that is on its way; NULL: none"),
    Column("state", Text, nullable=False, comment="what the controller knows, as JSON"),
    Column("traffic", Text, nullable=True, comment="what routers follow, as JSON"),
)

accepted_releases = Table(
    "accepted_releases",
    metadata,
    Column("app", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("body", Text, nullable=False, comment="the release and its version's tags as JSON"),
)

router_reports = Table(
    "router_reports",
    metadata,
    Column("app", Text, primary_key=True),
    Column("router", OrderedText, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("stable", BigInteger, nullable=True),
    Column("problem", Text, nullable=False),
    Column("at_s", Float, nullable=False),
    Column("spooled", BigInteger, nullable=False),
)

arm_reports = Table(
    "arm_reports",
    metadata,
    Column("app", Text, primary_key=True),
    Column("rollout", BigInteger, primary_key=True),
    Column("arm", Text, primary_key=True, comment="canary | control"),
    Column("phase", Text, nullable=False, comment="deploying | ready | failed"),
    Column("reason", Text, nullable=False),
    Column("at_s", Float, nullable=False),
)

evidence = Table(
    "evidence",
    metadata,
    Column("app", OrderedText, primary_key=True),
    Column("rollout", BigInteger, primary_key=True),
    Column("router", OrderedText, primary_key=True),
    Column("seq", BigInteger, primary_key=True, comment="counts the router's blocks"),
    Column("arm", Text, nullable=False, comment="canary | control | shadow"),
    Column("at_s", Float, nullable=False),
    Column("body", Text, nullable=False, comment="the block as JSON"),
)

journal = Table(
    "journal",
    metadata,
    Column("id", Identity, primary_key=True, autoincrement=True),
    Column("app", Text, nullable=False),
    Column("rollout", BigInteger, nullable=False),
    Column("at_s", Float, nullable=False),
    Column("kind", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("version", BigInteger, nullable=True),
    Column("details", Text, nullable=False, comment="the decision's inputs as JSON"),
    Index("journal_by_app", "app", "id"),
    sqlite_autoincrement=True,
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("app", Text, primary_key=True),
    Column("rollout", BigInteger, nullable=False),
    Column("at_s", Float, nullable=False),
    Column("body", Text, nullable=False, comment="what the evidence says now, as JSON"),
)

commands = Table(
    "commands",
    metadata,
    Column("id", Identity, primary_key=True, autoincrement=True),
    Column("app", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("at_s", Float, nullable=False),
    Column("version", BigInteger, nullable=True),
    Column("handled_at", Float, nullable=True, comment="by the database's clock; NULL: not yet"),
    Index("commands_by_handled", "handled_at", "id"),
    sqlite_autoincrement=True,
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("delivery_id", Text, primary_key=True),
    Column("at_s", Float, nullable=False),
    Index("webhook_deliveries_by_time", "at_s"),
)

nudges = Table("nudges", metadata, Column("app", Text, primary_key=True))

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("for_s", Float, nullable=False, comment="how long it was last taken for"),
    Column("expires_s", Float, nullable=False, comment="by the database's clock"),
)
