"""Which attention kernel `scaled_dot_product_attention` runs on a GPU.

A CPU build of torch has no CUDA kernels to choose from and would always decompose the op. Registered for CUDA tensors
here, it picks as CUDA does for dense tensors, cuDNN left aside: flash attention for half precision without a mask,
memory-efficient attention where the head width is aligned, plain products otherwise.

Source: https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp and
attention.cpp beside it (padding of heads and masks).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_FLASH_MAX_HEAD_WIDTH = 256
_FLASH_HEAD_MULTIPLE = 8
_ALIGNMENT_BYTES = 16
"""Of the rows that the memory-efficient kernel reads."""
_MASK_ROW_MULTIPLE = 16


@contextmanager
def registered() -> Iterator[None]:
    """Choose kernels for CUDA tensors."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", attention, "AutogradCUDA")
    try:
        yield
    finally:
        library._destroy()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` as the kernel that a GPU would run."""
    dense = all(t.dim() == 4 for t in (query, key, value))
    widths = {t.shape[-1] for t in (query, key, value)}
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if (
        dense
        and attn_mask is None
        and query.dtype in _HALF
        and len(widths) == 1
        and max(widths) <= _FLASH_MAX_HEAD_WIDTH
    ):
        return _flash(query, key, value, dropout_p, is_causal, scale)
    same_heads = query.shape[-3] == key.shape[-3]
    if dense and same_heads and all(width * query.element_size() % _ALIGNMENT_BYTES == 0 for width in widths):
        mask = None if attn_mask is None else _padded_mask(attn_mask, query, key)
        trains = any(t.requires_grad for t in (query, key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, trains, dropout_p, is_causal, scale=scale
        )[0]
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, scale: float) -> Tensor:
    width = query.shape[-1]
    missing = -width % _FLASH_HEAD_MULTIPLE
    if missing:
        query, key, value = (F.pad(t, (0, missing)) for t in (query, key, value))
    mixed = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return mixed[..., :width] if missing else mixed


def _padded_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Added to the scores; its rows lie at aligned addresses."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
    columns = key.shape[-2]
    missing = -columns % _MASK_ROW_MULTIPLE
    if missing:
        mask = F.pad(mask, (0, missing))[..., :columns]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], columns)
