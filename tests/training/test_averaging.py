"""Averages over training: of weights that keep their property; torch's and Lightning's own are refused."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset

import p4torch as p4
from p4torch.flows import Chain, Flow, InvertibleLinear, StandardNormal, Swap, VolumePreserving
from p4torch.training import WeightAverage

#: Rounding of a mean of float64 tensors, and of projections.
ROUNDING = 1e-12
#: That of float32 ones.
SINGLE = 1e-5
DECAY = 0.9


def perturbed(property: Any = p4.Orthogonal, **options: Any) -> nn.Sequential:
    layer, last = nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    return p4.perturb(
        nn.Sequential(layer, nn.BatchNorm1d(4, dtype=torch.float64), last), "0.weight", property, **options
    )  # type: ignore[return-value]


def train(model: nn.Module, average: WeightAverage, steps: int = 20) -> list[Tensor]:
    """Noisy steps with merges; the weights of the first layer, after each."""
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler, seen = p4.MergeScheduler(model, optimizer, every=3), []
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(torch.randn(16, 4, dtype=torch.float64))
        (out * torch.randn_like(out)).sum().backward()
        optimizer.step()
        scheduler.step()
        average.update()
        seen.append(model[0].weight.detach().clone())  # type: ignore[index]
    return seen


def mean_of(seen: list[Tensor], decay: float | None) -> Tensor:
    """By its definition."""
    mean = seen[0]
    for index, value in enumerate(seen[1:], 2):
        mean = mean + (value - mean) * (1 / index if decay is None else 1 - decay)
    return mean


@pytest.mark.parametrize("decay", [None, DECAY])
def test_a_mean_of_rotations_is_projected_to_a_rotation(decay: float | None) -> None:
    model = perturbed()
    average = WeightAverage(model, decay)
    mean = mean_of(train(model, average), decay)
    before = copy.deepcopy(model.state_dict())
    result = average.finalized()
    assert not list(p4.sites(result)) and type(result[0]) is nn.Linear  # type: ignore[index]
    weight = result[0].weight.detach()  # type: ignore[index]
    left, _, right = torch.linalg.svd(mean)
    torch.testing.assert_close(weight, left @ right, rtol=0, atol=ROUNDING)  # the nearest rotation
    assert float((mean.mT @ mean - torch.eye(4, dtype=torch.float64)).abs().max()) > 1e-3  # which the mean is not
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


PROPERTIES: dict[str, Any] = {
    "invertible": partial(perturbed, p4.Invertible),
    "unit determinant": partial(perturbed, p4.UnitDeterminant, rank=1),
    "spectral bound": partial(perturbed, p4.SpectralBound, bound=1.0),
    "low rank": partial(perturbed, p4.LowRankUpdate, rank=2),
    "positive definite": partial(perturbed, p4.PositiveDefinite),
    "fixed singular values": partial(perturbed, p4.FixedSingularValues),
    "symplectic": partial(perturbed, p4.Symplectic),
    "symmetric": partial(perturbed, p4.LinearSubspace, kind="symmetric"),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_means_lie_in_their_sets(name: str) -> None:
    model = PROPERTIES[name]()
    average = WeightAverage(model, DECAY)
    seen = train(model, average)
    weight, mean = average.finalized()[0].weight.detach(), mean_of(seen, DECAY)  # type: ignore[index]
    (site,) = p4.sites(model)
    assert float(site.perturbation.defect(weight).max()) <= 1e-8
    if float(site.perturbation.defect(mean).max()) <= 1e-8:
        torch.testing.assert_close(weight, mean, rtol=0, atol=1e-8)
    nearest = (weight - mean).abs().max()
    assert float(nearest) < float((seen[-1] - mean).abs().max()) + 1e-8  # it is the mean, and not the last one


def test_plain_parameters_and_buffers() -> None:
    model = perturbed()
    average, seen = WeightAverage(model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(16, 4, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        average.update()
        seen.append(model[2].weight.detach().clone())
    result = average.finalized()
    torch.testing.assert_close(result[2].weight, torch.stack(seen).mean(0), rtol=0, atol=ROUNDING)  # type: ignore[index]
    assert torch.equal(result[1].running_mean, model[1].running_mean)  # type: ignore[index,arg-type]
    data = DataLoader(TensorDataset(torch.randn(64, 4, dtype=torch.float64)), batch_size=16)
    update_bn(data, result)
    assert not torch.equal(result[1].running_mean, model[1].running_mean)  # type: ignore[index,arg-type]
    assert all(value.requires_grad for value in result.parameters())


def test_densities_of_an_averaged_flow_are_those_of_its_weights() -> None:
    """Tensor by tensor, what is tracked would not follow."""
    torch.manual_seed(0)
    flow = Flow(Chain([InvertibleLinear(4, rank=2), Swap(4), InvertibleLinear(4)]), StandardNormal(4)).double()
    average = WeightAverage(flow, DECAY)
    optimizer = torch.optim.Adam(p4.parameter_groups(flow), lr=3e-2)
    scheduler, x = p4.MergeScheduler(flow, optimizer, every=3), torch.randn(64, 4, dtype=torch.float64)
    for _ in range(20):
        optimizer.zero_grad()
        (-flow.log_prob(x @ torch.diag(torch.arange(1.0, 5).double())).mean()).backward()
        optimizer.step()
        scheduler.step()
        average.update()
    result = average.finalized()
    z, logabsdet = result.bijection(x)  # type: ignore[operator]
    jacobian = torch.func.jacrev(lambda point: result.bijection(point)[0])(x[0])  # type: ignore[operator]
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(result.bijection.inverse(z)[0], x, rtol=0, atol=1e-9)  # type: ignore[operator]


def test_networks() -> None:
    network = p4.LipschitzNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double(), bound=3.0)
    average = WeightAverage(network, DECAY)
    optimizer = torch.optim.Adam(p4.parameter_groups(network), lr=3e-2)
    scheduler = p4.MergeScheduler(network, optimizer, every=3)
    for _ in range(20):
        optimizer.zero_grad()
        (network(torch.randn(8, 4, dtype=torch.float64)) * torch.randn(8, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
        average.update()
    plain = average.finalized()
    norms = [torch.linalg.matrix_norm(plain[index].weight, ord=2) for index in (0, 2)]  # type: ignore[index]
    assert float(norms[0] * norms[1]) <= 3.0

    flow = VolumePreserving(Chain([InvertibleLinear(3), InvertibleLinear(3)])).double()
    average = WeightAverage(flow)
    average.update()
    with torch.no_grad():
        for site in p4.sites(flow):
            for value in site.perturbation.parameters(recurse=False):
                value.add_(0.1 * torch.randn_like(value))
    average.update()
    logabsdet = average.finalized()(torch.randn(5, 3, dtype=torch.float64))[1]
    assert float(logabsdet.abs().max()) <= ROUNDING


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_wrappers_are_looked_through(wrap: Any) -> None:
    model = perturbed()
    average = WeightAverage(wrap(model))
    average.update()
    assert type(average.finalized()) is nn.Sequential and "0.weight" in average.means


def test_a_resume_goes_on() -> None:
    model = perturbed()
    average = WeightAverage(model, DECAY)
    train(model, average, 5)
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    resumed = WeightAverage(model, DECAY)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(model, average, 1)
    resumed.update()
    assert resumed.count == average.count == 6
    assert all(torch.equal(value, resumed.means[name]) for name, value in average.means.items())
    fresh = WeightAverage(model, DECAY)
    fresh.load_state_dict(WeightAverage(model, DECAY).state_dict())
    assert fresh.count == 0


def test_states_that_do_not_fit() -> None:
    average = WeightAverage(perturbed())
    average.update()
    state = average.state_dict()
    with pytest.raises(p4.CheckpointError, match=r"`decay` must be 0.5, got None"):
        WeightAverage(perturbed(), 0.5).load_state_dict(state)
    with pytest.raises(p4.CheckpointError, match=r"`means` must have `.*` of shape"):
        WeightAverage(nn.Linear(2, 2)).load_state_dict(state)
    with pytest.raises(p4.CheckpointError, match="must be of a WeightAverage, but lacks count, decay, means"):
        average.load_state_dict({})


def test_arguments() -> None:
    model = perturbed()
    for decay in (1.0, -0.1, True, "0.5"):
        with pytest.raises(p4.ArgumentError, match=r"`decay` must be None or a number from 0 to below 1"):
            WeightAverage(model, decay)  # type: ignore[arg-type]
    with pytest.raises(p4.ArgumentError, match=r"`model` must be an nn.Module"):
        WeightAverage(3)  # type: ignore[arg-type]
    with pytest.raises(p4.ArgumentError, match=r"`count` must be at least 1: call update\(\) first, got 0"):
        WeightAverage(model).finalized()


def test_a_spectrum_has_no_mean() -> None:
    layer = p4.perturb(nn.Linear(3, 3), "weight", p4.FixedSpectrum)
    average = WeightAverage(layer)
    average.update()
    with pytest.raises(p4.ArgumentError, match="no projection onto a similarity class"):
        average.finalized()


def test_views_and_tied_weights() -> None:
    model = nn.ModuleDict({"one": nn.Conv2d(2, 8, 2), "two": nn.Conv2d(2, 8, 2)})
    model["two"].weight = model["one"].weight
    p4.perturb(model, "one.weight", p4.Orthogonal)
    average = WeightAverage(model)
    for _ in range(2):
        with torch.no_grad():
            for site in p4.sites(model):
                for value in site.perturbation.parameters(recurse=False):
                    value.add_(torch.randn_like(value))
        average.update()
    result = average.finalized()
    assert result["one"].weight is result["two"].weight  # type: ignore[index]
    matrix = result["one"].weight.detach().flatten(1)  # type: ignore[index]
    torch.testing.assert_close(matrix.mT @ matrix, torch.eye(8), rtol=0, atol=SINGLE)


def test_a_singular_mean_is_refused() -> None:
    layer = p4.perturb(nn.Linear(2, 2), "weight", p4.Invertible)
    average = WeightAverage(layer)
    for sign in (1.0, -1.0):
        layer.weight = sign * torch.eye(2)
        average.update()
    with pytest.raises(p4.ArgumentError, match="nonsingular"):
        average.finalized()


# --- others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(DECAY)}, {"use_buffers": True}])
def test_averages_of_torch_are_refused(options: dict[str, Any]) -> None:
    model = perturbed()
    with pytest.raises(p4.ArgumentError, match=r"got one with a perturbed `weight` .*p4torch.training.WeightAverage"):
        AveragedModel(model, **options)
    plain = AveragedModel(p4.finalize(model), **options)
    plain.update_parameters(model)
    assert torch.equal(plain.module[0].weight, model[0].weight)  # type: ignore[union-attr,index]


class Own(AveragedModel):
    """A user's, that does otherwise."""

    def update_parameters(self, model: nn.Module) -> None:
        self.module.load_state_dict(model.state_dict())


