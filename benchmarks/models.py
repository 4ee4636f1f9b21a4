"""A Llama-style language model small enough to read and to train on a laptop, with its loss inside.

    tokens ─► embedding ─► [ x + attention(norm x) ─► x + feed_forward(norm x) ] × layers ─► norm ─► logits ─► loss

RMSNorm, rotary position embeddings, causal attention through `scaled_dot_product_attention`, SwiGLU, no biases: the
parts and the order of Llama (Touvron et al., 2023, https://arxiv.org/abs/2302.13971), without grouped-query attention.
The loss is computed inside the module, so that one compiled graph holds the whole of forward and one the whole of
backward: that is what a memory budget is given to.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of a model; `width` must be a multiple of `2 * heads`."""

    vocabulary: int = 256
    layers: int = 8
    width: int = 320
    hidden: int = 896
    heads: int = 5
    context: int = 512
    dropout: float = 0.0


class Llama(nn.Module):
    """Maps tokens (batch, length) and the tokens that follow them, both int64, to the mean cross entropy in nats."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.logits = nn.Linear(config.width, config.vocabulary, bias=False)
        cosine, sine = _rotations(config.context, config.width // config.heads)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self.apply(_initialise)

    def forward(self, tokens: Tensor, next_tokens: Tensor) -> Tensor:
        """The loss, a scalar; `length` is at most `config.context`."""
        length = tokens.shape[1]
        cosine, sine = self.cosine[:length], self.sine[:length]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cosine, sine)
        logits = self.logits(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), next_tokens.flatten())

    def parameter_count(self) -> int:
        """Numbers that training changes."""
        return sum(parameter.numel() for parameter in self.parameters())


class Block(nn.Module):
    """One layer: attention mixes positions, the feed-forward network mixes channels, each added to its input."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    """Causal self-attention over `heads` slices of the channels."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        query, key, value = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(
            _rotate(query, cosine, sine), _rotate(key, cosine, sine), value, is_causal=True
        )
        return self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU: one projection gates the other (Shazeer, 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


def _rotations(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (context, head_width) of the rotary embedding (Su et al., https://arxiv.org/abs/2104.09864)."""
    frequencies = 10_000.0 ** (-torch.arange(0, head_width, 2) / head_width)
    angles = torch.outer(torch.arange(context), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of channels of `x` (batch, heads, length, head_width) by the angle of its position."""
    left, right = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-right, left), dim=-1) * sine


def _initialise(module: nn.Module) -> None:
    """Small normal weights, as GPT-2 and Llama start from."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
