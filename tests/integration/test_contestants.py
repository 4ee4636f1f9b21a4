"""The contestants of the frontier benchmark compute eager's gradients, differ in what they save, describe themselves.

Where a contestant names Inductor, another backend of torch stands in: the same partitioner honours the same tags and
the same budget, and no kernels have to be generated.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch._functorch.config
from torch import Tensor, fx, nn

from benchmarks.contest import model_hugging_face as hf
from benchmarks.contest.campaign import Run
from benchmarks.contest.contestants import CONTESTANTS, Options, Unavailable
from benchmarks.contest.driver import Pace
from benchmarks.contest.models import MODELS, Model, with_autocast
from benchmarks.contest.selection import Choice
from benchmarks.contest.tasks import GPU_LOWERING
from remat_pass import _torch_compat
from tests.support.models import seeded, tokens

_TINY = MODELS["tiny"]
_SMALL_GPT2 = Model(
    name="small_gpt2",
    title="HF GPT-2, 2 layers, no dropout",
    build=lambda: (
        seeded(lambda: hf.gpt2(layers=2, width=16, heads=2, context=16, vocabulary=32, dropout=0.0))(),
        (tokens(32, 2, 16), tokens(32, 2, 16)),
    ),
    blocks=hf.gpt2_blocks,
    hugging_face=hf.inner,
)
_LARGEST_AND_SMALLEST = [
    pytest.param(name, point.options, id=f"{name} {point.label}".strip())
    for name, contestant in CONTESTANTS.items()
    for point in contestant.points("quick")[::3]
    if contestant.family != "hf" and name != "remat"
]


@pytest.fixture(autouse=True)
def no_codegen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Backend "inductor" becomes one that partitions as Inductor does and runs the graphs op by op."""
    compile_with = torch.compile

    def compile_module(module: nn.Module, *, backend: str, **settings: object) -> Callable[..., Tensor]:
        stand_in = "aot_eager_decomp_partition" if backend == "inductor" else backend
        return compile_with(module, backend=stand_in, fullgraph=True, **settings)

    monkeypatch.setattr(torch, "compile", compile_module)
    monkeypatch.setitem(MODELS, _SMALL_GPT2.name, _SMALL_GPT2)
    yield
    assert torch._functorch.config.activation_memory_budget == 1.0
    assert torch._functorch.config.activation_memory_budget_solver == "dp"


def _train(name: str, options: Options, model: Model = _TINY, *, autocast: bool = False) -> tuple[dict, int]:
    """Gradients by parameter, and the bytes that one step saves for backward beside parameters and batch."""
    torch._dynamo.reset()  # A module of the same shape would otherwise be given the code of the one before.
    module, batch = model.build()
    whole = with_autocast(module, "cpu") if autocast else module
    step = CONTESTANTS[name].prepare(model, whole, options)
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers(), *batch)}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step(*batch)
    loss.backward()
    return {n: p.grad for n, p in module.named_parameters()}, sum(saved.values())


@pytest.mark.filterwarnings("ignore::remat_pass.RematWarning")  # The point "least" asks for one byte.
@pytest.mark.parametrize(("name", "options"), _LARGEST_AND_SMALLEST)
def test_gradients_are_those_of_eager(name: str, options: Options) -> None:
    expected, _ = _train("eager", {})
    got, _ = _train(name, options)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("solver", ["ilp", "greedy"])
def test_gradients_of_the_knobs_other_solvers(solver: str) -> None:
    expected, _ = _train("eager", {})
    got, _ = _train(f"knob {solver}", {"budget": 0.2, "solver": solver})
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["checkpoint eager", "checkpoint inductor", "sac matmuls", "sac every second matmul"])
def test_gradients_under_autocast(name: str) -> None:
    expected, _ = _train("eager", {}, autocast=True)
    got, _ = _train(name, {}, autocast=True)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=1e-3)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("name", ["hf checkpoint", "hf checkpoint inductor"])
def test_gradients_of_hugging_face_checkpointing(name: str) -> None:
    expected, _ = _train("eager", {}, _SMALL_GPT2)
    got, _ = _train(name, {}, _SMALL_GPT2)
    torch.testing.assert_close(got, expected)


