"""The CustomGBForce forms that OpenMM's implicit-solvent XML files make: recognised by their expressions."""

from __future__ import annotations

import re

import openmm
import torch
from torch import Tensor

from p4torch.molecules.forces.born import PROBE, GeneralizedBorn

Numbers = dict[str, str]

_NUMBER = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"


def _pattern(expression: str) -> re.Pattern[str]:
    """A literal expression without blanks, where <name> stands for a number and <name*> for a polynomial."""
    pieces = []
    for literal, name, polynomial in re.findall(r"([^<]*)(?:<(\w+)(\*?)>)?", expression.replace(" ", "")):
        hole = r"[-+*^.\w]+" if polynomial else _NUMBER
        pieces.append(re.escape(literal) + (f"(?P<{name}>{hole})" if name else ""))
    return re.compile("".join(pieces))


_VDW = "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0)"
_LIMITS = "U=r+sr2;L=max(or1,D);D=abs(r-sr2)"
_INTEGRAL = _pattern(f"{_VDW};{_LIMITS}")
_INTEGRAL_NECKS = _pattern(
    "Ivdw+neckScale*Ineck;"
    "Ineck=step(radius1+radius2+neckCut-r)*getm0(radindex1,radindex2)"
    "/(1+100*(r-getd0(radindex1,radindex2))^2+0.3*1000000*(r-getd0(radindex1,radindex2))^6);"
    f"Ivdw={_VDW};{_LIMITS};radius1=or1+offset;radius2=or2+offset;neckScale=<scale>;neckCut=<cutoff>;offset=<offset>"
)
_BORN = _pattern("1/(1/or-tanh(<polynomial*>)/radius);psi=I*or;radius=or+offset;offset=<offset>")
_CONSTANTS = ";solventDielectric=<solvent>;soluteDielectric=<solute>;kappa=<kappa>;offset=<offset>"
_SELF = _pattern("-0.5*<coulomb>*(1/soluteDielectric-1/solventDielectric)*charge^2/B" + _CONSTANTS)
_SURFACE = _pattern(f"<surface>*(radius+{PROBE})^2*(radius/B)^6;radius=or+offset" + _CONSTANTS)
_PAIR = _pattern(
    "-<coulomb>*(1/soluteDielectric-1/solventDielectric)*charge1*charge2/f;f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"
    + _CONSTANTS
)
_ALPHA_BETA_GAMMA = "alpha*psi-beta*psi^2+gamma*psi^3"
_MONOMIAL = re.compile(rf"([-+]?)(?:({_NUMBER})\*)?psi(?:\^(\d))?")
_UNKNOWN = "its expressions are not those of OpenMM's implicit/obc1, obc2, gbn or gbn2 without salt"


class UnknownFormError(ValueError):
    """A CustomGBForce is of another form; says what is wrong with it."""


def read_custom_born(force: openmm.CustomGBForce) -> GeneralizedBorn:
    """The solvent that a CustomGBForce describes. Raises UnknownFormError if it cannot be told."""
    integral, born, alone, surface = _recognised(force)
    names = [force.getPerParticleParameterName(index) for index in range(force.getNumPerParticleParameters())]
    rows = [force.getParticleParameters(index) for index in range(force.getNumParticles())]
    columns = dict(zip(names, torch.tensor(rows, dtype=torch.float64).T, strict=True))
    if not {"charge", "or", "sr"} <= columns.keys():
        raise UnknownFormError(_UNKNOWN)
    offset = columns["or"]
    return GeneralizedBorn(
        charge=columns["charge"],
        radius=offset + float(born["offset"]),
        offset=offset,
        scaled=columns["sr"],
        polynomial=_polynomial(born["polynomial"], columns),
        coupling=float(alone["coulomb"]) * (1 / float(alone["solute"]) - 1 / float(alone["solvent"])),
        surface=float(surface["surface"]),
        engulfed=False,
        neck=_neck(force, columns, integral) if "scale" in integral else None,
    )


def _recognised(force: openmm.CustomGBForce) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """The numbers in the expressions for I, B, the self energy and the surface."""
    values = [force.getComputedValueParameters(index) for index in range(force.getNumComputedValues())]
    terms = [force.getEnergyTermParameters(index) for index in range(force.getNumEnergyTerms())]
    single, pair = openmm.CustomGBForce.SingleParticle, openmm.CustomGBForce.ParticlePairNoExclusions
    if [(name, kind) for name, _, kind in values] != [("I", pair), ("B", single)]:
        raise UnknownFormError(_UNKNOWN)
    if [kind for _, kind in terms] not in ([single, pair], [single, single, pair]) or force.getNumGlobalParameters():
        raise UnknownFormError(_UNKNOWN)
    integral, born = _numbers(values[0][1], _INTEGRAL, _INTEGRAL_NECKS), _numbers(values[1][1], _BORN)
    alone, paired = _numbers(terms[0][0], _SELF), _numbers(terms[-1][0], _PAIR)
    surface = _numbers(terms[1][0], _SURFACE) if len(terms) == 3 else {"surface": "0"}
    same = all(float(alone[name]) == float(paired[name]) for name in ("coulomb", "solute", "solvent"))
    if not same or float(alone["kappa"]) != 0:
        raise UnknownFormError(_UNKNOWN)
    return integral, born, alone, surface


def _numbers(expression: str, *patterns: re.Pattern[str]) -> Numbers:
    for pattern in patterns:
        match = pattern.fullmatch(expression.replace(" ", ""))
        if match:
            return match.groupdict()
    raise UnknownFormError(_UNKNOWN)


def _polynomial(text: str, columns: dict[str, Tensor]) -> Tensor:
    """α, β, γ `(3, atoms)` of αψ - βψ² + γψ³."""
    if text == _ALPHA_BETA_GAMMA:
        return torch.stack([columns[name] for name in ("alpha", "beta", "gamma")])
    if re.sub(_MONOMIAL, "", text):
        raise UnknownFormError(_UNKNOWN)
    coefficients = torch.zeros(4, dtype=torch.float64)
    for sign, number, power in _MONOMIAL.findall(text):
        if int(power or 1) > 3:
            raise UnknownFormError(_UNKNOWN)
        coefficients[int(power or 1)] += float(f"{sign}1") * float(number or 1)
    return (coefficients[1:] * torch.tensor([1.0, -1.0, 1.0]))[:, None].expand(-1, len(columns["charge"]))


def _neck(force: openmm.CustomGBForce, columns: dict[str, Tensor], integral: Numbers) -> Tensor:
    """Heights, places and cutoffs `(3, atoms, atoms)`."""
    tables = {}
    for index in range(force.getNumTabulatedFunctions()):
        function = force.getTabulatedFunction(index)
        if not isinstance(function, openmm.Discrete2DFunction):
            raise UnknownFormError("its neck tables are not of the type Discrete2DFunction")
        width, height, values = function.getFunctionParameters()
        tables[force.getTabulatedFunctionName(index)] = torch.tensor(values, dtype=torch.float64).view(height, width).T
    if not {"getm0", "getd0"} <= tables.keys():
        raise UnknownFormError("its neck tables getm0 and getd0 are missing")
    kind = columns["radindex"].round().long()
    radius = columns["or"] + float(integral["offset"])
    height = float(integral["scale"]) * tables["getm0"][kind[:, None], kind]
    place = tables["getd0"][kind[:, None], kind]
    return torch.stack([height, place, radius[:, None] + radius + float(integral["cutoff"])])
