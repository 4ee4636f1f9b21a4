"""Joint graphs of the Llama-style model at any depth, as AOTAutograd makes them under either lowering."""

from typing import Any

import torch
from torch._inductor.decomposition import select_decomp_table

from benchmarks.models import Llama, LlamaConfig
from remat_pass.joint_graph import JointGraph
from tests.support.small_graphs import capture_joint

_BATCH, _VOCABULARY = 2, 512


def llama_joint(layers: int, *, width: int, heads: int, context: int, decomposed: bool) -> tuple[JointGraph, list[Any]]:
    """The joint graph and its fake inputs; `decomposed` as Inductor has it, else op by op.

    Batch 2 and vocabulary 512; the hidden width is 2.75 times the width.
    """
    sizes = LlamaConfig(
        vocabulary=_VOCABULARY, layers=layers, width=width, hidden=width * 11 // 4, heads=heads, context=context
    )
    tokens = torch.zeros(_BATCH, context, dtype=torch.int64)
    return capture_joint(Llama(sizes), (tokens, tokens.clone()), select_decomp_table() if decomposed else None)
