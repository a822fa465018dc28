"""A schedule of which nothing trains says so when it is made; one that pauses rests in silence."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.layers import layer_of
from torch import nn

import p4torch as p4


def step(layer: nn.Module, scheduler: p4.MergeScheduler) -> None:
    scheduler.optimizer.zero_grad()
    if any(value.requires_grad for value in layer.parameters()):
        layer(torch.randn(4, 3)).square().mean().backward()
    scheduler.optimizer.step()
    scheduler.step()


def test_a_schedule_of_frozen_sites_warns_when_it_is_made() -> None:
    model = nn.Sequential(layer_of(), layer_of())
    for site in p4.sites(model):
        site.perturbation.requires_grad_(False)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    with pytest.warns(p4.StallWarning, match=r"`0\.weight`: it is frozen, and so are all perturbations") as got:
        scheduler = p4.MergeScheduler(model, optimizer, every=1)
        for _ in range(3):
            step(model, scheduler)
    assert len(got) == 1 and scheduler.merged == 0 and not scheduler.reports


def test_a_schedule_whose_sites_are_frozen_before_the_first_merge_warns_there() -> None:
    layer = layer_of()
    scheduler = p4.MergeScheduler(layer, torch.optim.SGD(layer.parameters(), lr=0.1), every=2)
    layer.requires_grad_(False)
    step(layer, scheduler)
    with pytest.warns(p4.StallWarning, match="none of them trains, and nothing is merged"):
        step(layer, scheduler)


def test_a_pause_and_a_part_that_is_frozen_are_silent() -> None:
    layer, model = layer_of(), nn.Sequential(layer_of(), layer_of().requires_grad_(False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = p4.MergeScheduler(layer, torch.optim.SGD(layer.parameters(), lr=0.1), every=1)
        step(layer, scheduler)
        layer.requires_grad_(False)
        step(layer, scheduler)
        partly = p4.MergeScheduler(model, torch.optim.SGD(p4.parameter_groups(model), lr=0.1), every=1)
        step(model, partly)
    assert (scheduler.merged, partly.merged) == (1, 1)
