"""Instructions as tokens, and tokens as batches of much the same length.

Prompt and answer are tokenised apart, as serving does: the model is asked to go on after the tokens of the prompt.
Batches are a function of (seed, epoch) alone. Only the answer is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.errors import TrainingRefused
from training.lora.instructions import Instruction

GROUP = 8
"""Batches that are sorted by length together: enough to pad little, few enough to leave their order to chance."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """`ids` of prompt and answer; those from `answer_at` on, at least 1, are learned."""

    ids: tuple[int, ...]
    answer_at: int
    weight: float = 1.0

    @property
    def learned(self) -> int:
        return len(self.ids) - self.answer_at


def encode(instructions: Sequence[Instruction], tokenizer: Any, max_tokens: int) -> list[Tokens]:
    """One of each. What is longer than `max_tokens` loses the beginning of its prompt, then the end of its answer.
    Raises TrainingRefused where the tokenizer does not say how an answer ends."""
    if tokenizer.chat_template is None and tokenizer.eos_token_id is None:
        raise TrainingRefused(
            "options.model: its tokenizer has neither a chat template nor a token that ends an answer"
        )
    return [_encode(one, tokenizer, max_tokens) for one in instructions]


def _encode(one: Instruction, tokenizer: Any, max_tokens: int) -> Tokens:
    before, after = _texts(one, tokenizer)
    prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    answer = tokenizer(after, add_special_tokens=False)["input_ids"]
    if tokenizer.chat_template is None:
        prompt = [t for t in (tokenizer.bos_token_id,) if t is not None] + prompt
        answer = [*answer, tokenizer.eos_token_id]
    answer = answer[: max_tokens - 1]
    room = max_tokens - len(answer)
    prompt = prompt[max(0, len(prompt) - room) :]
    return Tokens((*prompt, *answer), max(1, len(prompt)), one.weight)  # nothing foretells the very first token


def _texts(one: Instruction, tokenizer: Any) -> tuple[str, str]:
    """What is before the answer, and the answer with what ends it."""
    history = [{"role": m.role, "content": m.content} for m in one.history]
    if tokenizer.chat_template is None:
        return "\n".join(m["content"] for m in history) + "\n", one.answer
    whole = [*history, {"role": "assistant", "content": one.answer}]
    before = tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(whole, tokenize=False)
    if not text.startswith(before):
        raise TrainingRefused(
            "options.model: its chat template writes a conversation with an answer differently than the one that asks "
            "for it, so what is to be learned cannot be told: use a template whose generation prompt begins an answer"
        )
    return before, text[len(before) :]


def batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Rows of each batch of an epoch, every row once; rows of much the same length together, batches in any order."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    made: list[list[int]] = []
    for start in range(0, len(order), size * GROUP):
        near = sorted(order[start : start + size * GROUP].tolist(), key=lambda row: lengths[row])
        made += [near[at : at + size] for at in range(0, len(near), size)]
    for at in rng.permutation(len(made)):
        yield made[at]
