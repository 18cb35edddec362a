"""The wide_deep trainer: what each part can learn, cold start, growth, resuming, and several workers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from registry.content import digest_folder
from serving.components.ranker import RankerInfo
from serving.ports import ToRank
from serving.schema import Item
from tests.wide_deep import ITEMS, ranker_of, task_in, taste, train
from training.dataset.example import Example
from training.job.loop import PlainLoop
from training.metrics import calibration_error
from training.ports import OBJECTIVE, StopTraining, Trained
from training.wide_deep.options import WideDeepOptions
from training.wide_deep.trainer import TRAINER, platt


def test_a_cross_is_learnt_by_the_wide_part_alone(tmp_path: Path) -> None:
    """Right where slot and category agree: neither tells anything alone, and the deep part sees neither."""
    random = Random(1)
    examples = []
    for _ in range(1000):
        one, slot = random.choice(ITEMS), random.choice(["good", "bad"])
        examples.append(Example("", one.id, int(slot == one.attributes["category"]), record={"slot": slot}))
    blind: dict[str, Any] = {"embeddings": {}, "numeric": ["item.price"], "wide_rate": 0.5}
    apart = train(
        task_in(tmp_path / "a", examples, examples[:300], crosses=[["record.slot"], ["item.category"]], **blind)
    )
    crossed = train(
        task_in(tmp_path / "b", examples, examples[:300], crosses=[["record.slot", "item.category"]], **blind)
    )
    assert apart.metrics["validation_auc"] < 0.65
    assert crossed.metrics["validation_auc"] > 0.99


@pytest.fixture(scope="module")
def tasteful(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained on users with tastes, by the deep part alone."""
    return train(task_in(tmp_path_factory.mktemp("t"), taste(3000), taste(600, 1), crosses=[["item"]], epochs=6))


def test_the_deep_part_learns_tastes_and_an_unseen_item_is_ranked_by_its_attributes(tasteful: Trained) -> None:
    assert tasteful.metrics["validation_auc"] > 0.85
    new = [Item("never-seen", {}, {"category": "good"}), Item("nor-this", {}, {"category": "bad"})]
    likes_good, likes_bad = ranker_of(tasteful).score([ToRank("u1", {}, new), ToRank("u8", {}, new)])
    assert likes_good[0] > likes_good[1] + 0.4
    assert likes_bad[1] > likes_bad[0] + 0.4


def test_a_stranger_is_given_what_most_would_choose_and_not_somebodys_taste(tasteful: Trained) -> None:
    stranger, nobody = ranker_of(tasteful).score([ToRank("stranger", {}, ITEMS), ToRank("", {}, ITEMS)])
    np.testing.assert_array_equal(stranger, nobody)
    np.testing.assert_allclose(stranger, 0.5, atol=0.2)


def test_a_batch_is_scored_as_one_request_after_the_other(tasteful: Trained) -> None:
    ranker = ranker_of(tasteful)
    asked = [ToRank("u1", {}, ITEMS[:3]), ToRank("u8", {}, []), ToRank("u9", {}, ITEMS[5:])]
    together = ranker.score(asked)
    assert [scores.shape for scores in together] == [(3,), (0,), (15,)]
    for one, scores in zip(asked, together, strict=True):
        assert scores.dtype == np.float32
        np.testing.assert_allclose(ranker.score([one])[0], scores, atol=1e-6)
        np.testing.assert_allclose(ranker.score_one(one.user, one.record, ranker.encode(one.items)), scores, atol=1e-6)
    assert ranker.score([]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"numeric": ["item.price"], "bands": {"band": {"of": "item.price", "count": 3}}, "embeddings": {"band": 2}},
        {"crosses": []},
        {"embeddings": {}, "numeric": ["item.price"], "hidden": [8, 4]},
        {"embeddings": {"item": 3}, "crosses": [["user"]], "calibration": "none"},
    ],
)
def test_serving_computes_what_torch_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    from training.wide_deep.export import logits
    from training.wide_deep.fit import Part
    from training.wide_deep.loop import load_state
    from training.wide_deep.model import WideDeep

    task = task_in(tmp_path, taste(300), taste(100, 1), epochs=1, **changes)
    ranker = ranker_of(train(task))
    info = RankerInfo.load(task.work / "ranker")
    saved = PlainLoop(task.work / "checkpoints", digest="d").restore()
    assert saved is not None
    assert isinstance(task.options, WideDeepOptions)
    model = WideDeep(info.features, task.options)
    model.load_state_dict(load_state(saved)["best"])
    rows = Part.load(task.work / "validation").features
    wanted = 1 / (1 + np.exp(-(logits(model, info.features, rows) * info.scale + info.shift)))
    np.testing.assert_allclose(ranker.run(rows), wanted, atol=1e-5)
    assert np.ptp(wanted) > 0


