"""`palate models build tiny`, with few steps and lessons of its own: the folder is a model that others load, builds can
be gone on with, and the examples' lessons are what the examples ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from serving.components.lexicon import Lexicon, read_lexicon
from serving.schema.app_spec import EXAMPLES
from training.errors import DatasetInvalid, TrainingRefused
from training.lora.instructions import Instruction
from training.lora.instructions import Message as Said
from training.lora.tokens import encode
from training.progress import Progress
from training.tiny.build import FIGURES_FILE, Built, Order, build
from training.tiny.corpus import Lesson, read_lessons
from training.tiny.measure import dice, guided, is_valid, values_of

torch = pytest.importorskip("torch")

COLOURS = ["red", "green", "blue", "초록", "노랑"]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": COLOURS}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "n"],
    "additionalProperties": False,
}


def lesson(colour: str, n: int) -> dict[str, object]:
    answer = json.dumps({"colour": colour, "n": n}, ensure_ascii=False)
    messages = [
        {"role": "system", "content": "Say it."},
        {"role": "user", "content": f"{colour} {n}"},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "schema": "schema.json", "slice": "colours"}


def write(folder: Path, name: str, lines: list[dict[str, object]]) -> None:
    (folder / name).write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    app = root / "colours"
    app.mkdir()
    (app / "schema.json").write_text(json.dumps(SCHEMA))
    (app / "tiny.yaml").write_text("teach: teach.jsonl\nask: ask.jsonl\n")
    write(app, "teach.jsonl", [lesson(c, n) for c in COLOURS for n in range(8)])
    write(app, "ask.jsonl", [lesson(c, 9) for c in COLOURS])
    return root


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(examples: Path, out: Path, steps: int = 8, measured: int | None = 0) -> Built:
    return build(Order(out, examples, steps, measured=measured), Progress("test", Console(quiet=True)))


@pytest.fixture(scope="module")
def built(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return run(examples, tmp_path_factory.mktemp("models") / "tiny", measured=None)


def test_the_folder_is_a_model_with_a_chat_template_and_an_honest_card(built: Built) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built.folder)
    model = AutoModelForCausalLM.from_pretrained(built.folder)
    assert sum(p.numel() for p in model.parameters()) == built.parameters < 10_000_000
    asked = [{"role": "user", "content": "초록 3"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>초록 3<|end|><|assistant|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    instruction = Instruction((Said("user", "초록 3"),), "네")
    [tokens] = encode([instruction], tokenizer, 64)  # as `lora` teaches it
    assert tokenizer.decode(tokens.ids[tokens.answer_at :]) == "네<|end|>"
    card = (built.folder / "README.md").read_text(encoding="utf-8")
    assert "What it is not" in card
    assert "colours: colours" in card
    assert json.loads((built.folder / FIGURES_FILE).read_text())["steps"] == 8


def test_answers_are_measured_on_what_was_not_taught(built: Built) -> None:
    [kind] = built.kinds
    assert (kind.name, kind.asked) == ("colours: colours", len(COLOURS))
    assert 0.0 <= kind.on_topic <= 1.0
    assert kind.valid == 1.0 or not guided()  # the schema holds however little was learnt


def weights(folder: Path) -> dict[str, object]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def test_a_build_that_was_killed_is_gone_on_with_and_ends_the_same(
    examples: Path, built: Built, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def tell(step: int) -> None:
        if step == 5:
            raise Killed

    told = Progress("test", Console(quiet=True))
    order = Order(tmp_path / "tiny", examples, 8, measured=0, checkpoint_every_s=0.0)
    with pytest.raises(Killed):
        build(order, _Telling(told, tell))
    assert not order.out.exists()
    assert (tmp_path / "tiny.checkpoint").is_file()
    steps: list[int] = []
    build(order, _Telling(told, steps.append))
    assert steps[0] == 5, "what was learnt is not learnt again"
    theirs = weights(built.folder)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(order.out).items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.lock"]


class _Telling(Progress):
    """Hears the steps of training."""

    def __init__(self, progress: Progress, tell: object) -> None:
        self.__dict__ = dict(progress.__dict__)
        self._tell = tell

    def step(self, name: str, total: int | None) -> object:  # type: ignore[override]
        from contextlib import nullcontext

        return nullcontext(self._tell if name == "training" else lambda _: None)


def test_two_builds_of_one_folder_are_refused(examples: Path, tmp_path: Path) -> None:
    with FileLock(f"{tmp_path / 'tiny'}.lock"), pytest.raises(TrainingRefused, match="under way"):
        run(examples, tmp_path / "tiny")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("tiny.yaml", "teach: teach.jsonl", "ask"),
        ("tiny.yaml", "teach: none.jsonl\nask: ask.jsonl", "none.jsonl"),
        ("teach.jsonl", '{"prompt": "x"}', "line 1"),
        ("teach.jsonl", '{"prompt": "x", "answer": "y", "schema": "none.json"}', "none.json"),
    ],
)
def test_lessons_that_cannot_be_read_are_named(
    file: str, text: str, words: str, examples: Path, tmp_path: Path
) -> None:
    app = tmp_path / "colours"
    app.mkdir()
    for one in (examples / "colours").iterdir():
        (app / one.name).write_bytes(one.read_bytes())
    (app / file).write_text(text)
    with pytest.raises(DatasetInvalid, match=words):
        read_lessons(tmp_path)


def test_a_place_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match=r"tiny\.yaml"):
        read_lessons(tmp_path)


def test_the_measure_tells_the_right_answer_from_that_of_another_prompt() -> None:
    right = [Lesson("a", Instruction((Said("user", c),), json.dumps({"colour": c})), SCHEMA) for c in COLOURS]
    assert values_of(right[0].instruction.answer) != values_of(right[1].instruction.answer)
    assert dice(values_of("a b"), values_of("b c")) == 0.5
    assert is_valid('{"colour": "red", "n": 3}', SCHEMA)
    assert not is_valid('{"colour": "pink", "n": 3}', SCHEMA)
    assert not is_valid("red", SCHEMA)


@pytest.mark.parametrize("app", ["beauty-finder", "fragrance-lab", "meal-card"])
def test_the_lessons_of_the_examples_are_what_they_ask_and_their_answers_fit(app: str, tmp_path: Path) -> None:
    folder = tmp_path / app
    folder.mkdir()
    for file in (EXAMPLES / app).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "tiny.yaml").unlink()
    fewer = re.sub(r"--count \d+", "--count 120", (EXAMPLES / app / "tiny.yaml").read_text())
    (folder / "tiny.yaml").write_text(fewer)
    lessons = read_lessons(tmp_path)
    taught = {tuple(m.content for m in one.instruction.history) for one in lessons.teach}
    assert len(lessons.teach) == 120
    for one in lessons.ask:
        assert one.schema is None or is_valid(one.instruction.answer, one.schema)
        assert tuple(m.content for m in one.instruction.history) not in taught
    if app == "meal-card":
        lexicon = Lexicon(read_lexicon(EXAMPLES / app / "lexicon.yaml"))
        asked = [one for one in lessons.ask if one.instruction.slice == "understand"]
        assert asked
        assert all(lexicon.read_model_answer(one.instruction.answer) is not None for one in asked)
        system = lexicon.messages("x", None)[0].content
        assert all(one.instruction.history[0].content == system for one in asked)
