"""The models of the contest, at sizes where activations dwarf gradients and a step takes a CPU a second or two.

One has a size at which GPUs are busy: no CPU is asked to train it.

Every model comes with its loss inside and captures as one graph under `torch.compile(fullgraph=True)`, in float32 and
under bf16 autocast, so that a contestant is given the whole of forward and backward. Weights and batches are seeded.

To add a model, add a `Model` to `_ALL`: the tables list them in that order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.contest import model_hugging_face as hf
from benchmarks.contest import sac
from benchmarks.contest.model_checkpointed import Layers, TwoPasses
from benchmarks.contest.model_unet import UNet
from benchmarks.models import Llama, LlamaConfig

Batch = tuple[Tensor, ...]

LLAMAS: dict[str, tuple[int, LlamaConfig]] = {
    "llama": (2, LlamaConfig(vocabulary=512, layers=8, width=256, hidden=704, heads=4, context=512)),
    "llama_wide": (8, LlamaConfig(vocabulary=512, layers=6, width=192, hidden=512, heads=4, context=512)),
    "tiny": (2, LlamaConfig(vocabulary=32, layers=2, width=16, hidden=32, heads=2, context=64)),
}
"""Batch and sizes of the Llama-style models that have a twin in JAX, each trained at its full context."""

_LARGE = (8, LlamaConfig(vocabulary=32000, layers=8, width=2048, hidden=5632, heads=16, context=2048))
"""The widths of TinyLlama (Zhang et al., 2024, https://arxiv.org/abs/2401.02385), with fewer layers."""


@dataclass(frozen=True, slots=True)
class Model:
    """How to build a model and what contestants need to know of it.

    Attributes:
        name: On the command line and in results.
        title: One line with the sizes.
        build: The module, in training mode on the CPU with float32 parameters, and its batch; `module(*batch)` is the
            scalar loss. The same at every call; torch's generator is left as it was.
        blocks: What `checkpoint()` per block wraps, in the order they run; none where the model does so itself.
        hugging_face: The Hugging Face model inside, or None where there is none.
        draws: Whether forward draws random numbers (dropout).
        needs_gpu: Whether it is too large to be trained on a CPU, where the rig alone sees it.
    """

    name: str
    title: str
    build: Callable[[], tuple[nn.Module, Batch]]
    blocks: Callable[[nn.Module], list[nn.Module]]
    hugging_face: Callable[[nn.Module], nn.Module] | None = None
    draws: bool = False
    needs_gpu: bool = False


class UnderAutocast(nn.Module):
    """A module that runs under autocast to bfloat16; entering it is part of the captured graph."""

    def __init__(self, module: nn.Module, device_type: str) -> None:
        super().__init__()
        self.module = module
        self.device_type = device_type

    def forward(self, *batch: Tensor) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.module(*batch)


def with_autocast(module: nn.Module, device_type: str) -> nn.Module:
    """The module with its forward under `torch.autocast(device_type, torch.bfloat16)`; parameters are shared."""
    return UnderAutocast(module, device_type)


def without_autocast(module: nn.Module) -> nn.Module:
    """The module that `build` returned, whether or not it went through `with_autocast`."""
    return module.module if isinstance(module, UnderAutocast) else module


def _seeded(
    build: Callable[[], nn.Module], batch: Callable[[torch.Generator], Batch]
) -> Callable[[], tuple[nn.Module, Batch]]:
    """Weights and batch that are the same at every call, whatever was drawn before."""

    def build_both() -> tuple[nn.Module, Batch]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(), batch(torch.Generator().manual_seed(1))

    return build_both


def _llama(name: str, batch: int, config: LlamaConfig, *, needs_gpu: bool = False) -> Model:
    return Model(
        name=name,
        title=f"Llama-style, {config.layers} layers, width {config.width}, hidden {config.hidden}, "
        f"{config.heads} heads, vocabulary {config.vocabulary}, batch {batch} x {config.context} tokens",
        build=_seeded(lambda: Llama(config), lambda g: _tokens_and_next(g, config.vocabulary, batch, config.context)),
        blocks=lambda module: list(module.blocks),
        needs_gpu=needs_gpu,
    )


def _checkpointed_llama(name: str) -> nn.Module:
    module = Llama(LLAMAS[name][1])
    sac.checkpoint_all(module.blocks)
    return module


def _tokens_and_next(generator: torch.Generator, vocabulary: int, batch: int, length: int) -> Batch:
    tokens = torch.randint(vocabulary, (batch, length + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def _tokens_twice(generator: torch.Generator, vocabulary: int, batch: int, length: int) -> Batch:
    """Tokens, and the same as labels, which a causal model shifts by itself."""
    tokens = torch.randint(vocabulary, (batch, length), generator=generator)
    return tokens, tokens.clone()


def _masked_tokens(generator: torch.Generator, vocabulary: int, batch: int, length: int) -> Batch:
    """Tokens of which 15% are replaced by token 0, and labels that ask for those alone (-100: no loss here)."""
    tokens = torch.randint(1, vocabulary, (batch, length), generator=generator)
    masked = torch.rand((batch, length), generator=generator) < 0.15
    return tokens.masked_fill(masked, 0), tokens.masked_fill(~masked, -100)


def _images_and_classes(generator: torch.Generator, classes: int, batch: int, side: int) -> Batch:
    images = torch.randn((batch, 3, side, side), generator=generator)
    return images, torch.randint(classes, (batch,), generator=generator)


def _tokens_and_features(
    generator: torch.Generator, vocabulary: int, batch: int, length: int, patches: int, width: int
) -> Batch:
    features = torch.randn((batch, patches, width), generator=generator)
    return *_tokens_and_next(generator, vocabulary, batch, length), features


def _images_and_noise(generator: torch.Generator, batch: int, side: int) -> Batch:
    images = torch.randn((batch, 3, side, side), generator=generator)
    return images, torch.randn(images.shape, generator=generator)


def _none(module: nn.Module) -> list[nn.Module]:
    return []


_ALL = (
    _llama("llama", *LLAMAS["llama"]),
    _llama("llama_wide", *LLAMAS["llama_wide"]),
    _llama("llama_large", *_LARGE, needs_gpu=True),
    Model(
        name="deep_llama",
        title="pytorch#197838: HF Llama, 32 layers, width 256, hidden 688, 8 heads, batch 2 x 1024 tokens",
        build=_seeded(
            lambda: hf.deep_llama(layers=32, width=256, hidden=688, heads=8, vocabulary=1000),
            lambda g: (torch.randint(1000, (2, 1024), generator=g),),
        ),
        blocks=hf.deep_llama_blocks,
        hugging_face=hf.inner,
    ),
    Model(
        name="hf_llama",
        title="HF Llama, 6 layers, width 256, hidden 704, 4 heads, 2 of keys, vocabulary 512, batch 2 x 512 tokens",
        build=_seeded(
            lambda: hf.llama(layers=6, width=256, hidden=704, heads=4, context=512, vocabulary=512),
            lambda g: _tokens_twice(g, 512, 2, 512),
        ),
        blocks=hf.llama_blocks,
        hugging_face=hf.inner,
    ),
    Model(
        name="gpt2",
        title="HF GPT-2, 6 layers, width 256, 4 heads, dropout 0.1, vocabulary 512, batch 4 x 256 tokens",
        build=_seeded(
            lambda: hf.gpt2(layers=6, width=256, heads=4, context=256, vocabulary=512, dropout=0.1),
            lambda g: _tokens_twice(g, 512, 4, 256),
        ),
        blocks=hf.gpt2_blocks,
        hugging_face=hf.inner,
        draws=True,
    ),
    Model(
        name="bert",
        title="HF BERT, masked tokens, 6 layers, width 256, 4 heads, no dropout, vocabulary 512, batch 8 x 256 tokens",
        build=_seeded(
            lambda: hf.bert(layers=6, width=256, heads=4, context=256, vocabulary=512),
            lambda g: _masked_tokens(g, 512, 8, 256),
        ),
        blocks=hf.bert_blocks,
        hugging_face=hf.inner,
    ),
    Model(
        name="vit",
        title="HF ViT, 6 layers, width 192, 3 heads, images 128 x 128 in patches of 8, batch 8",
        build=_seeded(
            lambda: hf.vit(layers=6, width=192, heads=3, image=128, patch=8, classes=10),
            lambda g: _images_and_classes(g, 10, 8, 128),
        ),
        blocks=hf.vit_blocks,
        hugging_face=hf.inner,
    ),
    Model(
        name="t5",
        title="HF T5, 3 layers in encoder and decoder, width 256, 4 heads, no dropout, vocabulary 512, 4 x 256 tokens",
        build=_seeded(
            lambda: hf.t5(layers=3, width=256, heads=4, vocabulary=512),
            lambda g: _tokens_twice(g, 512, 4, 256),
        ),
        blocks=hf.t5_blocks,
        hugging_face=hf.inner,
    ),
    Model(
        name="resnet",
        title="HF ResNet, basic layers 2-2-2, widths 32-64-128, images 160 x 160, batch 32",
        build=_seeded(
            lambda: hf.resnet(widths=(32, 64, 128), depths=(2, 2, 2), classes=10),
            lambda g: _images_and_classes(g, 10, 32, 160),
        ),
        blocks=hf.resnet_blocks,
        hugging_face=hf.inner,
    ),
    Model(
        name="unet",
        title="U-Net, residual blocks with GroupNorm, widths 16-32-64, images 96 x 96, batch 8",
        build=_seeded(lambda: UNet((16, 32, 64)), lambda g: _images_and_noise(g, 8, 96)),
        blocks=UNet.blocks,
    ),
    Model(
        name="checkpointed_llama",
        title="The first Llama-style model with its blocks in checkpoints",
        build=_seeded(lambda: _checkpointed_llama("llama"), lambda g: _tokens_and_next(g, 512, 2, 512)),
        blocks=_none,
    ),
    Model(
        name="checkpointed_layers",
        title="pytorch#120381: 5 layers of product, layer norm and GELU in checkpoints, width 512, 8192 tokens",
        build=_seeded(lambda: Layers(layers=5, width=512), lambda g: (torch.randn((8192, 512), generator=g),)),
        blocks=_none,
    ),
    Model(
        name="two_passes",
        title="pytorch#193193: text through 6 checkpointed blocks twice, the second time with cross-attention to an "
        "image, width 256, 4 heads, vocabulary 512, batch 4 x 256 tokens and 64 patches",
        build=_seeded(
            lambda: TwoPasses(layers=6, width=256, heads=4, vocabulary=512),
            lambda g: _tokens_and_features(g, 512, 4, 256, 64, 256),
        ),
        blocks=_none,
    ),
    _llama("tiny", *LLAMAS["tiny"]),
)

MODELS: dict[str, Model] = {model.name: model for model in _ALL}
"""By name, in the order of the tables; "tiny" is for tests."""
