"""Random sequences of what users do with a perturbed layer, against an oracle in float64.

Whatever happens, the effective weight is what the oracle says, it has the property, and what is tracked beside it is
what LAPACK finds. `P4TORCH_FUZZ=10000 pytest tests/test_fuzz.py` is the long form.
"""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

import p4torch as p4

WIDTH, ROWS = 4, 6
#: Roundings of a few dozen operations on matrices of this size, in units of eps cond(W).
ROUNDINGS = 300

PROPERTIES: dict[str, Callable[..., Any]] = {
    "additive": partial(p4.Invertible, rank=1),
    "additive, rank 2": partial(p4.Invertible, rank=2, directions="gradient"),
    "exponential": partial(p4.Invertible, rank=1, form="exponential"),
    "blocks": partial(p4.Invertible, block=2),
    "triangular": partial(p4.Invertible, form="triangular"),
    "determinant 1": partial(p4.UnitDeterminant, rank=1),
    "orthogonal": partial(p4.Orthogonal, rank=1),
    "orthogonal blocks": partial(p4.Orthogonal, block=2),
    "whole rotation": p4.Orthogonal,
    "positive definite": partial(p4.PositiveDefinite, rank=1),
    "symplectic": partial(p4.Symplectic, rank=1),
    "low rank": partial(p4.LowRankUpdate, rank=1),
    "singular values": p4.FixedSingularValues,
    "norm": partial(p4.SpectralBound, bound=1.5),
}
TRACKED = (
    "additive",
    "exponential",
    "blocks",
    "triangular",
    "determinant 1",
    "orthogonal",
    "whole rotation",
    "positive",
)
DTYPES = (torch.float32, torch.float64)


