"""The rules engine: lexical search for noisy names in Korean and English. See `source`."""

from serving.retrieve.rules.expansions import learn_expansions
from serving.retrieve.rules.source import RulesSource

__all__ = ["RulesSource", "learn_expansions"]
