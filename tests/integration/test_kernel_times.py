"""Kernels are timed once on a machine, with `cost_model="measured"` alone, and so is what its processor can do."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import remat_pass
from remat_pass import kept_times, kernel_times, progress
from remat_pass.costs import DRAW, TYPICAL_CPU
from remat_pass.probe import dummy_run
from tests.support.models import floats, seeded
from tests.support.training import assert_same, compiled, train

SIDE = 256
ROWS = floats(64, 32)
PROCESSOR_RATES = kernel_times.processor_rates
"""Which the tests' configuration replaces, but not before this module is imported."""
MEASUREMENTS = 4 + 7 + 3 + 3 * 2
"""Of launches, a loop, memory on one thread and on all; slow arithmetic and what it is compared with; products in three
dtypes; convolutions, attention and its backward in two."""


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where times are kept during a test, so that none are known when it begins."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path / "remat_pass" / "kernel_times"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for every kernel that is timed."""
    runs: list[object] = []
    fastest = kernel_times._fastest_ns

    def counted(run: kernel_times.Run, fault_ns: int, least_ns: int = 0) -> int:
        runs.append(run)
        return fastest(run, fault_ns, min(least_ns, 1_000_000))

    monkeypatch.setattr(kernel_times, "_fastest_ns", counted)
    monkeypatch.setattr(kernel_times, "processor_rates", PROCESSOR_RATES)
    return runs


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = nn.functional.gelu(layer(x))
        return x.square().mean()


def products(*sides: int, dtype: torch.dtype = torch.float32, transposed: bool = False) -> list[fx.Node]:
    """One matrix product for each side."""

    def multiply(*matrices: Tensor) -> list[Tensor]:
        return [torch.mm(m, m) for m in matrices]

    matrices = (torch.empty(side, side, dtype=dtype) for side in sides)
    module = make_fx(multiply, tracing_mode="fake")(*(m.t() if transposed else m for m in matrices))
    return module.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)


def trained() -> remat_pass.RematReport:
    """A step at 0.7 of the peak under the measured cost model, whose gradients are those of eager."""
    uncompiled, module = seeded(Mlp)(), seeded(Mlp)()
    run = compiled(module, memory_budget=0.7, cost_model="measured")
    assert_same(train(uncompiled, uncompiled, (ROWS,)), train(module, run, (ROWS,)), "measured")
    return remat_pass.reports()[-1]


def test_a_larger_product_takes_longer_and_is_timed_once_on_a_machine(measured: list[object]) -> None:
    small, large = products(16, SIDE)
    times = kernel_times.time_kernels([small, large])
    assert 0 < times[small.name] < times[large.name]
    assert len(measured) == 2
    assert kernel_times.time_kernels([large, *products(SIDE)]) == {large.name: times[large.name], "mm": times["mm_1"]}
    assert len(measured) == 2, "the same op at the same shapes was timed again"
    kernel_times.time_kernels(products(SIDE + 1))
    assert len(measured) == 3


def test_another_dtype_or_layout_is_timed_for_itself(measured: list[object]) -> None:
    kernel_times.time_kernels(products(16))
    for count, more in enumerate(({"dtype": torch.float64}, {"transposed": True}), start=2):
        for _ in range(2):
            assert kernel_times.time_kernels(products(16, **more)).keys() == {"mm"}
            assert len(measured) == count


def test_devices_and_settings_of_speed_have_times_of_their_own() -> None:
    def key(device: str) -> str:
        with FakeTensorMode():
            module = make_fx(lambda m: torch.mm(m, m))(torch.empty(16, 16, device=device))
        run = dummy_run(module.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)[0])
        assert run is not None
        return run.key

    threads = torch.get_num_threads()
    keys = {key("cpu"), key("meta")}
    try:
        torch.set_num_threads(threads + 1)
        keys.add(key("cpu"))
    finally:
        torch.set_num_threads(threads)
    assert len(keys) == 3
    assert key("cpu") in keys


