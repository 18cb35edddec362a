"""The limit: tokenizer, ONNX session and exact search in one process, batch after batch, no HTTP, no queue.

Run by `bench.speed` as `python -m bench.bare_loop COMPONENT QUERIES SECONDS`; prints one JSON object. The embedder,
its int8 weights and the search are the ones Palate serves with. Every thread setting that makes sense on this machine
is tried, throughput and single-query latency each take their best.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import MAX_TOKENS, TOP_K, load_items, load_queries, texts_of
from serving.retrieve.exact import ExactSearch
from serving.retrieve.onnx_embedder import OnnxEmbedder

BATCH = 32


def batches_per_second(answer: Callable[[list[str]], Any], queries: list[str], seconds: float) -> tuple[float, float]:
    """(queries/s in batches of BATCH, mean ms a batch), after a warm-up of one tenth of the time."""
    batches = [queries[i : i + BATCH] for i in range(0, len(queries) - BATCH + 1, BATCH)]
    _repeat(answer, batches, seconds / 10)
    times = _repeat(answer, batches, seconds)
    return BATCH * len(times) / sum(times), 1000 * sum(times) / len(times)


def single_latency_ms(answer: Callable[[list[str]], Any], queries: list[str], seconds: float) -> tuple[float, float]:
    """(p50, p99) of one query at a time, in ms."""
    singles = [[query] for query in queries]
    _repeat(answer, singles, seconds / 10)
    p50, p99 = np.percentile(np.array(_repeat(answer, singles, seconds)) * 1000, [50, 99])
    return float(p50), float(p99)


def _repeat(answer: Callable[[list[str]], Any], batches: list[list[str]], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    position = 0
    while (start := time.perf_counter()) < end:
        answer(batches[position % len(batches)])
        times.append(time.perf_counter() - start)
        position += 1
    return times


def main(component: Path, queries: list[str], seconds: float) -> dict[str, Any]:
    texts = texts_of(load_items())
    tried = []
    for threads in range(1, len(os.sched_getaffinity(0)) + 1):
        embedder = OnnxEmbedder(component, "int8", threads, MAX_TOKENS)
        search = ExactSearch(embedder.embed_documents(texts))

        def answer(batch: list[str], embedder: OnnxEmbedder = embedder, search: ExactSearch = search) -> Any:
            return search.search(embedder.embed(batch), [None] * len(batch), TOP_K)

        rate, batch_ms = batches_per_second(answer, queries, seconds)
        p50, p99 = single_latency_ms(answer, queries, seconds / 2)
        tried.append({"threads": threads, "qps": rate, "batch_ms": batch_ms, "p50_ms": p50, "p99_ms": p99})
    fastest = max(tried, key=lambda t: t["qps"])
    quickest = min(tried, key=lambda t: t["p50_ms"])
    return {
        "qps": fastest["qps"],
        "threads": fastest["threads"],
        "batch_ms": fastest["batch_ms"],
        "p50_ms": quickest["p50_ms"],
        "p99_ms": quickest["p99_ms"],
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "tried": tried,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), load_queries(Path(sys.argv[2])), float(sys.argv[3]))))
