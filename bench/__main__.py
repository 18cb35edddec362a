"""The command line of the benchmarks: `scripts/bench speed`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.data import DEFAULT_QUERIES
from bench.processes import BenchError
from bench.speed import SYSTEMS, Settings, measure
from bench.speed_report import save


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measures Palate beside what it is compared with."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed", help="throughput, latency and memory of one query endpoint, four ways")
    speed.add_argument("--seconds", type=int, default=10, help="length of each measurement (10)")
    speed.add_argument("--connections", default="1,8,32,64", help="open connections, one measurement each (1,8,32,64)")
    speed.add_argument("--only", default=",".join(SYSTEMS), help=f"which of {', '.join(SYSTEMS)}; default all")
    speed.add_argument("--queries", type=Path, default=DEFAULT_QUERIES, help="JSON lines with a `query` each")
    speed.add_argument("--out", type=Path, default=Path("bench-results"), help="folder for the results (bench-results)")
    options = parser.parse_args()
    systems = tuple(options.only.split(","))
    if unknown := sorted(set(systems) - set(SYSTEMS)):
        parser.error(f"--only: unknown {unknown}; there are {list(SYSTEMS)}")
    try:
        connections = tuple(int(c) for c in options.connections.split(","))
    except ValueError:
        parser.error(f"--connections wants numbers with commas, not {options.connections!r}")
    try:
        print(save(measure(Settings(options.seconds, connections, systems, options.queries)), options.out))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