def test_a_second_compilation_plans_with_the_times_of_the_first(measured: list[object], store: Path) -> None:
    first = trained()
    count = len(measured)
    assert count > 0
    torch._dynamo.reset()
    second = trained()
    assert len(measured) == count
    assert (second.plan_json, second.recompute_ns) == (first.plan_json, first.recompute_ns)
    (kept,) = (json.loads(file.read_text())["times_ns"] for file in store.iterdir())
    products = [d.recompute_ns for d in first.decisions if d.op == "aten.addmm.default"]
    assert products and set(products) <= {ns for key, ns in kept.items() if key.startswith("aten.addmm")}
    # Measured on real data, although a graph is planned under a mode of fake ones.
    seconds = next(ns for key, ns in kept.items() if key.startswith("loop")) / 1e9
    assert 2 * kernel_times._PIECE_BYTES / seconds < 5e11


def test_nothing_is_timed_for_inference(measured: list[object], store: Path) -> None:
    with torch.no_grad():
        compiled(seeded(Mlp)(), memory_budget=0.5, cost_model="measured")(ROWS)
    assert not measured
    assert not store.exists()


def test_the_default_cost_model_times_the_processor_alone(measured: list[object], store: Path) -> None:
    compiled(seeded(Mlp)(), memory_budget=0.7)(ROWS).backward()
    assert len(measured) == MEASUREMENTS + 2
    kept = json.loads(next(store.iterdir()).read_text())["times_ns"]
    assert not [key for key in kept if key.startswith("aten.")]


def test_an_op_that_refuses_dummy_data_has_no_time() -> None:
    def factor(x: Tensor) -> Tensor:
        return torch.linalg.cholesky_ex(x, check_errors=True)[0]

    graph = make_fx(factor, tracing_mode="fake")(torch.empty(4, 4)).graph
    nodes = [node for node in graph.nodes if "cholesky" in str(node.target)]
    assert nodes and kernel_times.time_kernels(nodes) == {}


def test_nothing_is_timed_under_a_profiler(measured: list[object]) -> None:
    with torch.autograd.profiler.profile():
        assert kernel_times.time_kernels(products(16)) == {}
    assert not measured
    assert kernel_times.time_kernels(products(16))["mm"] > 0


