"""How a release reads in the MLflow UI: run parameters, metrics and the version's description, within MLflow's limits.

For people only: nothing here is read back. Pure; called by `registry.mlflow_store`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from registry.schema import Release

MAX_PARAMS = 100  # one batch of MLflow; a spec with more is readable in release.json
MAX_VALUE_CHARS = 500
MAX_DESCRIPTION_CHARS = 5000  # MLflow's column


def mlflow_key(name: str) -> str:
    """A name MLflow takes as a key: `recall@10` becomes `recall_at_10`."""
    return re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))[:250]


def spec_params(spec: Mapping[str, Any]) -> dict[str, str]:
    """The spec's leaves under dotted keys, in order: {"retrieve.fusion.method": "rrf"}. Lists stay JSON."""
    leaves = ((mlflow_key(key), value[:MAX_VALUE_CHARS]) for key, value in _leaves(spec))
    return dict(list(leaves)[:MAX_PARAMS])


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{key}.")
        elif inner not in (None, "", [], ()):
            text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            yield f"{prefix}{key}", text


def description(release: Release) -> str:
    """Markdown for the version's page."""
    lines = [
        f"Release `{release.digest[:12]}` of **{release.app}**, catalogue at sequence {release.items_seq}.",
        "",
        "| component | role | MB | digest |",
        "|---|---|---:|---|",
        *(f"| {c.name} | {c.role} | {c.size_bytes / 1e6:.1f} | `{c.digest[:12]}` |" for c in release.components),
    ]
    for title, values in (("metric", release.metrics), ("lineage", release.lineage)):
        if values:
            lines += ["", f"| {title} | |", "|---|---|"]
            lines += [f"| {k} | {v:.4g} |" if isinstance(v, float) else f"| {k} | {v} |" for k, v in values.items()]
    return "\n".join(lines)[:MAX_DESCRIPTION_CHARS]
