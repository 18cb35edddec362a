"""What the tiny model says to prompts that nothing was taught of: is it valid, and is it on topic?

`training.tiny.build` calls `measure` at the end of a build, on the CPU, with greedy decoding and, as the engine does,
with the answer's JSON schema as its guide (xgrammar, which comes with vLLM; without it the answers are unguided, and
the table says so). Two figures a kind of lesson:

- valid: the share of answers that satisfy their schema (for words: that are not empty and end by themselves);
- on topic: the share that is nearer to the answer of their own prompt than to that of another prompt of the same kind,
  by the values both hold (Dice's coefficient); half of what says the same to everybody would be.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.generate.prompt import validator_of
from training.tiny.corpus import Lesson

MOST_TOKENS = 400
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Kind:
    """`near`: mean Dice coefficient with the right answer."""

    name: str
    asked: int
    valid: float
    on_topic: float
    near: float


def guided() -> bool:
    return importlib.util.find_spec("xgrammar") is not None


def measure(model: Any, tokenizer: Any, lessons: Sequence[Lesson], told: Callable[[int], None]) -> list[Kind]:
    """Per kind of lesson, in name order; `told` hears how many were asked."""
    said: dict[int, str] = {}
    for rows in _alike(lessons):
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            answers = generate(model, tokenizer, [lessons[row] for row in part])
            said |= dict(zip(part, answers, strict=True))
            told(len(said))
    kinds: dict[str, list[int]] = {}
    for row, lesson in enumerate(lessons):
        kinds.setdefault(f"{lesson.app}: {lesson.instruction.slice}", []).append(row)
    return [_kind(name, [(lessons[row], said[row]) for row in rows]) for name, rows in sorted(kinds.items())]


def generate(model: Any, tokenizer: Any, lessons: Sequence[Lesson]) -> list[str]:
    """The answers, greedy; lessons of one schema."""
    import torch

    prompts = [
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in lesson.instruction.history],
            tokenize=False,
            add_generation_prompt=True,
        )
        for lesson in lessons
    ]
    tokenizer.padding_side = "left"
    asked = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    guides = _guides(tokenizer, lessons[0].schema, model.config.vocab_size)
    with torch.inference_mode():
        found = model.generate(**asked, max_new_tokens=MOST_TOKENS, do_sample=False, logits_processor=guides)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in found[:, asked["input_ids"].shape[1] :]]


def _guides(tokenizer: Any, schema: Mapping[str, Any] | None, vocabulary: int) -> list[Any]:
    if schema is None or not guided():
        return []
    import xgrammar
    from xgrammar.contrib.hf import LogitsProcessor

    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary)
    compiled = xgrammar.GrammarCompiler(info).compile_json_schema(json.dumps(schema), any_whitespace=False)
    return [LogitsProcessor(compiled)]


def _alike(lessons: Sequence[Lesson]) -> list[list[int]]:
    """Rows by schema."""
    found: dict[str, list[int]] = {}
    for row, lesson in enumerate(lessons):
        found.setdefault(json.dumps(lesson.schema, sort_keys=True), []).append(row)
    return list(found.values())


def _kind(name: str, answered: Sequence[tuple[Lesson, str]]) -> Kind:
    values = [values_of(text) for _, text in answered]
    right = [values_of(lesson.instruction.answer) for lesson, _ in answered]
    own = [dice(a, b) for a, b in zip(values, right, strict=True)]
    others = [
        sum(dice(a, b) for at, b in enumerate(right) if at != row) / max(1, len(right) - 1)
        for row, a in enumerate(values)
    ]
    topic = [(mine > other) + 0.5 * (mine == other) for mine, other in zip(own, others, strict=True)]
    valid = [is_valid(text, lesson.schema) for lesson, text in answered]
    count = len(answered)
    return Kind(name, count, sum(valid) / count, sum(topic) / count, sum(own) / count)


def is_valid(text: str, schema: Mapping[str, Any] | None) -> bool:
    if schema is None:
        return bool(text.strip())
    try:
        return bool(validator_of(schema).is_valid(json.loads(text)))
    except ValueError:
        return False


def values_of(text: str) -> Counter[str]:
    """What an answer says: the leaves of its JSON with their key, or its words."""
    try:
        return Counter(_leaves(json.loads(text), ""))
    except ValueError:
        return Counter(re.findall(r"\w+", text.lower()))


def _leaves(value: Any, key: str) -> list[str]:
    if isinstance(value, dict):
        return [leaf for name, one in value.items() for leaf in _leaves(one, name)]
    if isinstance(value, list):
        return [leaf for one in value for leaf in _leaves(one, key)]
    return [f"{key}={value}"]


def dice(one: Counter[str], other: Counter[str]) -> float:
    """1 for equal bags, 0 for bags with nothing in common."""
    both = sum(one.values()) + sum(other.values())
    return 2 * sum((one & other).values()) / both if both else 1.0


def table(kinds: Sequence[Kind]) -> str:
    how = "guided by the schema" if guided() else "NOT guided (xgrammar is not installed)"
    rows = [f"{k.name:34} {k.asked:5} {k.valid:7.0%} {k.on_topic:9.0%} {k.near:7.0%}" for k in kinds]
    head = f"{'held-out prompts, ' + how:34} {'asked':>5} {'valid':>7} {'on topic':>9} {'agree':>7}"
    return "\n".join([head, *rows])
