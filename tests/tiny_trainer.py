"""A trainer that learns a line in milliseconds: what the tests of the job around a loop train. Its data are made up."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from serving.schema import AppSpec
from training.ports import OBJECTIVE, Loop, Task, Trained

ROWS = 32


class TinyOptions(BaseModel):
    """`fail_at`: the step where the first worker raises; `die_at`: where the last one kills itself, `deaths` times in
    all; `full_at`: where the disk is full. A file `hold` in the work folder names the step after which every step waits
    until the file is gone; `process-RANK` beside it names the process of a worker."""

    steps: int = 12
    save_every: int = 3
    rate: float = 0.05
    fail_at: int = -1
    die_at: int = -1
    deaths: int = 1
    full_at: int = -1


class TinyTrainer:
    name = "tiny"
    options: type[BaseModel] = TinyOptions

    def component(self, spec: AppSpec) -> str:
        return "retrieve.dense"

    def search_space(self, options: BaseModel) -> Mapping[str, tuple[float, float] | tuple[Any, ...]]:
        return {"rate": (0.0001, 0.2), "save_every": (1, 2, 3)}

    def prepare(self, task: Task) -> None:
        import torch

        task.work.mkdir(parents=True, exist_ok=True)
        if (task.work / "rows.pt").exists():
            return
        x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(7))
        torch.save((x, x @ torch.tensor([1.0, -2.0, 3.0, 0.5]) + 0.25), task.work / "rows.pt")

    def loop(self, task: Task, loop: Loop) -> None:
        import torch
        from torch import distributed

        options = task.options
        assert isinstance(options, TinyOptions)
        x, y = torch.load(task.work / "rows.pt")
        model = torch.nn.Linear(4, 1)
        optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate)
        done = 0
        (task.work / f"process-{loop.rank}").write_text(str(os.getpid()))
        if (saved := loop.restore()) is not None:
            state = torch.load(saved / "state.pt")
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            done = state["step"]
            with (task.work / "restored").open("a") as file:
                file.write(f"{done}\n")
        loop.total(options.steps)
        for step in range(done + 1, options.steps + 1):
            rows = _rows_of(step, loop)
            optimiser.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x[rows]).squeeze(1), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            if loop.world > 1:
                for parameter in model.parameters():
                    distributed.all_reduce(parameter.grad)
                    assert parameter.grad is not None
                    parameter.grad /= loop.world
            optimiser.step()
            _misbehave(task, options, loop, step)
            metrics = {"loss": loss.item()}
            if save := step % options.save_every == 0 or step == options.steps:
                with torch.no_grad():
                    whole = torch.nn.functional.mse_loss(model(x).squeeze(1), y).item()
                metrics["validation_loss"] = metrics[OBJECTIVE] = whole

            def write(folder: Path, step: int = step) -> None:
                if step == options.full_at:
                    (folder / "rest").symlink_to("/dev/full")
                    (folder / "rest").write_bytes(b"0" * 4096)
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
                torch.save(state, folder / "state.pt")

            loop.report(step, metrics, write if save else None)

    def finish(self, task: Task, saved: Path) -> Trained:
        import torch

        state = torch.load(saved / "state.pt")
        weights = [w for tensor in state["model"].values() for w in tensor.flatten().tolist()]
        return Trained(metrics={"step": state["step"], **{f"w{i}": w for i, w in enumerate(weights)}})


def _rows_of(step: int, loop: Loop) -> slice:
    """A batch of 16 rows, split evenly among the workers."""
    first = 16 * (step % 2)
    size = 16 // loop.world
    return slice(first + loop.rank * size, first + (loop.rank + 1) * size)


def _misbehave(task: Task, options: TinyOptions, loop: Loop, step: int) -> None:
    hold = task.work / "hold"
    while hold.exists() and step > int(hold.read_text()):
        time.sleep(0.02)
    if step == options.fail_at and loop.rank == 0:
        raise ValueError(f"the line is not straight:\nstep {step}")
    deaths = task.work / "deaths"
    if step == options.die_at and loop.rank == loop.world - 1:
        died = len(deaths.read_text()) if deaths.exists() else 0
        if died < options.deaths:
            deaths.write_text("x" * (died + 1))
            os.kill(os.getpid(), signal.SIGKILL)


def tiny_task(work: Path, options: TinyOptions, workers: int = 1, num_cpus: float = 1.0) -> Task:
    """A made-up app with one training named `line`, and its files beside `work`."""
    spec = AppSpec.model_validate(
        {
            "name": "tiny",
            "items": {"text": ["name"], "source": "items.jsonl"},
            "retrieve": {
                "sources": {"bm25": {"engine": "lexical", "fields": {"name": 1.0}}},
                "fusion": {"method": "rrf"},
            },
            "train": {"line": {"trainer": "contrastive", "scaling": {"workers": workers, "num_cpus": num_cpus}}},
        }
    )
    folder = work.parent
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "train.jsonl").write_text(json.dumps({"query": "q", "item": "1"}))
    (folder / "items.jsonl").write_text(json.dumps({"id": "1", "fields": {"name": "one"}, "attributes": {}}))
    return Task(spec, "line", folder, folder / "data", folder / "items.jsonl", None, work, options)