class Layer(RuleBasedStateMachine):
    """A perturbed layer in a small network, with an optimizer and a schedule; `expected` is its weight in float64."""

    @initialize(
        name=st.sampled_from(sorted(PROPERTIES)),
        dtype=st.sampled_from(DTYPES),
        every=st.integers(1, 4),
        momentum=st.booleans(),
        optimizer_state=st.sampled_from(["reset_directions", "restart", "transport", "keep", "reset"]),
        seed=st.integers(0, 2**16),
    )
    def begin(self, name: str, dtype: torch.dtype, every: int, momentum: bool, optimizer_state: Any, seed: int) -> None:
        torch.manual_seed(seed)
        self.name, self.momentum, self.reference = name, momentum, 0
        self.options = {"every": every, "optimizer_state": optimizer_state, "correct_every": 3}
        self.model = self._made(self._element().to(dtype))
        self.optimizer, self.schedule = self._trainer(self.model)
        self.runs: nn.Module = self.model
        self.coarsest = dtype
        self._expect()

    # --- pieces -----------------------------------------------------------------------------------------------------

    def _element(self) -> Tensor:
        """A random element of S."""
        matrix = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))[0]
        matrix[:, 0] *= torch.linalg.det(matrix).sign()
        if self.name == "positive definite":
            return (matrix * torch.linspace(0.5, 2, WIDTH, dtype=torch.float64)) @ matrix.mT
        return torch.eye(WIDTH, dtype=torch.float64) if self.name == "symplectic" else matrix

    def _made(self, weight: Tensor) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)).to(weight.dtype)
        with torch.no_grad():
            model[0].weight.copy_(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", p4.ProjectionWarning)  # a rounded element
            p4.perturb(model, "0.weight", PROPERTIES[self.name])
        return model

    def _trainer(self, model: nn.Module) -> tuple[torch.optim.Optimizer, p4.MergeScheduler]:
        groups = p4.parameter_groups(model)
        adam = torch.optim.Adam(groups, lr=1e-2)
        optimizer = torch.optim.SGD(groups, lr=1e-2, momentum=0.9) if self.momentum else adam
        return optimizer, p4.MergeScheduler(model, optimizer, **self.options)

    @property
    def site(self) -> p4.Site:
        return next(iter(p4.sites(self.model)))

    @property
    def dtype(self) -> torch.dtype:
        return self.site.base.dtype

    def _oracle(self) -> Tensor:
        """R_B(A) in float64."""
        site = self.site
        b = {name: value.double() for name, value in site.perturbation.named_parameters()}
        with torch.no_grad():
            return torch.func.functional_call(copy.deepcopy(site.perturbation), b, (site.base.double(),))

    def _expect(self) -> None:
        self.expected = self._oracle()

    def _tolerance(self, dtype: torch.dtype | None = None) -> float:
        return ROUNDINGS * torch.finfo(dtype or self.coarsest).eps * float(torch.linalg.cond(self.expected))

    # --- what users do ----------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 5), micro=st.integers(1, 2))
    def train(self, steps: int, micro: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            for _ in range(micro):
                x = torch.randn(ROWS, WIDTH, dtype=self.dtype)
                self.runs(x).square().mean().backward()
                if micro == 2:
                    assert self.schedule.step() == []
            self.optimizer.step()
            for site in self.schedule.sites:
                site.perturbation.after_step()  # what the schedule does first; twice is as once
            self._expect()
            self.schedule.step()
            self.check()

    @rule(force=st.booleans())
    def merge(self, force: bool) -> None:
        p4.merge(self.model, force)

    @rule(new=st.booleans())
    def save_and_load(self, new: bool) -> None:
        file = io.BytesIO()
        states = (self.model.state_dict(), self.optimizer.state_dict(), self.schedule.state_dict())
        torch.save(states, file)
        file.seek(0)
        model, optimizer, schedule = torch.load(file, weights_only=True)
        if new and not self.site.is_frozen and self.model[0].bias.requires_grad:
            self.model = self.runs = self._made(self._element().to(self.dtype))
            self.optimizer, self.schedule = self._trainer(self.model)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.schedule.load_state_dict(schedule)

    @rule()
    def deep_copy(self) -> None:
        self.model, self.optimizer, self.schedule = copy.deepcopy((self.model, self.optimizer, self.schedule))
        self.runs = self.model

    @rule()
    def wrap(self) -> None:
        self.runs = nn.DataParallel(self.model)

    @rule(what=st.sampled_from(["layer", "bias", "everything"]), on=st.booleans())
    def freeze(self, what: str, on: bool) -> None:
        if what == "bias":
            self.model[0].bias.requires_grad_(on)
        else:
            (self.model[0] if what == "layer" else self.model).requires_grad_(on)
        self.model[2].requires_grad_(True)

    @rule()
    def finalize_and_perturb(self) -> None:
        dtype = self.dtype
        p4.finalize(self.model)
        plain = self.model[0]
        assert type(plain) is nn.Linear and isinstance(plain.weight, nn.Parameter)
        torch.testing.assert_close(plain.weight.double(), self.expected, rtol=0, atol=self._tolerance(dtype))
        self.model.requires_grad_(True)
        self.model = self.runs = self._made(plain.weight.detach())
        self.optimizer, self.schedule = self._trainer(self.model)
        if self.name == "norm":  # perturb projects what is above the bound
            self._expect()

    @rule(inside=st.booleans())
    def assign(self, inside: bool) -> None:
        value = self._element() if inside else self._element() + 0.1 * torch.randn(WIDTH, WIDTH, dtype=torch.float64)
        if self.name == "positive definite":
            value = (value + value.mT) / 2
        if self.name == "determinant 1" and torch.linalg.det(value) < 0:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", p4.ProjectionWarning)
            self.model[0].weight = value.to(self.dtype)
        self._expect()
        if inside:
            torch.testing.assert_close(self.expected, value, rtol=0, atol=self._tolerance())

    @precondition(lambda self: not self.momentum)
    @rule(dtype=st.sampled_from(DTYPES))
    def move(self, dtype: torch.dtype) -> None:
        self.model.to(dtype).requires_grad_(True)
        self.coarsest = max(
            dtype, self.coarsest, key=lambda kind: torch.finfo(kind).eps
        )  # what was rounded once stays so
        self._expect()
        self.optimizer, self.schedule = self._trainer(self.model)

    # --- what holds always --------------------------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        site, expected, tolerance = self.site, self.expected, self._tolerance()
        perturbation, base = site.perturbation, site.base
        with torch.no_grad():
            layer, x = self.model[0], torch.randn(3, WIDTH, dtype=self.dtype)
            close = partial(torch.testing.assert_close, rtol=0)
            close(layer.weight.double(), expected, atol=tolerance)
            close(layer(x).double(), x.double() @ expected.mT + layer.bias.double(), atol=4 * tolerance)
            if self.name != "norm":  # between merges it is the step that keeps the bound
                assert float(perturbation.defect(layer.weight)) <= 4 * tolerance
            if self.name.startswith(TRACKED):
                close(perturbation.inverse(base).double() @ expected, torch.eye(WIDTH).double(), atol=4 * tolerance)
                sign, logabsdet = torch.linalg.slogdet(expected)
                close(perturbation.logabsdet(base).double(), logabsdet, atol=tolerance)
                assert float(perturbation.sign(base)) == float(sign)
        assert not base.requires_grad and (base.grad is None or not self.schedule)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::p4torch.StallWarning")
def test_sequences_of_what_users_do() -> None:
    examples = int(os.environ.get("P4TORCH_FUZZ", "300"))
    Layer.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=12,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
        report_multiple_bugs=False,
    )
    Layer.TestCase().runTest()
