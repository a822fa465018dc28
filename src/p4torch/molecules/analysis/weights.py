"""Importance weights and what they are worth: effective sample sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.inputs import log_series, normalize_weights, refuse, same_length, series, share_of


@dataclass(frozen=True)
class WeightSummary:
    """What importance weights are worth; effective sizes are shares of the number of samples, in (0, 1]."""

    samples: int
    raw: float
    clipped: float
    clipped_share: float
    clipped_count: int
    largest_share: float


def log_importance_weights(log_target: Tensor, log_proposal: Tensor) -> Tensor:
    """log wᵢ = log p(xᵢ) − log q(xᵢ), `(samples,)`, of samples xᵢ ~ q; both up to a constant.

    For a Boltzmann distribution log p = −U / kT. A target of −∞ (an infinite energy) gives weight 0.

    Raises:
        ArgumentError: empty, of different lengths, NaN or +∞ in the target, anything not finite in the proposal.
    """
    log_target = log_series(log_target, "log_target", zero=-math.inf)
    log_proposal = series(log_proposal, "log_proposal")
    same_length(log_proposal, log_target, "log_proposal")
    return log_target - log_proposal


def normalized_weights(log_weights: Tensor) -> Tensor:
    """wᵢ / Σ w, `(samples,)`, without overflow: what all functions of the analysis take as `weights`."""
    return _checked(log_weights).softmax(0)


def effective_sample_size(log_weights: Tensor) -> float:
    """(Σ w)² / (n Σ w²), Kish's effective sample size as a share of the n samples: 1 for equal weights, at least 1/n.

    Source: Kish, Survey Sampling (1965). For x ~ q and w = p/q it tends to (E_q w)² / E_q w².
    """
    log_weights = _checked(log_weights)
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()) / len(log_weights)


def clipped_count(samples: int, share: float = 1e-4) -> int:
    """How many of the largest weights are clipped: the share rounded up, so at least 1, but never all of them."""
    return min(math.ceil(share_of(share, "share") * samples - _ROUNDING), samples - 1)


def clip_log_weights(log_weights: Tensor, share: float = 1e-4) -> Tensor:
    """The largest `clipped_count` weights lowered to the largest one of the others.

    Clipping trades variance for bias: say the share beside every number made with it.
    """
    log_weights = _checked(log_weights)
    count = clipped_count(len(log_weights), share)
    if _above_zero(log_weights) <= count:
        raise ArgumentError.of("log_weights", f"finite in more than the {count} that are clipped", "no others")
    return _clipped(log_weights, count)


def largest_weight_share(log_weights: Tensor) -> float:
    """max w / Σ w: near 1, a single sample decides every average."""
    return float(normalized_weights(log_weights).max())


def forward_effective_sample_size(
    log_weights: Tensor, weights: Tensor | None = None, sample_log_weights: Tensor | None = None
) -> float:
    """The effective sample size of a proposal q, as a share, from frames of the target p: 1 / (E_p[w] E_p[1/w]).

    Let p = p̃/Z and w = p̃/q, known up to a constant. Then E_q[w] = Z, E_q[w²] = ∫ p̃²/q = Z E_p[w], and
    E_p[1/w] = ∫ p q/p̃ = 1/Z wherever p > 0 on all that q reaches. So (E_q w)² / E_q w² = Z / E_p[w]
    = 1 / (E_p[w] E_p[1/w]), at most 1 by Cauchy–Schwarz. It sees the modes of p that q misses, which no number of
    samples of q shows. Frames that the model was trained on flatter it: take held-out ones.

    E_p[1/w] is a harmonic mean: what q puts where no frame lies is missing from it, and its variance is infinite for
    a q much broader than p (for Gaussians, of twice the variance). The result is then too large. With weights of
    samples of q, Z = E_q[w] comes from them instead, and both faults are gone.

    Args:
        log_weights: log p̃(xᵢ) − log q(xᵢ) at frames xᵢ, `(frames,)`, finite.
        weights: the frames' own weights, if they are of p only after reweighting.
        sample_log_weights: the same difference, constants included, at samples of q, `(samples,)`.
    """
    log_weights = series(log_weights, "log_weights")
    log_frames = normalize_weights(weights, log_weights).log()
    log_mean = (log_frames + log_weights).logsumexp(0)
    if sample_log_weights is None:
        log_partition = -(log_frames - log_weights).logsumexp(0)
    else:
        samples = _checked(sample_log_weights, "sample_log_weights")
        log_partition = samples.logsumexp(0) - math.log(len(samples))
    return float((log_partition - log_mean).exp())


def effective_sample_size_growth(log_weights: Tensor, sizes: Tensor) -> Tensor:
    """(Σ w)² / Σ w² of the first n samples, for each n in `sizes` `(k,)`; a number of samples, not a share.

    It grows like n if the proposal covers the target, and falls back at each sample that outweighs all before it if
    it does not.

    Raises:
        ArgumentError: sizes that are not integers in 1 ... samples, or unusable log-weights.
    """
    log_weights = _checked(log_weights)
    if sizes.is_floating_point() or sizes.dim() != 1:
        raise ArgumentError.of("sizes", "integers of shape (k,)", f"{sizes.dtype} of {tuple(sizes.shape)}")
    refuse((sizes < 1) | (sizes > len(log_weights)), "sizes", f"in 1 ... {len(log_weights)}", "not")
    growth = 2 * log_weights.logcumsumexp(0) - (2 * log_weights).logcumsumexp(0)
    return growth.exp().nan_to_num(nan=0.0)[sizes - 1]


def summarize_weights(log_weights: Tensor, share: float = 1e-4) -> WeightSummary:
    """Effective sample sizes raw and clipped (`share` of the samples, at least 1), and the largest weight's share.

    Of the weights above zero, one is never clipped.
    """
    log_weights = _checked(log_weights)
    count = min(clipped_count(len(log_weights), share), _above_zero(log_weights) - 1)
    clipped = _clipped(log_weights, count)
    return WeightSummary(
        samples=len(clipped),
        raw=effective_sample_size(log_weights),
        clipped=effective_sample_size(clipped),
        clipped_share=share,
        clipped_count=count,
        largest_share=largest_weight_share(log_weights),
    )


def _clipped(log_weights: Tensor, count: int) -> Tensor:
    return log_weights.clamp(max=log_weights.topk(count + 1).values[-1])


def _above_zero(log_weights: Tensor) -> int:
    return int((log_weights > -math.inf).sum())


_ROUNDING = 1e-9  # 1e-4 of 600,000 is 60.00000000000001 in floating point, and 60 is meant


def _checked(log_weights: Tensor, name: str = "log_weights") -> Tensor:
    log_weights = log_series(log_weights, name, zero=-math.inf)
    if not bool((log_weights > -math.inf).any()):
        raise ArgumentError.of(name, "finite somewhere", "−∞ everywhere: all weights are zero")
    return log_weights
