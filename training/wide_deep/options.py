"""`train.NAME.options` of a wide_deep training: which features there are, and how the model learns. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from serving.schema.spec import Spec

Source = Annotated[str, Field(pattern=r"^(user|item|(record|item)\..+)$")]
"""`user`, `item`, `record.KEY` or `item.KEY`; see `serving.components.rank_features`."""

Ratio = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class BandSpec(Spec):
    """A number cut at its quantiles into a category: `count` bands of about as many training examples each."""

    of: Source
    count: int = Field(8, ge=2, le=256)


class WideDeepOptions(Spec):
    """The model of Cheng et al. 2016 (arXiv 1606.07792). The wide part reads `crosses` (a cross of one feature is that
    feature itself), the deep part `embeddings` and `numeric`."""

    embeddings: dict[str, Annotated[int, Field(ge=1, le=512)]] = Field(
        default_factory=lambda: {"user": 64, "item": 64},
        description="Categorical feature or band -> dimension of its embedding.",
    )
    numeric: tuple[Source, ...] = Field((), description="Numbers of the deep part; a bool counts as 0 or 1.")
    bands: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], BandSpec] = Field(default_factory=dict)
    crosses: tuple[Annotated[tuple[str, ...], Field(min_length=1, max_length=4)], ...] = (("user",), ("item",))
    wide_buckets: int = Field(2**18, ge=2, le=2**27, description="Weights of the wide part; crosses hash to them.")

    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((128, 64, 32), min_length=1, max_length=8)
    dropout: Ratio = 0.3
    unknown_ratio: Ratio = Field(
        0.1, description="Share of training examples whose user (and, apart from it, whose item) is hidden: they teach "
        "what to make of one that is new.",
    )  # fmt: skip
    unknown_value_ratio: Ratio = Field(0.01, description="The same for every other category.")
    min_count: int = Field(2, ge=1, description="A value of fewer training examples stays unknown.")
    max_values: int = Field(1_000_000, ge=1, description="Values a feature may have; the most frequent are kept.")

    batch_size: int = Field(1024, ge=1, description="Examples in a step, of all workers together.")
    epochs: int = Field(20, ge=1, le=10_000)
    evaluations_per_epoch: int = Field(2, ge=1, le=1000)
    patience: int = Field(4, ge=1, description="Evaluations without a lower validation loss that end the training.")
    learning_rate: Positive = Field(1e-3, description="Adam, of the deep part.")
    embedding_decay: float = Field(1e-3, ge=0, description="L2 on the embeddings that an example reads.")
    wide_rate: Positive = Field(0.05, description="FTRL-Proximal's alpha, of the wide part.")
    wide_l1: float = Field(0.1, ge=0, description="Examples' worth of evidence a wide weight needs to leave zero.")
    wide_l2: float = Field(1.0, ge=0)
    calibration: Literal["platt", "none"] = "platt"

    @field_validator("numeric", "crosses")
    @classmethod
    def _no_twins(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"names one twice: {list(value)}")
        return value

    @model_validator(mode="after")
    def _names_are_features(self) -> WideDeepOptions:
        for option, names in [("embeddings", list(self.embeddings)), *(("crosses", list(c)) for c in self.crosses)]:
            for name in names:
                known = name in self.bands or name in ("user", "item")
                if not known and not (name.startswith(("record.", "item.")) and not name.endswith(".")):
                    raise ValueError(
                        f"`{option}` names {name!r}, which is no feature: there are user, item, record.KEY, item.KEY "
                        f"and the bands {sorted(self.bands)}"
                    )
            if len(set(names)) != len(names):
                raise ValueError(f"`{option}` crosses a feature with itself: {names}")
        if not (self.embeddings or self.numeric):
            raise ValueError("`embeddings` and `numeric` are both empty: the deep part needs something to read")
        return self

    @property
    def categories(self) -> tuple[str, ...]:
        """Categorical features with a vocabulary, each once, in the order they are named."""
        named = [*self.embeddings, *(name for cross in self.crosses for name in cross)]
        return tuple(dict.fromkeys(name for name in named if name not in self.bands))
