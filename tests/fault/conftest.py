"""The servers that the fault tests share."""

from tests.postgres import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]