def test_the_same_data_and_seed_give_the_same_component(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        task = task_in(tmp_path / name, taste(400), taste(100, 1), epochs=2, dropout=0.3)
        digests.add(digest_folder(train(task).components[0].folder))
    assert len(digests) == 1


def test_a_run_that_was_stopped_goes_on_to_the_same_component(tmp_path: Path) -> None:
    def made(name: str, stops: Iterable[Callable[[], bool]]) -> tuple[str, int]:
        task = task_in(tmp_path / name, taste(400), taste(100, 1), dropout=0.3)
        TRAINER.prepare(task)
        for stop in stops:
            TRAINER.prepare(task)
            loop = PlainLoop(task.work / "checkpoints", digest="d", stop=stop)
            try:
                TRAINER.loop(task, loop)
            except StopTraining:
                assert name == "stopped"
        saved = loop.restore()
        assert saved is not None
        return digest_folder(TRAINER.finish(task, saved).components[0].folder)

    third = iter([False, False, True])
    assert made("stopped", [lambda: next(third), lambda: True, lambda: False]) == made("whole", [lambda: False])


def test_two_workers_learn_what_one_does(tmp_path: Path) -> None:
    """With dropout off nothing depends on how a batch is dealt out."""
    import torch
    from torch import distributed

    from training.job.channel import Direct
    from training.job.checkpoint import Checkpoints
    from training.job.loop import JobLoop, Place
    from training.wide_deep.loop import load_state

    options: dict[str, Any] = {"epochs": 2, "batch_size": 50, "numeric": ["item.price"]}
    alone = task_in(tmp_path / "one", taste(300), taste(101, 1), **options)
    train(alone)
    one = PlainLoop(alone.work / "checkpoints", digest="d").restore()
    task = task_in(tmp_path / "two", taste(300), taste(101, 1), **options)
    TRAINER.prepare(task)
    meeting = f"file://{tmp_path}/meeting"
    other = subprocess.Popen([sys.executable, "-c", SECOND_WORKER, str(tmp_path / "two"), meeting, json.dumps(options)])
    try:
        distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=2)
        told = Direct(lambda event: None, lambda: False)
        loop = JobLoop(Checkpoints(task.work / "checkpoints", "d", 2), told, Place(0, 2))
        TRAINER.loop(task, loop)
        two = loop.restore()
        assert other.wait(60) == 0
    finally:
        other.kill()
        other.wait()
        if distributed.is_initialized():
            distributed.destroy_process_group()
    assert one is not None
    assert two is not None
    first, second = load_state(one), load_state(two)
    assert first["progress"][0] == second["progress"][0] == 12
    for name, weight in first["model"].items():
        torch.testing.assert_close(second["model"][name], weight, rtol=1e-3, atol=1e-4)


SECOND_WORKER = """
import json, sys
from pathlib import Path
from torch import distributed
from tests.wide_deep import TRAINER, task_in, taste
from training.job.channel import Direct
from training.job.checkpoint import Checkpoints
from training.job.loop import JobLoop, Place

folder, meeting, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
task = task_in(folder.parent / "same", taste(300), taste(101, 1), **options)
TRAINER.prepare(task)
distributed.init_process_group("gloo", init_method=meeting, rank=1, world_size=2)
told = Direct(lambda event: None, lambda: False)
loop = JobLoop(Checkpoints(folder / "work" / "checkpoints", "d", 2), told, Place(1, 2))
TRAINER.loop(task, loop)
loop.restore()
distributed.destroy_process_group()
"""


def test_growing_keeps_what_is_known_and_learns_new_users(tmp_path: Path) -> None:
    from training.wide_deep.export import weights_of

    first = train(task_in(tmp_path / "a", taste(1500), taste(300, 1)))
    start = first.components[0].folder
    before = RankerInfo.load(start).features.vocabularies["user"]
    new = [Example("", e.item, 1 - e.label, at_s=e.at_s, user=f"new-{e.user}") for e in taste(1500, 2)]
    frozen = task_in(tmp_path / "b", new, start=start, epochs=1, batch_size=1500, learning_rate=1e-12, wide_rate=1e-12)
    untouched = train(frozen).components[0].folder
    after = RankerInfo.load(untouched).features
    assert after.vocabularies["user"][: len(before)] == before
    assert {f"new-u{n}" for n in range(10)} == set(after.vocabularies["user"][len(before) :])
    old, grown = weights_of(start)["tables.0.weight"], weights_of(untouched)["tables.0.weight"]
    np.testing.assert_allclose(grown[: len(old)], old, atol=1e-6)
    np.testing.assert_allclose(grown[len(old) :], np.tile(old[0], (10, 1)), atol=1e-6)

    learnt = train(task_in(tmp_path / "c", [*new, *taste(1500)], new[:300], start=start))
    good_and_bad = ITEMS[:2]
    liked, turned = ranker_of(learnt).score([ToRank("u1", {}, good_and_bad), ToRank("new-u1", {}, good_and_bad)])
    assert liked[0] > liked[1] + 0.2
    assert turned[1] > turned[0] + 0.2


