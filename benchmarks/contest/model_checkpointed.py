"""Models with `torch.utils.checkpoint` inside, as in public reports of compiled steps that take more memory than eager.

Sizes are the caller's: those of the reports are for GPUs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Layers(nn.Module):
    """Product, layer norm and GELU, each such layer in a checkpoint: the reproducer of pytorch#120381."""

    def __init__(self, *, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of what the layers make of `x` (tokens, width)."""
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x.sum()


class TwoPasses(nn.Module):
    """Text goes through the same checkpointed blocks twice in one graph, the structure of pytorch#193193.

        tokens ─┬─► blocks ──────────────────────────► matched with its image ─┐
                └─► blocks that look at the image ───► next tokens ────────────┴─► loss

    So are CoCa (Yu et al., 2022, https://arxiv.org/abs/2205.01917) and MaMMUT (Kuo et al., 2023,
    https://arxiv.org/abs/2303.16839) trained.
    """

    def __init__(self, *, layers: int, width: int, heads: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor, next_tokens: Tensor, image: Tensor) -> Tensor:
        """The loss of tokens and the tokens that follow, both (batch, length), and images (batch, patches, width)."""
        text = F.normalize(self._through_blocks(tokens, None).mean(1), dim=-1)
        similarities = text @ F.normalize(image.mean(1), dim=-1).T
        matched = F.cross_entropy(similarities, torch.arange(len(similarities), device=similarities.device))
        logits = self.logits(self._through_blocks(tokens, image))
        return matched + F.cross_entropy(logits.flatten(0, 1), next_tokens.flatten())

    def _through_blocks(self, tokens: Tensor, image: Tensor | None) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, image, use_reentrant=False)
        return self.norm(x)


class _Block(nn.Module):
    """A transformer's layer that also attends to an image where there is one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention, self.cross_attention = _Attention(width, heads), _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, image: Tensor | None) -> Tensor:
        text = self.norms[0](x)
        x = x + self.attention(text, text, is_causal=True)
        if image is not None:
            x = x + self.cross_attention(self.norms[1](x), image, is_causal=False)
        return x + self.mlp(self.norms[2](x))


class _Attention(nn.Module):
    """Each place of `x` (batch, length, width) mixes those of `context` (batch, places, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_and_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, *, is_causal: bool) -> Tensor:
        key, value = self.key_and_value(context).chunk(2, dim=-1)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.query(x), key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        return self.output(mixed.transpose(1, 2).flatten(2))
