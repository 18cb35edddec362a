"""What a language model is taught: prompts with the answers that were good.

They come from the source that `options.instructions` names, and from `conversations.jsonl` in the data set, which
`training.dataset.conversations` writes. Which part an instruction falls into follows from its prompt alone, so the
held-out ones stay the same as more are collected, and a prompt is never in two parts. Reads files, else pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from serving.schema import DataSpec
from training.dataset import PARTS, Part
from training.dataset.conversations import CONVERSATIONS
from training.errors import DatasetInvalid, TrainingRefused
from training.lora.options import LoraOptions
from training.ports import Task
from training.source import open_source

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """After `history`, `answer` was good. `weight` says how much that counts in training; `slice` is for evaluation."""

    history: tuple[Message, ...]
    answer: str
    weight: float = 1.0
    slice: str = "all"


def read_instructions(task: Task) -> list[Instruction]:
    """All of a task, in a fixed order, each once. Raises DatasetInvalid, and TrainingRefused where there are none."""
    options = task.options
    assert isinstance(options, LoraOptions)
    sources = [(options.instructions, task.app_folder)] if options.instructions else []
    if (task.dataset / CONVERSATIONS).is_file():
        sources.append((CONVERSATIONS, task.dataset))
    found: dict[tuple[tuple[Message, ...], str], Instruction] = {}
    for source, folder in sources:
        for one in _read(source, folder):
            key = (one.history, one.answer)
            if key not in found or one.weight > found[key].weight:
                found[key] = one
    if not found:
        raise TrainingRefused(
            f"train.{task.name}: there is nothing to teach: name a file in `options.instructions`, or collect "
            "conversations that people were satisfied with"
        )
    return list(found.values())


def split(instructions: list[Instruction], data: DataSpec) -> dict[Part, list[Instruction]]:
    """By a hash of what the conversation begins with, in the ratios of `data`."""
    parts: dict[Part, list[Instruction]] = {part: [] for part in PARTS}
    for one in instructions:
        opening = "\0".join(m.content for m in one.history if m.role != "system").split("\0")[0]
        place = int.from_bytes(hashlib.sha256(opening.encode()).digest()[:8], "big") / 2**64
        held = data.train_ratio + data.validation_ratio
        parts["train" if place < data.train_ratio else "validation" if place < held else "test"].append(one)
    return parts


def _read(source: str, folder: Path) -> Iterator[Instruction]:
    with open_source(source, folder, "instructions", DatasetInvalid) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield from parse_instruction(line, f"{source}, line {number}")


def parse_instruction(line: bytes | str, where: str) -> Iterator[Instruction]:
    """One for each answer in the line. Raises DatasetInvalid, which names `where`."""
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DatasetInvalid(f"{where}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise DatasetInvalid(f"{where}: an instruction is a JSON object")
    weight, slice_ = raw.get("weight", 1.0), raw.get("slice", "all")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise DatasetInvalid(f"{where}: `weight` has to be a number above 0")
    if not isinstance(slice_, str) or not slice_:
        raise DatasetInvalid(f"{where}: `slice` has to be a text")
    messages = _messages(raw, where)
    for at, message in enumerate(messages):
        if message.role == "assistant":
            yield Instruction(tuple(messages[:at]), message.content, float(weight), slice_)


def _messages(raw: dict[str, Any], where: str) -> list[Message]:
    """At least one question, then an answer."""
    given = raw.get("messages")
    if given is None:
        given = [{"role": "user", "content": raw.get("prompt")}, {"role": "assistant", "content": raw.get("answer")}]
        if raw.get("system") is not None:
            given = [{"role": "system", "content": raw["system"]}, *given]
    if not isinstance(given, list) or not all(isinstance(m, dict) for m in given):
        raise DatasetInvalid(f"{where}: `messages` has to be a list of objects with `role` and `content`")
    messages = []
    for m in given:
        role, content = m.get("role"), m.get("content")
        if role not in ROLES or not isinstance(content, str) or not content.strip():
            raise DatasetInvalid(
                f"{where}: an instruction has `prompt` and `answer`, or `messages` whose `role` is one of "
                f"{list(ROLES)} and whose `content` is a text that is not empty"
            )
        messages.append(Message(role, content))
    roles = [m.role for m in messages if m.role != "system"]
    if roles[:1] != ["user"] or "assistant" not in roles:
        raise DatasetInvalid(f"{where}: a conversation begins with the user and has an answer of the assistant")
    return messages
