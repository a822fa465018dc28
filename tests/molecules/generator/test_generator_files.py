"""Generators in files: back to the bit, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.molecules.generator.small import frames, same, small, stirred
from tests.molecules.systems import system_of

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.molecules import BoltzmannGenerator, MolecularSystem


def made(model: str = "spline-p4inv") -> BoltzmannGenerator:
    return stirred(BoltzmannGenerator.create(system_of(), frames(), model=model))


@pytest.mark.parametrize("model", ["rnvp", "p4inv", "p4inv-rank2", "spline-p4inv"])
def test_a_generator_comes_back_to_the_bit(tmp_path: Path, model: str) -> None:
    generator = made(model)
    generator.fit_likelihood(frames(), steps=3, batch=16, merge_every=2)  # merged, and in between two merges
    generator.save(tmp_path / "g.safetensors")
    before = torch.get_rng_state()
    loaded = BoltzmannGenerator.load(tmp_path / "g.safetensors", system_of())
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.model == model and same(loaded, generator)
    with torch.no_grad():
        assert torch.equal(loaded.log_prob(frames()[:20]), generator.log_prob(frames()[:20]))
    one, other = (g.sample(20, torch.Generator().manual_seed(0)) for g in (generator, loaded))
    assert torch.equal(one.frames, other.frames) and torch.equal(one.log_weights, other.log_weights)
    loaded.fit_likelihood(frames(), steps=2, batch=16)  # it trains on


def test_a_generator_of_another_molecule_or_temperature_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    made("spline").save(path)
    with pytest.raises(CheckpointError, match=r"of MolecularSystem.*temperature: expected '310.0', got '300.0'"):
        BoltzmannGenerator.load(path, MolecularSystem.alanine_dipeptide(310.0))
    for other in (system_of(forcefield="amber96, obc1"), system_of("cysteine-dipeptide")):
        with pytest.raises(CheckpointError, match=rf"fingerprint: expected '{other.fingerprint}', got '"):
            BoltzmannGenerator.load(path, other)


def test_what_is_no_generator_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    with pytest.raises(CheckpointError, match="must be a generator's safetensors file"):
        BoltzmannGenerator.load(path, system_of())
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(CheckpointError, match="must be a generator's safetensors file"):
        BoltzmannGenerator.load(path, system_of())
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="without its metadata"):
        BoltzmannGenerator.load(path, system_of())
    whole = tmp_path / "whole.safetensors"
    made("spline").save(whole)
    path.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="must be a generator's safetensors file"):
        BoltzmannGenerator.load(path, system_of())


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    made("spline").save(path)
    whole = path.read_bytes()
    for place in (len(whole) - 3, len(whole) // 2, whole.index(b"temperature") + 15):
        broken = bytearray(whole)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"g.safetensors` must"):
            BoltzmannGenerator.load(path, system_of())


@pytest.mark.parametrize("part", ["flow", "coordinates"])
def test_missing_tensors_are_named(tmp_path: Path, part: str) -> None:
    path = tmp_path / "g.safetensors"
    made("spline").save(path)
    with safe_open(path, "pt") as file:
        said = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    gone = next(name for name in tensors if name.startswith(f"{part}."))
    del tensors[gone], said["sha256"]  # earlier versions left no digest
    save_file(tensors, path, said)
    name = gone.partition(".")[2]
    with pytest.raises(CheckpointError, match=f"must be a whole generator of model 'spline': (.|\n)*{name}"):
        BoltzmannGenerator.load(path, system_of())


def test_a_flow_of_ones_own_is_not_found_by_name(tmp_path: Path) -> None:
    generator = small()  # two couplings, which no name stands for
    generator.model = "mine"
    generator.save(tmp_path / "g.safetensors")
    with pytest.raises(CheckpointError, match="must be a generator of a known model, got 'mine'"):
        BoltzmannGenerator.load(tmp_path / "g.safetensors", system_of())


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`path` must be a file that can be written, got .*missing"):
        small().save(tmp_path / "missing" / "g.safetensors")
