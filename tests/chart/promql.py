"""PromQL, as far as a reader needs it: parses an expression and says which metrics with which labels it asks for.

Covers what Prometheus's grammar has but for subqueries, offsets and `@`: binary operators with matching, aggregations,
functions, selectors, ranges, numbers and strings. Raises ValueError for what does not parse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"\s*(?:(?P<string>\"(?:[^\"\\]|\\.)*\")|(?P<duration>(?:\d+(?:ms|[smhdwy]))+)|(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
    r"|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)|(?P<op>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){}\[\],]))"
)
BINARY = {"+", "-", "*", "/", "%", "^", "==", "!=", "<", ">", "<=", ">=", "and", "or", "unless"}
AGGREGATIONS = {"sum", "min", "max", "avg", "count", "topk", "bottomk", "quantile", "stddev", "group"}
FUNCTIONS = {
    "rate", "irate", "increase", "delta", "histogram_quantile", "absent", "time", "vector", "clamp_min", "clamp_max",
    "abs", "max_over_time", "min_over_time", "avg_over_time", "changes", "label_replace", "scalar",
}  # fmt: skip
MATCHERS = {"=", "!=", "=~", "!~"}


@dataclass
class Asked:
    """metric -> labels that its selectors and the groupings around it name; ranged: metrics asked for over a range."""

    labels: dict[str, set[str]] = field(default_factory=dict)
    ranged: set[str] = field(default_factory=set)


def parse(text: str) -> Asked:
    tokens = []
    at = 0
    while text[at:].strip():
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"no PromQL at {text[at : at + 30]!r}")
        tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    reader = _Reader(tokens)
    reader.expression()
    if reader.tokens:
        raise ValueError(f"{reader.tokens[0][1]!r} follows a whole expression in {text!r}")
    return reader.asked


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.asked = Asked()

    def peek(self) -> str:
        return self.tokens[0][1] if self.tokens else ""

    def take(self, wanted: str = "") -> str:
        if not self.tokens or (wanted and self.peek() != wanted):
            raise ValueError(f"expected {wanted or 'more'}, found {self.peek()!r}")
        return self.tokens.pop(0)[1]

    def expression(self) -> set[str]:
        """The metrics in it."""
        metrics = self.operand()
        while self.peek() in BINARY:
            self.take()
            if self.peek() == "bool":
                self.take()
            if self.peek() in ("on", "ignoring"):
                self.take()
                self.names()
                if self.peek() in ("group_left", "group_right"):
                    self.take()
            metrics |= self.operand()
        return metrics

    def operand(self) -> set[str]:
        kind = self.tokens[0][0] if self.tokens else "nothing"
        if self.peek() == "(":
            self.take()
            metrics = self.expression()
            self.take(")")
            return metrics
        if kind in ("number", "string"):
            self.take()
            return set()
        if kind != "name":
            raise ValueError(f"expected a metric, a function or a number, found {self.peek()!r}")
        name = self.take()
        if name in AGGREGATIONS:
            return self.aggregation()
        if self.peek() == "(":
            if name not in FUNCTIONS:
                raise ValueError(f"there is no function {name!r}")
            return self.arguments()
        return self.selector(name)

    def aggregation(self) -> set[str]:
        grouped = self.grouping()
        metrics = self.arguments()
        grouped |= self.grouping()
        for metric in metrics:
            self.asked.labels[metric] |= grouped
        return metrics

    def grouping(self) -> set[str]:
        if self.peek() not in ("by", "without"):
            return set()
        self.take()
        return self.names()

    def names(self) -> set[str]:
        self.take("(")
        found = set()
        while self.peek() != ")":
            found.add(self.take())
            if self.peek() == ",":
                self.take()
        self.take(")")
        return found

    def arguments(self) -> set[str]:
        self.take("(")
        metrics: set[str] = set()
        while self.peek() != ")":
            metrics |= self.expression()
            if self.peek() == ",":
                self.take()
        self.take(")")
        return metrics

    def selector(self, name: str) -> set[str]:
        labels = self.asked.labels.setdefault(name, set())
        if self.peek() == "{":
            self.take()
            while self.peek() != "}":
                labels.add(self.take())
                if self.take() not in MATCHERS or self.tokens[0][0] != "string":
                    raise ValueError(f"a matcher of {name} is not complete")
                self.take()
                if self.peek() == ",":
                    self.take()
            self.take("}")
        if self.peek() == "[":
            self.take()
            if self.tokens[0][0] != "duration":
                raise ValueError(f"the range of {name} is no duration")
            self.take()
            self.take("]")
            self.asked.ranged.add(name)
        return {name}
