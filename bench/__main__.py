"""The command line of the benchmarks: `scripts/bench speed`, `judgement`, `rollback`, `steering`,
`learning`, `generation`. Those of training have a command line each: `python -m bench.training`, `bench.ranking`,
`bench.beauty`.

Each command is a function that adds its parser and sets `run`: (parser, options) -> what to print.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench.data import DEFAULT_QUERIES
from bench.processes import BenchError
from bench.speed import SYSTEMS, Settings, measure
from bench.speed_report import save as save_speed

Commands = argparse._SubParsersAction  # the type of what add_subparsers returns has no public name


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measures Palate beside what it is compared with."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_speed, _add_judgement, _add_rollback, _add_steering, _add_learning, _add_generation):
        command = add(commands)
        command.add_argument(
            "--out", type=Path, default=Path("bench-results"), help="folder for the results (bench-results)"
        )
    options = parser.parse_args()
    try:
        print(options.run(parser, options))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _add_speed(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    speed = commands.add_parser("speed", help="throughput, latency and memory of one query endpoint, four ways")
    speed.add_argument("--seconds", type=int, default=10, help="length of each measurement (10)")
    speed.add_argument("--connections", default="1,8,32,64", help="open connections, one measurement each (1,8,32,64)")
    speed.add_argument("--only", default=",".join(SYSTEMS), help=f"which of {', '.join(SYSTEMS)}; default all")
    speed.add_argument("--queries", type=Path, default=DEFAULT_QUERIES, help="JSON lines with a `query` each")
    speed.set_defaults(run=_run_speed)
    return speed


def _run_speed(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    systems = tuple(options.only.split(","))
    if unknown := sorted(set(systems) - set(SYSTEMS)):
        parser.error(f"--only: unknown {unknown}; there are {list(SYSTEMS)}")
    try:
        connections = tuple(int(c) for c in options.connections.split(","))
    except ValueError:
        parser.error(f"--connections wants numbers with commas, not {options.connections!r}")
    return save_speed(measure(Settings(options.seconds, connections, systems, options.queries)), options.out)


def _add_judgement(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    judgement = commands.add_parser("judgement", help="false rollbacks, and how soon a bad canary is found; simulated")
    judgement.add_argument("--rollouts", type=int, default=10_000, help="for each false-rollback rate (10000)")
    judgement.add_argument("--seed", type=int, default=1, help="of the made-up streams (1)")
    judgement.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    judgement.set_defaults(run=_run_judgement)
    return judgement


def _run_judgement(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    from bench.judgement.report import measured, save

    if min(options.rollouts, options.processes) < 1 or options.seed < 0:
        parser.error("--rollouts and --processes want 1 or more, --seed 0 or more")
    return save(measured(options.rollouts, options.seed, options.processes), options.out)


def _add_rollback(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    rollback = commands.add_parser("rollback", help="how long a canary that breaks keeps its traffic")
    rollback.add_argument("--repeats", type=int, default=5, help="runs of each scenario (5)")
    rollback.add_argument("--only", default="", help="scenarios by name, with commas; default all")
    rollback.set_defaults(run=_run_rollback)
    return rollback


def _run_rollback(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    from bench.rollback import report  # its clients take seconds to import

    if options.repeats < 1:
        parser.error("--repeats wants 1 or more")
    return report(options.repeats, tuple(name for name in options.only.split(",") if name), options.out)


def _add_steering(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    steering = commands.add_parser("steering", help="how soon a change of weights reaches every router")
    steering.add_argument("--routers", type=int, default=2, help="router replicas (2)")
    steering.set_defaults(run=_run_steering)
    return steering


def _run_steering(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    from bench.steering import report

    if options.routers < 1:
        parser.error("--routers wants 1 or more")
    return report(options.routers, options.out)


def _add_learning(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    learning = commands.add_parser("learning", help="users correct answers until a better release serves; made up")
    learning.add_argument("--poison", action="store_true", help="users choose at random: the gates have to stop it")
    learning.set_defaults(run=_run_learning)
    return learning


def _run_learning(_: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    from bench.learning import report

    return report(options.poison, options.out)


def _add_generation(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    generation = commands.add_parser("generation", help="tokens/s and time to first token, beside a bare vLLM server")
    generation.add_argument(
        "--model", type=Path, default=Path.home() / ".palate" / "models" / "tiny",
        help="a folder in Hugging Face format; default: what `palate models build tiny` makes",
    )  # fmt: skip
    generation.add_argument("--connections", default="1,8,32", help="open connections, one measurement each (1,8,32)")
    generation.add_argument("--rounds", type=int, default=8, help="requests of each connection (8)")
    generation.set_defaults(run=_run_generation)
    return generation


def _run_generation(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    from bench.generation import Load, report

    try:
        connections = tuple(int(c) for c in options.connections.split(","))
    except ValueError:
        parser.error(f"--connections wants numbers with commas, not {options.connections!r}")
    if min(*connections, options.rounds) < 1:
        parser.error("--connections and --rounds want 1 or more")
    return report(Load(options.model, connections, rounds=options.rounds), options.out)


if __name__ == "__main__":
    sys.exit(main())
