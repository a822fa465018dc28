"""Two-state Markov chains: free-energy difference, memory and the error of its estimate are known."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TwoStates:
    """Leaves state 0 with probability `up` and state 1 with `down` in each step."""

    up: float
    down: float

    @property
    def share(self) -> float:
        """The probability of state 1."""
        return self.up / (self.up + self.down)

    @property
    def difference(self) -> float:
        """−ln(P₁ / P₀) in kT."""
        return math.log(self.down / self.up)

    @property
    def inefficiency(self) -> float:
        """(1 + ρ) / (1 − ρ), with ρ = 1 − up − down."""
        return (2 - self.up - self.down) / (self.up + self.down)

    def error(self, frames: int) -> float:
        """The standard error of the difference: √(g P (1 − P) / n) / (P (1 − P))."""
        return math.sqrt(self.inefficiency / (frames * self.share * (1 - self.share)))

    def walk(self, frames: int, trajectories: int) -> Tensor:
        """`(trajectories, frames)` of 0 and 1, from the stationary distribution on."""
        state = torch.rand(trajectories) < self.share
        states = []
        for random in torch.rand(frames, trajectories):
            state = torch.where(state, random >= self.down, random < self.up)
            states.append(state)
        return torch.stack(states, -1).long()

    def angles(self, frames: int, trajectories: int) -> Tensor:
        """`(trajectories, frames)`: 1 rad in state 1, −1 in state 0."""
        return 2.0 * self.walk(frames, trajectories) - 1
