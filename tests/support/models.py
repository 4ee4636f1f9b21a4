"""The models every integration test trains: real architectures with random weights, small enough for two cores.

A `Case` builds a module whose forward contains the loss, so that no work is left outside of the compiled graphs.
`small` sizes are for gradients, `large` ones for peaks: there activations dwarf what autograd allocates on the side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaModel,
)
from transformers import LlamaConfig as HfLlamaConfig

from benchmarks.models import Llama, LlamaConfig


@dataclass(frozen=True, slots=True)
class Case:
    """How to build a model and a batch for it; both are the same at every call."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]


def tokens(vocabulary: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same weights at every call, whatever was drawn before."""

    def build_seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build()

    return build_seeded


class WithLoss(nn.Module):
    """A model and the function of its result that is the loss."""

    def __init__(self, model: nn.Module, loss: Callable[..., object]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, *inputs: Tensor) -> object:
        return self.loss(self.model, *inputs)


class Residual(nn.Module):
    """Two convolutions with BatchNorm, added to their input, as in ResNet (He et al., 2015)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        stride = 1 if channels == out_channels else 2
        self.first = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)), inplace=True)
        y = self.second_norm(self.second(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(
            Residual(width, width),
            Residual(width, width),
            Residual(width, 2 * width),
            Residual(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.blocks(self.stem(images)).mean(dim=(2, 3))
        return F.cross_entropy(self.head(features), labels)


class UNet(nn.Module):
    """Down, down, up, up, each way up joined with what the way down left at its size (Ronneberger et al., 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.outer = self._double(3, width)
        self.middle = self._double(width, 2 * width)
        self.inner = self._double(2 * width, 4 * width)
        self.up_middle = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join_middle = self._double(4 * width, 2 * width)
        self.up_outer = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join_outer = self._double(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    @staticmethod
    def _double(channels: int, out_channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, padding=1),
            nn.GroupNorm(4, out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.SiLU(),
        )

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        outer = self.outer(images)
        middle = self.middle(F.max_pool2d(outer, 2))
        inner = self.inner(F.max_pool2d(middle, 2))
        middle = self.join_middle(torch.cat((self.up_middle(inner), middle), dim=1))
        outer = self.join_outer(torch.cat((self.up_outer(middle), outer), dim=1))
        return F.binary_cross_entropy_with_logits(self.head(outer), masks)


def gpt2(layers: int, width: int, *, vocabulary: int = 512, dropout: float = 0.1) -> GPT2LMHeadModel:
    """Dropout is on, as in GPT-2's own configuration."""
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=4, n_positions=256, vocab_size=vocabulary, use_cache=False)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = dropout
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # Looked up by the class's source file otherwise, which Dynamo cannot trace.
    return model.train()


def bert(layers: int, width: int) -> BertForMaskedLM:
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=4,
        max_position_embeddings=256,
        vocab_size=512,
    )
    model = BertForMaskedLM(config)
    model.loss_type = "ForMaskedLM"
    return model.train()


def hf_llama(layers: int, width: int) -> LlamaModel:
    """The model of pytorch#197838, at other sizes."""
    config = HfLlamaConfig(
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=1000,
        use_cache=False,
    )
    return LlamaModel(config).train()


def causal_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss


def loss_and_logits(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Autograd fills the tangent of the logits with zeros where the loss alone is used."""
    output = model(input_ids=ids, labels=ids)
    return output.loss, output.logits


def hidden_sum(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids).last_hidden_state.sum()


def _images(batch: int, side: int) -> tuple[Tensor, Tensor]:
    return floats(batch, 3, side, side), tokens(10, batch)


def _masks(batch: int, side: int) -> tuple[Tensor, Tensor]:
    return floats(batch, 3, side, side), (floats(batch, 1, side, side, seed=1) > 0).float()


SMALL = {
    "llama": Case(
        seeded(lambda: Llama(LlamaConfig(vocabulary=64, layers=2, width=32, hidden=64, heads=2, context=32))),
        lambda: (tokens(64, 2, 32), tokens(64, 2, 32, seed=1)),
    ),
    "gpt2": Case(seeded(lambda: WithLoss(gpt2(2, 32), causal_loss)), lambda: (tokens(512, 2, 16),)),
    "bert": Case(seeded(lambda: WithLoss(bert(2, 32), loss_and_logits)), lambda: (tokens(512, 2, 16),)),
    "hf_llama": Case(seeded(lambda: WithLoss(hf_llama(2, 32), hidden_sum)), lambda: (tokens(1000, 2, 16),)),
    "resnet": Case(seeded(lambda: ResNet(8)), lambda: _images(2, 16)),
    "unet": Case(seeded(lambda: UNet(8)), lambda: _masks(2, 16)),
}

LARGE = {
    "llama": Case(
        seeded(lambda: Llama(LlamaConfig(vocabulary=512, layers=2, width=256, hidden=704, heads=4))),
        lambda: (tokens(512, 2, 512), tokens(512, 2, 512, seed=1)),
    ),
    "gpt2": Case(seeded(lambda: WithLoss(gpt2(2, 128), causal_loss)), lambda: (tokens(512, 4, 128),)),
    "bert": Case(seeded(lambda: WithLoss(bert(2, 128), loss_and_logits)), lambda: (tokens(512, 4, 128),)),
    "hf_llama": Case(seeded(lambda: WithLoss(hf_llama(2, 128), hidden_sum)), lambda: (tokens(1000, 2, 512),)),
    "resnet": Case(seeded(lambda: ResNet(16)), lambda: _images(4, 64)),
    "unet": Case(seeded(lambda: UNet(16)), lambda: _masks(4, 64)),
}
