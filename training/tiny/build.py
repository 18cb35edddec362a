"""Builds the tiny model: lessons -> tokenizer -> training -> measurement -> a folder with a model card.

`palate models build tiny` calls `build`. The folder appears, or is replaced, only once all of it is written. What a
build that was killed had learnt lies beside it and is gone on with.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from registry.content import digest_json
from training.errors import TrainingRefused
from training.progress import Progress
from training.tiny import card
from training.tiny.corpus import Lesson, Lessons, read_lessons
from training.tiny.measure import Kind, measure, table

STEPS = 700
"""About 420 s of one core that multiplies in bfloat16 (AMX), so under four minutes of two; else nearly twice that."""
MOST_TOKENS = 1024
FIGURES_FILE = "palate.json"


@dataclass(frozen=True, slots=True)
class Order:
    """What to build, from which examples, and where."""

    out: Path
    examples: Path
    steps: int = STEPS
    seed: int = 0
    measured: int | None = None
    """Held-out prompts of each example that are asked at most; None: all, 0: none."""
    checkpoint_every_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Built:
    folder: Path
    loss: float
    parameters: int
    lessons: int
    steps: int
    seed: int
    wall_s: float
    cpu_s: float
    kinds: tuple[Kind, ...]

    @property
    def table(self) -> str:
        return table(self.kinds) if self.kinds else "not measured"


def build(order: Order, progress: Progress) -> Built:
    """Raises DatasetInvalid for lessons that cannot be read, TrainingRefused where another build is under way, OSError
    for a full disk."""
    order.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{order.out}.lock", timeout=0):
            return _build(order, progress)
    except Timeout:
        raise TrainingRefused(
            f"another build of {order.out} is under way: wait for it, or name another --out"
        ) from None


def _build(order: Order, progress: Progress) -> Built:
    from training.lora.tokens import encode
    from training.tiny import model as tiny
    from training.tiny.learn import Plan, learn

    wall, cpu = time.monotonic(), time.process_time()
    with progress.step("lessons", None) as told:
        lessons = read_lessons(order.examples, told)
    instructions = [lesson.instruction for lesson in lessons.teach]
    with progress.step("tokenizer", None):
        tokenizer = tiny.train_tokenizer(
            text for one in instructions for text in (*(m.content for m in one.history), one.answer)
        )
        tokens = encode(instructions, tokenizer, MOST_TOKENS)
    model = tiny.new_model(tokenizer, order.seed)
    checkpoint = order.out.with_name(f"{order.out.name}.checkpoint")
    plan = Plan(order.steps, order.seed, _key(lessons, order), checkpoint, order.checkpoint_every_s)
    with progress.step("training", order.steps) as told:
        loss = learn(model, tokens, plan, lambda step, _, told=told: told(step))  # type: ignore[misc]
    asked = _asked(lessons.ask, order.measured)
    kinds: tuple[Kind, ...] = ()
    if asked:
        with progress.step("measuring", len(asked)) as told:
            kinds = tuple(measure(model, tokenizer, asked, told))
    built = Built(
        order.out, loss, sum(p.numel() for p in model.parameters()), len(tokens), order.steps, order.seed,
        time.monotonic() - wall, time.process_time() - cpu, kinds,
    )  # fmt: skip
    aside = order.out.with_name(f"{order.out.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    tiny.save(aside, model, tokenizer)
    _describe(aside, built)
    _replace(aside, order.out)
    return built


def _describe(folder: Path, built: Built) -> None:
    figures = {**asdict(built), "folder": built.folder.name}
    (folder / FIGURES_FILE).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    (folder / "README.md").write_text(card.text(built.parameters, built.lessons, built.steps, built.table), "utf-8")


def _replace(new: Path, folder: Path) -> None:
    """What reads the old one while it is replaced reads it on."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _key(lessons: Lessons, order: Order) -> str:
    told = [[*((m.role, m.content) for m in one.instruction.history), one.instruction.answer] for one in lessons.teach]
    return digest_json({"lessons": told, "steps": order.steps, "seed": order.seed})


def _asked(lessons: Sequence[Lesson], most: int | None) -> list[Lesson]:
    """The first ones of each example."""
    taken: dict[str, int] = {}
    chosen = []
    for lesson in lessons:
        taken[lesson.app] = taken.get(lesson.app, 0) + 1
        if most is None or taken[lesson.app] <= most:
            chosen.append(lesson)
    return chosen
