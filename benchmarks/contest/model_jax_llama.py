"""The Llama-style model of `benchmarks.models` in JAX: the same parts, sizes and weights.

Blocks come as a Python loop, which XLA sees unrolled, or as one `lax.scan` over stacked weights, as large JAX models
do. Each block is under `jax.checkpoint` with a policy. The one part that differs is attention: XLA has no fused kernel
for it on a CPU, so the scores (batch, heads, length, length) exist in memory, which PyTorch's kernel avoids.

Imports jax, which is optional.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models import LlamaConfig

Parameters = dict[str, Any]
_NORM_EPSILON = float(np.finfo(np.float32).eps)  # that of torch.nn.RMSNorm
_MATRICES = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "feed_forward.gate",
    "feed_forward.up",
    "feed_forward.down",
)
_NORMS = ("attention_norm", "feed_forward_norm")


def parameters(state: Mapping[str, np.ndarray], config: LlamaConfig, *, scanned: bool) -> Parameters:
    """The state of the PyTorch model as this module wants it: blocks as a list, or stacked for a scan."""
    blocks = [
        {name: jnp.asarray(state[f"blocks.{layer}.{name}.weight"]) for name in (*_NORMS, *_MATRICES)}
        for layer in range(config.layers)
    ]
    return {
        "embedding": jnp.asarray(state["embedding.weight"]),
        "blocks": jax.tree.map(lambda *layers: jnp.stack(layers), *blocks) if scanned else blocks,
        "norm": jnp.asarray(state["norm.weight"]),
        "logits": jnp.asarray(state["logits.weight"]),
    }


def loss_function(config: LlamaConfig, policy: str) -> Callable[[Parameters, jax.Array, jax.Array], jax.Array]:
    """The mean cross entropy in nats of (parameters, tokens, next tokens), both (batch, `config.context`).

    Args:
        config: The sizes.
        policy: A policy of `jax.checkpoint_policies` without its "_saveable": what each block may save.
    """
    rotations = _rotations(config)

    def block(x: jax.Array, weights: Parameters) -> jax.Array:
        x = x + _attention(_norm(x, weights["attention_norm"]), weights, rotations, config.heads)
        return x + _feed_forward(_norm(x, weights["feed_forward_norm"]), weights)

    def loss(weights: Parameters, tokens: jax.Array, next_tokens: jax.Array) -> jax.Array:
        x = _run_blocks(block, weights["embedding"][tokens], weights["blocks"], policy)
        logits = _norm(x, weights["norm"]) @ weights["logits"].T
        chosen = jnp.take_along_axis(logits, next_tokens[..., None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

    return loss


def _run_blocks(block: Callable[..., jax.Array], x: jax.Array, blocks: Any, policy: str) -> jax.Array:
    """A loop over a list, or a scan over stacked weights, where JAX says common subexpressions need no barrier."""
    saveable = getattr(jax.checkpoint_policies, f"{policy}_saveable")
    if isinstance(blocks, list):
        checkpointed = jax.checkpoint(block, policy=saveable)
        for weights in blocks:
            x = checkpointed(x, weights)
        return x
    checkpointed = jax.checkpoint(block, policy=saveable, prevent_cse=False)
    return jax.lax.scan(lambda x, weights: (checkpointed(x, weights), None), x, blocks)[0]


def _norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + _NORM_EPSILON) * weight


def _attention(x: jax.Array, weights: Parameters, rotations: tuple[jax.Array, jax.Array], heads: int) -> jax.Array:
    """Causal self-attention; heads are the third axis, as JAX wants them."""
    query, key, value = (
        (x @ weights[f"attention.{name}"].T).reshape(*x.shape[:2], heads, -1) for name in ("query", "key", "value")
    )
    mixed = jax.nn.dot_product_attention(_rotate(query, *rotations), _rotate(key, *rotations), value, is_causal=True)
    return mixed.reshape(x.shape) @ weights["attention.output"].T


def _feed_forward(x: jax.Array, weights: Parameters) -> jax.Array:
    gate, up = x @ weights["feed_forward.gate"].T, x @ weights["feed_forward.up"].T
    return (jax.nn.silu(gate) * up) @ weights["feed_forward.down"].T


def _rotations(config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines (context, 1, head width), the 1 for the heads."""
    head_width = config.width // config.heads
    frequencies = 10_000.0 ** (-np.arange(0, head_width, 2) / head_width)
    angles = np.tile(np.outer(np.arange(config.context), frequencies), (1, 2))[:, None, :].astype(np.float32)
    return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))


def _rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    left, right = jnp.split(x, 2, axis=-1)
    return x * cosine + jnp.concatenate((-right, left), axis=-1) * sine