@pytest.mark.parametrize("content", ["", "[]", '{"times_ns": 3', '{"times_ns": null}', '{"machine": "x"}'])
def test_a_file_that_cannot_be_read_is_measured_anew(
    content: str, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = products(16)
    kernel_times.time_kernels(nodes)
    (file,) = store.iterdir()
    file.write_text(content)
    assert kernel_times.time_kernels(nodes)["mm"] > 0
    assert str(file) in caplog.text
    assert json.loads(file.read_text())["machine"] == kept_times._machine()


def test_times_that_cannot_be_kept_are_used_all_the_same(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.parent.mkdir(parents=True)
    store.write_text("a file where the folder should be")
    assert kernel_times.time_kernels(products(16))["mm"] > 0
    assert "cannot be kept" in caplog.text


def test_fresh_pages_are_no_part_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = iter([(1_000, 0), (9_000, 80), (5_000, 50)])
    monkeypatch.setattr(kernel_times, "_observe", lambda run: next(observed))
    monkeypatch.setattr(kernel_times, "_RUNS", 3)
    # 1000, 9000 - 80 * 100 = 1000, and 5000 - 50 * 100 = 0: too good, so that a quarter is believed.
    assert kernel_times._fastest_ns(lambda: None, 100) == 1_000
    observed = iter([(9_000, 82), (9_000, 80), (9_000, 30)])
    assert kernel_times._fastest_ns(lambda: None, 100) == 2_250


def test_what_a_processor_can_do_is_measured_once(measured: list[object], store: Path) -> None:
    threads = torch.get_num_threads()
    rates = PROCESSOR_RATES()
    count = len(measured)
    assert rates == PROCESSOR_RATES()
    assert len(measured) == count == MEASUREMENTS + 2, "memory is compared with a cache"
    assert len(json.loads(next(store.iterdir()).read_text())["times_ns"]) == MEASUREMENTS
    assert torch.get_num_threads() == threads
    assert rates.name == kept_times.processor_name()
    for flops_per_s in (rates.flops_per_s, rates.convolution_flops_per_s, rates.attention_flops_per_s):
        assert min(flops_per_s.values()) > 1e8 and max(flops_per_s.values()) < 1e15
    assert 1e8 < rates.bandwidth_bytes_per_s < 1e13
    assert 0 < rates.held_ns_per_byte < 10


def test_twice_the_threads_do_twice_the_work(monkeypatch: pytest.MonkeyPatch, measured: list[object]) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = PROCESSOR_RATES()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    before = len(measured)
    both = PROCESSOR_RATES()
    assert both.flops_per_s == {dtype: 2 * rate for dtype, rate in alone.flops_per_s.items()}
    assert both.bandwidth_bytes_per_s == 2 * alone.bandwidth_bytes_per_s
    assert both.slow_ns[DRAW] == alone.slow_ns[DRAW] / 2 == TYPICAL_CPU.slow_ns[DRAW]
    assert len(measured) == before + 2, "only memory depends on the number of threads"


def test_memory_is_no_slower_than_for_one_thread(
    monkeypatch: pytest.MonkeyPatch, measured: list[object], store: Path
) -> None:
    PROCESSOR_RATES()
    (file,) = store.iterdir()
    content = json.loads(file.read_text())
    together = f"memory, {torch.get_num_threads()} threads"
    for together_ns, ns in ((10, 10), (10_000, 1000)):
        content["times_ns"] |= {"memory": 1000, together: together_ns}
        file.write_text(json.dumps(content))
        assert PROCESSOR_RATES().held_ns_per_byte == pytest.approx(ns / kernel_times._PIECE_BYTES)


def test_slow_arithmetic_is_what_it_takes_beside_moving_bytes(measured: list[object], store: Path) -> None:
    PROCESSOR_RATES()
    (file,) = store.iterdir()
    content = json.loads(file.read_text())
    elements = kernel_times._PIECE_ELEMENTS
    for tanh_ns, ns in ((3 * elements, 2), (elements // 2, 0)):
        content["times_ns"] |= {"square": elements, "tanh": tanh_ns}
        file.write_text(json.dumps(content))
        assert PROCESSOR_RATES().slow_ns["aten.tanh"] == ns / torch.get_num_threads()


def test_slow_arithmetic_that_is_not_measured_is_as_much_faster_as_products_are(measured: list[object]) -> None:
    rates = PROCESSOR_RATES()
    speed = rates.flops_per_s[torch.float32] / TYPICAL_CPU.flops_per_s[torch.float32]
    assert rates.slow_ns["aten.pow"] == pytest.approx(TYPICAL_CPU.slow_ns["aten.pow"] / speed)
    assert rates.slow_ns.keys() == TYPICAL_CPU.slow_ns.keys()


def test_threads_are_as_before_when_a_measurement_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)

    def failing() -> int:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        kernel_times._alone(failing)
    assert set_to == [1, threads + 1]


def test_a_processor_is_typical_under_a_profiler_until_it_is_known(measured: list[object]) -> None:
    with torch.autograd.profiler.profile():
        assert PROCESSOR_RATES() == TYPICAL_CPU
    assert not measured
    rates = PROCESSOR_RATES()
    with torch.autograd.profiler.profile():
        assert PROCESSOR_RATES() == rates


class _Terminal:
    """What a terminal was shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = io.StringIO()
        monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=self._file, force_terminal=True, width=80))

    @property
    def text(self) -> str:
        return self._file.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Terminal]:
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.05)
    yield _Terminal(monkeypatch)


def test_what_takes_long_is_shown(terminal: _Terminal) -> None:
    for item in progress.shown_if_slow([0.0, 0.1, 0.0, 0.0], "timing kernels"):
        time.sleep(item)
    assert "timing kernels" in terminal.text
    assert "50%" in terminal.text and "75%" in terminal.text


def test_what_is_quick_is_not_shown(terminal: _Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 60)
    assert list(progress.shown_if_slow(range(100), "timing kernels")) == [*range(100)]
    assert terminal.text == ""
