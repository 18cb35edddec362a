"""palate learner: the process that starts training runs by themselves. `palate up` and the chart run it."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from typing import Annotated

import typer

from serving.schema import find_app, load_app_spec
from training.commands import HomeOption, one_line_errors, open_migrated, open_releases
from training.config import TrainingConfig

commands = typer.Typer()


@commands.command()
@one_line_errors()
def learner(
    apps: Annotated[list[str], typer.Argument(help="Folders of apps, or names of examples.")],
    home: HomeOption = None,
    every_s: Annotated[float, typer.Option(help="How often it looks.", min=0.1)] = 5.0,
) -> None:
    """Start training runs when `train.NAME.trigger` of the stable release says so; give candidates their trial.

    Runs until it is stopped. `palate up` runs one by itself where an app has a trigger; of several, one acts and the
    others wait. One training at a time, at low priority; what it says is in `logs/train-APP.log` of the home.
    """
    from training.learner import Learner, Settings, run_learner

    folders = {load_app_spec(folder).name: folder for folder in map(find_app, apps)}
    config = TrainingConfig.from_env(home)
    _log_as_json()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    database = open_migrated(config)
    made = Learner(folders, config.home, database, open_releases(config), settings=Settings(tick_s=every_s))
    logging.getLogger("training").info("learner.started", extra={"fields": {"apps": sorted(folders)}})
    run_learner(made, stop)
    database.close()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "event": record.getMessage(),
            "module": record.name,
            "level": record.levelname.lower(),
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("training").setLevel(logging.INFO)
