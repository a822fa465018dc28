"""How a linear layer of a flow depends on a context: a shift, and the factors of a matrix of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.flows.bijection import check_hidden


class Conditioner(nn.Module):
    """h(c) `(..., n)`, U(c) and V(c) `(..., n, k)` of a context `(..., c)`, from one network with SiLU between its
    layers. h and U start at zero, V as random columns of length about 1: so U has a gradient, as the low-rank
    perturbations of a weight have.

    Args:
        features: n.
        shift: whether there is an h, or 0.
        context: c.
        rank: k, also 0.
        hidden: widths of the hidden layers.
    """

    def __init__(self, features: int, shift: bool, context: int, rank: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.features, self.rank = features, rank
        self._sizes = [features if shift else 0, features * rank, features * rank]
        widths = [context, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.hidden, self.last = nn.Sequential(*layers), nn.Linear(widths[-1], sum(self._sizes))
        start = sum(self._sizes[:2])
        with torch.no_grad():
            self.last.weight[:start] = 0
            self.last.bias[:start] = 0
            self.last.bias[start:].normal_(std=features**-0.5)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift, u, v = self.last(self.hidden(context)).split(self._sizes, dim=-1)
        columns = self.features, self.rank
        return shift if self._sizes[0] else context.new_zeros(()), u.unflatten(-1, columns), v.unflatten(-1, columns)


def conditioner(
    features: int, shift: bool, context: int, rank: int, hidden: Sequence[int], dtype: torch.dtype
) -> Conditioner | None:
    """That of a linear layer, or None without a context.

    Raises:
        ArgumentError: a rank without a context; nothing that would depend on it; a complex layer.
    """
    rank, hidden = check_integer("context_rank", rank, 0), check_hidden(hidden, "context_hidden")
    if not context:
        if rank:
            raise ArgumentError.of("context_rank", "0 where there is no `context`", rank)
        return None
    if dtype.is_complex:
        raise ArgumentError.of("context", "0 for a complex layer", context)
    if not (shift or rank):
        raise ArgumentError.of("context_rank", "an integer >= 1 without a bias, to depend on the context", rank)
    return Conditioner(features, shift, context, rank, hidden).to(dtype)
