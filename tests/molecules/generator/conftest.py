"""Trainings that tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.molecules.generator.small import small, training

from p4torch.molecules import BoltzmannGenerator


@pytest.fixture(scope="session")
def whole(
    one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[BoltzmannGenerator, Path]]:
    """Trainings of both phases that nobody stops, by model."""
    made: dict[str, tuple[BoltzmannGenerator, Path]] = {}

    def of(model: str) -> tuple[BoltzmannGenerator, Path]:
        if model not in made:
            made[model] = small(model), tmp_path_factory.mktemp(model)
            assert training(*made[model]).fit()
        return made[model]

    return of
