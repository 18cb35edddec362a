"""Instructions: what is read, how it is split, and which tokens are learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.schema import DataSpec
from training.errors import DatasetInvalid, TrainingRefused
from training.lora.instructions import Instruction, Message, parse_instruction, split
from training.lora.options import LoraOptions
from training.lora.tokens import batches, encode
from training.trainers import find_trainer


def parse(value: object) -> list[Instruction]:
    return list(parse_instruction(json.dumps(value), "here"))


def test_a_prompt_and_its_answer() -> None:
    (one,) = parse({"prompt": "hello", "answer": "hi", "weight": 0.5, "slice": "ko", "system": "be kind"})
    assert one == Instruction((Message("system", "be kind"), Message("user", "hello")), "hi", 0.5, "ko")


def test_every_answer_of_a_conversation_is_learned_after_what_was_said_before() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    first, second = parse({"messages": [{"role": r, "content": c} for r, c in turns]})
    assert (first.answer, second.answer) == ("b", "d")
    assert [m.content for m in second.history] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ("{nonsense", "not JSON"),
        ("[]", "JSON object"),
        ('{"prompt": "x"}', "`prompt` and `answer`"),
        ('{"prompt": " ", "answer": "y"}', "not empty"),
        ('{"prompt": "x", "answer": "y", "weight": 0}', "`weight`"),
        ('{"prompt": "x", "answer": "y", "slice": ""}', "`slice`"),
        ('{"messages": "x"}', "`messages`"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "`role`"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "an answer of the assistant"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "begins with the user"),
    ],
)
def test_a_bad_line_is_named(raw: str, complaint: str) -> None:
    with pytest.raises(DatasetInvalid, match="file, line 3: ") as caught:
        list(parse_instruction(raw, "file, line 3"))
    assert complaint in str(caught.value)


def test_a_prompt_stays_in_its_part_as_others_come() -> None:
    made = [Instruction((Message("user", f"prompt {n}"),), "answer") for n in range(1000)]
    few, many = split(made[:300], DataSpec()), split(made, DataSpec())
    for part in few:
        assert set(few[part]) <= set(many[part])
    assert len(many["train"]) == pytest.approx(800, abs=50)
    assert len(many["test"]) == pytest.approx(100, abs=40)


def test_turns_of_a_conversation_share_a_part() -> None:
    opening = Message("user", "hello")
    both = [Instruction((opening,), "a"), Instruction((opening, Message("assistant", "a"), Message("user", "b")), "c")]
    assert sorted(len(part) for part in split(both, DataSpec()).values()) == [0, 0, 2]


class Letters:
    """A tokenizer of one token per character; 1 begins a text and 2 ends it. `style` is its chat template."""

    bos_token_id, eos_token_id = 1, 2

    def __init__(self, style: str | None = None) -> None:
        self.chat_template = style

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, Any]:
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool = False) -> str:
        whole = "".join(f"<{m['role'][0]}>{m['content']}\n" for m in messages)
        return whole + ("<a>" if add_generation_prompt else "") if self.chat_template == "good" else whole.upper()


HELLO = Instruction((Message("user", "hi"),), "yes")


def test_only_the_answer_and_its_end_are_learned() -> None:
    (tokens,) = encode([HELLO], Letters(), 100)
    assert tokens.ids == (1, *map(ord, "hi\nyes"), 2)
    assert tokens.ids[tokens.answer_at :] == (*map(ord, "yes"), 2)


def test_a_chat_template_is_used_where_there_is_one() -> None:
    (tokens,) = encode([HELLO], Letters("good"), 100)
    assert "".join(map(chr, tokens.ids)) == "<u>hi\n<a>yes\n"
    assert "".join(map(chr, tokens.ids[tokens.answer_at :])) == "yes\n"


def test_long_prompts_lose_their_beginning_and_long_answers_their_end() -> None:
    long = Instruction((Message("user", "abcdefgh"),), "yes")
    (tokens,) = encode([long], Letters(), 8)
    assert tokens.ids == (*map(ord, "fgh\nyes"), 2)
    (tokens,) = encode([Instruction((Message("user", "x"),), "0123456789")], Letters(), 8)
    assert tokens.ids == (*map(ord, "\n0123456"),)
    assert tokens.learned == 7


def test_a_template_whose_answer_cannot_be_told_is_refused() -> None:
    class Odd(Letters):
        def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool = False) -> str:
            return "ask" if add_generation_prompt else "told"

    with pytest.raises(TrainingRefused, match="chat template"):
        encode([HELLO], Odd("odd"), 100)


def test_batches_hold_every_row_once_and_much_the_same_lengths() -> None:
    lengths = [(n * 37) % 101 for n in range(203)]
    made = list(batches(lengths, 8, seed=3, epoch=1))
    assert sorted(row for rows in made for row in rows) == list(range(203))
    assert made == list(batches(lengths, 8, seed=3, epoch=1))
    assert made != list(batches(lengths, 8, seed=3, epoch=2))
    spread = [max(lengths[r] for r in rows) - min(lengths[r] for r in rows) for rows in made]
    assert sum(spread) / len(spread) < 25


def test_options_are_checked_and_the_trainer_is_found() -> None:
    with pytest.raises(ValidationError, match="model"):
        LoraOptions.model_validate({})
    assert find_trainer("lora").name == "lora"


def test_instructions_of_a_missing_file(tmp_path: Path) -> None:
    from training.lora.instructions import _read

    with pytest.raises(DatasetInvalid, match=r"no instructions source .*none\.jsonl"):
        list(_read("none.jsonl", tmp_path))
