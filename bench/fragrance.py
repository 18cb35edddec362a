"""fragrance-lab: the base model beside its adapter, by the quality report of the recipes they write.

    python -m bench.fragrance [--model DIR] [--adapter DIR] [--count N] [--steps N]

Without --adapter one is trained first, in this process, as `train.recipes` of app.yaml says (`palate train
fragrance-lab` does the same and publishes it). Both write recipes for the same briefs, which no instruction shows,
greedily and guided by the same schemas; percents are judged as they come, before any check could mend them. Prints a
table, with the share of answers that satisfy their schema and the paired differences.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from serving.config import ServingConfig
from serving.schema import load_app_spec
from training.dataset import DatasetInfo
from training.dataset.example import save_info
from training.job.loop import PlainLoop
from training.lora.instructions import parse_instruction
from training.lora.trainer import TRAINER
from training.models import tiny_folder
from training.ports import Task
from training.progress import Progress
from training.tiny.corpus import Lesson
from training.tiny.measure import generate, guided, is_valid
from training.trainers import checked_options

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "fragrance-lab"
AT_ONCE = 8
SCORES = ("structure", "feasibility", "coherence", "creativity")


def lessons(lab: Any, known: Any, count: int) -> list[Lesson]:
    made = []
    for line in lab.instructions(known, count, 1, False, held_out=True):
        [instruction] = parse_instruction(json.dumps(line), "lab.py")
        made.append(Lesson("fragrance-lab", instruction, json.loads((EXAMPLE / line["schema"]).read_text())))
    return made


def train_adapter(model: Path, steps: int | None, root: Path) -> Path:
    """As a run does, without its data set, gates and release."""
    spec = load_app_spec(EXAMPLE)
    train = spec.train["recipes"]
    options = checked_options("recipes", train, TRAINER).model_copy(update={"model": str(model)})
    if steps is not None:
        options = options.model_copy(update={"max_steps": steps})
    (root / "dataset").mkdir()
    (root / "work").mkdir()
    save_info(root / "dataset", DatasetInfo("bench", {}))
    task = Task(
        spec, "recipes", EXAMPLE, root / "dataset", root / "items.jsonl", None, root / "work", options, train.seed
    )
    TRAINER.prepare(task)
    loop = PlainLoop(root / "checkpoints")
    TRAINER.loop(task, loop)
    saved = loop.restore()
    assert saved is not None
    [adapter] = TRAINER.finish(task, saved).components
    return adapter.folder


def write(model: Any, tokenizer: Any, asked: list[Lesson], tell: Any) -> list[str]:
    """An answer each, in order."""
    said: dict[int, str] = {}
    rows = sorted(range(len(asked)), key=lambda row: asked[row].instruction.slice)
    while rows:
        part = [row for row in rows[:AT_ONCE] if asked[row].instruction.slice == asked[rows[0]].instruction.slice]
        rows = rows[len(part) :]
        said |= dict(zip(part, generate(model, tokenizer, [asked[row] for row in part]), strict=True))
        tell(len(said))
    return [said[row] for row in range(len(asked))]


def judged(answers: list[str], asked: list[Lesson], own: Any) -> dict[str, Any]:
    """The five scores with what each recipe got, and the share of valid answers."""
    perfumery, quality, lab = own
    known = perfumery.load_lab()
    shelf = [quality.percents(recipe) for recipe in lab.known_recipes(known)]
    recipes, scored = [], []
    for text, lesson in zip(answers, asked, strict=True):
        brief = lesson.instruction.history[-1].content.split("Brief: ")[1].split("\n")[0]
        form = lesson.instruction.slice.removeprefix("recipe-")
        try:
            recipes.append(json.loads(text))
        except ValueError:
            recipes.append(None)
        scored.append(quality.score(recipes[-1], perfumery.read_brief(brief, known), form, known, shelf))
    valid = sum(is_valid(text, lesson.schema) for text, lesson in zip(answers, asked, strict=True)) / len(asked)
    return {"report": quality.report(scored, recipes), "scored": scored, "valid": valid}


def table(base: dict[str, Any], tuned: dict[str, Any]) -> str:
    rows = [f"{'':12} {'base':>7} {'adapter':>8} {'difference, 95 % interval':>28}"]
    for name in (*SCORES, "diversity", "overall"):
        before, after = getattr(base["report"], name), getattr(tuned["report"], name)
        told = ""
        if name in SCORES:
            pairs = [getattr(b, name) - getattr(a, name) for a, b in zip(base["scored"], tuned["scored"], strict=True)]
            low, high = _interval(np.array(pairs))
            told = f"{after - before:+.3f} ({low:+.3f} to {high:+.3f})"
        rows.append(f"{name:12} {before:7.3f} {after:8.3f} {told or f'{after - before:+.3f}':>28}")
    rows.append(f"{'valid':12} {base['valid']:7.0%} {tuned['valid']:8.0%}")
    return "\n".join(rows)


def _interval(pairs: np.ndarray[Any, Any]) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(len(pairs), size=(4000, len(pairs)))
    low, high = np.quantile(pairs[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.fragrance", description=__doc__)
    parser.add_argument("--model", type=Path, default=tiny_folder(ServingConfig.from_env().home))
    parser.add_argument("--adapter", type=Path, help="a component `generate.adapter`; none: one is trained")
    parser.add_argument("--count", type=int, default=48, help="briefs")
    parser.add_argument("--steps", type=int, help="of training; default: as app.yaml says")
    options = parser.parse_args()
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sys.path.insert(0, str(EXAMPLE))
    lab, perfumery, quality = (import_module(name) for name in ("lab", "perfumery", "quality"))
    console = Console(stderr=True)
    progress = Progress("fragrance", console)
    asked = lessons(lab, perfumery.load_lab(), options.count)
    tokenizer = AutoTokenizer.from_pretrained(str(options.model))
    model = AutoModelForCausalLM.from_pretrained(str(options.model))
    started = time.process_time()
    with tempfile.TemporaryDirectory() as root:
        adapter = options.adapter
        if adapter is None:
            with progress.step("training the adapter", None):
                adapter = train_adapter(options.model.resolve(), options.steps, Path(root))
        with progress.step("base", len(asked)) as tell:
            base = judged(write(model, tokenizer, asked, tell), asked, (perfumery, quality, lab))
        tuned_model = PeftModel.from_pretrained(model, str(adapter))
        with progress.step("adapter", len(asked)) as tell:
            tuned = judged(write(tuned_model, tokenizer, asked, tell), asked, (perfumery, quality, lab))
    how = "guided by the schema" if guided() else "not guided"
    print(
        f"{options.model.name}, {len(asked)} held-out briefs, greedy, {how}; "
        f"{time.process_time() - started:.0f} s of CPU"
    )
    print(table(base, tuned))


if __name__ == "__main__":
    main()
