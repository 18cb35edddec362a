"""The sections of app.yaml for the phases around retrieval: understand, rank, generate, and the language model that
understanding and generating share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from serving.schema.spec import Spec


class LanguageModelSpec(Spec):
    """The language model of an app. Apps and releases with the same `engine`, `model` and engine settings share one
    engine; their adapters answer side by side on it.

    `vllm`: Ray Serve LLM runs it. `openai`: some server that speaks the OpenAI protocol.
    """

    engine: Literal["vllm", "openai"] = "vllm"
    model: str = Field(
        min_length=1,
        description="vllm: `tiny` (palate models build tiny), a folder in Hugging Face format beside app.yaml, or the "
        "name of a model on the hub. openai: the server's name for it.",
    )
    max_model_len: int = Field(2048, ge=128, description="vllm: most tokens of prompt and answer together.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="vllm: precision of weights.")
    max_adapters: int = Field(4, ge=0, le=64, description="vllm: adapters held at once; 0: none can be used.")
    max_adapter_rank: int = Field(16, ge=1, le=512, description="vllm: largest LoRA rank that fits.")
    replicas: int = Field(1, ge=1, description="vllm: engines.")
    num_gpus: float = Field(0.0, ge=0, description="vllm: GPUs of one engine; 0: it runs on the CPU.")
    num_cpus: float = Field(1.0, ge=0, description="vllm: Ray's CPUs of one engine.")
    engine_args: dict[str, Any] = Field(default_factory=dict, description="vllm: further engine arguments, by name.")
    base_url: str = Field("", description="openai: where the server is, with its /v1.")
    key_env: str = Field("", description="openai: the environment variable that holds the server's API key.")
    timeout_s: float = Field(30.0, gt=0, description="Longest wait for a whole answer; deadlines may end it sooner.")
    retries: int = Field(2, ge=0, le=10, description="openai: more tries after a fault that may pass.")

    @model_validator(mode="after")
    def _server_has_a_place(self) -> LanguageModelSpec:
        if (self.engine == "openai") != bool(self.base_url):
            fix = "needs `base_url`" if self.engine == "openai" else "has no `base_url`: that is for engine `openai`"
            raise ValueError(f"language_model: engine `{self.engine}` {fix}")
        return self


class MemorySpec(Spec):
    """What a session remembers. A turn is one query and its answer."""

    turns: int = Field(6, ge=0, le=100, description="Most turns that a query sees; 0: sessions remember nothing.")
    expire_s: float = Field(3600.0, gt=0, description="A session that was silent for so long is forgotten.")


class UnderstandSpec(Spec):
    """plain: the text as it is. order_lines: the lines of an order. rules: intent, entities and filters by the words of
    `lexicon`. llm: the same by the language model, with the rules as its fallback."""

    engine: Literal["plain", "order_lines", "rules", "llm"] = "plain"
    max_lines: int = Field(50, ge=1, le=200, description="order_lines: most lines of one text.")
    lexicon: str = Field("", description="rules, llm: YAML file beside app.yaml with intents, entities and filters.")
    within_s: float = Field(1.0, gt=0, description="llm: slower than this, the rules answer.")
    max_tokens: int = Field(96, ge=8, le=1024, description="llm: longest output.")
    ask_below: float = Field(
        1.0, ge=0, le=1, description="llm: where the rules are at least this confident the model is not asked."
    )
    agree_at_least: float = Field(
        0.5, ge=0, le=1, description="llm: where it agrees less with the rules, it is unsure, and the rules answer."
    )
    memory: MemorySpec | None = Field(None, description="Sessions; without it every query stands alone.")

    @model_validator(mode="after")
    def _words_are_given(self) -> UnderstandSpec:
        if (self.engine in ("rules", "llm")) != bool(self.lexicon):
            fix = "needs `lexicon`" if self.engine in ("rules", "llm") else "reads no `lexicon`"
            raise ValueError(f"understand: engine `{self.engine}` {fix}")
        return self


class RankSpec(Spec):
    """The ranker orders what retrieval found anew. wide_deep: the component `ranker` that `train` makes; until there is
    one the order of retrieval stands. cross_encoder: a model that reads query and item together."""

    engine: Literal["wide_deep", "cross_encoder"]
    top_k: int = Field(10, ge=1, le=1000, description="Results that are left at most.")
    candidates: int = Field(100, ge=1, le=1000, description="Candidates of retrieval that are ranked at most.")
    model: str = Field("", description="cross_encoder: a folder beside app.yaml, or the name of a model on the hub.")
    weight: float = Field(1.0, ge=0, le=1, description="Of the ranker's score; the rest is the fused retrieval score.")

    @model_validator(mode="after")
    def _model_fits_engine(self) -> RankSpec:
        if (self.engine == "cross_encoder") != bool(self.model):
            fix = "needs `model`" if self.engine == "cross_encoder" else "has no `model`: `train` makes its ranker"
            raise ValueError(f"rank: engine `{self.engine}` {fix}")
        return self


Check = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,40}$")]


class GenerateSpec(Spec):
    """An answer in words, or as JSON, from what was found. `prompt` is a YAML file beside app.yaml: `system`, `user` (a
    template), and for each named form (`forms: {basic: {...}}`) what differs in it; see `serving.generate.prompt`."""

    engine: Literal["llm"] = "llm"
    prompt: str = Field(description="YAML file beside app.yaml.")
    output_schema: str = Field("", description="JSON schema file beside app.yaml; empty: plain text.")
    items: int = Field(5, ge=0, le=100, description="Results that the prompt shows.")
    max_tokens: int = Field(256, ge=1, le=8192, description="Longest answer; a request may ask for less.")
    temperature: float = Field(0.3, ge=0, le=2)
    top_p: float = Field(0.95, gt=0, le=1)
    repairs: int = Field(2, ge=0, le=2, description="More tries after an answer that fails a check.")
    checks: tuple[Check, ...] = Field((), description="What an answer has to pass; see `serving.generate.checks`.")
