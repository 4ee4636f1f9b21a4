"""How long an op takes: the roofline model, with the rates of the device the values live on.

    time = max(flops / flops_per_s, bytes read and written / bandwidth) + slow arithmetic + launch

FLOPs are counted by shape for matmul, convolution and attention (`_torch_compat.op_flops`), one per element otherwise.
Exponentials and draws of random numbers take a processor longer than moving their bytes: those are the slow ones.

Rates of GPUs are constants, chosen by the card and by whether torch may use TensorFloat-32, so that the estimate, and
with it the plan, is the same on every machine with that card and every rank. Processors differ too much for that, by
their units for bfloat16 above all: `kernel_times` measures them once. Only ratios matter to the planner: a wrong unit
changes no decision, a wrong ratio of arithmetic to bandwidth may.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from remat_pass import _torch_compat
from remat_pass.ops import is_attention, is_convolution, packet
from remat_pass.storage import storage_size, tensors_in


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """What a device can do at best. Tensor-core rates without sparsity."""

    name: str
    flops_per_s: dict[torch.dtype, float]
    bandwidth_bytes_per_s: float
    """Of generated loops, beside their slow arithmetic."""
    launch_ns: int
    held_ns_per_byte: float = 0.0
    """Of what forward leaves to backward, where loops are as fast as caches: to write it to memory and read it back."""
    convolution_flops_per_s: dict[torch.dtype, float] = field(default_factory=dict)
    """Of convolutions, for the dtypes where they are not as fast as products."""
    attention_flops_per_s: dict[tuple[torch.dtype, bool], float] = field(default_factory=dict)
    """Of fused attention (False) and its backward (True), where that is not as fast as products."""
    tf32_flops_per_s: float | None = None
    """Of float32 products and convolutions where torch may round what they multiply to TensorFloat-32."""
    slow_ns: dict[str, float] = field(default_factory=dict)
    """Of one element, for elementwise ops that take longer than moving their bytes, as Inductor's decompositions leave
    them, by name."""


_TERA = 1e12

DRAW = "prims.inductor_random"
_COMPARED_POSITIONS = "comparison of 64-bit integers"

TYPICAL_THREADS = 2
"""Those of `TYPICAL_CPU`."""
_FLOAT32, _BFLOAT16 = 0.15 * _TERA, 0.15 * _TERA

TYPICAL_CPU = DeviceRates(
    # What torch 2.13 reaches on two AVX-512 cores: oneDNN products, and a generated loop over megabytes.
    "cpu",
    {torch.float32: _FLOAT32, torch.float64: _FLOAT32 / 2, torch.bfloat16: _BFLOAT16},
    15e9,
    2_000,
    # It pauses for exponentials. In a step of HF Llama it reaches 90 to 105 GFLOP/s, and products reach 200.
    attention_flops_per_s={
        (dtype, is_backward): rate / 2
        for dtype, rate in ((torch.float32, _FLOAT32), (torch.bfloat16, _BFLOAT16))
        for is_backward in (False, True)
    },
    # Of vectorised loops over megabytes. Draws, indices and powers that are no products are made one by one. Masks
    # compare positions, integers of 64 bits, and once more for every head, which is in the figure.
    slow_ns={
        DRAW: 8.0,
        "aten.pow": 5.0,
        "aten.index": 4.0,
        _COMPARED_POSITIONS: 2.0,
        "aten.tanh": 1.5,
        "aten.log": 1.3,
        "aten.sigmoid": 0.8,
        "aten.log1p": 0.8,
        "aten.erf": 0.7,
        "aten.exp": 0.5,
        "aten.sin": 0.3,
        "aten.cos": 0.3,
    },
)
"""What a processor is taken for where it cannot be measured."""


def _card(
    name: str, float64: float, float32: float, tf32: float, bfloat16: float, terabytes_per_s: float
) -> DeviceRates:
    """Rates in TFLOP/s and TB/s, dense; those of tensor cores where there are some for the dtype."""
    flops_per_s = {torch.float64: float64 * _TERA, torch.float32: float32 * _TERA, torch.bfloat16: bfloat16 * _TERA}
    return DeviceRates(name, flops_per_s, terabytes_per_s * _TERA, 4_000, tf32_flops_per_s=tf32 * _TERA)


_CUDA_CARDS = (
    # SXM: https://www.nvidia.com/en-us/data-center/h200/
    _card("H200", 67, 67, 494, 989, 4.8),
    # SXM: https://www.nvidia.com/en-us/data-center/h100/
    _card("H100", 67, 67, 494, 989, 3.35),
    # SXM, 80 GB: https://www.nvidia.com/en-us/data-center/a100/
    _card("A100", 19.5, 19.5, 156, 312, 2.039),
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf, appendix A
    _card("4090", 1.29, 82.6, 82.6, 165.2, 1.008),
    # https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html
    _card("MI300X", 163.4, 163.4, 653.7, 1307.4, 5.3),
)
_DEFAULT_CARD = _CUDA_CARDS[1]


def card_rates() -> DeviceRates:
    """Rates of the CUDA card by its name; an H100's if the name is unknown or no card is present."""
    if not torch.cuda.is_available():
        return _DEFAULT_CARD
    name = torch.cuda.get_device_name()
    return next((card for card in _CUDA_CARDS if card.name in name), _DEFAULT_CARD)


