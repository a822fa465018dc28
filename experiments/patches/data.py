"""8 x 8 patches of scikit-learn's two photographs (427 x 640), as points in 63 dimensions.

A photograph in 256 grey levels is cut into tiles; whole tiles belong to training, validation or held-out data, and a
patch lies in one tile, so no pixel is in two of them. A patch g `(64,)` of grey levels becomes

    x = (g + u) / 256, u uniform in [0, 1)⁶⁴ (dequantisation),      y = s Qᵀ x,

where the columns of Q `(64, 63)` are an orthonormal basis of the complement of (1, ..., 1): the patch's mean is removed
and one dimension with it. The one factor s makes the mean variance of training data 1. Flows see y; log-densities are
told for Qᵀx, in nats a patch (pixels from 0 to 1): log p(Qᵀx) = log p(y) + 63 log s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from p4torch.parametrize.sites import counter_based_generator

#: Side of a patch, and what is left of its pixels without the mean.
SIDE, FEATURES = 8, 63
LEVELS = 256
#: Tiles of a photograph, rows and columns, and how many of them are for validation and how many are held out.
TILES, VALIDATION_TILES, TEST_TILES = (8, 12), 14, 14
#: Patches that are drawn of each validation and held-out tile.
TILE_POINTS = 200

_SPLIT_SEED = 2**31  # no training seed
_SCALE_POINTS = 200_000


@dataclass(frozen=True)
class Patches:
    """Grey levels of all training patches `(m, 64)`, of the other sets `(tiles, TILE_POINTS, 64)`, and Q and s."""

    training: Tensor
    levels: dict[str, Tensor]
    basis: Tensor
    scale: float

    def points(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        """y `(..., 63)` of grey levels `(..., 64)`, with new noise."""
        noise = torch.rand(levels.shape, generator=generator)
        return (levels + noise) @ (self.basis * (self.scale / LEVELS))

    def batches(self, seed: int, index: int, count: int, batch: int) -> Tensor:
        """`(count, batch, 63)`, a pure function of the seed and the index: all models see the same data."""
        generator = counter_based_generator(seed, "patches", index)
        chosen = torch.randint(len(self.training), (count, batch), generator=generator)
        return self.points(self.training[chosen], generator)

    def held_out(self, split: str) -> Tensor:
        """`(tiles, TILE_POINTS, 63)` of "validation" or "test", always the same."""
        return self.points(self.levels[split], counter_based_generator(_SPLIT_SEED, f"noise/{split}", 0))

    @property
    def unit(self) -> float:
        """63 log s, what is added to log p(y)."""
        return FEATURES * math.log(self.scale)


def bits_per_dimension(nats: float) -> float:
    """Of grey levels: -log₂ p / 63, where p is the density of 256 Qᵀx."""
    return math.log2(LEVELS) - nats / (FEATURES * math.log(2))


@lru_cache(maxsize=1)
def patches() -> Patches:
    """The data set, the same in every process."""
    generator = counter_based_generator(_SPLIT_SEED, "tiles", 0)
    sets: dict[str, list[Tensor]] = {"training": [], "validation": [], "test": []}
    for image in grey_images():
        tiles = tile_patches(image)
        order = torch.randperm(len(tiles), generator=generator).tolist()
        held = VALIDATION_TILES + TEST_TILES
        sets["training"].append(tiles[order[held:]].flatten(0, 1))
        for name, chosen in (("validation", order[:VALIDATION_TILES]), ("test", order[VALIDATION_TILES:held])):
            sets[name] += [tile[torch.randperm(len(tile), generator=generator)[:TILE_POINTS]] for tile in tiles[chosen]]
    training, basis = torch.cat(sets["training"]), mean_free_basis(SIDE**2)
    unscaled = Patches(training, {name: torch.stack(sets[name]) for name in ("validation", "test")}, basis, 1.0)
    some = unscaled.points(training[torch.randint(len(training), (_SCALE_POINTS,), generator=generator)], generator)
    variance = some.double().var(0).mean()
    return Patches(training, unscaled.levels, basis, float(variance.rsqrt()))


def grey_images() -> list[Tensor]:
    """The photographs as grey levels `(427, 640)`, 0 to 255: 0.299 R + 0.587 G + 0.114 B, rounded (ITU-R BT.601)."""
    from sklearn.datasets import load_sample_images

    weights = torch.tensor([0.299, 0.587, 0.114])
    images = load_sample_images().images
    return [(torch.tensor(image, dtype=torch.float32) @ weights).round().to(torch.uint8) for image in images]


def tile_patches(image: Tensor) -> Tensor:
    """All patches of each tile of an image, `(tiles, patches, 64)`."""
    height, width = (size // count for size, count in zip(image.shape, TILES, strict=True))
    tiles = image.unfold(0, height, height).unfold(1, width, width).flatten(0, 1)
    return tiles.unfold(1, SIDE, 1).unfold(2, SIDE, 1).flatten(1, 2).flatten(2)


def mean_free_basis(size: int) -> Tensor:
    """Orthonormal columns `(size, size - 1)`, all orthogonal to (1, ..., 1) (Helmert's matrix, transposed)."""
    below = torch.arange(size).unsqueeze(1)
    column = torch.arange(1, size, dtype=torch.float64)
    matrix = torch.where(below < column, 1.0, torch.where(below == column, -column, 0.0))
    return (matrix / (column * (column + 1)).sqrt()).float()
