"""The latent distribution of a flow, ours, torch's or one's own: what a flow needs of it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.flows.bijection import Chain, Inverse, check_event


class Distribution(Protocol):
    """What a flow needs of its latent distribution."""

    def log_prob(self, z: Tensor) -> Tensor:
        """`(..., n)` -> `(...)`."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`(count, n)`."""


Base = Distribution | torch.distributions.Distribution


def latent_features(bijection: nn.Module) -> int | None:
    """n of the latent points, where the bijection tells."""
    return _features(bijection, latent=True)


def data_features(bijection: nn.Module) -> int | None:
    """n of the points of data, where the bijection tells."""
    return _features(bijection, latent=False)


def base_features(base: Base) -> int | None:
    """n of a latent distribution of vectors, where it tells."""
    if isinstance(base, torch.distributions.Distribution):
        return base.event_shape[0]
    features = getattr(base, "features", None)
    return features if isinstance(features, int) else None


def _features(bijection: nn.Module, latent: bool) -> int | None:
    """n at one end of a bijection."""
    if isinstance(bijection, Chain):
        members = (_features(member, latent) for member in list(bijection.bijections)[:: -1 if latent else 1])
        return next((features for features in members if features is not None), None)
    if isinstance(bijection, Inverse):
        return _features(bijection.bijection, not latent)
    features = getattr(bijection, "features", None)
    return features if isinstance(features, int) else None


def check_base(base: Base, features: int | None) -> None:
    """Refuse what is no distribution of vectors of so many features; None: of any."""
    if not (callable(getattr(base, "log_prob", None)) and callable(getattr(base, "sample", None))):
        raise ArgumentError.of("base", "a distribution with log_prob and sample", type(base).__name__)
    if isinstance(base, torch.distributions.Distribution):
        _check_shapes(base, features)
        return
    got = base_features(base)
    if None not in (features, got) and got != features:
        raise ArgumentError.of("base", f"of {features} features, as the bijection", f"{type(base).__name__} of {got}")


def _check_shapes(base: torch.distributions.Distribution, features: int | None) -> None:
    event, batch = tuple(base.event_shape), tuple(base.batch_shape)
    if batch == () and (event if features is None else event == (features,)):
        return
    expected = f"one distribution of vectors, event shape ({features or 'n'},) and batch shape ()"
    got = f"{type(base).__name__} with event shape {event} and batch shape {batch}"
    if len(batch) == 1 and event == () and features in (None, *batch):
        got += ": torch.distributions.Independent(base, 1) makes one of it"
    raise ArgumentError.of("base", expected, got)


def base_log_prob(base: Base, z: Tensor) -> Tensor:
    """log p_Z(z), `(..., n)` -> `(...)`.

    Raises:
        ArgumentError: the distribution returns another shape.
    """
    axes = 1
    if isinstance(base, torch.distributions.Distribution):
        axes = len(base.event_shape)
        if axes == 1:
            check_event(z, base.event_shape[0], complex=z.is_complex())
    with linalg.full_precision(z.device):
        log_prob = base.log_prob(z)
    if log_prob.shape != z.shape[:-axes]:
        expected = f"a distribution whose log_prob(z) is of shape {tuple(z.shape[:-axes])} for z {tuple(z.shape)}"
        raise ArgumentError.of("base", expected, tuple(log_prob.shape))
    return log_prob


def base_sample(base: Base, count: int, generator: torch.Generator | None) -> Tensor:
    """`(count, n)`: z ~ p_Z, by `rsample` where a torch distribution has it.

    Raises:
        ArgumentError: a count below 1; a generator for a torch distribution; samples of another shape.
    """
    count = check_integer("count", count, 1)
    if isinstance(base, torch.distributions.Distribution):
        if generator is not None:
            expected = "None, since a torch distribution takes none"
            raise ArgumentError.of("generator", expected, type(generator).__name__)
        device = next((value.device for value in vars(base).values() if isinstance(value, Tensor)), torch.device("cpu"))
        with linalg.full_precision(device):
            return (base.rsample if base.has_rsample else base.sample)(torch.Size((count,)))
    z = base.sample(count, generator)
    if z.dim() != 2 or len(z) != count:
        raise ArgumentError.of("base", f"a distribution whose sample({count}) is of shape ({count}, n)", tuple(z.shape))
    return z
