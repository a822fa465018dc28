"""One table of modules: which tensor of which module carries which property, seen how, and what the module is fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import p4torch as p4


@dataclass(frozen=True)
class Row:
    """A module, and how it is perturbed. `shape` is that of the base: the matrices that the property acts on."""

    make: Callable[[], nn.Module]
    tensor_name: str
    property: Any
    shape: tuple[int, ...]
    inputs: Callable[[], tuple[Any, ...]]
    options: dict[str, Any] = field(default_factory=dict)

    def perturbed(self) -> nn.Module:
        return p4.perturb(self.make(), self.tensor_name, self.property, **self.options)


class Own(nn.Module):
    """A module that a user might write: a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(2))
        self.mixing = nn.Parameter(torch.randn(3, 4, 4))
        self.last = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.mixing @ x).sin() * self.first.sum() + self.last.sum()


class Doubled(nn.LSTM):
    """A recurrent layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * super().forward(x)[0]


def _normal(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(shape),)


def _twice(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(shape), torch.randn(shape))


def _state(pair: bool = False) -> Callable[[], tuple[Any, ...]]:
    def made() -> tuple[Any, ...]:
        x, h = torch.randn(2, 3), torch.randn(2, 4)
        return (x, (h, h)) if pair else (x, h)

    return made


def _positive() -> nn.Module:
    layer = nn.Linear(5, 5, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def _attended() -> tuple[Tensor, ...]:
    x = torch.randn(2, 5, 8)
    return x, x, x


def _words() -> tuple[Tensor, ...]:
    return (torch.randint(0, 9, (4, 5)),)


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODULES: dict[str, Row] = {
    "linear": Row(lambda: nn.Linear(5, 5), "weight", p4.Orthogonal, (5, 5), _normal(4, 5), {"rank": 2}),
    "linear-wide": Row(lambda: nn.Linear(6, 4), "weight", p4.SpectralBound, (4, 6), _normal(4, 6), {"bound": 9.0}),
    "linear-no-bias": Row(_positive, "weight", p4.UnitDeterminant, (5, 5), _normal(4, 5)),
    "bilinear": Row(lambda: nn.Bilinear(4, 4, 3), "weight", p4.Orthogonal, (3, 4, 4), _twice(5, 4)),
    "bilinear-matrix": Row(
        lambda: nn.Bilinear(4, 2, 3),
        "weight",
        p4.Orthogonal,
        (3, 8),
        lambda: (torch.randn(5, 4), torch.randn(5, 2)),
        {"view": "matrix"},
    ),
    "conv1d": Row(lambda: nn.Conv1d(3, 4, 2), "weight", p4.Orthogonal, (4, 6), _normal(2, 3, 7), {"view": "matrix"}),
    "conv1d-stack": Row(
        lambda: nn.Conv1d(4, 4, 3), "weight", p4.Invertible, (3, 4, 4), _normal(2, 4, 7), {"view": "stack"}
    ),
    "conv2d": Row(
        lambda: nn.Conv2d(3, 4, 3),
        "weight",
        p4.SpectralBound,
        (4, 27),
        _normal(2, 3, 5, 5),
        {"view": "matrix", "bound": 9.0},
    ),
    "conv2d-stack": Row(
        lambda: nn.Conv2d(4, 4, (2, 3)), "weight", p4.Orthogonal, (2, 3, 4, 4), _normal(2, 4, 5, 5), {"view": "stack"}
    ),
    "conv2d-1x1": Row(
        lambda: nn.Conv2d(4, 4, 1), "weight", p4.Invertible, (4, 4), _normal(2, 4, 3, 3), {"view": "matrix"}
    ),
    "conv2d-groups": Row(
        lambda: nn.Conv2d(4, 6, 2, groups=2),
        "weight",
        p4.Orthogonal,
        (2, 3, 8),
        _normal(2, 4, 5, 5),
        {"view": "matrix"},
    ),
    "conv2d-tensor": Row(
        lambda: nn.Conv2d(2, 3, 4), "weight", p4.Orthogonal, (3, 2, 4, 4), _normal(2, 2, 5, 5), {"view": "tensor"}
    ),
    "conv2d-own-view": Row(
        lambda: nn.Conv2d(2, 3, 2),
        "weight",
        p4.Orthogonal,
        (8, 3),
        _normal(2, 2, 5, 5),
        {"view": (lambda kernel: kernel.flatten(1).mT, lambda matrix: matrix.mT.reshape(3, 2, 2, 2))},
    ),
    "conv3d": Row(
        lambda: nn.Conv3d(2, 3, 2), "weight", p4.LowRankUpdate, (3, 16), _normal(2, 2, 3, 3, 3), {"view": "matrix"}
    ),
    "conv-transpose1d": Row(
        lambda: nn.ConvTranspose1d(3, 4, 2), "weight", p4.Orthogonal, (4, 6), _normal(2, 3, 5), {"view": "matrix"}
    ),
    "conv-transpose2d-groups": Row(
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
        "weight",
        p4.Orthogonal,
        (2, 3, 3, 3, 2),
        _normal(2, 4, 3, 3),
        {"view": "stack"},
    ),
    "conv-transpose3d": Row(
        lambda: nn.ConvTranspose3d(3, 3, 2),
        "weight",
        p4.Invertible,
        (2, 2, 2, 3, 3),
        _normal(2, 3, 2, 2, 2),
        {"view": "stack"},
    ),
    "rnn": Row(lambda: nn.RNN(3, 4), "weight_hh_l0", p4.Orthogonal, (4, 4), _normal(6, 2, 3)),
    "lstm": Row(lambda: nn.LSTM(3, 4), "weight_hh_l0", p4.Orthogonal, (16, 4), _normal(6, 2, 3)),
    "lstm-stack": Row(
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True),
        "weight_hh_l1_reverse",
        p4.Orthogonal,
        (4, 4, 4),
        _normal(2, 6, 3),
        {"view": "stack", "rank": 2},
    ),
    "lstm-projected": Row(
        lambda: nn.LSTM(3, 4, proj_size=2),
        "weight_hh_l0",
        p4.Orthogonal,
        (4, 4, 2),
        _normal(6, 2, 3),
        {"view": "stack"},
    ),
    "lstm-own": Row(lambda: Doubled(3, 4), "weight_hh_l0", p4.LowRankUpdate, (16, 4), _normal(6, 2, 3)),
    "gru": Row(
        lambda: nn.GRU(3, 4, num_layers=2),
        "weight_ih_l1",
        p4.Invertible,
        (3, 4, 4),
        _normal(6, 2, 3),
        {"view": "stack"},
    ),
    "rnn-cell": Row(lambda: nn.RNNCell(3, 4), "weight_hh", p4.Orthogonal, (4, 4), _state()),
    "lstm-cell": Row(
        lambda: nn.LSTMCell(3, 4), "weight_hh", p4.Orthogonal, (4, 4, 4), _state(pair=True), {"view": "stack"}
    ),
    "gru-cell": Row(lambda: nn.GRUCell(3, 4), "weight_ih", p4.LowRankUpdate, (12, 3), _normal(2, 3)),
    "attention": Row(
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        "in_proj_weight",
        p4.Orthogonal,
        (3, 8, 8),
        _attended,
        {"view": "stack"},
    ),
    "attention-matrix": Row(
        lambda: nn.MultiheadAttention(8, 2, batch_first=True), "in_proj_weight", p4.LowRankUpdate, (24, 8), _attended
    ),
    "attention-output": Row(
        lambda: nn.MultiheadAttention(8, 2, batch_first=True), "out_proj.weight", p4.Invertible, (8, 8), _attended
    ),
    "encoder": Row(
        _encoder, "layers.1.self_attn.in_proj_weight", p4.Orthogonal, (3, 8, 8), _normal(2, 5, 8), {"view": "stack"}
    ),
    "encoder-linear": Row(_encoder, "layers.0.linear1.weight", p4.LowRankUpdate, (12, 8), _normal(2, 5, 8)),
    "embedding": Row(lambda: nn.Embedding(9, 4), "weight", p4.Orthogonal, (9, 4), _words),
    "embedding-padding": Row(lambda: nn.Embedding(9, 4, padding_idx=2), "weight", p4.LowRankUpdate, (9, 4), _words),
    "embedding-bag": Row(lambda: nn.EmbeddingBag(9, 4), "weight", p4.LowRankUpdate, (9, 4), _words),
    "own": Row(Own, "mixing", p4.Orthogonal, (3, 4, 4), _normal(4, 2)),
    "own-matrix": Row(Own, "mixing", p4.Orthogonal, (3, 16), _normal(4, 2), {"view": "matrix"}),
}
