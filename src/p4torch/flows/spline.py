"""Rational-quadratic spline couplings, on the line and on the circle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from p4torch._options import check_indices, check_integer
from p4torch.errors import ArgumentError
from p4torch.flows._context import check_context_features, shown, spread
from p4torch.flows.bijection import Coupling, check_coupled, check_event, check_hidden
from p4torch.flows.monotone import check_angles, monotone, monotone_inverse


class SplineCoupling(Coupling):
    """Moves some features by monotone splines whose parameters a network computes from the others.

        on the line:    z = spline(x · eᵃ + b), the identity beyond ±`BOUND`
        on the circle:  z = spline(wrap(x + b)) on [-π, π), with equal slopes at both ends

    Both directions take angles beyond [-π, π), too, and wrap those that move: x and x + 2π are the same point of the
    circle, with the same density, which integrates to 1 over one turn. `check_support` refuses them. Angles enter the
    network as cosine and sine, so that the flow is continuous across the cut. The network's last layer starts at zero:
    the coupling starts as the identity.

    The network sees a context, too. With one, all features may move, or a single one that there is.

    Args:
        features: n >= 2, or 1 with a context.
        moved: which of the features move, without a context not all of them; the others are what the network sees.
        circular: which of all features are angles in [-π, π).
        hidden: widths of the network's hidden layers.
        bins: k of each spline.
        activation: of the network.
        context: how many features the context has, 0 for none.

    Raises:
        ArgumentError: for features that do not exist, or repeat.

    Source: Durkan et al. (2019); Rezende et al. (2020), normalizing flows on tori and spheres.
    """

    structure = ("place", "angle", "kept")
    angle: Tensor
    kept: Tensor
    place: Tensor

    def __init__(
        self,
        features: int,
        moved: Sequence[int],
        circular: Sequence[int] = (),
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        activation: Callable[[], nn.Module] = nn.SiLU,
        *,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.context_features = check_context_features(context)
        self.features = check_coupled(features, least=1 if context else 2)
        moved, circular = check_indices("moved", moved, features), check_indices("circular", circular, features)
        most = features if context else features - 1
        if not 0 < len(moved) <= most:
            raise ArgumentError.of("moved", f"1 to {most} of {features} features", list(moved))
        hidden = check_hidden(hidden)
        angles = set(circular)
        kept = [index for index in range(features) if index not in set(moved)]
        self.bins = bins = check_integer("bins", bins, 2)
        line, circle = ([index for index in kept if (index in angles) is seen] for seen in (False, True))
        self._seen = [len(line), len(circle)]
        self.register_buffer("place", torch.tensor(list(moved)))
        self.register_buffer("angle", torch.tensor([[index in angles] for index in moved]))
        self.register_buffer("kept", torch.tensor(line + circle, dtype=torch.long))
        self._read_structure()
        widths = [len(line) + 2 * len(circle) + context, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), activation()]
        last = nn.Linear(widths[-1], len(moved) * (3 * bins + 1))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.hidden, self.last = nn.Sequential(*layers), last

    def moves(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, u, raw = self._inputs(x, context)
        y, slope = monotone(u, raw, self.angle, self._circular)
        return self._outputs(x, y), slope.mT.reshape(*x.shape[:-1], len(self.place))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, y, raw = self._inputs(z, context, "z")
        u, slope = monotone_inverse(y, raw, self.angle)
        return self._outputs(z, u), slope.sum(0).reshape(z.shape[:-1])

    def check_support(self, x: Tensor, context: Tensor | None = None) -> None:
        check_event(x, self.features)
        seen = self.kept[len(self.kept) - self._seen[1] :]
        check_angles(x, torch.cat([self.place[self.angle.squeeze(-1)], seen]))

    def _inputs(self, x: Tensor, context: Tensor | None, name: str = "x") -> tuple[Tensor, Tensor, Tensor]:
        """The points, as many as there are together with the contexts; and of P of them as columns, those m features
        that move `(m, P)`, and the splines' raw parameters `(3k + 1, m, P)`."""
        check_event(x, self.features, self.last.weight.dtype, name=name)
        conditions = []
        if context is not None:
            x, context = spread(x, context)
            conditions = [context.reshape(-1, self.context_features)]
        points = x.reshape(-1, self.features)
        if self._halves:
            seen, moved = points.split([len(self.kept), len(self.place)], dim=-1)
        else:
            seen, moved = points[:, self.kept], points[:, self.place]
        if self._seen[1]:
            line, circle = seen.split(self._seen, dim=-1)
            seen = torch.cat([line, circle.cos(), circle.sin()], -1)
        hidden = self.hidden(torch.cat([seen, *conditions], -1) if conditions else seen)
        raw = torch.addmm(self.last.bias[:, None], self.last.weight, hidden.mT)
        return x, moved.mT, raw.unflatten(0, (3 * self.bins + 1, -1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._read_structure()

    def _read_structure(self) -> None:
        """Whether angles move, and whether what moves are the last features in order: looked at once, on the host."""
        self._circular, self._halves = True, False
        if not self.angle.is_meta:
            self._circular = bool(self.angle.any())
            self._halves = [*self.kept.tolist(), *self.place.tolist()] == list(range(self.features))

    def _outputs(self, x: Tensor, moved: Tensor) -> Tensor:
        moved = moved.mT.reshape(*x.shape[:-1], len(self.place))
        if self._halves:
            return torch.cat([x[..., : len(self.kept)], moved], -1)
        return x.index_copy(-1, self.place, moved)

    def extra_repr(self) -> str:
        context = shown(self.context_features)
        return f"features={self.features}, moved={self.place.tolist()}, bins={self.bins}{context}"