def test_one_of_ones_own_is_not_refused() -> None:
    model = perturbed()
    own = Own(model)
    own.update_parameters(model)
    assert [site.name for site in p4.sites(own)] == ["0.weight"]


def test_an_average_that_nothing_could_see_is_noticed_when_it_is_finalized() -> None:
    """As of libraries that copy a model and write into the copy."""
    model = perturbed()
    average, other = copy.deepcopy(model), WeightAverage(model)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=2)
    for _ in range(20):
        optimizer.zero_grad()
        (model(torch.randn(16, 4, dtype=torch.float64)) * torch.randn(16, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 0.1)
    assert other.count == 0
    with pytest.warns(p4.PropertyWarning, match=r"base of `0.weight` does not lie in the set of Orthogonal"):
        p4.finalize(average)
    p4.finalize(model)


def test_with_lightning(tmp_path: Any) -> None:
    """The callback of the page on checkpoints, and Lightning's own, which is refused when training starts."""
    pl = pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging

    from p4torch.training import MergeCallback

    class Module(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = perturbed()

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return (self.model(batch[0]) * batch[1]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(p4.parameter_groups(self.model), lr=1e-2)

    class Averaging(pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.average, self.seen = WeightAverage(module, DECAY), 0

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            if trainer.global_step > self.seen:
                self.seen = trainer.global_step
                self.average.update()

    data = TensorDataset(torch.randn(32, 4, dtype=torch.float64), torch.randn(32, 2, dtype=torch.float64))
    options = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    averaging = Averaging()
    trainer = pl.Trainer(**options, accumulate_grad_batches=2, callbacks=[MergeCallback(every=3), averaging])
    trainer.fit(Module(), DataLoader(data, batch_size=4))
    assert averaging.average.count == 8
    weight = averaging.average.finalized().model[0].weight.detach()
    assert float((weight.mT @ weight - torch.eye(4, dtype=torch.float64)).abs().max()) <= ROUNDING
    for theirs in (WeightAveraging(), EMAWeightAveraging()):
        trainer = pl.Trainer(**options, callbacks=[theirs])
        with pytest.raises(p4.ArgumentError, match=r"p4torch.training.WeightAverage"):
            trainer.fit(Module(), DataLoader(data, batch_size=4))
