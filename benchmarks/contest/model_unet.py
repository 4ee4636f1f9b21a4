"""A U-Net as diffusion models use it: GroupNorm and SiLU before each convolution, skips across the valley, MSE loss.

    image ─► down ─► down ─► ... ─► middle ─► ... ─► up ─► up ─► predicted noise
               └──────┴────────── skips ──────────────┴─────┘

Each block keeps its own residual, and each way up is joined with what the way down left at its size (Ronneberger et
al., 2015, https://arxiv.org/abs/1505.04597; blocks as in Ho et al., 2020, https://arxiv.org/abs/2006.11239, without
attention and without time embedding). Skips are what makes it a hard case: they live across the whole valley.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 4


class ResidualBlock(nn.Module):
    """Two convolutions, added to the input."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(_GROUPS, channels)
        self.first = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.second_norm = nn.GroupNorm(_GROUPS, out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.silu(self.first_norm(x)))
        y = self.second(F.silu(self.second_norm(y)))
        return y + self.shortcut(x)


class UNet(nn.Module):
    """Maps noisy images and the noise in them, both (batch, 3, height, width), to the mean squared error.

    Height and width are multiples of 2 to the power of `len(widths) - 1`.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(ResidualBlock(i, o) for i, o in zip((widths[0], *widths), widths, strict=False))
        self.middle = ResidualBlock(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            ResidualBlock(i + o, o) for i, o in zip((widths[-1], *reversed(widths)), reversed(widths), strict=False)
        )
        self.head_norm = nn.GroupNorm(_GROUPS, widths[0])
        self.head = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The loss, a scalar."""
        x = self.stem(images)
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.avg_pool2d(x, 2))
            skips.append(x)
        x = self.middle(x)
        for i, block in enumerate(self.up):
            x = x if i == 0 else F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat((x, skips.pop()), dim=1))
        return F.mse_loss(self.head(F.silu(self.head_norm(x))), noise)

    def blocks(self) -> list[nn.Module]:
        """The residual blocks in the order they run."""
        return [*self.down, self.middle, *self.up]
