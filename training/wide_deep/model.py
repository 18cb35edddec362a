"""The Wide & Deep model in torch, and its optimisers: FTRL-Proximal for the wide part, Adam for the deep part.

Used by `training.wide_deep.loop`. Both tables (embeddings and wide weights) have sparse gradients, so a step costs what
its batch reads and not what the tables hold; for that reason Adam of the embeddings is torch's SparseAdam, whose
moments stand still for rows that a batch does not read.

Papers: Cheng et al. 2016 (arXiv 1606.07792); McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches", for
FTRL-Proximal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed, nn

from serving.components.rank_features import UNKNOWN, FeatureSpec
from training.wide_deep.options import WideDeepOptions

EMBEDDING_DEVIATION = 0.05

State = dict[str, Any]


class WideDeep(nn.Module):  # type: ignore[misc] # torch is not typed here
    """`forward`: codes (n, embedded) and wide (n, crosses) int64, numbers (n, 2 * numerics) float32 -> logits (n,)."""

    def __init__(self, spec: FeatureSpec, options: WideDeepOptions) -> None:
        super().__init__()
        sizes = [options.embeddings[name] for name in spec.embedded]
        self.tables = nn.ModuleList(
            nn.Embedding(spec.rows(name), size, sparse=True) for name, size in zip(spec.embedded, sizes, strict=True)
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=EMBEDDING_DEVIATION)
            with torch.no_grad():
                table.weight[UNKNOWN] = 0.0
        self.wide = nn.Embedding(spec.buckets, 1, sparse=True)
        nn.init.zeros_(self.wide.weight)
        layers: list[Any] = []
        width = sum(sizes) + 2 * len(spec.numeric)
        for size in options.hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(options.dropout)]
            width = size
        self.deep = nn.Sequential(*layers, nn.Linear(width, 1))

    def embed(self, codes: Any) -> list[Any]:
        return [table(codes[:, i]) for i, table in enumerate(self.tables)]

    def head(self, embedded: list[Any], numbers: Any, wide: Any) -> Any:
        return self.deep(torch.cat([*embedded, numbers], 1))[:, 0] + self.wide(wide).sum((1, 2))

    def forward(self, codes: Any, numbers: Any, wide: Any) -> Any:
        return self.head(self.embed(codes), numbers, wide)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def take_over(self, before: Mapping[str, Any]) -> None:
        """Continue with the weights of an earlier model whose vocabularies were a beginning of these. A new id starts
        as the unknown one and learns from there. Raises ValueError that names a weight of another shape."""
        for name, parameter in self.named_parameters():
            old = torch.as_tensor(before[name]) if name in before else None
            grows = name.startswith("tables.")
            if old is None or old.shape[1:] != parameter.shape[1:] or (len(old) != len(parameter) and not grows):
                raise ValueError(
                    f"{name} is {list(parameter.shape)}, before it was {list(old.shape) if old is not None else None}"
                )
            parameter[: len(old)] = old
            if grows:
                parameter[len(old) :] = old[UNKNOWN]


class Ftrl:
    """FTRL-Proximal (McMahan et al. 2013, algorithm 1) over the rows of one (n, 1) table with sparse gradients."""

    BETA = 1.0

    def __init__(self, table: Any, options: WideDeepOptions) -> None:
        self._table = table
        self._rate, self._l1, self._l2 = options.wide_rate, options.wide_l1, options.wide_l2
        weight = table.detach()[:, 0]
        self._squares = torch.zeros_like(weight)
        # The z that gives these very weights: training goes on from them.
        self._z = -(weight * (self.BETA / self._rate + self._l2) + weight.sign() * self._l1)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, examples: int) -> None:
        """`examples` in the batch: rates and penalties are per example, the gradient is the batch's mean."""
        gradient = self._table.grad.coalesce()
        rows, g = gradient.indices()[0], gradient.values()[:, 0] * examples
        squares = self._squares[rows]
        grown = squares + g * g
        z = self._z[rows] + g - (grown.sqrt() - squares.sqrt()) / self._rate * self._table[rows, 0]
        self._squares[rows], self._z[rows] = grown, z
        shrunk = z.sign() * (z.abs() - self._l1).clamp(min=0)
        self._table[rows, 0] = -shrunk / ((self.BETA + grown.sqrt()) / self._rate + self._l2)

    def state_dict(self) -> State:
        return {"squares": self._squares, "z": self._z}

    def load_state_dict(self, state: State) -> None:
        self._squares.copy_(state["squares"])
        self._z.copy_(state["z"])


class Optimisers:
    """All three, stepped together."""

    def __init__(self, model: WideDeep, options: WideDeepOptions) -> None:
        self._model = model
        self._ftrl = Ftrl(model.wide.weight, options)
        self._deep = torch.optim.Adam(model.deep.parameters(), lr=options.learning_rate)
        tables = [table.weight for table in model.tables]
        self._tables = torch.optim.SparseAdam(tables, lr=options.learning_rate) if tables else None

    def step(self, examples: int) -> None:
        self._ftrl.step(examples)
        self._deep.step()
        if self._tables:
            self._tables.step()
        self._model.zero_grad(set_to_none=True)

    def state_dict(self) -> State:
        tables = self._tables.state_dict() if self._tables else {}
        return {"wide": self._ftrl.state_dict(), "deep": self._deep.state_dict(), "tables": tables}

    def load_state_dict(self, state: State) -> None:
        self._ftrl.load_state_dict(state["wide"])
        self._deep.load_state_dict(state["deep"])
        if self._tables:
            self._tables.load_state_dict(state["tables"])


def share_gradients(model: WideDeep, world: int) -> None:
    """Give every worker the mean gradient of all. Not DistributedDataParallel: its sparse all-reduce is gloo's alone.
    Here dense gradients are all-reduced as one vector, and of sparse ones rows and values are gathered, which works
    with nccl too: batches are of one size, so every worker has equally many."""
    if world == 1:
        return
    dense = [p for p in model.deep.parameters() if p.grad is not None]
    flat = torch.cat([p.grad.reshape(-1) for p in dense])
    distributed.all_reduce(flat)
    for parameter, part in zip(dense, flat.split([p.numel() for p in dense]), strict=True):
        parameter.grad.copy_(part.view_as(parameter) / world)
    for table in (*model.tables, model.wide):
        gradient = table.weight.grad
        rows, values = (_gather(part, world) for part in (gradient._indices()[0], gradient._values()))
        table.weight.grad = torch.sparse_coo_tensor(rows[None], values / world, gradient.shape, check_invariants=False)


def _gather(part: Any, world: int) -> Any:
    parts = [torch.empty_like(part) for _ in range(world)]
    distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)
