"""Small real joint graphs, captured by the package's own path: what the planner is measured on against the optimum.

Every model is one shape of dataflow in a few lines. Its tensors are of some hundred KiB, so that scalars do not matter,
and it is traced without running: only the scratch memory of its ops is measured, once per op.

    problems()["attention"]      a torch-free RematProblem, op by op (nothing fuses)
"""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from functorch.compile import aot_function
from torch import Tensor, nn

from remat_pass.analysis import analyze
from remat_pass.joint_graph import JointGraph, capture
from remat_pass.problem import RematProblem

ROWS = 1024
"""Batch of most models: a ROWS x 64 tensor of fp32 is 256 KiB, a 64 x 64 weight 16 KiB."""


class _Captured(Exception):
    """Ends the compilation: the joint graph is all that is wanted."""


@cache
def problems() -> dict[str, RematProblem]:
    """All graphs by name, always the same; their scratch memory is that of this machine's kernels."""
    return {name: capture_problem(build(), inputs()) for name, (build, inputs) in MODELS.items()}


def capture_problem(module: nn.Module, inputs: tuple[Tensor, ...]) -> RematProblem:
    """The problem of a module whose forward returns one loss or several."""
    return analyze(capture_joint(module, inputs)[0], fuses=False, cost_model="roofline")[1]


def capture_joint(
    module: nn.Module, inputs: tuple[Tensor, ...], decompositions: Mapping[Any, Callable[..., Any]] | None = None
) -> tuple[JointGraph, list[Any]]:
    """The joint graph of a module whose forward returns one loss or several, and its fake inputs.

    Args:
        module: Its parameters and buffers are the graph's static inputs.
        inputs: What it is called with.
        decompositions: By op; None leaves ops as they are, as eager lowering does.
    """
    static = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    captured: list[tuple[JointGraph, list[Any]]] = []

    def step(*arguments: Tensor) -> Any:
        named = dict(zip(static, arguments, strict=False))
        return torch.func.functional_call(module, named, arguments[len(named) :])

    def keep(graph: torch.fx.GraphModule, fakes: Any, *, num_fwd_outputs: int, **_: Any) -> Any:
        captured.append((capture(graph, forward_count=num_fwd_outputs, static_indices=range(len(static))), fakes))
        raise _Captured

    traced = aot_function(
        step, fw_compiler=lambda graph, _: graph, partition_fn=keep, decompositions=dict(decompositions or {})
    )
    try:
        traced(*static.values(), *inputs)
    except _Captured:
        return captured[0]
    raise AssertionError("the module has no backward")


def _rows(*widths: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.zeros(ROWS, width) for width in widths)


