"""The network of Taste2Vec: four parts, each to a block of its own, fused to one unit vector.

`training.taste2vec.trainer` trains it, `component` exports it. Each part is a missing value away from being empty, so
each block is made for that: a metric comes with a flag that says it is there, a moment of context that is not there
leaves the LSTM's state as it was, and no words are a block of zeros. Batch normalisation has no place here: a record
that is asked alone would be normalised by other records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serving.components.taste import TasteInputs, Widths

TEXT, SENSES, METRICS, CONTEXT = 64, 64, 64, 32
DIMENSION = 128


class ContextLstm(nn.Module):  # type: ignore[misc] # torch is not typed here
    """The last state of an LSTM (Hochreiter & Schmidhuber 1997) over (n, moments, width), (n, CONTEXT); moments
    that are not there are skipped. Written as its equations: plain operators in the exported graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, 4 * CONTEXT)
        self.state = nn.Linear(CONTEXT, 4 * CONTEXT, bias=False)
        with torch.no_grad():
            self.input.bias[CONTEXT : 2 * CONTEXT].fill_(1.0)  # the forget gate begins open

    def forward(self, moments: Tensor, there: Tensor) -> Tensor:
        hidden = memory = moments[:, 0, :1].expand(-1, CONTEXT) * 0.0
        for step in range(moments.shape[1]):
            gates = self.input(moments[:, step]) + self.state(hidden)
            take, keep, candidate, give = gates.chunk(4, dim=1)
            new_memory = torch.sigmoid(keep) * memory + torch.sigmoid(take) * torch.tanh(candidate)
            new_hidden = torch.sigmoid(give) * torch.tanh(new_memory)
            is_there = there[:, step : step + 1]
            memory = is_there * new_memory + (1 - is_there) * memory
            hidden = is_there * new_hidden + (1 - is_there) * hidden
        return hidden


class TasteEncoder(nn.Module):  # type: ignore[misc] # torch is not typed here
    """`TasteInputs` to (n, DIMENSION) unit rows. `groups` is the group of each sense; `mean` and `deviation`, (m,),
    standardise the metrics. Initialised by torch's seed so that distances survive untrained: projections of text and
    blocks are orthogonal."""

    def __init__(
        self, widths: Widths, groups: Sequence[int], mean: NDArray[np.float32], deviation: NDArray[np.float32]
    ) -> None:
        super().__init__()
        self.text = nn.Linear(widths.text, TEXT, bias=False)
        self.sense = nn.Parameter(torch.randn(widths.senses, SENSES) / math.sqrt(2 * SENSES))
        self.group = nn.Parameter(torch.randn(max(groups, default=0) + 1, SENSES) / math.sqrt(2 * SENSES))
        self.metrics = nn.Sequential(nn.Linear(2 * widths.metrics, METRICS), nn.ReLU(), nn.Linear(METRICS, METRICS))
        self.context = ContextLstm(widths.context)
        self.fusion = nn.Linear(TEXT + SENSES + METRICS + CONTEXT, DIMENSION)
        nn.init.orthogonal_(self.text.weight, gain=math.sqrt(max(widths.text, TEXT) / TEXT))
        nn.init.orthogonal_(self.fusion.weight)
        self.register_buffer("mean", torch.from_numpy(mean.copy()))
        self.register_buffer("deviation", torch.from_numpy(deviation.copy()))
        self.register_buffer("groups", torch.tensor(list(groups) or [0]))

    def forward(
        self,
        text: Tensor,
        senses: Tensor,
        metrics: Tensor,
        metrics_there: Tensor,
        context: Tensor,
        context_there: Tensor,
    ) -> Tensor:
        standard = (metrics - self.mean) / self.deviation * metrics_there
        blocks = (
            self.text(text),
            senses @ (self.sense + self.group[self.groups]),
            self.metrics(torch.cat((standard, metrics_there), dim=1)),
            self.context(context, context_there),
        )
        fused = self.fusion(torch.cat(blocks, dim=1))
        return fused / fused.norm(dim=1, keepdim=True).clamp(min=1e-9)


def tensors(inputs: TasteInputs, device: str = "cpu") -> tuple[Any, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in inputs)


def encode(encoder: TasteEncoder, inputs: TasteInputs, device: str = "cpu", batch: int = 1024) -> NDArray[np.float32]:
    """(n, DIMENSION) unit rows."""
    encoder.eval()
    with torch.no_grad():
        parts = [
            encoder(*tensors(inputs.rows(slice(start, start + batch)), device)).cpu().numpy()
            for start in range(0, len(inputs.text), batch)
        ]
    return np.concatenate(parts) if parts else np.empty((0, DIMENSION), np.float32)
