"""The Prometheus metrics of the query side.

Where PROMETHEUS_MULTIPROC_DIR is set (`palate up` and the chart do), all processes of a node write into that folder
and any of them answers `/metrics` for all; a process that died is merged in, and its gauges are dropped.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import multiprocess as prometheus_multiprocess

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REQUESTS = Counter("palate_requests", "Answered requests.", ["app", "release", "route", "status"])
REQUEST_SECONDS = Histogram(
    "palate_request_seconds", "From parsed request to answer.", ["app", "release", "route"], buckets=_SECONDS
)
PHASE_SECONDS = Histogram(
    "palate_phase_seconds", "One phase of one batch.", ["app", "release", "phase"], buckets=_SECONDS
)
BATCH_SIZE = Histogram(
    "palate_batch_size", "Queries that went through the pipeline together.", ["app"], buckets=(1, 2, 4, 8, 16, 32, 64)
)
QUEUE_DEPTH = Gauge("palate_queue_depth", "Queries waiting for a batch.", ["app"], multiprocess_mode="livesum")
ABSTAINED = Counter("palate_abstained_lines", "Lines answered with an abstention.", ["app", "release"])
SOURCE_DECIDED = Counter(
    "palate_lines_decided", "Lines by the source of their first result.", ["app", "release", "source"]
)
CACHE = Counter("palate_embedding_cache", "Texts looked up in the embedding cache.", ["app", "outcome"])
FEEDBACK = Counter("palate_feedback_events", "Feedback events acknowledged.", ["app", "event", "stored"])
TRACES_DROPPED = Gauge("palate_traces_dropped", "Traces lost to a full queue.", multiprocess_mode="livesum")
SPOOLED = Gauge("palate_feedback_spooled", "Feedback events waiting in the spool.", multiprocess_mode="livesum")
ITEMS_LAG = Gauge("palate_items_behind", "Catalogue changes not visible yet.", ["app"], multiprocess_mode="livemax")
ITEMS_SKIPPED = Counter(
    "palate_items_skipped", "Catalogue changes left out because a release could not take them.", ["app"]
)
RELEASE_INFO = Gauge(
    "palate_release_serving", "1 for the release that serves.", ["app", "release"], multiprocess_mode="livemax"
)
ARM_REQUESTS = Counter(
    "palate_arm_requests", "Requests given to an arm of a rollout.", ["app", "rollout", "arm", "outcome"]
)
REPLAYED = Counter(
    "palate_replayed_requests", "Requests that stable answered in an arm's place.", ["app", "arm", "reason"]
)
TRAFFIC_PERCENT = Gauge(
    "palate_traffic_percent", "Weight of an arm, as routed.", ["app", "release", "arm"], multiprocess_mode="livemax"
)
EVIDENCE_WAITING = Gauge(
    "palate_evidence_waiting", "Requests whose evidence is not stored yet.", multiprocess_mode="livesum"
)
EVIDENCE_DROPPED = Counter("palate_evidence_dropped", "Requests whose evidence was lost.")
ANSWERS = Counter(
    "palate_generated_answers", "Generated answers, by how they came about.", ["app", "release", "outcome"]
)
ANSWER_CHECKS = Counter(
    "palate_generated_checks", "Checks of the model's last try.", ["app", "release", "check", "passed"]
)
ANSWER_TOKENS = Counter("palate_generated_tokens", "Tokens read and written for answers.", ["app", "release", "kind"])
FIRST_TEXT_SECONDS = Histogram(
    "palate_first_text_seconds", "From the prompt to the first text sent.", ["app", "release"], buckets=_SECONDS
)
ANSWER_SECONDS = Histogram(
    "palate_generated_seconds", "From the prompt to the end of the answer.", ["app", "release"],
    buckets=(*_SECONDS, 20.0, 40.0, 80.0),
)  # fmt: skip
TOKEN_SECONDS = Histogram(
    "palate_seconds_per_token", "Of one answer's first try, after its first token.", ["app", "release"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0),
)  # fmt: skip
RELEASE_FAILURES = Counter("palate_release_load_failures", "Releases that could not be loaded.", ["app"])


def render() -> bytes:
    """The text exposition of every process that shares this one's metrics folder."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        prometheus_multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest()
