"""The language model and its adapter: how they are loaded, what of them learns, how the adapter is written.

`loop` trains, `trainer` writes the component and measures. The base is read from a local folder or, where the hub can
be reached, from there; it is never changed. An adapter lies as PEFT writes it and vLLM reads it (`adapter_config.json`,
`adapter_model.safetensors`), beside `base.json`, which says of which base it is the difference.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.content import digest_folder
from training.errors import TrainingRefused
from training.lora.options import LoraOptions
from training.models import TINY, tiny_folder
from training.ports import Task
from training.precision import dtype_of

BASE_FILE = "base.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter belongs to: as app.yaml names it, and the digest of its files."""

    model: str
    digest: str

    def save(self, folder: Path) -> None:
        text = json.dumps({"model": self.model, "digest": self.digest}, sort_keys=True)
        (folder / BASE_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Base:
        """Raises TrainingRefused."""
        try:
            return cls(**json.loads((folder / BASE_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingRefused(f"{folder.name} does not say which base model it belongs to: {error}") from None


def base_folder(options: LoraOptions, task: Task) -> Path:
    """Where the base lies: a folder beside app.yaml or elsewhere, or `tiny`; fetched from the hub where it is none of
    these. Raises TrainingRefused."""
    folder = task.app_folder / options.model  # an absolute path stays as it is
    if folder.is_dir():
        return folder
    if options.model == TINY:
        if task.home is None or not (own := tiny_folder(task.home)).is_dir():
            raise TrainingRefused("options.model is `tiny`, which was not built: run `palate models build tiny`")
        return own
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(options.model, revision=options.revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TrainingRefused(
            f"options.model: there is no folder {options.model!r}, and no model of that name could be had from the "
            f"hub: {type(error).__name__}: {error}"
        ) from None


def base_of(options: LoraOptions, task: Task) -> Base:
    return Base(options.model, digest_folder(base_folder(options, task))[0])


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise TrainingRefused(f"options.model: {folder.name} has no tokenizer that can be read: {error}") from None


def load_base(folder: Path, options: LoraOptions, device: str) -> Any:
    """The causal language model, on `device`, frozen. Raises TrainingRefused."""
    from transformers import AutoModelForCausalLM

    dtype = dtype_of(options.precision, device)
    settings: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if options.quantize == "4bit":
        settings |= {"quantization_config": _four_bits(device, dtype), "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), **settings)
    except (OSError, ValueError) as error:
        raise TrainingRefused(f"options.model: {folder.name} is no causal language model: {error}") from None
    if options.quantize == "none":
        model = model.to(device)
    model.config.use_cache = False
    return model.requires_grad_(False)


def _four_bits(device: str, dtype: Any) -> Any:
    """Normal floats of four bits with doubly quantised constants, as QLoRA has them. Raises TrainingRefused."""
    missing = "a GPU (scaling.num_gpus)" if not device.startswith("cuda") else ""
    if not missing and importlib.util.find_spec("bitsandbytes") is None:
        missing = "the package bitsandbytes"
    if missing:
        raise TrainingRefused(f"options.quantize is 4bit, which needs {missing}: provide it, or set `quantize: none`")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def add_adapter(model: Any, options: LoraOptions, start: Path | None) -> Any:
    """The base with an adapter that learns: a new one, or the one in `start`. Draws from torch's generator."""
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

    if options.quantize == "4bit":
        prepared = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        model = prepared
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if start is not None:
        return PeftModel.from_pretrained(model, str(start), is_trainable=True)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.targets) or "all-linear",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise TrainingRefused(f"options.targets: {error}") from None


def adapter_weights(model: Any) -> dict[str, Any]:
    """A copy of the adapter, on the CPU in float32, by the names under which PEFT keeps it in a file."""
    from peft import get_peft_model_state_dict

    # Left to itself, PEFT asks the hub whether the embeddings were resized.
    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight.detach().float().cpu().clone().contiguous() for name, weight in found.items()}


def set_adapter_weights(model: Any, weights: Mapping[str, Any]) -> None:
    """Raises TrainingRefused where they are those of another adapter."""
    from peft import set_peft_model_state_dict

    if adapter_weights(model).keys() != weights.keys():
        raise TrainingRefused("the checkpoint is of another model or other options: begin a new run")
    set_peft_model_state_dict(model, dict(weights))


def adapter_config(model: Any, base: Base) -> dict[str, Any]:
    """As PEFT writes it, in an order that is always the same; the base by the name that app.yaml has for it."""
    config = model.peft_config["default"].to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    plain |= {"base_model_name_or_path": base.model, "inference_mode": True}
    return dict(json.loads(json.dumps(plain, default=str)))


def save_adapter(folder: Path, weights: Mapping[str, Any], config: Mapping[str, Any], base: Base) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
    base.save(folder)
