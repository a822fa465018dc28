"""The language model of `examples.relora`: a decoder of bytes, pre-norm, with attention from `nn.Linear` layers.

Source: Vaswani et al. (2017), attention is all you need; Xiong et al. (2020), on layer normalization, for pre-norm.
"""

from __future__ import annotations

import hashlib
import platform
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Values of a byte, and the share of the text that is held out, at its end.
BYTES, HELD_OUT = 256, 0.1


class Block(nn.Module):
    """x + attention(norm(x)), then x + W₂ GELU(W₁ norm(x)). Six linear layers carry all that is low rank."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        query, key, value = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(-3, -2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class LanguageModel(nn.Module):
    """Logits `(m, t, 256)` of the next byte, from bytes `(m, t)`."""

    def __init__(self, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(BYTES, width), nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(x) + self.place[: x.shape[-1]])))

    def loss(self, x: Tensor) -> Tensor:
        """Nats a byte of windows `(m, t + 1)`, `(m,)`."""
        logits = self(x[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="none").view(len(x), -1).mean(-1)


class Text:
    """The topics of Python's own help, which ship with it, as bytes `(n,)`: train, and held out."""

    def __init__(self) -> None:
        content = "\n\n".join(topics[name] for name in sorted(topics)).encode()
        self.name = f"help topics of Python {platform.python_version()}"
        self.digest = hashlib.sha256(content).hexdigest()[:16]
        whole = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
        cut = int(len(whole) * (1 - HELD_OUT))
        self.train, self.held_out = whole[:cut], whole[cut:]

    def batch(self, count: int, context: int, generator: torch.Generator) -> Tensor:
        """Random windows of the training part, `(count, context + 1)`."""
        starts = torch.randint(len(self.train) - context, (count, 1), generator=generator)
        return self.train[starts + torch.arange(context + 1)]

    def windows(self, count: int, context: int) -> Tensor:
        """Windows of the held-out part, evenly spaced, `(count, context + 1)`."""
        starts = torch.linspace(0, len(self.held_out) - context - 1, count).long()[:, None]
        return self.held_out[starts + torch.arange(context + 1)]
