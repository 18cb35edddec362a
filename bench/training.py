"""What Ray costs a training: steps per second of the same loop in this process and in a worker of Ray Train.

`report()` prints the table; the bar is a loss of 10 % at most. The model is a small transformer encoder on made-up
numbers; the time is that between two reports of the loop, so that the start of processes is left out of it, and stands
beside it.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from bench.machine import describe
from serving.schema import AppSpec
from training.fakes import MemoryTracking
from training.job.cluster import Where, ray_cluster
from training.job.fit import fit
from training.ports import Loop, Task, Trained
from training.progress import Progress

BAR = 0.9
WARM_UP = 10


class Size(BaseModel):
    """Of the model and its batches. A report every step, a checkpoint every `save_every` of them."""

    steps: int = 150
    layers: int = 4
    width: int = 192
    tokens: int = 32
    batch: int = 32
    save_every: int = 50


class BenchTrainer:
    """Trains nothing of use, as fast as it can. Not deterministic in its metric `steps_per_s`."""

    name = "bench"
    options: type[BaseModel] = Size

    def component(self, spec: AppSpec) -> str:
        return spec.name

    def search_space(self, options: BaseModel) -> Mapping[str, tuple[float, float] | tuple[Any, ...]]:  # noqa: ARG002
        return {}

    def prepare(self, task: Task) -> None:
        task.work.mkdir(parents=True, exist_ok=True)

    def loop(self, task: Task, loop: Loop) -> None:
        import torch

        size = Size.model_validate(task.options)
        layer = torch.nn.TransformerEncoderLayer(size.width, 4, 4 * size.width, 0.0, batch_first=True)
        model = torch.nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False).to(loop.device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
        batch = torch.randn(size.batch, size.tokens, size.width, device=loop.device)
        loop.total(size.steps)
        last = time.perf_counter()
        for step in range(1, size.steps + 1):
            optimiser.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimiser.step()
            save = step % size.save_every == 0 or step == size.steps
            now = time.perf_counter()
            loop.report(
                step,
                {"loss": loss.item(), "step_s": now - last},
                (lambda folder: torch.save(model.state_dict(), folder / "model.pt")) if save else None,
            )
            last = now

    def finish(self, task: Task, saved: Path) -> Trained:  # noqa: ARG002
        return Trained()


@dataclass(frozen=True, slots=True)
class Speed:
    """`steps_per_s` over all steps but the first few, `whole_s` with the start of the processes."""

    steps_per_s: float
    whole_s: float


def measure(where: Where, size: Size, folder: Path, num_cpus: float = 1.0) -> Speed:
    tracking = MemoryTracking()
    started = time.perf_counter()
    fit(
        BenchTrainer(),
        _task(folder, size, num_cpus),
        where=where,
        progress=Progress("bench", Console(file=io.StringIO())),
        tracking=tracking,
    )
    whole_s = time.perf_counter() - started
    step_s = [value for name, value, step in tracking.logged if name == "step_s" and step > WARM_UP]
    return Speed(len(step_s) / sum(step_s), whole_s)


def report(size: Size = Size(), repeats: int = 3, num_cpus: float = 1.0) -> str:  # noqa: B008
    """Both ways in turn, `repeats` times, since a machine's speed drifts; medians. A Markdown table."""
    plain: list[Speed] = []
    ray: list[Speed] = []
    with tempfile.TemporaryDirectory() as folder, ray_cluster(Where()):
        for n in range(repeats):
            plain.append(measure(Where(plain=True), size, Path(folder) / f"plain-{n}", num_cpus))
            ray.append(measure(Where(), size, Path(folder) / f"ray-{n}", num_cpus))
    ratio = statistics.median(r.steps_per_s / p.steps_per_s for p, r in zip(plain, ray, strict=True))
    machine = describe()
    rows = "\n".join(
        f"| {name} | {statistics.median(s.steps_per_s for s in speeds):.2f} | "
        f"{min(s.steps_per_s for s in speeds):.2f} to {max(s.steps_per_s for s in speeds):.2f} | "
        f"{statistics.median(s.whole_s for s in speeds):.1f} |"
        for name, speeds in (("without Ray", plain), ("one worker of Ray Train", ray))
    )
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load before {machine['load_before']}; {size.steps} steps of a "
        f"transformer of {size.layers} x {size.width}, {size.batch} x {size.tokens} tokens, {num_cpus:g} CPU\n\n"
        f"| loop | steps/s, median | range | whole job, s |\n|---|---:|---:|---:|\n{rows}\n\n"
        f"ratio {ratio:.3f} (median of pairs; bar {BAR}): {'held' if ratio >= BAR else 'NOT held'}"
    )


def _task(folder: Path, size: Size, num_cpus: float) -> Task:
    spec = AppSpec.model_validate(
        {
            "name": "bench",
            "items": {"text": ["name"], "source": "items.jsonl"},
            "retrieve": {"sources": {"bm25": {"engine": "lexical", "fields": {"name": 1.0}}}},
            "train": {"bench": {"trainer": "contrastive", "scaling": {"num_cpus": num_cpus}}},
        }
    )
    return Task(spec, "bench", folder, folder / "data", folder / "items.jsonl", None, folder / "work", size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--steps", type=int, default=Size().steps)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-cpus", type=float, default=1.0)
    options = parser.parse_args()
    print(report(Size(steps=options.steps), options.repeats, options.num_cpus))


if __name__ == "__main__":
    main()
