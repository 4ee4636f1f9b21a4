"""What the user asked for, checked at the door: everything behind this module works with an `Options` that is right.

Options come in layers, each a mapping from names to values that wins over the next, read when a graph is compiled:

    torch.compile(options=...)  >  set_default_options(...)  >  environment REMAT_MEMORY_BUDGET  >  Options()

A name that is not a field of `Options` belongs to Inductor and must be one that `torch.compile(options=...)` takes.
The name "mode" stands for several of them (`torch._inductor.list_mode_options`); within a layer, those written out win
over those the mode brings. As in torch, "-" in a name means "_".
"""

import dataclasses
import difflib
import numbers
import os
import re
import typing
from collections.abc import Callable, Mapping
from typing import Literal

from remat_pass import _torch_compat
from remat_pass.errors import OptionError
from remat_pass.units import parse_bytes

MEMORY_BUDGET_VARIABLE = "REMAT_MEMORY_BUDGET"

AUTO: Literal["auto"] = "auto"
"""The budget that is worked out when a graph is compiled (`auto_budget`)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Resolved options of one compiled graph; `Options()` holds the defaults.

    Attributes:
        memory_budget: Most bytes the step may hold at its peak (int), that as a fraction in (0, 1] of the
            unconstrained peak (float), "auto" for what is left when the graph is compiled, or None for no budget.
        lowering: "inductor" or "eager".
        on_infeasible: "raise" or "warn".
        cost_model: "roofline" or "measured".
        debug_dir: Absolute path of a folder to write to, or None.
        plan: Absolute path of an existing plan file or `debug_dir`, or None.
        reserve: Bytes that "auto" leaves free, or None for twice the trainable bytes; None without "auto".
        inductor: Options handed to Inductor, in the order of their names; empty under "eager".
    """

    memory_budget: float | int | Literal["auto"] | None = None
    lowering: str = "inductor"
    on_infeasible: str = "raise"
    cost_model: str = "roofline"
    debug_dir: str | None = None
    plan: str | None = None
    reserve: int | None = None
    inductor: tuple[tuple[str, object], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    """What one place says, already checked: values of ours by field name, and those for Inductor."""

    ours: Mapping[str, object]
    inductor: Mapping[str, object]


def resolve_options(options: Mapping[str, object] | None, mode: str | None = None) -> Options:
    """Combines the layers of this module's docstring.

    Args:
        options: What the caller passed as `torch.compile(options=...)`.
        mode: What the caller passed as `torch.compile(mode=...)`: same as `options={"mode": mode}`.

    Raises:
        OptionError: A name or a value is wrong, or an option would have no effect: one of Inductor with
            `lowering="eager"`, `reserve` without `memory_budget="auto"`. Only options of the same call or a later one
            clash: an explicit "eager" or another budget sets those of `set_default_options` aside.
    """
    explicit = _read_layer(_with_mode(options, mode))
    ours = {**_environment(), **_defaults.ours, **explicit.ours}
    inductor = {**_defaults.inductor, **explicit.inductor}
    if ours.get("lowering") == "eager":
        _refuse_inductor_options(explicit)
        inductor = {}
    if ours.get("memory_budget") != AUTO:
        _refuse_reserve(explicit, ours.get("memory_budget"))
        ours["reserve"] = None
    return dataclasses.replace(Options(), **ours, inductor=tuple(sorted(inductor.items())))  # type: ignore[arg-type]


def set_default_options(**options: object) -> None:
    """Sets options for every graph that this process compiles from now on, where `options=` cannot be passed.

    Takes what `torch.compile(options=...)` takes. Each call replaces the defaults of the one before, and a call
    without arguments clears them. `memory_budget=None` means no budget, whatever the environment says.

    Raises:
        OptionError: A name or a value is wrong; the defaults then stay as they were.
    """
    global _defaults
    layer = _read_layer(options)
    if layer.ours.get("lowering") == "eager":
        _refuse_inductor_options(layer)
    _defaults = layer


def parse_memory_budget(value: object) -> float | int | Literal["auto"] | None:
    """Turns what a user writes into bytes (int), a fraction of the unconstrained peak (float), "auto", or None.

    Strings also come from environment variables: "0.5" is a fraction, "123456" bytes, "6GiB" bytes, "none" no budget.

    Raises:
        OptionError: The value is none of these, or out of range.
    """
    return _parse_budget("memory_budget", value)


# Reading one layer.


def _with_mode(options: Mapping[str, object] | None, mode: str | None) -> Mapping[str, object]:
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"options={options!r}: must be a mapping from option names to values")
    options = options or {}
    if mode is None:
        return options
    if "mode" in options:
        raise OptionError(f"mode={mode!r} and options={{'mode': {options['mode']!r}}}: pass the mode once")
    return {**options, "mode": mode}


