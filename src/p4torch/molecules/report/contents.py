"""What stands on a page. Texts are plain: whatever looks like HTML in them is shown, not obeyed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.inputs import refuse, same_length, series
from p4torch.molecules.checks import check_shape

Verdict = Literal["good", "fair", "poor", "none"]

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Plot:
    """A figure, as the bytes of a PNG file.

    Raises:
        ArgumentError: the bytes are no PNG file.
    """

    title: str
    caption: str
    png: bytes

    def __post_init__(self) -> None:
        if not self.png.startswith(PNG):
            raise ArgumentError.of("png", "the bytes of a PNG file", f"{self.png[:8]!r}")

    @property
    def wide(self) -> bool:
        """Whether it takes the page's whole width: more than 1.8 times as wide as high."""
        width, height = (int.from_bytes(self.png[start : start + 4], "big") for start in (16, 20))
        return width > 1.8 * height


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row names it, columns of numbers are set flush right.

    Raises:
        ArgumentError: no columns, or a row that is not as long as the header.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.header:
            raise ArgumentError.of("header", "of at least one column", "none")
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ArgumentError.of(
                    "rows", f"of {len(self.header)} cells, as `header`", f"{len(row)} in row {number}"
                )


@dataclass(frozen=True)
class Finding:
    """A figure that says how far results can be trusted, its verdict, and what it means in words.

    Raises:
        ArgumentError: another verdict than the four.
    """

    name: str
    value: str
    verdict: Verdict
    words: str

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ArgumentError.of("verdict", f"one of {', '.join(get_args(Verdict))}", repr(self.verdict))


@dataclass(frozen=True, eq=False)
class Molecule:
    """Structures of one molecule, to be turned and leafed through.

    Attributes:
        symbols: the elements of the atoms.
        bonds: pairs of atoms, counted from 0.
        frames: `(k, atoms, 3)` in nm, anywhere in space.
        energies: `(k,)` in kT.

    Raises:
        ArgumentError: no atoms, no frames, shapes that do not fit, values that are not finite, bonds of other atoms.
    """

    symbols: tuple[str, ...]
    bonds: tuple[tuple[int, int], ...]
    frames: Tensor
    energies: Tensor

    def __post_init__(self) -> None:
        atoms = len(self.symbols)
        if not atoms:
            raise ArgumentError.of("symbols", "those of at least one atom", "none")
        check_shape(self.frames, atoms, "frames")
        if self.frames.dim() != 3 or not len(self.frames):
            raise ArgumentError.of("frames", f"of shape (k, {atoms}, 3) with k >= 1", tuple(self.frames.shape))
        refuse(~self.frames.isfinite().flatten(1).all(-1), "frames", "finite", "not finite")
        same_length(series(self.energies, "energies", 1), self.frames, "energies")
        for i, j in self.bonds:
            if not (0 <= i < atoms and 0 <= j < atoms and i != j):
                raise ArgumentError.of("bonds", f"pairs of different atoms, 0 to {atoms - 1}", (i, j))


@dataclass(frozen=True)
class Page:
    """All that a page says; sections without contents are left out.

    Attributes:
        headline: what all findings come to, in one line under the title.
        facts: names and values under the lead: what was done, with what, when.

    Raises:
        ArgumentError: no title.
    """

    title: str
    lead: str
    findings: tuple[Finding, ...]
    plots: tuple[Plot, ...]
    tables: tuple[Table, ...]
    molecule: Molecule | None
    footer: str
    headline: Finding | None = None
    facts: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise ArgumentError.of("title", "a text", repr(self.title))