class Mlp(nn.Module):
    """Linear layers with an activation in between."""

    def __init__(self, *widths: int, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return x.sum()


class NormedMlp(nn.Module):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = F.relu(layer(norm(x)))
        return x.sum()


class ResidualMlp(nn.Module):
    """x + down(act(up(x))): the residual path alone crosses from block to block."""

    def __init__(self, blocks: int, width: int, hidden: int, *, normed: bool = False) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(blocks))
        self.norm = nn.ModuleList(nn.LayerNorm(width) if normed else nn.Identity() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for norm, up, down in zip(self.norm, self.up, self.down, strict=True):
            x = x + down(F.silu(up(norm(x))))
        return x.sum()


class Activations(nn.Module):
    """Pointwise ops only, each of which needs its result or its input in backward."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.scale = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            x = (torch.tanh, torch.sigmoid, F.softplus, F.gelu)[i % 4](x * self.scale)
        return x.sum()


class Attention(nn.Module):
    """Self-attention, written out or in one op."""

    def __init__(self, width: int, heads: int, *, fused: bool = False, residual: bool = False) -> None:
        super().__init__()
        self.heads, self.fused, self.residual = heads, fused, residual
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            mixed = torch.softmax(scores, dim=-1) @ v
        y = self.out(mixed.transpose(1, 2).flatten(-2))
        return x + y if self.residual else y

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x).pow(2).sum()


class Transformer(nn.Module):
    """Pre-norm blocks of attention and a gated MLP."""

    def __init__(self, blocks: int, width: int, hidden: int, heads: int, *, fused: bool = True) -> None:
        super().__init__()
        self.attention = nn.ModuleList(Attention(width, heads, fused=fused) for _ in range(blocks))
        self.gate = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))

    def forward(self, x: Tensor) -> Tensor:
        for i, attention in enumerate(self.attention):
            x = x + attention.attend(self.norms[2 * i](x))
            y = self.norms[2 * i + 1](x)
            x = x + self.down[i](F.silu(self.gate[i](y)) * self.up[i](y))
        return x.sum()


class Convolutions(nn.Module):
    """Convolution and activation, with or without a shortcut around every two."""

    def __init__(self, layers: int, channels: int, *, residual: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.norms = nn.ModuleList(nn.GroupNorm(4, channels) if norm else nn.Identity() for _ in range(layers))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            if self.residual and i % 2:
                x = shortcut = x + shortcut
        return x.sum()


class Pyramid(nn.Module):
    """Convolution and pooling: early layers are large, late ones small."""

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(channels << i, channels << i + 1, 3, padding=1) for i in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        for level in self.levels:
            x = F.max_pool2d(F.relu(level(x)), 2)
        return x.sum()


class UNet(nn.Module):
    """Each level on the way up is joined with the one of the same size on the way down."""

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(levels))
        self.up = nn.ModuleList(nn.Conv2d(2 * channels, channels, 3, padding=1) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            x = F.silu(down(x))
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        for up in self.up:
            x = F.interpolate(x, scale_factor=2.0)
            x = F.silu(up(torch.cat((x, skips.pop()), dim=1)))
        return x.sum()


class Diamond(nn.Module):
    """Branches from one value that are joined again, by sum or side by side."""

    def __init__(self, branches: int, width: int, *, joined: bool = False, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.branches = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(depth)) for _ in range(branches)
        )
        self.head = nn.Linear(branches * width if joined else width, width)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        results = []
        for branch in self.branches:
            y = x
            for layer in branch:
                y = F.gelu(layer(y))
            results.append(y)
        joined = torch.cat(results, dim=1) if self.joined else torch.stack(results).sum(0)
        return torch.tanh(self.head(joined)).sum()


class Breadth(nn.Module):
    """Branches that widen, written as list comprehensions: all are wide before the first is narrow again."""

    def __init__(self, branches: int, width: int) -> None:
        super().__init__()
        self.widen = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(branches))
        self.narrow = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        wide = [F.gelu(layer(x)) for layer in self.widen]
        narrow = [layer(h) for layer, h in zip(self.narrow, wide, strict=True)]
        return torch.tanh(torch.stack(narrow).sum(0)).sum()


class TwoLosses(nn.Module):
    """One trunk, two heads: backward starts from two tangents."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.classify = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.locate = nn.Linear(width, width)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.trunk:
            x = F.gelu(layer(x))
        logits = self.classify[1](F.gelu(self.classify[0](x)))
        return F.cross_entropy(logits, labels), torch.tanh(self.locate(x)).abs().mean()


class Recurrent(nn.Module):
    """A cell unrolled by hand, so that every step shares its weights with all the others."""

    def __init__(self, cell: nn.Module, steps: int) -> None:
        super().__init__()
        self.cell, self.steps = cell, steps

    def forward(self, x: Tensor, *state: Tensor) -> Tensor:
        carried = state if len(state) > 1 else state[0]
        for _ in range(self.steps):
            carried = self.cell(x, carried)
        return (carried[0] if len(state) > 1 else carried).sum()


class LstmCell(nn.Module):
    """An LSTM cell in ops of its own, which torch would otherwise run as one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, 4 * width)
        self.hidden = nn.Linear(width, 4 * width, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.input(x) + self.hidden(h)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class TanhCell(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, width)
        self.hidden = nn.Linear(width, width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.input(x) + self.hidden(h))


class GruCell(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gates = nn.Linear(2 * width, 2 * width)
        self.candidate = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, r = torch.sigmoid(self.gates(torch.cat((x, h), dim=1))).chunk(2, dim=1)
        candidate = torch.tanh(self.candidate(torch.cat((x, r * h), dim=1)))
        return (1 - z) * h + z * candidate


class Shared(nn.Module):
    """One layer, applied again and again."""

    def __init__(self, times: int, width: int) -> None:
        super().__init__()
        self.layer, self.times = nn.Linear(width, width), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(self.layer(x)) + x
        return x.sum()


class Gated(nn.Module):
    """act(gate(x)) * up(x), as in a Llama block."""

    def __init__(self, blocks: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for gate, up, down in zip(self.gate, self.up, self.down, strict=True):
            x = down(F.silu(gate(x)) * up(x))
        return x.sum()


class Dense(nn.Module):
    """Every layer reads all layers before it, side by side."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear((i + 1) * width, width) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, dim=1))))
        return features[-1].sum()


class Tokens(nn.Module):
    """Embedding, one hidden layer, and cross entropy over a vocabulary that dwarfs the rest."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.head(F.gelu(self.hidden(self.embedding(ids))))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class Dropped(nn.Module):
    """Dropout behind every layer: draws that may be repeated once from a saved generator state."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.dropout(F.gelu(layer(x)), 0.1, training=True)
        return x.sum()


class Mixture(nn.Module):
    """Experts weighed by a router, all of them computed."""

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.router(x), dim=-1)
        mixed = sum(F.relu(expert(x)) * weights[:, i : i + 1] for i, expert in enumerate(self.experts))
        return torch.as_tensor(mixed).sum()


