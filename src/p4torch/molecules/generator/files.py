"""Generators in files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from p4torch.core.identity import identities
from p4torch.errors import ArgumentError, CheckpointError
from p4torch.flows import Flow
from p4torch.flows.structure import with_structure
from p4torch.molecules.generator.architectures import architecture, seeded
from p4torch.molecules.generator.molecular_flow import MolecularFlow
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.zmatrix import ZMatrix
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.digest import digest
from p4torch.runs.folder import differences

_KIND = "p4torch Boltzmann generator"


def save_generator(generator: MolecularFlow, path: Path) -> None:
    """Tensors of flow and coordinates; model, molecule and z-matrix as metadata."""
    parts = {"flow": generator.flow, "coordinates": generator.coordinates}
    tensors = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    zmatrix = generator.coordinates.zmatrix
    said = {**_identity(generator.system), "model": generator.model, "atoms": str(generator.system.atoms)}
    said["zmatrix"] = json.dumps({"block": zmatrix.block, "rows": zmatrix.rows})
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    said["sha256"] = digest([*sorted(said.items()), *sorted(copies.items())])
    try:
        write_whole(path, lambda temporary: save_file(copies, temporary, said))
    except (OSError, SafetensorError) as error:
        raise ArgumentError.of("path", "a file that can be written", f"{path} ({error})") from error


def load_parts(path: Path, system: MolecularSystem) -> tuple[MixedCoordinates, Flow, str]:
    """Coordinates, flow and model of the generator in a file.

    Raises CheckpointError unless the file is a generator of this molecule, force field and temperature.
    """
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"`{path}` must be a generator's safetensors file: {error}") from error
    if said.get("kind") != _KIND:
        raise CheckpointError(f"`{path}` must be a generator's safetensors file, got one without its metadata")
    saved = said.pop("sha256", None)  # which earlier versions left out
    if saved is not None and saved != digest([*sorted(said.items()), *sorted(tensors.items())]):
        raise CheckpointError(f"`{path}` must hold what was saved, got other bits: the file is damaged, use another")
    wrong = differences(_identity(system), {name: said.get(name) for name in _identity(system)})
    if wrong:
        raise CheckpointError(f"`{path}` must be of {system!r}: {wrong}")
    try:
        kind = architecture(said["model"])
    except ArgumentError as error:
        raise CheckpointError(f"`{path}` must be a generator of a known model, got {said['model']!r}") from error
    zmatrix = json.loads(said["zmatrix"])
    coordinates = MixedCoordinates(
        ZMatrix(tuple(zmatrix["block"]), tuple(tuple(row) for row in zmatrix["rows"])), torsions=kind.torsions
    )
    flow = seeded(lambda: kind.build(coordinates.layout), 0)
    for part, module in (("flow", flow), ("coordinates", coordinates)):
        state = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{part}.")}
        try:
            module.load_state_dict({**identities(module), **with_structure(module, state)})  # the model is known
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"`{path}` must be a whole generator of model {said['model']!r}: {error}") from error
    return coordinates, flow, said["model"]


def _identity(system: MolecularSystem) -> dict[str, str]:
    return {"kind": _KIND, "fingerprint": system.fingerprint, "temperature": repr(float(system.temperature))}
