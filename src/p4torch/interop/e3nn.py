"""e3nn: its irreps as representations of O(3), for layers kept equivariant by `p4torch.LinearSubspace`.

Both have the same real spherical harmonics, y being the polar axis, and the same order of features.
"""

from __future__ import annotations

from typing import Any

from p4torch.errors import ArgumentError
from p4torch.interop._packages import needs
from p4torch.representations import Representation, o3 as of_degree

with needs("e3nn"):
    from e3nn.o3 import Irreps


def representation(irreps: Any) -> Representation:
    """O(3) on the features of irreps: `representation("2x0e + 1x1o")`, or of an `e3nn.o3.Irreps`.

    Raises:
        ArgumentError: for what e3nn does not read as irreps, or irreps without features.
    """
    try:
        known = Irreps(irreps)
    except (ValueError, TypeError, AttributeError) as error:
        raise ArgumentError.of("irreps", "irreps of e3nn, such as '2x0e + 1x1o'", repr(irreps)) from error
    parts = [multiplicity * of_degree(irrep.l, irrep.p) for multiplicity, irrep in known if multiplicity]
    if not parts:
        raise ArgumentError.of("irreps", "of one feature at least", repr(irreps))
    return sum(parts[1:], start=parts[0])
