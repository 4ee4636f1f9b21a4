"""The entry point: what `torch.compile(model, backend="remat")` calls for every captured graph."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from remat_pass.lower import lower
from remat_pass.options import resolve_options


def remat(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, object] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a captured graph so that its training step stays within the memory budget.

    Registered under the name "remat" (entry point group `torch_dynamo_backends`); no import is needed.

    Args:
        module: The graph that Dynamo captured; left as it was.
        inputs: Its example inputs.
        options: See `docs/options.md`.
        mode: As in `torch.compile(mode=...)`.

    Raises:
        OptionError: A bad option.
        InfeasibleBudgetError: No plan fits the budget. Dynamo wraps it in `BackendCompilerFailed`, whose
            `inner_exception` it is.
    """
    return lower(module, inputs, resolve_options(options, mode))