def _read_layer(options: Mapping[str, object]) -> _Layer:
    ours: dict[str, object] = {}
    inductor: dict[str, object] = {}
    from_mode: dict[str, object] = {}
    for key, value in options.items():
        name = key.replace("-", "_") if isinstance(key, str) else key
        if name in _PARSERS:
            ours[name] = _PARSERS[name](name, value)
        elif name == "mode":
            from_mode = _expand_mode(value)
        else:
            _check_inductor_option(key, name, value)
            inductor[name] = value
    return _Layer(ours, {**from_mode, **inductor})


def _environment() -> dict[str, object]:
    text = os.environ.get(MEMORY_BUDGET_VARIABLE, "")
    return {"memory_budget": _parse_budget(MEMORY_BUDGET_VARIABLE, text)} if text.strip() else {}


def _refuse_inductor_options(layer: _Layer) -> None:
    if layer.inductor:
        names = ", ".join(sorted(layer.inductor))
        raise OptionError(
            f'{names}: would have no effect with lowering="eager", which runs the graphs op by op without Inductor; '
            'drop these options (a mode sets some, too) or use lowering="inductor"'
        )


def _refuse_reserve(layer: _Layer, memory_budget: object) -> None:
    if layer.ours.get("reserve") is not None:
        raise OptionError(
            f"reserve={layer.ours['reserve']!r}: would have no effect with memory_budget={memory_budget!r}, which says "
            'itself how much memory a step may take; drop one of the two or pass memory_budget="auto"'
        )


def _expand_mode(mode: object) -> dict[str, object]:
    if not isinstance(mode, str) or not mode:
        raise OptionError(f'mode={mode!r}: must be a mode of torch.compile, such as "max-autotune"')
    try:
        return _torch_compat.expand_inductor_mode(mode)
    except RuntimeError as error:
        raise OptionError(f"mode={mode!r}: {error}") from error


def _check_inductor_option(key: object, name: str, value: object) -> None:
    """Makes the check of `torch.compile(backend="inductor")`; `value` itself goes through unchanged."""
    if name == "custom_partitioner_fn":
        raise OptionError(
            f'{key}: backend="remat" sets this option of Inductor itself, to plan what is recomputed; leave it out, or '
            'use backend="inductor" for a partitioner of your own'
        )
    known = _torch_compat.inductor_option_names()
    if name not in known:
        raise OptionError(_unknown_option(key, [*_PARSERS, "mode", *sorted(known)]))
    declared = _torch_compat.inductor_option_type(name)
    # Like torch, do not judge unions and other subscripted types. 2.13 declares one option by a string, on which
    # torch's own check fails; there is nothing to judge it by.
    if isinstance(declared, type) and typing.get_origin(declared) is None and not isinstance(value, declared):
        expected = "None" if declared is type(None) else f"of type {declared.__name__}"
        raise OptionError(f"{key}={value!r}: this option of Inductor must be {expected}, not {type(value).__name__}")


def _unknown_option(key: object, known: list[str]) -> str:
    if not isinstance(key, str):
        return f"option {key!r}: option names are strings"
    nearest = difflib.get_close_matches(key.replace("-", "_"), known, n=1, cutoff=0)
    ours = ", ".join([*_PARSERS, "mode"])
    return (
        f"unknown option {key!r}: did you mean {nearest[0]!r}? Options are {ours} and those of torch._inductor.config"
    )


