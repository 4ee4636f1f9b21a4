"""Sizes as people write them, and as they read them. Everywhere else in the package a size is an int of bytes."""

import math
import re
from fractions import Fraction

from remat_pass.errors import OptionError

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?P<unit>[A-Za-z]+)")

_BYTES_PER_UNIT = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}

_DISPLAY_UNITS = (("KiB", 1024, 1), ("MiB", 1024**2, 1), ("GiB", 1024**3, 2), ("TiB", 1024**4, 2))


def parse_bytes(text: str) -> int:
    """Turns a size with a unit, such as "6GiB" or "1.5 GB", into bytes, rounded down.

    kB, MB, GB, TB are powers of 1000 and KiB, MiB, GiB, TiB powers of 1024, in any case that cannot be read as bits:
    "6gb" is fine, "6Gb" is not.

    Raises:
        OptionError: The text is no such size.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = match["unit"] if match else ""
    if match is None or unit.lower() not in _BYTES_PER_UNIT or _may_mean_bits(unit):
        raise OptionError(f"{text!r} is not a size: write a number and one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB")
    return math.floor(Fraction(match["number"]) * _BYTES_PER_UNIT[unit.lower()])


def format_bytes(size_bytes: int) -> str:
    """Formats a size for people, in powers of 1024: "1.21 GiB", "640.0 MiB", "12 B"."""
    sign, rest = ("-", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    if rest < 1024:
        return f"{sign}{rest} B"
    # Judged after rounding, so that nothing shows as 1024.0 of a unit.
    fitting = (unit for unit in _DISPLAY_UNITS if round(rest / unit[1], unit[2]) < 1024)
    name, unit_bytes, decimals = next(fitting, _DISPLAY_UNITS[-1])
    return f"{sign}{rest / unit_bytes:.{decimals}f} {name}"


def _may_mean_bits(unit: str) -> bool:
    return unit[0].isupper() and unit.endswith("b")
