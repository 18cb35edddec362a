"""The tables that serving keeps in the one database. Migrations create them; a test holds the two together.

Times are Unix seconds. JSON is kept as text, as it was written, so that it can be compared and handed on unparsed.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, Table, Text
from sqlalchemy.dialects import postgresql

from registry.database import metadata

# Ids are paged through in code point order, which is what Python and SQLite compare by
OrderedText = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

counters = Table(
    "counters",
    metadata,
    Column("app", Text, primary_key=True),
    Column("name", Text, primary_key=True, comment="items | live_items | feedback | expansions"),
    Column("value", BigInteger, nullable=False),
)

items = Table(
    "items",
    metadata,
    Column("app", Text, primary_key=True),
    Column("id", OrderedText, primary_key=True),
    Column("fields", Text, nullable=False),
    Column("attributes", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("items_by_seq", "app", "seq", unique=True),
)

traces = Table(
    "traces",
    metadata,
    Column("trace_id", Text, primary_key=True),
    Column("app", Text, nullable=False),
    Column("release", Text, nullable=False),
    Column("at_s", Float, nullable=False),
    Column("body", Text, nullable=False, comment="the trace as JSON"),
    Index("traces_by_time", "app", "at_s"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("app", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("trace_id", Text, nullable=False),
    Column("at_s", Float, nullable=False),
    Column("body", Text, nullable=False, comment="the event as JSON"),
    Index("feedback_by_seq", "app", "seq", unique=True),
    Index("feedback_by_trace", "trace_id"),
)

expansions = Table(
    "expansions",
    metadata,
    Column("app", Text, primary_key=True),
    Column("client", Text, primary_key=True, comment="the user whose abbreviation it is"),
    Column("token", Text, primary_key=True),
    Column("words", Text, primary_key=True),
    Column("count", Integer, nullable=False, comment="how often it was learnt"),
    Column("updated_seq", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_sha256", Text, nullable=False),
    Column("scopes", Text, nullable=False, comment="JSON list"),
    Column("apps", Text, nullable=True, comment="JSON list; NULL: every app"),
    Column("rate_per_s", Float, nullable=True),
    Column("burst", Float, nullable=True),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float, nullable=True),
)

forgotten_people = Table(
    "forgotten_people",
    metadata,
    Column("app", Text, primary_key=True, comment="empty: every app"),
    Column("pseudonym", OrderedText, primary_key=True),
    Column("at_s", Float, nullable=False, comment="when it was asked for, Unix seconds"),
)

trained_people = Table(
    "trained_people",
    metadata,
    Column("app", Text, primary_key=True),
    Column("fingerprint", Text, primary_key=True, comment="of the data set"),
    Column("pseudonym", OrderedText, primary_key=True),
    Index("trained_people_by_person", "pseudonym", "app"),
)

session_turns = Table(
    "session_turns",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("app", Text, nullable=False),
    Column("session", OrderedText, nullable=False),
    Column("person", Text, nullable=False, comment="pseudonym; empty: nobody"),
    Column("at_s", Float, nullable=False),
    Column("body", Text, nullable=False, comment="the turn as JSON"),
    Index("session_turns_by_session", "app", "session", "id"),
    sqlite_autoincrement=True,
)
