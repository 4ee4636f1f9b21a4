"""What ops cost: attention on a processor by its shape, and arithmetic that takes longer than moving bytes."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from remat_pass.costs import TYPICAL_CPU as CPU
from remat_pass.costs import arithmetic_ns, card_rates, moved_bytes, products_per_s, roofline_ns

aten = torch.ops.aten

SHAPE = (2, 4, 256, 64)
PRODUCTS = 4 * 2 * 4 * 256 * 256 * 64
"""FLOPs of queries by keys, and of their scores by values."""
FULL = CPU.flops_per_s[torch.float32]


def last_op(function: Callable[..., object], *inputs: Tensor) -> fx.Node:
    with FakeTensorMode() as mode:
        graph = make_fx(function)(*(mode.from_tensor(tensor) for tensor in inputs)).graph
    return [node for node in graph.nodes if node.op == "call_function" and "getitem" not in node.name][-1]


def attention(*qkv: Tensor) -> Tensor:
    return aten._scaled_dot_product_flash_attention_for_cpu(*qkv)[0]


def attention_backward(gradient: Tensor, *qkv: Tensor) -> Tensor:
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(*qkv)
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(gradient, *qkv, out, logsumexp, 0.0, False)[0]


def test_attention_takes_the_time_of_its_products() -> None:
    """Torch's counter does not know it; taken for one FLOP an element, it would be recomputed at every budget."""
    qkv = [torch.ones(SHAPE)] * 3
    rates = replace(CPU, attention_flops_per_s={(torch.float32, False): 4e10, (torch.float32, True): 1e10})
    for one, forward_per_s, backward_per_s in (
        (rates, 4e10, 1e10),
        (replace(rates, attention_flops_per_s={}), *[FULL] * 2),
    ):
        forward_ns = roofline_ns(last_op(attention, *qkv), one)
        backward_ns = roofline_ns(last_op(attention_backward, torch.ones(SHAPE), *qkv), one)
        assert forward_ns == pytest.approx(PRODUCTS / forward_per_s * 1e9, rel=0.01)
        assert backward_ns == pytest.approx(2.5 * PRODUCTS / backward_per_s * 1e9, rel=0.01)


def test_convolutions_have_a_rate_of_their_own_where_there_is_one() -> None:
    rates = replace(CPU, convolution_flops_per_s={torch.bfloat16: 1e10})
    for dtype, per_s in ((torch.float32, FULL), (torch.bfloat16, 1e10), (torch.float16, 1e10)):
        assert products_per_s(rates, dtype, convolves=True) == per_s
        assert products_per_s(rates, dtype, convolves=False) == FULL


@pytest.mark.parametrize(
    ("function", "dtype", "is_slow"),
    [
        (torch.exp, torch.float32, True),
        (torch.tanh, torch.float32, True),
        (lambda x: torch.pow(x, 0.7), torch.float32, True),
        (lambda x: torch.pow(x, 100.0), torch.float32, True),
        (lambda x: torch.pow(x, 3.0), torch.float32, False),
        (lambda x: torch.pow(x, 0.5), torch.float32, False),
        (lambda x: x[:, torch.arange(9)][torch.arange(9)], torch.float32, False),
        (lambda x: x[torch.arange(9), torch.arange(9)], torch.float32, True),
        (lambda x: x + 1, torch.float32, False),
        (lambda x: x <= 3, torch.float32, False),
        (lambda x: x <= 3, torch.int64, True),
        (
            lambda x: torch.ops.prims.inductor_random(list(x.shape), torch.ones((), dtype=torch.int64), "rand"),
            None,
            True,
        ),
    ],
)
def test_slow_arithmetic_adds_to_the_bytes(
    function: Callable[[Tensor], Tensor], dtype: torch.dtype | None, is_slow: bool
) -> None:
    node = last_op(function, torch.ones(1000, 1000, dtype=dtype or torch.float32))
    arithmetic = arithmetic_ns(node, CPU)
    assert (arithmetic > 0) == is_slow
    moved_ns = moved_bytes(node) / CPU.bandwidth_bytes_per_s * 1e9
    assert roofline_ns(node, CPU) == pytest.approx(moved_ns + arithmetic + CPU.launch_ns, rel=0.01)
    # A GPU has units for it.
    assert arithmetic_ns(node, card_rates()) == 0


def product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def convolution(image: Tensor, weight: Tensor) -> Tensor:
    return aten.convolution(image, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)


@pytest.mark.parametrize(
    ("function", "shapes", "flops"),
    [
        (product, [(1024, 512), (512, 2048)], 2 * 1024 * 512 * 2048),
        (convolution, [(8, 64, 32, 32), (128, 64, 3, 3)], 2 * 8 * 32 * 32 * 64 * 128 * 9),
    ],
)
def test_products_and_convolutions_take_the_time_of_their_flops(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], flops: int
) -> None:
    node = last_op(function, *(torch.ones(shape) for shape in shapes))
    assert roofline_ns(node, CPU) == pytest.approx(flops / CPU.flops_per_s[torch.float32] * 1e9, rel=0.01)


@pytest.fixture
def restored_precision() -> Iterator[None]:
    matmul, conv = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = matmul, conv


@pytest.mark.usefixtures("restored_precision")
@pytest.mark.parametrize("convolves", [False, True])
def test_tensor_float_32_counts_where_torch_may_use_it(convolves: bool) -> None:
    card = card_rates()
    settings = torch.backends.cudnn.conv if convolves else torch.backends.cuda.matmul
    assert settings.fp32_precision == ("tf32" if convolves else "none"), "torch's defaults"
    for precision, teraflops in (("tf32", 494), ("ieee", 67)):
        settings.fp32_precision = precision
        assert products_per_s(card, torch.float32, convolves=convolves) == teraflops * 1e12
        assert products_per_s(card, torch.float16, convolves=convolves) == 989e12
        assert products_per_s(card, torch.float64, convolves=convolves) == 67e12
        assert products_per_s(CPU, torch.float32, convolves=convolves) == CPU.flops_per_s[torch.float32]


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("AMD Instinct MI300X", "MI300X"),
        ("some other card", "H100"),
    ],
)
def test_a_card_is_known_by_its_name(name: str, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert card_rates().name == card
