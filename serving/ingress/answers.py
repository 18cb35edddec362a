"""What a query route says and keeps of an answer: its JSON, its trace. Documents are spliced in as the bytes they are
stored as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from serving import metrics
from serving.arms import Given
from serving.generate.generator import Generated
from serving.pipeline import Answer, Line
from serving.router import ServedRelease
from serving.schema import Candidate, Query, Trace, Understood


def answer_json(served: ServedRelease, answer: Answer, trace: Trace) -> dict[str, Any]:
    """The answer to one text, and what of it is counted."""
    app = served.spec.name
    first = answer.lines[0]
    body: dict[str, Any] = {
        "trace_id": trace.trace_id,
        "app": app,
        "release": served.version,
        "results": [result_json(c) for c in first.result.candidates],
        "abstained": first.result.abstained,
        "timings_ms": trace.timings_ms,
    }
    engine = served.spec.understand.engine
    if engine == "order_lines":
        body["lines"] = [_line_json(line) for line in answer.lines]
    elif engine != "plain":
        body["understood"] = understood_json(first.understood)
    for line in answer.lines:
        if line.result.abstained:
            metrics.ABSTAINED.labels(app, served.version).inc()
        elif line.result.candidates:
            metrics.SOURCE_DECIDED.labels(app, served.version, line.result.candidates[0].source).inc()
    return body


def result_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "score": round(candidate.score, 4),
        "source": candidate.source,
        "fields": orjson.Fragment(candidate.document),
    }


def understood_json(understood: Understood) -> dict[str, Any]:
    return {
        "text": understood.query.text,
        "intent": understood.intent,
        "entities": dict(understood.entities),
        "filters": dict(understood.query.filters),
        "confidence": round(understood.confidence, 4),
        "engine": understood.engine,
    }


def generated_json(generated: Generated) -> dict[str, Any]:
    """As the answer's member `answer`."""
    usage = generated.usage
    return {
        "text": generated.text,
        "data": generated.data,
        "form": generated.form,
        "finish_reason": generated.finish_reason,
        "checks": [check._asdict() for check in generated.checks],
        "repaired": generated.repaired,
        "fallback": generated.fallback,
        "usage": usage_json(generated),
        "model": generated.model,
        "adapter": generated.adapter,
        "first_ms": generated.first_ms,
        "tokens_per_s": _per_s(usage.completion_tokens, generated.total_ms),
    }


def usage_json(generated: Generated) -> dict[str, int]:
    usage = generated.usage
    return {**usage._asdict(), "total_tokens": sum(usage)}


def _per_s(tokens: int, milliseconds: float) -> float:
    return round(1000 * tokens / milliseconds, 1) if milliseconds else 0.0


def _line_json(line: Line) -> dict[str, Any]:
    return {
        "text": line.understood.raw,
        "quantity": line.understood.quantity,
        "unit": line.understood.unit,
        "vintage": line.understood.vintage,
        "results": [result_json(c) for c in line.result.candidates],
        "abstained": line.result.abstained,
    }


def trace_of(
    trace_id: str,
    given: Given,
    query: Query,
    answer: Answer,
    when: tuple[float, float],
    generated: Generated | None = None,
) -> Trace:
    """`when`: Unix time, and the seconds it took."""
    now, elapsed_s = when
    timings: Mapping[str, float] = {
        **{phase: round(ms, 3) for phase, ms in answer.timings_ms.items()},
        **({} if generated is None else {"generate": generated.total_ms}),
        "total": to_ms(elapsed_s),
    }
    beside: dict[str, Any] = {"record": query.record} if query.record else {}
    if query.like:
        beside["like"] = query.like
    lines = [
        {
            **beside,
            **_understood_of(line.understood),
            "raw": line.understood.raw,
            "abstained": line.result.abstained,
            "shown": [[c.id, round(c.score, 4), c.source, dict(c.scores)] for c in line.result.candidates],
        }
        for line in answer.lines
    ]
    return Trace(
        trace_id=trace_id,
        app=given.served.spec.name,
        release=given.served.version,
        at_s=now,
        query=query.text,
        lines=lines,
        user=query.user,
        session=query.session,
        status="replayed" if given.replayed else "ok",
        timings_ms=timings,
        rollout=given.origin.rollout,
        arm=given.origin.arm,
        answer={} if generated is None else {**generated_json(generated), "measures": dict(generated.measures)},
    )


def _understood_of(understood: Understood) -> dict[str, Any]:
    if not understood.engine:
        return {}
    return {
        "intent": understood.intent,
        "entities": dict(understood.entities),
        "filters": dict(understood.query.filters),
    }


def to_ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
