"""A Ray of its own with a serveConfigV2 deployed on it, as KubeRay would.

`python -m tests.chart.local_ray FILE RESOURCES PORT FOLDER` prints `ready` when all applications run, and ends when its
standard input does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ray
import yaml
from ray import serve
from ray.serve._private import api
from ray.serve.config import HTTPOptions
from ray.serve.schema import ServeDeploySchema

WITHIN_S = 120.0


def main(config_file: str, resources: str, port: str, folder: str) -> int:
    config = ServeDeploySchema.model_validate(yaml.safe_load(Path(config_file).read_text(encoding="utf-8")))
    ray.init(
        address="local",
        num_cpus=4,
        resources={name: float(count) for name, count in json.loads(resources).items()},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=128 * 2**20,
        _temp_dir=folder,
        _node_ip_address="127.0.0.1",
    )
    http = HTTPOptions(**{**config.http_options.model_dump(), "host": "127.0.0.1", "port": int(port)})
    client = api.serve_start(http_options=http, proxy_location=config.proxy_location)
    client.deploy_apps(config, _blocking=False)
    until = time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        status = {name: application.status for name, application in serve.status().applications.items()}
        if set(status.values()) == {"RUNNING"} and len(status) == len(config.applications):
            print("ready", flush=True)
            sys.stdin.read()
            break
        if "DEPLOY_FAILED" in status.values():
            print(serve.status(), flush=True)
            return 1
        time.sleep(0.2)
    else:
        print(f"not running after {WITHIN_S:g} s: {serve.status()}", flush=True)
        return 1
    serve.shutdown()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
