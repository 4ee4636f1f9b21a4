"""The frontier in the README: a table, a figure and what they hold for, between two markers; torch-free.

Nobody types these figures: `python -m benchmarks.frontier --quick --paste` replaces what stands between
`<!-- frontier:begin -->` and `<!-- frontier:end -->`.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest.markdown import megabytes, percent, source, table
from benchmarks.contest.results import MEASURED, Meta, Row
from benchmarks.contest.tasks import OURS

BEGIN, END = "<!-- frontier:begin -->", "<!-- frontier:end -->"


def paste(readme: Path, content: str) -> None:
    """Put `content` between the markers of the file.

    Raises:
        ValueError: The file does not have each marker once, in order.
    """
    readme.write_text(replace_block(readme.read_text(), content))


def replace_block(text: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """The text with `content` between the markers.

    Raises:
        ValueError: The text does not have each marker once, in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the README needs one {begin} and one {end} after it")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def block(meta: Meta, rows: Sequence[Row], figure: str) -> str:
    """Where the figures come from, the figure, and one line per point of each setting on a device.

    Args:
        meta: Of the results file.
        rows: Of the results file.
        figure: Path of the figure, as seen from the README.
    """
    allocator = meta["allocators"][0]["name"]
    models = dict.fromkeys(row.model for row in rows)
    lines = [source(meta), *(f"{meta['models'].get(model, model)}." for model in models), ""]
    lines += [f"![Measured peak against step time of every contestant]({figure})", ""]
    shown = sorted(
        (row for row in rows if row.modelled is None and row.state == MEASURED and row.peak_bytes),
        key=lambda row: -(row.peak_bytes or 0),
    )
    modelled = {_point(row): row for row in rows if row.modelled is not None}
    headings = ["contestant", "point", "peak MB", "activations MB", "step against inductor"]
    cells = [_cells(row, allocator) for row in shown]
    if modelled:
        headings += ["peak MB, code for H100", "step, modelled for H100"]
        cells = [[*line, *_modelled_cells(modelled.get(_point(row)))] for row, line in zip(shown, cells, strict=True)]
    return "\n".join(lines + table(headings, cells))


def _point(row: Row) -> tuple[str, ...]:
    """What a row has in common with that of another target."""
    return row.model, row.precision, row.contestant, row.point


def _cells(row: Row, allocator: str) -> list[str]:
    timing = row.times.get(allocator)
    # Ours stand out, as this is what a reader looks for.
    name = f"**{row.contestant}**" if row.family == OURS else row.contestant
    ratio = percent(timing.ratio if timing else None)
    return [name, row.point, megabytes(row.peak_bytes), megabytes(row.activation_peak_bytes), ratio]


def _modelled_cells(row: Row | None) -> list[str]:
    if row is None or row.modelled is None:
        return ["–", "–"]
    return [megabytes(row.peak_bytes), percent(row.modelled.ratio)]