def test_each_kind_of_checkpointing_saves_more_than_the_one_before() -> None:
    names = ["checkpoint inductor", "sac every second matmul", "sac matmuls", "inductor"]
    saved = [_train(name, {})[1] for name in names]
    assert saved == sorted(set(saved)), dict(zip(names, saved, strict=True))


def test_hugging_face_checkpointing_saves_less() -> None:
    _, with_all = _train("inductor", {}, _SMALL_GPT2)
    _, with_few = _train("hf checkpoint inductor", {}, _SMALL_GPT2)
    assert with_few < with_all


def test_the_knob_is_in_force_while_the_first_step_compiles() -> None:
    saved = [_train("knob dp", {"budget": budget, "solver": "dp"})[1] for budget in (0.0, 1.0)]
    assert saved[0] < saved[1]


@pytest.mark.parametrize("name", ["tiny", "resnet"])
def test_hugging_face_checkpointing_says_where_it_has_no_meaning(name: str) -> None:
    model = MODELS[name]
    module, _ = model.build()
    for contestant in ("hf checkpoint", "hf checkpoint inductor"):
        with pytest.raises(Unavailable, match=r"Hugging Face model|gradient_checkpointing_enable"):
            CONTESTANTS[contestant].prepare(model, module, {})


@pytest.mark.parametrize("size", ["quick", "full"])
def test_points_are_unique_and_survive_json(size: str) -> None:
    keys = []
    for name, contestant in CONTESTANTS.items():
        assert contestant.name == name
        for point in contestant.points(size):
            assert json.loads(json.dumps(point.options)) == point.options
            keys.append((name, point.label))
            if contestant.gpu is not None:
                specification = contestant.gpu(point.options)
                assert json.loads(json.dumps(specification)) == specification
    assert len(set(keys)) == len(keys)


def test_how_many_points_each_size_has() -> None:
    sizes = {s: {n: len(c.points(s)) for n, c in CONTESTANTS.items()} for s in ("quick", "full")}
    assert sizes["full"] == {n: 10 if c.family in ("knob", "remat") else 1 for n, c in CONTESTANTS.items()}
    assert {n: k for n, k in sizes["quick"].items() if k != 1} == {
        "knob dp": 4,
        "knob ilp": 0,
        "knob greedy": 0,
        "remat": 4,
        "remat eager": 4,
    }


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("deep_llama", "llama_large")])  # They take seconds.
def test_a_model_captures_as_one_graph(name: str, autocast: bool) -> None:
    module, batch = MODELS[name].build()
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: object) -> Callable[..., tuple[Tensor]]:
        graphs.append(graph)
        return lambda *_: (torch.zeros(()),)

    whole = with_autocast(module, "cpu") if autocast else module
    torch.compile(whole, backend=backend)(*batch)  # fullgraph, as all of these
    (graph,) = graphs
    # What a contestant may put into checkpoints is not in some already.
    assert (len(MODELS[name].blocks(module)) >= 2) != _torch_compat.has_checkpoints(graph)


@pytest.mark.parametrize("name", ["tiny", "gpt2", "unet"])
def test_a_model_is_the_same_at_every_call(name: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    (first, batch), (second, again) = MODELS[name].build(), MODELS[name].build()
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(batch, again, rtol=0, atol=0)
    assert first.training


@pytest.mark.parametrize(
    ("device", "targets"), [("cpu", ["cpu", GPU_LOWERING, GPU_LOWERING]), ("cuda", ["cuda", GPU_LOWERING] * 2)]
)
def test_no_processor_trains_what_needs_a_gpu(device: str, targets: list[str], tmp_path: Path) -> None:
    run = Run(
        size="full",
        models=("tiny", "llama_large"),
        contestants={},
        jax=False,
        precisions=("bf16",),
        device=device,
        allocators=[],
        on_device=True,
        gpu_lowering=True,
        choice=Choice(),
        pace=Pace(),
        output=tmp_path,
        keep=False,
        command="",
    )
    assert [setting.target for setting in run.settings()] == targets
