"""Models without values, on the meta device: perturbed first, given memory (`to_empty`) and a checkpoint later."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from p4torch.errors import ProjectionWarning
from p4torch.parametrize.targets import Target, chain_of
from p4torch.parametrize.views import View


@contextmanager
def with_values(targets: Sequence[Target], tensor: nn.Parameter, view: View | None, event_dim: int) -> Iterator[None]:
    """Identity matrices in the places of a parameter on meta, for as long as it takes to perturb it; then all that was
    made is on meta, too."""
    with torch.device("cpu"), torch.no_grad():
        values = _values(tensor, view, event_dim).to(tensor.dtype).contiguous()
    stand_in = nn.Parameter(values, requires_grad=tensor.requires_grad)
    for module, name in targets:
        module._parameters[name] = stand_in
    try:
        with torch.device("cpu"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ProjectionWarning)
            yield
    except BaseException:
        for module, name in targets:
            module._parameters[name] = tensor
        raise
    chain_of(*targets[0]).to("meta")


def _values(tensor: Tensor, view: View | None, event_dim: int) -> Tensor:
    """Numbers in the shape of a tensor, for which its matrices `(..., n, m)` are identities, one beside the other, or
    all 1."""
    try:
        shape = tensor.shape if view is None else view.to_matrix(tensor).shape
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError):
        return torch.ones(tensor.shape)  # the view is refused when it is asked for
    matrix = torch.ones(shape)
    if len(shape) >= 2 and event_dim >= 2:
        rows, columns = (torch.arange(size) % min(shape[-2:]) for size in shape[-2:])
        matrix = (rows[:, None] == columns).float().expand(shape)
    return matrix if view is None else view.to_tensor(matrix)
