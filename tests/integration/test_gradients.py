"""Gradients under `lowering="eager"` are bitwise those of the uncompiled module, whatever is saved or recomputed.

First the real models, then a table of little modules, one per way in which running an op twice, moving it to backward
or dropping it could change what a user sees. Each is trained with no budget, at budgets down to the least, and with
plans that no budget asks for: nothing saved that need not be, and random choices.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import remat_pass
from remat_pass.problem import RematPlan, RematProblem
from remat_pass.schedule import decide, plan_of
from tests.support.models import SMALL, floats, seeded, tokens
from tests.support.training import Outcome, assert_same, budgets, compiled, forced, random_keep, train

# Dynamo 2.13 and 2.14 instantiate the autograd.Function classes that they trace.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.mark.parametrize("name", SMALL)
def test_models(name: str) -> None:
    case = SMALL[name]
    check_budgets(case.build, case.inputs(), fractions=(0.0, 0.5))


# The table. A body is the forward of a module whose attributes are the layers given by keyword.


class Little(nn.Module):
    def __init__(self, body: Callable[..., Any], layers: dict[str, Callable[[], Any]]) -> None:
        super().__init__()
        for name, make in layers.items():
            made = make()
            if isinstance(made, Tensor) and not isinstance(made, nn.Parameter):
                self.register_buffer(name, made)
            else:
                setattr(self, name, made)
        self.body = body

    def forward(self, *inputs: Any) -> Any:
        return self.body(self, *inputs)


_LITTLE: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {}


def little(*inputs: Any, **layers: Callable[[], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the decorated forward to the table, with its inputs and the layers it uses."""

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        _LITTLE[body.__name__] = (seeded(lambda: Little(body, layers)), inputs)
        return body

    return register


def linear(width: int = 16) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(width, width)


X = floats(64, 16)
IMAGE = floats(2, 4, 8, 8)
SEQUENCE = floats(2, 12, 16)
LEAF = floats(64, 16, seed=5).requires_grad_()


# Randomness.


@little(X, first=linear(), second=linear())
def dropout(self: Any, x: Tensor) -> Any:
    h = F.dropout(F.relu(self.first(x)), 0.5)
    return F.dropout(torch.tanh(self.second(h)), 0.5), h


@little(SEQUENCE, project=lambda: nn.Linear(16, 48), out=linear())
def dropout_in_attention(self: Any, x: Tensor) -> Any:
    q, k, v = self.project(x).view(2, 12, 3, 4, 4).permute(2, 0, 3, 1, 4)
    return self.out(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5).transpose(1, 2).flatten(2))


@little(SEQUENCE, attention=lambda: nn.MultiheadAttention(16, 4, dropout=0.5, batch_first=True), out=linear())
def dropout_in_multihead_attention(self: Any, x: Tensor) -> Any:
    h, weights = self.attention(x, x, x)
    return self.out(h).sin(), weights


@little(X, first=linear(), second=linear())
def rrelu(self: Any, x: Tensor) -> Any:
    return self.second(F.rrelu(self.first(x), training=True)).sin()


@little(X, first=linear(), second=linear())
def many_draws(self: Any, x: Tensor) -> Any:
    h = self.first(x)
    h = h * torch.bernoulli(torch.sigmoid(h.detach()))
    h = h + torch.randn_like(h) * h.sin()
    h = self.second(F.dropout(h, 0.3)).tanh()
    h = h * torch.rand(16) + torch.normal(torch.zeros(16), torch.ones(16)) * h.exp()
    return F.feature_alpha_dropout(h, 0.5) * torch.randint(5, (64, 16)) * torch.randperm(16)


@little(X, first=linear())
def equal_draws(self: Any, x: Tensor) -> Any:
    """Draws that look alike are not equal subexpressions."""
    h = self.first(x)
    h = h + torch.randn_like(h).exp() * torch.randn_like(h) + F.dropout(h, 0.5) * F.dropout(h, 0.5)
    return h.sin() * torch.zeros(16).exponential_() / torch.zeros(16).exponential_()