def _sequence(width: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.zeros(4, 256, width),)


def _image(channels: int, side: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.zeros(4, channels, side, side),)


def _labelled(width: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.zeros(ROWS, width), torch.zeros(ROWS, dtype=torch.int64))


def _token_ids() -> tuple[Tensor, ...]:
    return torch.zeros(4, 128, dtype=torch.int64), torch.zeros(4, 128, dtype=torch.int64)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "mlp, 2": (lambda: Mlp(128, 256, 128), _rows(128)),
    "mlp, 4": (lambda: Mlp(64, 128, 128, 128, 64), _rows(64)),
    "mlp, 8": (lambda: Mlp(*[64] * 9), _rows(64)),
    "mlp, 8, tanh": (lambda: Mlp(*[64] * 9, activation=torch.tanh), _rows(64)),
    "mlp, 12, relu": (lambda: Mlp(*[64] * 13, activation=F.relu), _rows(64)),
    "autoencoder, narrow waist": (lambda: Mlp(128, 64, 32, 8, 32, 64, 128), _rows(128)),
    "autoencoder, wide waist": (lambda: Mlp(32, 64, 128, 128, 64, 32), _rows(32)),
    "mlp with layer norm, 2": (lambda: NormedMlp(2, 64), _rows(64)),
    "mlp with layer norm, 4": (lambda: NormedMlp(4, 64), _rows(64)),
    "residual mlp, 2": (lambda: ResidualMlp(2, 64, 128), _rows(64)),
    "residual mlp, 4": (lambda: ResidualMlp(4, 64, 128), _rows(64)),
    "residual mlp, 6": (lambda: ResidualMlp(6, 64, 128), _rows(64)),
    "residual mlp with layer norm, 3": (lambda: ResidualMlp(3, 64, 128, normed=True), _rows(64)),
    "activations, 4": (lambda: Activations(4), _rows(64)),
    "activations, 8": (lambda: Activations(8), _rows(64)),
    "attention": (lambda: Attention(64, 2), _sequence(64)),
    "attention, one op": (lambda: Attention(64, 2, fused=True), _sequence(64)),
    "attention, residual": (lambda: Attention(64, 2, residual=True), _sequence(64)),
    "transformer, 1": (lambda: Transformer(1, 64, 128, 2), _sequence(64)),
    "transformer, 1, attention written out": (lambda: Transformer(1, 64, 128, 2, fused=False), _sequence(64)),
    "transformer, 2": (lambda: Transformer(2, 64, 128, 2), _sequence(64)),
    "transformer, 4": (lambda: Transformer(4, 64, 128, 2), _sequence(64)),
    "convolutions, 3": (lambda: Convolutions(3, 8), _image(8, 32)),
    "convolutions, 6": (lambda: Convolutions(6, 8), _image(8, 32)),
    "convolutions, residual, 4": (lambda: Convolutions(4, 8, residual=True), _image(8, 32)),
    "convolutions, group norm, 3": (lambda: Convolutions(3, 8, norm=True), _image(8, 32)),
    "pyramid": (lambda: Pyramid(3, 4), _image(4, 64)),
    "u-net, 1": (lambda: UNet(1, 8), _image(8, 32)),
    "u-net, 2": (lambda: UNet(2, 8), _image(8, 32)),
    "diamond": (lambda: Diamond(2, 64), _rows(64)),
    "diamond, deep branches": (lambda: Diamond(2, 64, depth=3), _rows(64)),
    "diamond, side by side": (lambda: Diamond(3, 64, joined=True), _rows(64)),
    "two losses": (lambda: TwoLosses(64), _labelled(64)),
    "lstm, 1": (lambda: Recurrent(LstmCell(64), 1), _rows(64, 64, 64)),
    "lstm, 2": (lambda: Recurrent(LstmCell(64), 2), _rows(64, 64, 64)),
    "tanh cell, 6": (lambda: Recurrent(TanhCell(64), 6), _rows(64, 64)),
    "gru, 2": (lambda: Recurrent(GruCell(64), 2), _rows(64, 64)),
    "shared layer, 6": (lambda: Shared(6, 64), _rows(64)),
    "gated mlp, 1": (lambda: Gated(1, 64, 128), _rows(64)),
    "gated mlp, 3": (lambda: Gated(3, 64, 128), _rows(64)),
    "dense, 4": (lambda: Dense(4, 64), _rows(64)),
    "tokens": (lambda: Tokens(1024, 64), _token_ids),
    "dropout, 3": (lambda: Dropped(3, 64), _rows(64)),
    "branches in lists, 4": (lambda: Breadth(4, 64), _rows(64)),
    "mixture of experts": (lambda: Mixture(4, 64), _rows(64)),
}
