"""Per-block checkpointing as users write it today: all of a block, or selective (SAC), with no change to model source.

A block's `forward` is replaced on the instance, so parameter names stay and Hugging Face blocks that are called with
keywords work. SAC decides per op: what a policy marks MUST_SAVE is kept, all else is recomputed from the block's input.

    save matmuls                 outputs of matrix products, convolutions and attention are kept
    save every second matmul     as above, of the products and convolutions only the 1st, 3rd, ... of each block

The second is torchtitan's default policy in spirit (https://github.com/pytorch/torchtitan,
`torchtitan/distributed/activation_checkpoint.py`: attention and communication are saved, every second `mm` is not).
Each function here edits the module it is given and returns it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten

_PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten.linear.default,
        _aten.convolution.default,
    }
)
_ATTENTION = frozenset(
    {
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)


def checkpoint_all(blocks: Iterable[nn.Module]) -> None:
    """Keep only the inputs of the blocks."""
    _replace_forwards(blocks, use_reentrant=False)


def save_matmuls(blocks: Iterable[nn.Module]) -> None:
    """Keep the inputs of the blocks and the outputs of matmul-like ops."""
    _replace_forwards(blocks, use_reentrant=False, context_fn=_saving_every_matmul)


def save_every_second_matmul(blocks: Iterable[nn.Module]) -> None:
    """Keep the inputs of the blocks, the outputs of attention and those of every second matrix product."""
    _replace_forwards(blocks, use_reentrant=False, context_fn=_saving_every_second_matmul)


def _replace_forwards(blocks: Iterable[nn.Module], **how: Any) -> None:
    for block in blocks:
        block.forward = _checkpointed(block.forward, how)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any], how: dict[str, Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **how, **kwargs)

    return run


def _saving_every_matmul() -> Any:
    return create_selective_checkpoint_contexts(_Policy(every=1))


def _saving_every_second_matmul() -> Any:
    return create_selective_checkpoint_contexts(_Policy(every=2))


class _Policy:
    """Saves attention and the products number 0, `every`, 2 * `every`, ... of the block.

    A new one is made each time a block runs. Its forward and its recomputation count apart, so that both decide alike.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.products_seen = {False: 0, True: 0}

    def __call__(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op in _ATTENTION:
            return CheckpointPolicy.MUST_SAVE
        if op not in _PRODUCTS:
            return CheckpointPolicy.PREFER_RECOMPUTE
        index = self.products_seen[context.is_recompute]
        self.products_seen[context.is_recompute] += 1
        return CheckpointPolicy.MUST_SAVE if index % self.every == 0 else CheckpointPolicy.PREFER_RECOMPUTE