class NoisyGradient(torch.autograd.Function):
    """Draws in forward what only backward reads, and draws twice in backward, to be used the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.rand_like(x))
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (noise,) = ctx.saved_tensors
        first, second = torch.rand_like(gradient), torch.rand_like(gradient)
        return gradient * noise * second + first


@little(X, first=linear(), second=linear())
def a_draw_for_backward_alone(self: Any, x: Tensor) -> Any:
    h = NoisyGradient.apply(self.first(x))
    return F.dropout(self.second(NoisyGradient.apply(F.dropout(h, 0.5))), 0.5)


@little(X, first=linear())
def one_draw_read_in_many_places(self: Any, x: Tensor) -> Any:
    mask = torch.rand_like(x)
    h = self.first(x * mask).sin() * mask
    return h.exp() * mask + mask.cos(), mask


# Mutation and state.


@little(
    IMAGE, conv=lambda: nn.Conv2d(4, 8, 3, padding=1), norm=lambda: nn.BatchNorm2d(8), end=lambda: nn.Conv2d(8, 4, 1)
)
def batch_norm(self: Any, x: Tensor) -> Any:
    return F.relu(self.end(F.relu(self.norm(self.conv(x)))))


@little(IMAGE, conv=lambda: nn.Conv2d(4, 4, 3, padding=1), norm=lambda: nn.BatchNorm2d(4))
def one_batch_norm_used_twice(self: Any, x: Tensor) -> Any:
    return self.norm(self.conv(self.norm(self.conv(x)).relu())).sin()


@little(X, first=linear(), state=lambda: torch.ones(16))
def a_buffer_whose_old_value_backward_needs(self: Any, x: Tensor) -> Any:
    old = self.state.clone()
    h = self.first(x).sin() * old
    self.state.add_(1).mul_(3)
    return h.exp() * old.cos()


@little(X, first=linear(), state=lambda: torch.ones(16))
def an_old_and_a_new_value(self: Any, x: Tensor) -> Any:
    h = self.first(x) * (self.state * 2).exp()
    with torch.no_grad():
        self.state.copy_(h.detach().mean(0))
    return (h * (self.state * 2)).sin() * h


@little(X, first=linear(), state=lambda: torch.ones(16))
def a_buffer_updated_by_what_is_recomputed(self: Any, x: Tensor) -> Any:
    h = self.first(x).exp()
    with torch.no_grad():
        self.state.lerp_(h.mean(0), 0.5)
    return (h / self.state.clone()).tanh() * h


@little(X, first=linear(), count=lambda: torch.zeros((), dtype=torch.int64))
def a_counter(self: Any, x: Tensor) -> Any:
    self.count += 1
    return self.first(x).sin() * self.count


@little(LEAF, first=linear(), second=linear())
def in_place(self: Any, x: Tensor) -> Any:
    h = self.first(x)
    h.mul_(2).relu_()
    g = self.second(h)
    g[:, 3:7] = h[:, :4] * 2
    g[g > 1] = 0.5
    g.transpose(0, 1)[0].add_(1)
    return g.sigmoid_() * h


@little(floats(64, 16, seed=3), first=linear())
def an_input_changed_in_place(self: Any, x: Tensor) -> Any:
    h = self.first(x.clone()).sin()
    x.add_(1)
    y = h * x.clone()
    x.mul_(h.detach())
    return y * x.clone()


@little(floats(64, 16, seed=3), first=linear())
def an_input_changed_in_place_with_gradient(self: Any, x: Tensor) -> Any:
    h = self.first(x.clone()).sin()
    x.add_(h)
    return h.exp() * x.clone()


@little(X, first=linear(), state=lambda: torch.zeros(16))
def a_buffer_changed_in_backward(self: Any, x: Tensor) -> Any:
    h = self.first(x).sin()

    def add_to_state(gradient: Tensor) -> Tensor:
        with torch.no_grad():
            self.state.add_(gradient.sum(0))
        return gradient * 2 + torch.rand_like(gradient)

    h.register_hook(add_to_state)
    return h.exp() * self.state.clone()


# What goes in and what comes out.


@little(X, first=linear(), second=linear())
def outputs_of_which_some_have_no_gradient(self: Any, x: Tensor) -> Any:
    h = self.first(x).sin()
    g = self.second(h).exp()
    return g, h.argmax(-1), (h > 0), h.detach(), g.detach().sum(), {"h": h, "five": 5, "none": None}


@little(X, first=linear())
def views_of_inputs(self: Any, x: Tensor) -> Any:
    return x.view(32, 32), x.t(), self.first(x).sin(), x[3:]


@little(LEAF, first=linear())
def views_of_inputs_with_gradient(self: Any, x: Tensor) -> Any:
    return x.view(32, 32), x.t(), self.first(x).sin(), x


@little(X, first=linear())
def outputs_that_share_memory(self: Any, x: Tensor) -> Any:
    h = self.first(x).sin()
    return h, h.view(32, 32), h[1:5], h.t(), h, h.exp()


@little(X, first=linear(), unused=linear(), frozen=linear())
def unused_parameters(self: Any, x: Tensor) -> Any:
    return self.first(x).sin(), self.unused.weight.shape[0]


def frozen_linear() -> nn.Module:
    return nn.Linear(16, 16).requires_grad_(False)


@little(X, frozen=frozen_linear, first=linear(), second=frozen_linear, third=linear())
def partly_frozen(self: Any, x: Tensor) -> Any:
    h = self.first(self.frozen(x).sin())
    return self.third(self.second(h).exp()).tanh(), self.frozen.weight * 2


@little(LEAF, floats(64, 16, seed=8).requires_grad_(), floats(64, 16, seed=9), first=linear())
def inputs_with_gradient(self: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return self.first(x * z).sin() * y.exp(), y * 2


@little(LEAF, first=linear())
def an_input_that_no_output_needs(self: Any, x: Tensor) -> Any:
    return (x.detach() * self.first.weight[0]).sin()


@little(tokens(10, 4, 6), embedding=lambda: nn.Embedding(10, 16, padding_idx=0), first=linear())
def embedding(self: Any, ids: Tensor) -> Any:
    return self.first(self.embedding(ids).sin()).exp(), ids + 1


@little(tokens(10, 4, 6), embedding=lambda: nn.Embedding(10, 16, sparse=True), first=linear())
def sparse_gradients(self: Any, ids: Tensor) -> Any:
    return self.first(self.embedding(ids).sin()).exp()


@little(tokens(16, 4, 6), embedding=lambda: nn.Embedding(16, 16), first=linear())
def tied_weights(self: Any, ids: Tensor) -> Any:
    h = self.first(self.embedding(ids)).tanh()
    return F.cross_entropy(F.linear(h, self.embedding.weight).flatten(0, 1), ids.flatten())


@little(X, first=linear())
def a_gradient_that_needs_no_tangent(self: Any, x: Tensor) -> Any:
    return ConstantGradient.apply(self.first(x).sin())


class ConstantGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.cos()


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        ctx.scale = scale
        rounded = torch.round(x * scale)
        ctx.mark_non_differentiable(rounded)
        return rounded / scale, rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


@little(X, first=linear(), second=linear())
def custom_function(self: Any, x: Tensor) -> Any:
    h, rounded = Straight.apply(self.first(x).sin(), 4.0)
    return self.second(h).exp(), rounded


# Ops.


@little(X, first=linear(), second=lambda: nn.Linear(16, 16, dtype=torch.float64))
def mixed_dtypes(self: Any, x: Tensor) -> Any:
    h = self.first(x)
    g = self.second(h.double().sin())
    return (g.float() * h.bfloat16()).tanh(), g.half() * h.half()


@little(X, first=linear(), second=linear(), norm=lambda: nn.LayerNorm(16))
def autocast(self: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = self.norm(F.gelu(self.first(x)))
        return F.softmax(self.second(h) @ h.t(), -1)


@little(SEQUENCE, cell=lambda: nn.LSTMCell(16, 8), first=linear(8))
def lstm(self: Any, x: Tensor) -> Any:
    state = (torch.zeros(2, 8), torch.zeros(2, 8))
    states = []
    for moment in x.unbind(1)[:5]:
        state = self.cell(moment, state)
        states.append(state[0])
    return self.first(F.dropout(torch.stack(states), 0.5)).sin(), state


@little(SEQUENCE, gru=lambda: nn.GRU(16, 8, batch_first=True, bidirectional=True), first=linear())
def gru(self: Any, x: Tensor) -> Any:
    h, last = self.gru(x[:, :4])
    return self.first(h).sin(), last


@little(X, first=linear(), second=linear(32))
def cat_chunk_unbind(self: Any, x: Tensor) -> Any:
    h = self.first(x).sin()
    a, b = torch.cat((h, h.exp()), 1).chunk(2, 1)
    rows = self.second(torch.cat((a * b, a), 1)).unbind(0)
    return torch.stack(rows[:9]).tanh() * rows[11], torch.stack((a, b)).split([1, 1])[1], rows[3]


@little(X, first=linear())
def indexing(self: Any, x: Tensor) -> Any:
    h = self.first(x).sin()
    index = torch.tensor([3, 3, 5])
    g = torch.zeros(64, 16).index_put((index,), h[:3] * 2, accumulate=True)
    g = g.scatter(1, torch.zeros(64, 2, dtype=torch.int64), h[:, :2].exp()).scatter_add(
        0, torch.ones(4, 16, dtype=torch.int64), h[:4]
    )
    return g.cumsum(0) * h.gather(1, h.argsort(1)), h.index_select(0, index), h[h[:, 0] > 5]


@little(X, first=linear())
def sorting(self: Any, x: Tensor) -> Any:
    h = self.first(x)
    top, where = h.sin().topk(4, 1)
    values, order = h.exp().sort(1)
    smallest, _ = h.min(1)
    return top * values[:, :4], where, order, smallest, h.cummax(0).values, torch.where(h > 0, h, h.exp())


@little(SEQUENCE, first=linear())
def einsum(self: Any, x: Tensor) -> Any:
    h = self.first(x).sin()
    scores = torch.einsum("bid,bjd->bij", h, h.exp())
    return torch.einsum("bij,bjd->bid", scores.softmax(-1), h), torch.baddbmm(scores, h, h.transpose(1, 2)).logsumexp(1)


@little(
    IMAGE,
    up=lambda: nn.ConvTranspose2d(4, 8, 2, stride=2),
    norm=lambda: nn.GroupNorm(2, 8),
    down=lambda: nn.Conv2d(8, 8, 3, groups=4, padding=1),
)
def convolutions(self: Any, x: Tensor) -> Any:
    h = F.silu(self.norm(self.up(x)))
    h = F.max_pool2d(F.gelu(self.down(h)), 2) + F.adaptive_avg_pool2d(h, 8)
    return F.interpolate(h, scale_factor=2, mode="nearest"), F.pad(h, (1, 1, 1, 1), mode="reflect").std((2, 3))


@little(X, first=linear(), second=linear(), norm=lambda: nn.LayerNorm(16), batch=lambda: nn.BatchNorm1d(16))
def norms(self: Any, x: Tensor) -> Any:
    h = self.batch(self.norm(self.first(x))).exp()
    return F.rms_norm(self.second(h), (16,)) * F.normalize(h), F.instance_norm(h.view(2, 32, 16)).sin()


@little(X, first=linear())
def one_result_read_twice(self: Any, x: Tensor) -> Any:
    h = self.first(x)
    s = h.sin()
    return (s * s + s * h).exp() * s + h @ s.t() @ s


@little(X, first=linear())
def a_view_of_a_recomputed_value(self: Any, x: Tensor) -> Any:
    h = self.first(x).sin()
    v = h.view(8, 8, 16).permute(1, 0, 2)
    return (v.reshape(64, 16).exp() * h).tanh(), v.contiguous().sin(), v.expand(2, 8, 8, 16).exp()


@little(X, first=linear())
def complex_numbers(self: Any, x: Tensor) -> Any:
    spectrum = torch.fft.rfft(self.first(x).sin())
    return torch.fft.irfft(spectrum * spectrum.conj()).exp(), spectrum.abs()


@little(X, first=linear())
def constants(self: Any, x: Tensor) -> Any:
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(1, 8)
    h = self.first(x).sin() * table[0]
    return h.exp() * torch.arange(16) + torch.full((16,), 2.0).cos() * h


@little(X, first=linear())
def linear_algebra(self: Any, x: Tensor) -> Any:
    h = self.first(x)[:16]
    square = h @ h.t() + 16 * torch.eye(16)
    return torch.linalg.cholesky(square).exp(), torch.linalg.solve(square, h).sin(), torch.linalg.inv(square)


@little(X, first=linear(), second=linear())
def control_flow(self: Any, x: Tensor) -> Any:
    h = self.first(x).sin()
    return torch.cond(h.sum() > 0, lambda y: self.second(y).exp(), lambda y: y.cos(), (h,)) * h.exp()


@little(X, first=linear())
def function_transforms(self: Any, x: Tensor) -> Any:
    h = self.first(x)
    return torch.func.vmap(torch.func.grad(lambda row: row.sin().prod()))(h) * h.exp()


@little(X, first=linear())
def nothing_to_recompute(self: Any, x: Tensor) -> Any:
    return self.first(x)


# AOTAutograd rebuilds outputs that share memory outside of the graph, where autograd adds up what they receive.
_ADDED_IN_ANOTHER_ORDER = {"views_of_inputs_with_gradient", "outputs_that_share_memory"}

# AOTAutograd runs the layer as products of other shapes, which round otherwise on processors without AVX-512.
_TRACED_AS_OTHER_OPS = {"gru"}


@pytest.fixture(autouse=True)
def trace_recurrent_layers() -> Iterator[None]:
    """Dynamo runs LSTM and GRU uncompiled unless told otherwise."""
    with torch._dynamo.config.patch(allow_rnn=True):
        yield


@pytest.mark.parametrize("name", _LITTLE)
def test_little_modules(name: str) -> None:
    build, inputs = _LITTLE[name]
    how = {"exact": name not in _ADDED_IN_ANOTHER_ORDER, "traced": name in _TRACED_AS_OTHER_OPS}
    check_budgets(build, inputs, **how)
    check_forced_plans(build, inputs, **how)


@pytest.mark.parametrize("name", ["batch_norm", "dropout", "a_buffer_whose_old_value_backward_needs"])
def test_eval_with_gradients(name: str) -> None:
    build, inputs = _LITTLE[name]
    check_budgets(lambda: build().eval(), inputs)


def check_budgets(
    build: Callable[[], nn.Module],
    inputs: tuple[Any, ...],
    *,
    fractions: tuple[float, ...] = (0.0,),
    exact: bool = True,
    traced: bool = False,
) -> None:
    """No budget, then budgets down to the least: one compilation each, two steps each."""
    expected = references(build, inputs, 2, traced=traced)

    def check(budget: int | None) -> None:
        module = build()
        run = compiled(module, memory_budget=budget)
        for step in range(2):
            got = train(module, run, inputs, seed=step)
            assert_same(expected[step], got, f"memory_budget={budget}, step {step}", exact=exact)

    check(None)
    for budget in budgets(remat_pass.reports()[-1], fractions):
        check(budget)


def references(build: Callable[[], nn.Module], inputs: tuple[Any, ...], steps: int, *, traced: bool) -> list[Outcome]:
    """What the uncompiled module does in each step; if `traced`, what AOTAutograd alone does, which is close to it."""
    module = build()
    uncompiled = [train(module, module, inputs, seed=step) for step in range(steps)]
    if not traced:
        return uncompiled
    module = build()
    run = torch.compile(module, backend="aot_eager")
    found = [train(module, run, inputs, seed=step) for step in range(steps)]
    for step in range(steps):
        assert_same(uncompiled[step], found[step], f"AOTAutograd alone, step {step}", exact=False)
    return found


def check_forced_plans(
    build: Callable[[], nn.Module], inputs: tuple[Any, ...], *, exact: bool = True, traced: bool = False
) -> None:
    (expected,) = references(build, inputs, 1, traced=traced)
    for share in (0.0, 0.5):

        def planner(problem: RematProblem, share: float = share) -> RematPlan:
            # Of what is saved or recomputed a share is dropped after every backward value, and run again when wanted
            # or, before some of them, early.
            forgotten = {v: random_keep(problem, v, share) for v in problem.runs_in_backward}
            early = {v: random_keep(problem, v + 1, share) for v in problem.runs_in_backward[::5]}
            return plan_of(problem, decide(problem, random_keep(problem, 1, share), forgotten, early=early))

        module = build()
        run, _ = forced(module, planner)
        assert_same(
            expected, train(module, run, inputs), f"keeping and forgetting {share:.0%} of all values", exact=exact
        )
