"""Views: the tensor of a module as the matrices `(..., n, m)` that a property acts on. A convolution's kernel, say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError

Name = Literal["matrix", "stack", "column", "tensor"]
Rearrange = Callable[[Tensor], Tensor]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


class View(nn.Module):
    """The same numbers in another order and shape: matrices `(..., n, m)` for the property, a tensor for the module.

    It is the second part of a torch parametrization, behind the perturbation: `forward` leads from R_B(A) to the
    module's tensor, `right_inverse` from a tensor of the module's shape to the base.

    Args:
        to_matrix: from a tensor of the module to matrices.
        to_tensor: its inverse, differentiable. Both only move entries; nothing is computed.
    """

    def __init__(self, to_matrix: Rearrange, to_tensor: Rearrange) -> None:
        super().__init__()
        if not callable(to_matrix) or not callable(to_tensor):
            got = f"{type(to_matrix).__name__} and {type(to_tensor).__name__}"
            raise ArgumentError.of("view", "a pair of functions", got)
        self.to_matrix: Rearrange = to_matrix
        self.to_tensor: Rearrange = to_tensor
        self.tensor_shape: torch.Size | None = None

    def forward(self, matrix: Tensor) -> Tensor:
        return self.to_tensor(matrix)

    def right_inverse(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Tensor) or tensor.shape != self.tensor_shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ArgumentError.of("tensor", f"of shape {tuple(self.tensor_shape or ())}", got)
        return self.to_matrix(tensor)

    @torch.no_grad()
    def fit(self, tensor: Tensor) -> Tensor:
        """The matrices of a tensor, once it is sure that they lead back to it. From then on only tensors of its shape
        are taken."""
        try:
            matrix = self.to_matrix(tensor)
            back = self.to_tensor(matrix)
            same = torch.equal(back, tensor) or (back.shape == tensor.shape and not bool(tensor.isfinite().all()))
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
            fits = f"one that fits a tensor {tuple(tensor.shape)}"
            raise ArgumentError.of("view", fits, f"{type(error).__name__}: {error}") from error
        if not same or matrix.numel() != tensor.numel():
            got = f"{tuple(tensor.shape)} -> {tuple(matrix.shape)} -> {tuple(back.shape)}, and not the same entries"
            raise ArgumentError.of("view", "a pair of functions that move entries, there and back", got)
        self.tensor_shape = tensor.shape
        return matrix.contiguous()

    def extra_repr(self) -> str:
        return f"tensor={tuple(self.tensor_shape or ())}"


#: What `perturb` takes: a name, a pair of functions (to matrices, and back), or a view that is made already.
ViewLike = Name | tuple[Rearrange, Rearrange] | View | None


def regrouped(split: tuple[int, ...], order: tuple[int, ...], matrix: tuple[int, ...], tensor: tuple[int, ...]) -> View:
    """The view of a `tensor` that cuts its dimensions up into `split`, puts those in `order`, and joins them into
    `matrix`."""
    moved = tuple(split[axis] for axis in order)
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return View(partial(_rearrange, split, order, matrix), partial(_rearrange, moved, back, tensor))


def _rearrange(split: tuple[int, ...], order: tuple[int, ...], joined: tuple[int, ...], tensor: Tensor) -> Tensor:
    return tensor.reshape(split).permute(order).reshape(joined)


def view_of(module: nn.Module, tensor_name: str, tensor: Tensor, view: ViewLike, event_dim: int) -> View | None:
    """The view that was asked for, made for a tensor of a module; None where the tensor is a matrix, or a stack of
    them, as it is. `event_dim` is that of the property.

    Raises:
        ArgumentError: no such view, or none of this tensor.
    """
    if isinstance(view, View):
        return copy.deepcopy(view)  # one tensor each
    if isinstance(view, tuple) and len(view) == 2:
        return View(*view)
    kernel = isinstance(module, _CONVOLUTIONS) and tensor_name == "weight"
    if view is None and kernel and event_dim == 2:
        view = "matrix"
    if view is None or (isinstance(view, str) and view == "tensor"):
        return None
    if not isinstance(view, str) or view not in get_args(Name):
        raise ArgumentError.of("view", f"one of {', '.join(get_args(Name))}, or a pair of functions", repr(view))
    if view == "column" and tensor.dim() == 1:
        shape = tuple(tensor.shape)
        return regrouped(shape, (0,), (*shape, 1), shape)
    if tensor.dim() < 2 or view == "column":
        raise ArgumentError.of("view", f"none for {_of(module, tensor_name, tensor)}", repr(view))
    if kernel:
        return _kernel(module, tensor, view)  # type: ignore[arg-type]
    return _matrix(tensor) if view == "matrix" else _stack(module, tensor_name, tensor)


def _matrix(tensor: Tensor) -> View | None:
    """`(n, m)`: the first dimension, and all others."""
    shape = tuple(tensor.shape)
    order = tuple(range(tensor.dim()))
    return None if tensor.dim() == 2 else regrouped(shape, order, (shape[0], prod(shape[1:])), shape)


def _stack(module: nn.Module, tensor_name: str, tensor: Tensor) -> View | None:
    """The blocks that a layer stores below each other; of more than two dimensions, the tensor as it is."""
    if tensor.dim() > 2:
        return None
    rows, columns = tensor.shape
    height = 0
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and tensor_name.startswith(("weight_ih", "weight_hh")):
        height = module.hidden_size
    elif isinstance(module, nn.MultiheadAttention) and tensor_name == "in_proj_weight":
        height = module.embed_dim
    if not height or rows % height:
        expected = "matrix, tensor or a pair of functions"
        raise ArgumentError.of("view", f"{expected} for {_of(module, tensor_name, tensor)}", "'stack'")
    blocks = (rows // height, height, columns)
    return regrouped(blocks, (0, 1, 2), blocks, (rows, columns))


def _kernel(module: Convolution, tensor: Tensor, view: Name) -> View:
    """`(out, rest)`, or `(*positions, out, in)`; of g > 1 groups, which do not mix, `(g, ...)` with a group's channels.
    A transposed convolution stores `(in, out, *positions)`."""
    groups, shape = module.groups, tuple(tensor.shape)
    split = (groups, shape[0] // groups, *shape[1:])
    positions = tuple(range(3, len(split)))
    rows, columns = (2, 1) if module.transposed else (1, 2)
    order = (0, rows, columns, *positions) if view == "matrix" else (0, *positions, rows, columns)
    moved = tuple(split[axis] for axis in order)
    joined = (*moved[:2], prod(moved[2:])) if view == "matrix" else moved
    return regrouped(split, order, joined if groups > 1 else joined[1:], shape)


def _of(module: nn.Module, tensor_name: str, tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}, `{tensor_name}` of {type(module).__name__}"
