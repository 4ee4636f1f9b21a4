"""What is read off Inductor's schedule: which kernels are library calls, and the layout of what forward saves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.torch_version import TorchVersion

from remat_pass import _torch_compat
from remat_pass._torch_compat import InductorSchedule

aten = torch.ops.aten


def trace(function: Callable[..., Any], *shapes: tuple[int, ...]) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*(torch.empty(shape) for shape in shapes))


def schedule(
    module: fx.GraphModule,
    strides: dict[str, tuple[int, ...]] | None = None,
    *,
    visible: int = 0,
    owned: tuple[str, ...] = (),
    **config_patches: Any,
) -> InductorSchedule:
    return _torch_compat.schedule_with_inductor(
        module, is_backward=False, visible=visible, strides=strides or {}, owned=owned, config_patches=config_patches
    )


def calls(found: InductorSchedule, op: str) -> int:
    return sum(
        is_call and any(name.startswith(op) for name in names)
        for is_call, names in zip(found.is_call, found.kernels, strict=True)
    )


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    return aten.convolution.default(x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def test_parts_of_a_library_call_are_no_calls_of_their_own() -> None:
    def backward(tangent: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
        settings = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
        grads = aten.convolution_backward.default(tangent, x, weight, None, *settings)
        return [grads[0], grads[1]]

    found = schedule(trace(backward, (2, 8, 8, 8), (2, 4, 8, 8), (8, 4, 3, 3)))
    assert sum(any(name == "convolution_backward" for name in names) for names in found.kernels) > 1
    assert calls(found, "convolution_backward") == 1


def test_a_concatenation_of_library_results_is_no_call() -> None:
    def both(x: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
        return [aten.cat.default([convolve(x, first), convolve(x, second)], 1)]

    found = schedule(trace(both, (2, 4, 8, 8), (8, 4, 3, 3), (8, 4, 3, 3)))
    assert calls(found, "cat") == 0
    assert calls(found, "convolution") == 2


def test_results_have_the_strides_that_inductor_gives_them() -> None:
    module = trace(lambda x, weight: [convolve(x, weight)], (2, 4, 8, 8), (8, 4, 3, 3))
    assert schedule(module).result_strides == ((512, 1, 64, 8),)


def test_results_that_the_user_sees_keep_theirs() -> None:
    module = trace(lambda x, weight: [convolve(x, weight), None], (2, 4, 8, 8), (8, 4, 3, 3))
    assert schedule(module, visible=2).result_strides == ((512, 64, 8, 1), None)


def test_results_that_are_views_of_one_storage_are_known() -> None:
    def run(x: Tensor, w: Tensor) -> list[Tensor]:
        first, second = aten.split.Tensor(x @ w, 32, 1)
        return [first, second, x.sin(), x]

    found = schedule(trace(run, (8, 64), (64, 64))).result_storages
    assert found[0] == found[1] and found[0] is not None and found[0][1] == 8 * 64 * 4
    assert found[2] is not None and found[2][0] != found[0][0]
    assert found[3] is None


def test_a_graph_is_lowered_for_the_strides_its_inputs_will_have() -> None:
    module = trace(lambda x: [x.sin()], (2, 4, 8, 8))
    (name,) = (node.name for node in module.graph.find_nodes(op="placeholder"))
    assert schedule(module).result_strides == ((256, 64, 8, 1),)
    assert schedule(module, {name: (256, 1, 32, 4)}).result_strides == ((256, 1, 32, 4),)
    (value,) = (node.meta["val"] for node in module.graph.find_nodes(op="placeholder"))
    assert value.stride() == (256, 64, 8, 1)


def test_what_was_changed_in_place_is_not_written_over() -> None:
    def change(x: Tensor, where: Tensor) -> list[Tensor]:
        changed = aten.index_put.default(
            x.sin(), [torch.ops.prims.convert_element_type.default(where, torch.int64)], x.cos(), True
        )
        return [changed * x.exp()]

    found = schedule(trace(change, (4, 8), (4,)))
    size_bytes = {buffer.name: buffer.size_bytes for buffer in found.buffers}
    assert 0 in size_bytes.values()  # the changed one is no memory of its own
    assert all(size_bytes[old] for old in found.overwritten.values())


def test_a_kernel_of_loops_that_read_the_same_writes_over_all_that_dies_in_it() -> None:
    """Inductor would write over nothing: each storage has several readers left, though all are in one kernel."""

    def gated(x: Tensor, w: Tensor) -> list[Tensor]:
        gate, up, tangent = x @ w, w @ x, w @ w
        return [(gate.cos() * up) @ w, (tangent * up * gate) @ w, (tangent * gate.sin()) @ w]

    def overwritten(function: Callable[..., Any], *shapes: tuple[int, ...]) -> set[str]:
        module = trace(function, *shapes)
        _torch_compat.set_calls_apart(module, 8)
        ours = _torch_compat.KernelsInOrder()
        return set(schedule(module, reorder_for_peak_memory=False, _post_fusion_custom_pass=ours).overwritten.values())

    def concatenated(x: Tensor, w: Tensor) -> list[Tensor]:
        upper, lower = x @ w, w @ x
        both = torch.cat([upper, lower])
        return [both @ w, lower.cos() @ w, both[32:96].sin() @ w]

    def mirrored(x: Tensor, w: Tensor) -> list[Tensor]:
        product = x @ w
        return [product.sin() @ w, (product + product.permute(1, 0)).cos() @ w]

    square = (64, 64)
    assert len(overwritten(gated, square, square)) == 3
    assert not schedule(trace(gated, square, square), reorder_for_peak_memory=False).overwritten
    # One of the two also reads another element than it writes.
    assert not overwritten(mirrored, square, square)
    # One of the two reads the same memory as a part of something larger.
    assert not overwritten(concatenated, square, square)


def kernel_with(found: InductorSchedule, op: str) -> int:
    return next(k for k, names in enumerate(found.kernels) if op in names)


def test_a_loop_passes_few_library_calls_to_one_that_loads_the_same() -> None:
    """Inductor would let it pass more: what is computed far behind would be there before all of them."""

    def with_calls(count: int, apart: int) -> fx.GraphModule:
        def run(x: Tensor, w: Tensor) -> list[Tensor]:
            product = x.sin()
            for _ in range(count):
                product = product @ w
            return [product, x.cos() @ w]

        module = trace(run, (64, 64), (64, 64))
        _torch_compat.set_calls_apart(module, apart)
        return module

    for count, apart in ((1, 0), (1, 1), (3, 2), (3, 3)):
        found = schedule(with_calls(count, apart))
        assert kernel_with(found, "cos") == kernel_with(found, "sin")
        kept = schedule(with_calls(count, apart), inductor_choices_class=_torch_compat.order_keeping_choices)
        assert (kernel_with(kept, "cos") == kernel_with(kept, "sin")) is (count <= apart)


def test_a_loop_passes_no_library_call_that_it_needs() -> None:
    """Inductor would run the call before both, and its result would be there too early."""

    def run(x: Tensor, y: Tensor, w: Tensor) -> list[Tensor]:
        early = x.sin() @ w
        product = y @ w
        return [early, (x.cos() * product) @ w]

    module = trace(run, (64, 64), (64, 64), (64, 64))
    _torch_compat.set_calls_apart(module, 8)
    found = schedule(module, reorder_for_peak_memory=False)
    assert kernel_with(found, "cos") == kernel_with(found, "sin") > kernel_with(found, "mm_1")
    choices = _torch_compat.order_keeping_choices
    kept = schedule(module, reorder_for_peak_memory=False, inductor_choices_class=choices)
    assert kernel_with(kept, "cos") > kernel_with(kept, "mm_1") > kernel_with(kept, "sin")


def test_a_kernel_waits_for_what_its_later_loop_needs() -> None:
    """Inductor would run that before all that stands between the two loops."""

    def run(x: Tensor, y: Tensor, w: Tensor) -> list[Tensor]:
        early = x.sin() @ w
        other = y.tan() @ w
        product = y @ w
        return [early, other, (x.cos() * product) @ w]

    def found(**patches: Any) -> InductorSchedule:
        module = trace(run, (64, 64), (64, 64), (64, 64))
        _torch_compat.set_calls_apart(module, 8, delays_loops=True)
        choices = _torch_compat.order_keeping_choices
        return schedule(module, reorder_for_peak_memory=False, inductor_choices_class=choices, **patches)

    theirs, ours = found(), found(_post_fusion_custom_pass=_torch_compat.KernelsInOrder())
    for kept in (theirs, ours):
        assert kernel_with(kept, "cos") == kernel_with(kept, "sin") > kernel_with(kept, "mm_2")
    assert kernel_with(theirs, "tan") > kernel_with(theirs, "mm_2")
    assert kernel_with(ours, "tan") < kernel_with(ours, "mm_1") < kernel_with(ours, "mm_2")


def test_a_product_far_from_its_sum_stays_where_it_is() -> None:
    """Inductor would run it with the sum, and what is multiplied would be alive until then (tied embeddings)."""

    def run(x: Tensor, w: Tensor, between: Tensor) -> list[Tensor]:
        product = x.sin() @ w
        for _ in range(3):
            between = between.cos() @ w
        return [product + between.sum()[None, None].expand(64, 64).exp()]

    module = trace(run, (64, 64), (64, 64), (64, 64))
    for apart, kept in ((2, True), (3, False)):
        _torch_compat.set_calls_apart(module, apart)
        found = schedule(module, post_grad_custom_pre_pass=_torch_compat.far_sums_apart())
        assert calls_before(found, "mm" if kept else "addmm_default") == (0 if kept else 3)
        assert any("addmm_default" in names for names in found.kernels) is not kept
    assert calls_before(schedule(module), "addmm_default") == 3


def calls_before(found: InductorSchedule, op: str) -> int:
    return sum(found.is_call[: kernel_with(found, op)])


def test_loops_up_to_a_library_call_are_one_function_in_cpp() -> None:
    """What they write is allocated before it, and what they read is freed behind it."""
    module = trace(lambda x, y, w: [x.sin().sum(), y.cos().sum(0) @ w, y.exp().sum()], (64, 64), (32, 64), (64, 64))
    found = schedule(module)
    assert kernel_with(found, "sin") == kernel_with(found, "cos") == 0
    assert kernel_with(found, "mm") == 1


def test_loops_that_write_parts_of_a_concatenation_move_their_bytes() -> None:
    module = trace(lambda x, w: [torch.cat([x.sin(), x.cos()]) @ w], (64, 64), (64, 64))
    found = schedule(module)
    joined = kernel_with(found, "cat")
    assert found.is_loop[joined]
    assert 3 * 64 * 64 * 4 <= found.moved_bytes[joined] <= 4 * 64 * 64 * 4


def test_an_input_that_is_a_copy_is_free_after_its_last_use() -> None:
    module = trace(lambda primals_1, w: [(primals_1.sin() @ w).cos() @ w], (64, 64), (64, 64))
    (owned,) = (b for b in schedule(module, owned=("primals_1_1",)).buffers if b.name == "primals_1_1")
    assert (owned.size_bytes, owned.first_kernel, owned.last_kernel) == (64 * 64 * 4, 0, 0)
    assert "primals_1_1" not in {b.name for b in schedule(module).buffers}


def test_an_input_has_its_own_size_however_often_a_kernel_loads_it() -> None:
    """Heads of keys are shared by several heads of queries: each is read several times, and is there once."""

    def share_heads(heads: Tensor, queries: Tensor) -> list[Tensor]:
        return [heads[:, None].expand(4, 3, 32).reshape(12, 32) * queries]

    found = schedule(trace(share_heads, (4, 32), (12, 32)))
    assert sorted(b.size_bytes for b in found.buffers if b.is_input) == [4 * 32 * 4, 12 * 32 * 4]


def test_inputs_of_dynamic_shapes_have_the_size_that_inductor_hints_at() -> None:
    module = make_fx(lambda a, b: [a[:, None] * b], tracing_mode="symbolic")(torch.empty(24), torch.empty(24, 10))
    inputs = [b.size_bytes for b in schedule(module).buffers if b.is_input]
    assert inputs and all(isinstance(size, int) and size > 0 for size in inputs)


def test_a_scatter_that_updates_in_place_is_known() -> None:
    def run(index: Tensor, source: Tensor) -> list[Tensor]:
        zeros = aten.full.default([8, 8], 0.0, dtype=torch.float32)
        return [
            aten.scatter_add.default(zeros, 1, torch.ops.prims.convert_element_type.default(index, torch.int64), source)
        ]

    found = schedule(trace(run, (8, 8), (8, 8)))
    assert found.is_update[next(k for k, names in enumerate(found.kernels) if found.is_call[k])]
    assert not any(schedule(trace(lambda x, w: [x @ w], (8, 8), (8, 8))).is_update)


@pytest.mark.parametrize(
    ("index", "of", "adds", "is_loop"),
    [
        (torch.int64, torch.float32, True, True),
        (torch.int64, torch.float32, False, True),
        (torch.bool, torch.float32, False, False),
        (torch.int64, torch.int64, True, TorchVersion(torch.__version__) >= "2.14"),
        (torch.int64, torch.int64, False, True),
    ],
)
def test_whether_a_scatter_is_a_loop_is_known(index: torch.dtype, of: torch.dtype, adds: bool, is_loop: bool) -> None:
    def run(x: Tensor, where: Tensor, source: Tensor) -> list[Tensor]:
        convert = torch.ops.prims.convert_element_type.default
        return [aten.index_put.default(convert(x, of), [convert(where, index)], convert(source, of), adds)]

    module = trace(run, (8, 8), (8,), (8, 8))
    (node,) = module.graph.find_nodes(op="call_function", target=aten.index_put.default)
    assert _torch_compat.scatters_in_a_loop(node) is is_loop
    assert any(schedule(module).is_call) is not is_loop
    torch.use_deterministic_algorithms(True)
    try:
        assert not _torch_compat.scatters_in_a_loop(node)
    finally:
        torch.use_deterministic_algorithms(False)
