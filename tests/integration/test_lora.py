"""LoRA fine-tuning for real, of a tiny Llama made on the spot: it learns, leaves its base alone, and can be resumed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from registry.content import digest_folder
from serving.schema import AppSpec, GateSpec
from training.dataset import DatasetInfo
from training.dataset.example import save_info
from training.errors import TrainingRefused
from training.evidence import Compared
from training.gates import judge
from training.job.loop import PlainLoop
from training.lora.instructions import CONVERSATIONS, Instruction, Message
from training.lora.options import LoraOptions
from training.lora.tokens import encode
from training.lora.trainer import TRAINER
from training.ports import OBJECTIVE, StopTraining, Task, Trained

torch = pytest.importorskip("torch")

WORDS = ["red", "green", "blue", "gold", "pink", "grey", "teal", "lime"]
FRUITS = ["apple", "pear", "plum", "fig", "lemon", "peach", "melon", "grape", "mango", "cherry"]
OPTIONS = {
    "model": "base", "instructions": "made_up.jsonl", "rank": 8, "alpha": 16, "learning_rate": 1e-2, "max_tokens": 64,
    "epochs": 20, "max_steps": 60, "batch_size": 8, "mini_batch_size": 8, "evaluate_every": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app folder with a model that was never trained, and made-up instructions: a colour's fruit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("app")
    lines = [
        {"prompt": f"Which fruit is {w} number {n}?", "answer": f"The {w} one: {FRUITS[i]}.", "slice": w}
        for i, w in enumerate(WORDS)
        for n in range(12)
    ]
    (folder / "made_up.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    texts = [line[key] for line in lines for key in ("prompt", "answer")]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    words.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        initializer_range=0.2,  # the output layer stays as it is: with small weights it could be sure of nothing
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    return folder


def task_of(app: Path, root: Path, start: Path | None = None, **options: object) -> Task:
    spec = AppSpec.model_validate(
        {
            "name": "shop",
            "items": {"source": "items.jsonl", "text": ["name"]},
            "retrieve": {"sources": {"words": {"engine": "lexical"}}, "fusion": {"method": "weighted"}},
            "train": {"words": {"trainer": "lora", "options": {**OPTIONS, **options}}},
        }
    )
    dataset, work = root / "dataset", root / "work"
    dataset.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    save_info(dataset, DatasetInfo("f", {}))
    validated = LoraOptions.model_validate(spec.train["words"].options)
    return Task(spec, "words", app, dataset, root / "items.jsonl", start, work, validated, seed=1)


def fit(task: Task, checkpoints: Path, stop_after: int | None = None) -> Trained:
    """With `stop_after`, the job ends at the report of that step and a new one goes on from its checkpoint."""
    TRAINER.prepare(task)
    if stop_after is not None:
        reports: list[int] = []

        def hear(event: object) -> None:
            told = dict(event)  # type: ignore[call-overload]
            reports.append(int(told.get("step", 0)))
            if "perplexity" in told.get("metrics", {}):
                assert told["metrics"][OBJECTIVE] == pytest.approx(math.log(told["metrics"]["perplexity"]))

        with pytest.raises(StopTraining):
            TRAINER.loop(task, PlainLoop(checkpoints, on=hear, stop=lambda: max(reports) >= stop_after))
        assert max(reports) == stop_after
    loop = PlainLoop(checkpoints)
    TRAINER.loop(task, loop)
    saved = loop.restore()
    assert saved is not None
    return TRAINER.finish(task, saved)


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(app: Path, threads: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Trained]:
    root = tmp_path_factory.mktemp("whole")
    task = task_of(app, root)
    before = digest_folder(app / "base")
    trained = fit(task, root / "checkpoints")
    assert digest_folder(app / "base") == before
    return task, trained


def test_perplexity_falls_and_the_component_says_what_it_belongs_to(app: Path, whole: tuple[Task, Trained]) -> None:
    _, trained = whole
    assert trained.metrics["perplexity"] < trained.metrics["perplexity_before"] / 5
    (component,) = trained.components
    assert (component.name, component.role) == ("generate.adapter", "adapter")
    assert component.fingerprint == digest_folder(app / "base")[0]
    assert sorted(p.name for p in component.folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "base.json",
    ]  # fmt: skip
    config = json.loads((component.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 8, "base")
    assert config["modules_to_save"] is None  # vLLM takes no other weights than those of LoRA


def test_the_adapter_reloads_and_answers_as_when_it_was_measured(app: Path, whole: tuple[Task, Trained]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(app / "base")
    untouched = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = PeftModel.from_pretrained(base, str(whole[1].components[0].folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(app / "base")
    prompt = torch.tensor([[1, *tokenizer("Which fruit is blue number 99?\n", add_special_tokens=False)["input_ids"]]])
    answer = model.generate(input_ids=prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert "plum" in tokenizer.decode(answer)
    with torch.no_grad(), model.disable_adapter():
        plain = model(prompt).logits
    for name, weight in AutoModelForCausalLM.from_pretrained(app / "base").state_dict().items():
        assert torch.equal(weight, untouched[name])
    with torch.no_grad():
        assert torch.equal(plain, AutoModelForCausalLM.from_pretrained(app / "base")(prompt).logits)
        adapted = model(prompt).logits
        assert torch.allclose(model.merge_and_unload()(prompt).logits, adapted, atol=1e-4)
    assert not torch.allclose(adapted, plain, atol=0.1)


def test_a_run_that_was_stopped_ends_with_the_same_adapter(
    app: Path, whole: tuple[Task, Trained], tmp_path: Path
) -> None:
    resumed = fit(task_of(app, tmp_path), tmp_path / "checkpoints", stop_after=40)
    assert digest_folder(resumed.components[0].folder) == digest_folder(whole[1].components[0].folder)
    assert resumed.metrics == whole[1].metrics


def test_the_gate_sees_the_gain_on_the_test_part(whole: tuple[Task, Trained]) -> None:
    task, trained = whole
    candidate, stable = TRAINER.evidence(task, trained.components[0].folder), TRAINER.evidence(task, None)
    assert candidate is not None
    report = judge(
        {"feedback": GateSpec(metric="perplexity", margin=0.02)}, {"feedback": Compared(candidate, stable)}, 0
    )
    assert report.passed
    assert np.all(candidate.log_likelihoods < 0)


def test_it_goes_on_from_the_adapter_in_use(app: Path, whole: tuple[Task, Trained], tmp_path: Path) -> None:
    folder = whole[1].components[0].folder
    more = fit(task_of(app, tmp_path, folder, max_steps=1, dropout=0.0), tmp_path / "checkpoints")
    assert more.metrics["perplexity_before"] == pytest.approx(whole[1].metrics["perplexity"], rel=1e-4)


def test_an_adapter_of_another_base_is_not_gone_on_from(app: Path, whole: tuple[Task, Trained], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "base.json").write_text('{"model": "other", "digest": "abc"}', encoding="utf-8")
    with pytest.raises(TrainingRefused, match="start: base"):
        TRAINER.prepare(task_of(app, tmp_path, folder))


def test_training_ends_where_validation_gains_nothing(app: Path, threads: None, tmp_path: Path) -> None:
    task = task_of(app, tmp_path, learning_rate=1e-9, max_steps=40, evaluate_every=1, patience=2)
    trained = fit(task, tmp_path / "checkpoints")
    assert trained.metrics["steps"] < 20


def test_gradient_checkpointing_trains_the_same(app: Path, threads: None, tmp_path: Path) -> None:
    short = {"max_steps": 2, "evaluate_every": 1}
    plain = fit(task_of(app, tmp_path / "plain", **short), tmp_path / "plain" / "checkpoints")
    task = task_of(app, tmp_path / "saving", gradient_checkpointing=True, **short)
    saving = fit(task, tmp_path / "saving" / "checkpoints")
    assert saving.metrics == pytest.approx(plain.metrics, rel=1e-4)


def test_four_bits_without_a_gpu_are_refused(app: Path, tmp_path: Path) -> None:
    task = task_of(app, tmp_path, quantize="4bit")
    with pytest.raises(TrainingRefused, match="num_gpus"):
        TRAINER.prepare(task)
    TRAINER.prepare(dataclasses.replace(task, options=LoraOptions.model_validate(OPTIONS)))
    with pytest.raises(TrainingRefused, match="a GPU"):
        TRAINER.loop(task, PlainLoop(tmp_path / "checkpoints"))


def test_what_cannot_be_trained_is_refused(app: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingRefused, match="nothing to teach"):
        TRAINER.prepare(task_of(app, tmp_path / "a", instructions=None))
    with pytest.raises(TrainingRefused, match=r"options\.model"):
        TRAINER.prepare(task_of(app, tmp_path / "b", model="no such/model/any where"))
    task = task_of(app, tmp_path / "c", targets=["no_such_layer"])
    TRAINER.prepare(task)
    with pytest.raises(TrainingRefused, match=r"options\.targets"):
        TRAINER.loop(task, PlainLoop(tmp_path / "checkpoints"))


def test_a_chat_template_of_a_real_tokenizer_is_followed(app: Path) -> None:
    from training.lora.model import load_tokenizer

    tokenizer = load_tokenizer(app / "base")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    history = (Message("user", "red"), Message("assistant", "apple"), Message("user", "green"))
    (tokens,) = encode([Instruction(history, "pear")], tokenizer, 100)
    text = tokenizer.decode(tokens.ids[: tokens.answer_at]), tokenizer.decode(tokens.ids[tokens.answer_at :])
    assert text == ("user: red\nassistant: apple</s>\nuser: green\nassistant: ", "pear</s>\n")


def test_conversations_of_the_data_set_are_learned_from(app: Path, tmp_path: Path) -> None:
    task = task_of(app, tmp_path, instructions=None)
    lines = [json.dumps({"prompt": f"p {n}", "answer": "a", "weight": 0.5}) for n in range(40)]
    (task.dataset / CONVERSATIONS).write_text("\n".join(lines), encoding="utf-8")
    TRAINER.prepare(task)
    assert (task.work / "base.json").is_file()
