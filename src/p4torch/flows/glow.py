"""Glow: flows of images, in one line."""

from __future__ import annotations

from typing import Any

from p4torch._options import check_integer
from p4torch.flows.bijection import Bijection, Chain
from p4torch.flows.flow import Flow, StandardNormal
from p4torch.flows.image_coupling import ConvCoupling
from p4torch.flows.images import ActNorm2d, InvertibleConv1x1
from p4torch.flows.multiscale import Multiscale, check_image_size, level_shapes


class Glow(Flow):
    """A flow of images `(B, C, H, W)`, whose 1 x 1 convolutions are P4's: `log_prob(x)` is `(B,)`.

    `depth` steps on each of some levels: `ActNorm2d`, `InvertibleConv1x1`, `ConvCoupling`. Half of the channels leaves
    after each level, see `Multiscale`; another coupling scales and shifts them as the half that stays tells.

        flow = p4.flows.Glow(3, 32, 32, levels=3, depth=8, hidden=128)
        p4.flows.fit_actnorm(flow, images)      # a batch of the data, once: trains faster
        p4.MergeScheduler(flow, optimizer)      # merges the 1 x 1 convolutions

    Args:
        channels, height, width: C, H and W.
        levels: H and W must be divisible by 2^levels.
        depth: steps on each level.
        hidden: channels inside the couplings' networks.
        options: of `InvertibleConv1x1`; `init="orthogonal"` and `bias=False` by default: shifts are those of
            `ActNorm2d`.

    Raises:
        ArgumentError: for sizes out of range, or that cannot be halved so often.

    Source: Kingma and Dhariwal (2018), Glow: generative flow with invertible 1 x 1 convolutions.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        levels: int = 2,
        depth: int = 4,
        hidden: int = 64,
        **options: Any,
    ) -> None:
        levels, depth = check_integer("levels", levels, 1), check_integer("depth", depth, 1)
        check_image_size(channels, height, width, levels)
        options = {"init": "orthogonal", "bias": False, **options}
        made = []
        for level, (count, _, _) in enumerate(level_shapes(channels, height, width, levels)):
            steps: list[Bijection] = []
            for _ in range(depth):
                steps += [ActNorm2d(count), InvertibleConv1x1(count, **options), ConvCoupling(count, hidden)]
            if level + 1 < levels:
                steps.append(ConvCoupling(count, hidden))
            made.append(Chain(steps))
        super().__init__(Multiscale(channels, height, width, made), StandardNormal(channels * height * width))
