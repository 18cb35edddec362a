"""Empties this Ray node before its pod ends: the preStop hook of Ray workers, `python -m serving.cluster.drain`.

A pod that just ends takes what is in flight with it. Ray is asked to drain the node instead: Serve then starts the
replacements of its replicas on other nodes, takes the node's proxy out of rotation and lets replicas finish. The proxy
also carries requests of replicas elsewhere, so it is waited for like them. Called by the kubelet; calls Ray's control
store.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

LOOK_EVERY_S = 0.5
REASON = "DRAIN_NODE_REASON_PREEMPTION"
"""What Ray calls a node that goes whatever happens; the other reason it knows may be refused by a busy node."""


def replicas_on(details: dict[str, Any], node_id: str) -> list[str]:
    """Names of the replicas that run on a node, by Serve's own description of itself (its REST API's schema)."""
    return sorted(
        replica["replica_id"]
        for application in details.get("applications", {}).values()
        for deployment in application["deployments"].values()
        for replica in deployment["replicas"]
        if replica.get("node_id") == node_id  # one that starts has none yet
    )


def left_on(details: dict[str, Any], node_id: str) -> list[str]:
    """What must not be ended yet. Serve drops a proxy from what it says just after it was DRAINED."""
    proxy = (details.get("proxies") or {}).get(node_id)
    waiting = proxy is not None and proxy["status"] != "DRAINED"
    return replicas_on(details, node_id) + (["the node's proxy"] if waiting else [])


def wait_until_empty(look: Callable[[], dict[str, Any]], node_id: str, until: float) -> list[str]:
    """[] as soon as nothing is left on the node; else what is, when `monotonic` says `until`."""
    while (left := left_on(look(), node_id)) and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
    return left


def drain(within_s: float, node_id: str = "") -> int:
    """Status 0 when no replica and no proxy is left on the node, 1 when some are after `within_s`. Default: the node of
    this pod."""
    import ray
    from ray.core.generated import autoscaler_pb2
    from ray.serve.context import _get_global_client

    # KubeRay tells every container where the head is; elsewhere Ray finds the cluster of this machine.
    address = os.environ.get("RAY_ADDRESS", "auto")
    ray.init(address=address, namespace="serve", logging_level="error", log_to_driver=False)
    node_id = node_id or ray.get_runtime_context().get_node_id()
    until = time.monotonic() + within_s
    deadline_ms = int((time.time() + within_s) * 1000)
    accepted, why = ray._private.worker.global_worker.gcs_client.drain_node(
        node_id, autoscaler_pb2.DrainNodeReason.Value(REASON), "its pod ends", deadline_ms
    )
    if not accepted:
        print(f"palate drain: Ray does not drain node {node_id}: {why}", file=sys.stderr)
        return 1

    def look() -> dict[str, Any]:
        client = _get_global_client(raise_if_no_controller_running=False)
        return {} if client is None else dict(client.get_serve_details())

    if left := wait_until_empty(look, node_id, until):
        print(f"palate drain: still here after {within_s:g} s: {', '.join(left)}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Drain this Ray node.")
    parser.add_argument("--within-s", type=float, default=60.0, help="give up, and let the pod end, after so long")
    parser.add_argument("--node-id", default="", help="another node than the one this runs on")
    given = parser.parse_args()
    raise SystemExit(drain(given.within_s, given.node_id))
