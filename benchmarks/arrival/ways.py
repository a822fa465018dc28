"""The ways to train a tensor that are compared: p4torch with its defaults or given options, and the peers."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

import p4torch as p4
from p4torch.errors import ArgumentError

#: Options of a `MergeScheduler`. All others are the property's.
SCHEDULE = ("every", "correct_every", "refresh_every", "optimizer_state", "rewarm", "stagger")


@dataclass(frozen=True)
class Options:
    """What differs from the defaults: options of `p4.perturb` and of `p4.MergeScheduler`."""

    perturb: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_text(cls, text: str) -> Options:
        """From "block=32,every=2": numbers, True, False and None as Python reads them, anything else is a word."""
        perturb: dict[str, Any] = {}
        schedule: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not (name.isidentifier() and equals and value):
                raise ArgumentError.of("--p4", "key=value pairs with commas between them", repr(text))
            (schedule if name in SCHEDULE else perturb)[name] = _value(value)
        return cls(perturb, schedule)

    def __str__(self) -> str:
        given = {**self.perturb, **self.schedule}
        return ", ".join(f"{name}={value}" for name, value in given.items()) or "defaults"


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@dataclass(frozen=True)
class Way:
    """One of the things compared: `constrain(module, tensor_name)`; for p4torch also the property's name in `p4` and
    options of the schedule."""

    name: str
    constrain: Callable[[nn.Module, str], object] = field(compare=False)
    kind: str | None = None
    schedule: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def ours(self) -> bool:
        """Whether it is p4torch's."""
        return self.kind is not None


def ours(kind: str, options: Options) -> Way:
    """A property of p4torch, by its name in `p4`."""

    def constrain(module: nn.Module, tensor: str) -> None:
        p4.perturb(module, tensor, getattr(p4, kind), **options.perturb)

    return Way(f"p4.{kind}, {options}", constrain, kind, options.schedule)


def accepted(kind: str, options: Options, features: int) -> bool:
    """Whether the property has these options, for n x n matrices."""
    try:
        getattr(p4, kind)(torch.eye(features), **options.perturb)
    except (TypeError, ArgumentError):
        return False
    return True


PLAIN = Way("plain", lambda module, tensor: None)
CAYLEY = Way(
    "torch, Cayley map", lambda module, tensor: parametrizations.orthogonal(module, tensor, orthogonal_map="cayley")
)