def roofline_ns(node: fx.Node, rates: DeviceRates) -> int:
    """Estimated run time of a `call_function` node that is a kernel of its own, in nanoseconds."""
    flops = _flops(node)
    seconds = max(flops / _flops_per_s(node, rates), moved_bytes(node) / rates.bandwidth_bytes_per_s)
    return round(seconds * 1e9) + rates.launch_ns + arithmetic_ns(node, rates)


def _flops_per_s(node: fx.Node, rates: DeviceRates) -> float:
    dtype = _dtype(node)
    peak_flops = products_per_s(rates, dtype, convolves=is_convolution(node))
    if is_attention(node):
        return rates.attention_flops_per_s.get((_kind(dtype), "backward" in str(packet(node))), peak_flops)
    return peak_flops


def products_per_s(rates: DeviceRates, dtype: torch.dtype, *, convolves: bool) -> float:
    """FLOP/s of products or convolutions, at the precision that torch is set to when it is called."""
    rounds = _torch_compat.float32_precision(convolves=convolves) == "tf32"
    if dtype is torch.float32 and rates.tf32_flops_per_s is not None and rounds:
        return rates.tf32_flops_per_s
    peak_flops = rates.flops_per_s.get(_kind(dtype), rates.flops_per_s[torch.float32])
    return rates.convolution_flops_per_s.get(_kind(dtype), peak_flops) if convolves else peak_flops


def _kind(dtype: torch.dtype) -> torch.dtype:
    """Both halves are as fast."""
    return torch.bfloat16 if dtype is torch.float16 else dtype


def arithmetic_ns(node: fx.Node, rates: DeviceRates) -> int:
    """Time that a loop spends on the slow ones among its ops, beside moving bytes."""
    value = node.meta.get("val")
    return round(rates.slow_ns.get(_arithmetic(node), 0) * _elements(value)) if rates.slow_ns else 0


def _arithmetic(node: fx.Node) -> str:
    """The name of an op in `DeviceRates.slow_ns`."""
    name = str(packet(node))
    if name == "aten.pow" and isinstance(node.args[1], int | float):
        exponent = float(node.args[1])
        # Source: torch/_inductor/lowering.py (`pow`) of torch 2.13.
        is_slow = exponent != 0.5 and not (exponent.is_integer() and abs(exponent) < 32)
        return name if is_slow else "product"
    if name == "aten.index" and not _indexes_last_dimension(node):
        return "rows"
    compares = name in ("aten.eq", "aten.ne", "aten.le", "aten.lt", "aten.ge", "aten.gt")
    if compares and all(t.dtype is torch.int64 for n in node.all_input_nodes for t in tensors_in(n.meta.get("val"))):
        return _COMPARED_POSITIONS
    return name


def _indexes_last_dimension(node: fx.Node) -> bool:
    indexed, indices = node.args[:2]
    assert isinstance(indexed, fx.Node) and isinstance(indices, list | tuple)
    return len(indices) == indexed.meta["val"].dim() and indices[-1] is not None


def transfer_ns(size_bytes: int, rates: DeviceRates) -> int:
    """Time to read or write that many bytes once."""
    return round(size_bytes / rates.bandwidth_bytes_per_s * 1e9)


def moved_bytes(node: fx.Node) -> int:
    """Bytes an unfused kernel reads and writes: every distinct tensor read, and what it returns."""
    read = sum(_tensor_bytes(n.meta.get("val")) for n in node.all_input_nodes)
    return read + _tensor_bytes(node.meta.get("val"))


def _flops(node: fx.Node) -> int:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    counted = _torch_compat.op_flops(node.target, args, kwargs, node.meta.get("val"))
    return _elements(node.meta.get("val")) if counted is None else counted


def _dtype(node: fx.Node) -> torch.dtype:
    tensors = tensors_in(node.meta.get("val"))
    return tensors[0].dtype if tensors else torch.float32


def _tensor_bytes(value: Any) -> int:
    """Bytes of the elements, which for a view is less than its storage."""
    return sum(
        min(_torch_compat.size_hint(t.numel()) * t.element_size(), storage_size(t).hint) for t in tensors_in(value)
    )


def _elements(value: Any) -> int:
    return sum(_torch_compat.size_hint(t.numel()) for t in tensors_in(value))
