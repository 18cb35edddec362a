"""What an engine is called, what vLLM is told, which adapters it shall hold, and how much of its cache is promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.schema import ComponentRef, Release, ReleaseVersion
from serving.errors import BadRequest, Overloaded
from serving.generate.adapters import changes, served_name, wanted_engines
from serving.generate.admission import LONGEST_S, SHORTEST_S, KvRoom
from serving.generate.engine_spec import (
    ENGINE_NAME,
    engine_application_name,
    engine_arguments,
    engine_environment,
    engine_key,
    model_source,
)
from serving.generate.replica import as_json
from serving.schema import LanguageModelSpec, load_app_spec


def spec(**changes: Any) -> LanguageModelSpec:
    return LanguageModelSpec.model_validate({"model": "tiny", **changes})


def test_one_engine_serves_all_that_differ_only_in_how_they_ask() -> None:
    assert engine_key(spec()) == engine_key(spec(timeout_s=3.0, retries=0))
    others = [spec(model="other"), spec(max_model_len=512), spec(dtype="bfloat16"), spec(max_adapters=1),
              spec(max_adapter_rank=8), spec(replicas=2), spec(num_gpus=1), spec(num_cpus=2),
              spec(engine_args={"seed": 1})]  # fmt: skip
    assert len({engine_key(one) for one in [spec(), *others]}) == len(others) + 1


@pytest.mark.parametrize("model", ["tiny", "Qwen/Qwen3-0.6B", "/models/모델", "r-1-canary", "x" * 90])
def test_its_name_is_one_that_serve_and_the_deployer_know(model: str) -> None:
    assert ENGINE_NAME.fullmatch(engine_application_name(spec(model=model)))


def test_the_app_has_the_last_word_on_arguments() -> None:
    told = engine_arguments(spec(max_adapter_rank=20, engine_args={"max_num_seqs": 7, "enforce_eager": False}))
    assert (told["max_num_seqs"], told["enforce_eager"], told["dtype"]) == (7, False, "float32")
    assert (told["max_loras"], told["max_lora_rank"]) == (5, 32), "on CPU one slot stays empty"
    assert "enable_lora" not in engine_arguments(spec(max_adapters=0))
    on_gpu = engine_arguments(spec(num_gpus=1))
    assert on_gpu["dtype"] == "auto"
    assert "enforce_eager" not in on_gpu


def test_on_the_cpu_it_takes_the_threads_it_was_given_and_does_not_spin(tmp_path: Path) -> None:
    environment = engine_environment(spec(num_cpus=2.5), str(tmp_path))
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("2", "passive")
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "OMP_NUM_THREADS" not in engine_environment(spec(num_gpus=1), "org/name")
    assert "HF_HUB_OFFLINE" not in engine_environment(spec(), "org/name")


def test_a_tiny_model_that_was_not_built_says_how(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="palate models build tiny"):
        model_source(spec(), tmp_path)
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert model_source(spec(), tmp_path) == str(folder)
    assert model_source(spec(model="Qwen/Qwen3-0.6B"), tmp_path) == "Qwen/Qwen3-0.6B"


def test_a_model_beside_app_yaml_goes_by_its_whole_path(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    about = {
        "name": "shop",
        "items": {"text": ["name"]},
        "retrieve": {"sources": {"words": {"engine": "lexical"}}},
        "language_model": {"model": "base"},
    }
    (tmp_path / "app.yaml").write_text(yaml.safe_dump(about))
    language_model = load_app_spec(tmp_path).language_model
    assert language_model is not None
    assert language_model.model == str((tmp_path / "base").resolve())


def version(app: str, language_model: dict[str, Any] | None, adapter: str = "") -> ReleaseVersion:
    components = (ComponentRef("generate.adapter", "adapter", adapter, 1),) if adapter else ()
    about = {"language_model": language_model} if language_model else {}
    return ReleaseVersion(1, Release(app, about, components, 0, "d"))


def test_releases_with_one_base_share_an_engine_and_each_brings_its_adapter() -> None:
    here = {"model": "tiny"}
    away = {"model": "gpt", "engine": "openai", "base_url": "http://x/v1"}
    versions = [version("a", here, "1" * 64), version("a", here, "2" * 64), version("b", here), version("c", away),
                version("d", None), version("e", {"model": "other"})]  # fmt: skip
    wanted = wanted_engines(versions)
    assert list(wanted) == [engine_application_name(spec()), engine_application_name(spec(model="other"))]
    assert sorted(wanted[engine_application_name(spec())].adapters) == ["a@111111111111", "a@222222222222"]
    assert served_name("a", "1" * 64) == "a@111111111111"


def test_an_unwanted_adapter_stays_for_a_while_unless_its_place_is_needed() -> None:
    loaded = {"a@1", "a@2"}
    assert changes({"a@2"}, loaded, {"a@1": 3.0}, most=4, linger_s=10.0) == ((), ())
    assert changes({"a@2"}, loaded, {"a@1": 11.0}, most=4, linger_s=10.0) == ((), ("a@1",))
    assert changes({"a@2", "a@3"}, loaded, {"a@1": 3.0}, most=2, linger_s=10.0) == (("a@3",), ("a@1",))
    assert changes({"a@3"}, loaded, {"a@1": 1.0, "a@2": 5.0}, most=2, linger_s=10.0) == (("a@3",), ("a@2",))


def test_what_was_promised_of_the_cache_is_kept_in_bounds_and_given_back() -> None:
    now = [100.0]
    room = KvRoom(blocks=10, block_tokens=16, monotonic=lambda: now[0])
    taken = [room.admit(64) for _ in range(5)]
    assert taken == [4] * 5
    with pytest.raises(Overloaded) as raised:
        room.admit(1)
    assert raised.value.retry_after_s == pytest.approx(LONGEST_S / 3), "nothing was freed yet: nobody knows"
    room.release(4)
    assert room.admit(1) == 1
    with pytest.raises(Overloaded) as raised:
        room.admit(64)
    assert raised.value.retry_after_s == pytest.approx(SHORTEST_S + 1.5), "4 blocks in 10 s, and 1 is missing"
    now[0] += 60.0
    for blocks in (4, 4, 4, 4, 1):
        room.release(blocks)
    assert room.reserved == 0


def test_what_can_never_fit_is_left_to_vllm() -> None:
    room = KvRoom(blocks=2, block_tokens=16, monotonic=lambda: 0.0)
    assert room.admit(1_000) == 63
    with pytest.raises(Overloaded):
        room.admit(1)


def test_what_the_grammar_lets_into_strings_is_json_all_the_same() -> None:
    assert json.loads("".join(map(as_json, ['{"name":"a', "\x02\n", 'b"}']))) == {"name": "a\x02\nb"}
