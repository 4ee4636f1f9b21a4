"""What one training step of the JAX twin takes: compiled once, run on the weights and the batch of the PyTorch model.

The peak is what XLA's buffer assignment says of the compiled step (`memory_analysis()`): temporary plus output bytes.
The outputs are the gradients and the loss, which exist throughout the step, so the activation peak is the temporary
bytes, just as peak minus returned gradients is for PyTorch. Weights and batch are arguments and not counted.

Imports jax, which is optional.
"""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contest.model_jax_llama import loss_function, parameters
from benchmarks.contest.models import LLAMAS, MODELS


def measure(model: str, policy: str, *, scanned: bool, steps: int) -> dict[str, Any]:
    """Compile loss and gradients, run them `steps` times after a first one, and say what they take.

    Returns:
        peak_bytes: temporary and output bytes, the loss included.
        gradient_bytes: those of the outputs that are gradients.
        compile_seconds: from Python to machine code.
        step_seconds: of each timed step.
        loss, gradient_norm: those of the PyTorch model, up to rounding.
        jax: its version.
    """
    module, batch = MODELS[model].build()
    _, config = LLAMAS[model]
    state = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    inputs = (parameters(state, config, scanned=scanned), *(jnp.asarray(tokens.numpy(), jnp.int32) for tokens in batch))
    begin = time.perf_counter()
    step = jax.jit(jax.value_and_grad(loss_function(config, policy))).lower(*inputs).compile()
    compile_seconds = time.perf_counter() - begin
    loss, gradients = step(*inputs)
    memory = step.memory_analysis()
    leaves = jax.tree.leaves(gradients)
    return {
        "peak_bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes,
        "gradient_bytes": sum(gradient.nbytes for gradient in leaves),
        "compile_seconds": compile_seconds,
        "step_seconds": [_seconds(step, inputs) for _ in range(steps)],
        "loss": float(loss),
        "gradient_norm": math.sqrt(sum(float((gradient**2).sum()) for gradient in leaves)),
        "jax": jax.__version__,
    }


def _seconds(step: jax.stages.Compiled, inputs: tuple[Any, ...]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(step(*inputs))
    return time.perf_counter() - begin