def test_weights_of_examples_count(tmp_path: Path) -> None:
    """Half are right, and those weigh three times as much."""
    examples = [Example("", ITEMS[n % 20].id, n // 20 % 2, weight=3.0 if n // 20 % 2 else 1.0) for n in range(1000)]
    options: dict[str, Any] = {"embeddings": {"item": 2}, "crosses": [["item"]], "epochs": 10, "calibration": "none"}
    trained = train(task_in(tmp_path, examples, examples[:200], **options))
    np.testing.assert_allclose(ranker_of(trained).score([ToRank("", {}, ITEMS)])[0], 0.75, atol=0.05)


def test_training_ends_when_validation_no_longer_gains_and_keeps_the_best(tmp_path: Path) -> None:
    random = Random(0)
    noise = [Example("", random.choice(ITEMS).id, random.randrange(2), user=f"u{n % 50}") for n in range(400)]
    other = [Example("", random.choice(ITEMS).id, random.randrange(2), user=f"u{n % 50}") for n in range(400)]
    task = task_in(tmp_path, noise, other, epochs=100, patience=3, learning_rate=0.05, batch_size=100)
    TRAINER.prepare(task)
    reports: list[tuple[int, float]] = []

    def hear(event: Mapping[str, Any]) -> None:
        if event["kind"] == "report":
            assert event["metrics"][OBJECTIVE] == event["metrics"]["validation_log_loss"]
            reports.append((event["step"], event["metrics"]["validation_log_loss"]))

    loop = PlainLoop(task.work / "checkpoints", digest="d", on=hear)
    TRAINER.loop(task, loop)
    saved = loop.restore()
    assert saved is not None
    best_step = min(reports, key=lambda r: r[1])[0]
    assert reports[-1][0] < 400
    assert [step for step, _ in reports].index(best_step) == len(reports) - 4
    assert TRAINER.finish(task, saved).metrics["best_step"] == best_step


def test_ftrl_is_the_published_algorithm_and_penalties_keep_weights_at_zero() -> None:
    import torch

    from training.wide_deep.model import Ftrl

    options = WideDeepOptions(wide_rate=0.3, wide_l1=0.7, wide_l2=2.0)
    table = torch.nn.Embedding(3, 1, sparse=True)
    torch.nn.init.zeros_(table.weight)
    ftrl = Ftrl(table.weight, options)
    w = z = n = 0.0
    random = Random(0)
    for _ in range(20):
        g = random.uniform(-1, 3)
        table.weight.grad = torch.sparse_coo_tensor([[1, 1]], [[g / 8], [g / 8]], (3, 1), check_invariants=False)
        ftrl.step(4)
        sigma = ((n + g * g) ** 0.5 - n**0.5) / 0.3
        z, n = z + g - sigma * w, n + g * g
        w = 0.0 if abs(z) <= 0.7 else -(z - (0.7 if z > 0 else -0.7)) / ((1 + n**0.5) / 0.3 + 2.0)
        assert float(table.weight[1, 0].detach()) == pytest.approx(w, abs=1e-5)
    assert w != 0
    assert table.weight[[0, 2]].detach().abs().max() == 0
    again = Ftrl(table.weight, options)
    table.weight.grad = torch.sparse_coo_tensor([[1]], [[0.0]], (3, 1), check_invariants=False)
    again.step(1)
    assert float(table.weight[1, 0].detach()) == pytest.approx(w, abs=1e-5), "going on begins with the same weights"


def test_calibration_finds_the_scale_and_shift_that_were_hidden() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, 40_000)
    labels = (rng.random(len(true)) < 1 / (1 + np.exp(-true))).astype(np.float32)
    off = (true - 0.8) * 2.5
    scale, shift = platt(off, labels, np.ones(len(labels), np.float32))
    assert scale == pytest.approx(0.4, abs=0.02)
    assert shift == pytest.approx(0.8, abs=0.05)
    before, after = (1 / (1 + np.exp(-x)) for x in (off, off * scale + shift))
    assert calibration_error(labels, after) < 0.02 < calibration_error(labels, before)
    assert platt(off, np.ones_like(labels), np.ones_like(labels)) == (1.0, 0.0)