# Values. Each parser takes the name to blame and what the user wrote.


def _parse_budget(name: str, value: object) -> float | int | Literal["auto"] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return _parse_budget_text(name, value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return _check_bytes(name, value, int(value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return _check_fraction(name, value, float(value))
    raise OptionError(f"{name}={value!r}: must be None, {_BUDGET_FORMS}")


def _parse_budget_text(name: str, text: str) -> float | int | Literal["auto"] | None:
    stripped = text.strip()
    if stripped.lower() == AUTO:
        return AUTO
    if stripped.lower() == "none":
        return None
    if re.fullmatch(r"[+-]?[0-9]+", stripped):
        return _check_bytes(name, text, int(stripped))
    try:
        fraction = float(stripped)
    except ValueError:
        pass
    else:
        return _check_fraction(name, text, fraction)
    try:
        size_bytes = parse_bytes(stripped)
    except OptionError as error:
        raise OptionError(f"{name}={text!r}: {error}; or {_BUDGET_FORMS}") from None
    return _check_bytes(name, text, size_bytes)


def _check_bytes(name: str, written: object, size_bytes: int) -> int:
    if size_bytes < 1:
        raise OptionError(
            f"{name}={written!r}: a budget in bytes must be at least 1; for a fraction of the unconstrained peak pass "
            "a float in (0, 1], for no budget None"
        )
    return size_bytes


def _check_fraction(name: str, written: object, fraction: float) -> float:
    if not 0 < fraction <= 1:
        raise OptionError(
            f"{name}={written!r}: a float is a fraction of the unconstrained peak and must lie in (0, 1]; for bytes "
            'pass an int or a string such as "6GiB"'
        )
    return fraction


def _parse_reserve(name: str, value: object) -> int | None:
    if value is None:
        return None
    size_bytes: int | None = None
    if isinstance(value, str):
        size_bytes = int(value) if re.fullmatch(r"\s*[0-9]+\s*", value) else _parse_size(name, value)
    elif isinstance(value, numbers.Integral) and not isinstance(value, bool):
        size_bytes = int(value)
    if size_bytes is None or size_bytes < 0:
        raise OptionError(f'{name}={value!r}: must be None, an int of at least 0 (bytes) or a string such as "2GiB"')
    return size_bytes


def _parse_size(name: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except OptionError as error:
        raise OptionError(f"{name}={text!r}: {error}") from None


def _parse_choice(name: str, value: object) -> str:
    choices = _CHOICES[name]
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")
    return value


def _parse_path(name: str, value: object) -> str | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path:
        raise OptionError(f"{name}={value!r}: must be a path, as str or os.PathLike, or None")
    return os.path.abspath(os.path.expanduser(path))


def _parse_debug_dir(name: str, value: object) -> str | None:
    path = _parse_path(name, value)
    if path is not None and os.path.exists(path) and not os.path.isdir(path):
        raise OptionError(f"{name}={value!r}: {path} is a file; name a folder, which is made if it is missing")
    return path


def _parse_plan(name: str, value: object) -> str | None:
    path = _parse_path(name, value)
    if path is not None and not os.path.exists(path):
        raise OptionError(
            f"{name}={value!r}: {path} does not exist; name a plan file or the debug_dir of an earlier run"
        )
    return path


_BUDGET_FORMS = (
    'an int (bytes), a float in (0, 1] (fraction of the unconstrained peak) or a string such as "6GiB" or "auto"'
)

_CHOICES = {
    "lowering": ("inductor", "eager"),
    "on_infeasible": ("raise", "warn"),
    "cost_model": ("roofline", "measured"),
}

_PARSERS: Mapping[str, Callable[[str, object], object]] = {
    "memory_budget": _parse_budget,
    "lowering": _parse_choice,
    "on_infeasible": _parse_choice,
    "cost_model": _parse_choice,
    "debug_dir": _parse_debug_dir,
    "plan": _parse_plan,
    "reserve": _parse_reserve,
}

_defaults = _Layer(
    ours={}, inductor={}
)  # Replaced as a whole by set_default_options, so that readers see one or the other.
