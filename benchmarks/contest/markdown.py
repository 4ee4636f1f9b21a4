"""Results as people read them: one Markdown page per results file, made from its rows alone; torch-free."""

from collections.abc import Iterable, Sequence

from benchmarks.contest.curve import Comparison, activation_ratio
from benchmarks.contest.goals import Goal, goals
from benchmarks.contest.results import MEASURED, WRONG, Meta, Row
from benchmarks.contest.summary import Summary, summaries

_MET = {True: "met", False: "**not met**", None: "–"}


def page(meta: Meta, rows: Sequence[Row], figures: dict[str, str]) -> str:
    """The whole page.

    Args:
        meta: What the rows hold for.
        rows: All of them.
        figures: From models to the file of their figure, relative to the page.
    """
    allocator = meta["allocators"][0]["name"]
    parts = ["# The frontier: measured peak against step time", "", source(meta), "", *_notes(meta), ""]
    parts += ["## Goals", "", *goal_table(goals(rows, allocator)), ""]
    found = summaries(rows, allocator)
    parts += ["## Summary", "", *_summary_table(found), ""]
    for model in dict.fromkeys(row.model for row in rows):
        parts += [f"## {model}", "", f"{meta['models'].get(model, model)}.", ""]
        if model in figures:
            parts += [f"![Peak against step time: {model}]({figures[model]})", ""]
        for summary in found:
            if summary.setting.model == model:
                parts += [*_section(summary, meta), ""]
    return "\n".join(parts).rstrip() + "\n"


def source(meta: Meta) -> str:
    """Command, machine, versions and commit: what every figure holds for."""
    machine = meta["machine"]
    hardware = f"{machine['processor']}, {machine['cores']} cores"
    if machine["accelerator"]:
        hardware = f"{machine['accelerator']}, {hardware}"
    return (
        f"`{meta['command']}` on {hardware}; torch {machine['torch']}, remat_pass {machine['remat_pass']}, "
        f"Python {machine['python']}, commit `{machine['commit'] or 'unknown'}`, {meta['date']}."
    )


def row_table(rows: Iterable[Row], allocators: Sequence[str]) -> list[str]:
    """Every measured row with its times, the anchor's as 0%."""
    headings = ["contestant", "point", "peak MB", "activations MB", "step ms"]
    headings += [f"against inductor, {name}" for name in allocators]
    headings += ["predicted", "compile s", "planning s", "gradient error"]
    return table(headings, (_measured_cells(row, allocators) for row in rows if row.state == MEASURED))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a bar inside a cell is escaped."""
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return lines + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def megabytes(count: int | None) -> str:
    """10^6 bytes with one decimal, or a dash."""
    return "–" if count is None else f"{count / 1e6:,.1f}"


def percent(ratio: float | None) -> str:
    """A ratio to the anchor as what it adds: 1.05 is +5.0%."""
    return "–" if ratio is None else f"{100 * (ratio - 1):+.1f}%"


def _notes(meta: Meta) -> list[str]:
    allocators = "; ".join(f"*{a['name']}*: {a['title']}" for a in meta["allocators"])
    return [
        "Peaks are of forward plus backward with `.grad` None before; MB are 10^6 bytes; activations are the peak with "
        "returned gradients taken off.",
        "Times are ratios to `inductor`, which took turns with everyone, step by step, in its group: median, and the "
        "quartiles in brackets.",
        f"Allocators: {allocators}. The summary is judged by the first.",
        "Rows of *gpu lowering* come from code generated for an H100 and never run: counted peaks, modelled times.",
    ]


def goal_table(found: Sequence[Goal]) -> list[str]:
    """A line for each goal."""
    return table(("goal", "where", "figure", ""), ((g.goal, g.where, g.figure, _MET[g.met]) for g in found))


def _summary_table(found: Sequence[Summary]) -> list[str]:
    headings = (
        "model, precision, target",
        "at or below others' points",
        "time at equal peak",
        "peak at equal time",
        "activations at equal time",
        "area between curves",
    )
    return table(headings, (_summary_cells(summary) for summary in found))


def _summary_cells(summary: Summary) -> tuple[str, ...]:
    numbers = summary.numbers
    return (
        str(summary.setting),
        f"{summary.at_or_below} of {len(summary.comparisons)}",
        _or_dash(numbers.time_at_equal_peak, "{:.3f}x"),
        _or_dash(numbers.peak_at_equal_time, "{:.3f}x"),
        _or_dash(numbers.activations_at_equal_time, "{:.3f}x"),
        _or_dash(numbers.area, "{:+.1f} points"),
    )


def _section(summary: Summary, meta: Meta) -> list[str]:
    lines = [f"### {summary.setting}", ""]
    if any(row.modelled for row in summary.rows):
        lines += _modelled_table(summary.rows)
    else:
        allocators = [a["name"] for a in meta["allocators"]]
        lines += row_table(summary.rows, allocators)
    if summary.comparisons:
        lines += ["", "Ours at each point of the others:", ""]
        lines += table(
            ("theirs", "ours", "peak", "activations", "time, points", "verdict"), map(_comparison, summary.comparisons)
        )
    if summary.remarks:
        lines += ["", "What failed, or is no point of a curve:", ""]
        lines += [f"- {row.title}: {_red(row)}; {row.why}" for row in summary.remarks]
    return lines


def _comparison(comparison: Comparison) -> tuple[str, ...]:
    theirs, ours = comparison.theirs, comparison.ours
    verdict = "at or below" if comparison.at_or_below else "**not**"
    if comparison.why:
        verdict += f": {comparison.why}"
    if ours is None:
        return theirs.row.title, "–", "–", "–", "–", verdict
    return (
        theirs.row.title,
        ours.row.title,
        f"{ours.peak_bytes / theirs.peak_bytes:.3f}x",
        _or_dash(activation_ratio(ours, theirs), "{:.3f}x"),
        f"{comparison.time_points:+.1f}",
        verdict,
    )


def _measured_cells(row: Row, allocators: Sequence[str]) -> list[str]:
    times = [row.times.get(name) for name in allocators]
    first = next((row.times[name] for name in (*allocators, *row.times) if name in row.times), None)
    ratios = []
    for timing in times:
        spread = ""
        if timing is not None and timing.quartile_ratios is not None:
            spread = f" [{percent(timing.quartile_ratios[0])}, {percent(timing.quartile_ratios[1])}]"
        ratios.append(f"{percent(timing.ratio if timing else None)}{spread}")
    predicted = row.plan["predicted_peak_bytes"] / row.peak_bytes if row.plan and row.peak_bytes else None
    return [
        row.contestant,
        row.point,
        megabytes(row.peak_bytes),
        megabytes(row.activation_peak_bytes),
        f"{first.median_seconds * 1000:,.1f}" if first else "–",
        *ratios,
        "–" if predicted is None else f"{100 * (predicted - 1):+.2f}%",
        _or_dash(row.compile_seconds, "{:.0f}"),
        _or_dash(row.plan["planning_seconds"] if row.plan else None, "{:.1f}"),
        f"{row.gradients['error']:.0e}" if row.gradients else "–",
    ]


def _modelled_table(rows: Sequence[Row]) -> list[str]:
    headings = ["contestant", "point", "peak MB", "activations MB", "modelled ms", "against inductor"]
    headings += ["GFLOP", "moved MB", "kernels", "predicted"]
    return table(headings, (_modelled_cells(row) for row in rows if row.modelled is not None))


def _modelled_cells(row: Row) -> tuple[str, ...]:
    modelled = row.modelled
    assert modelled is not None
    predicted = row.plan["predicted_peak_bytes"] / row.peak_bytes if row.plan and row.peak_bytes else None
    return (
        row.contestant,
        row.point,
        megabytes(row.peak_bytes),
        megabytes(row.activation_peak_bytes),
        f"{modelled.seconds * 1000:.3f}",
        percent(modelled.ratio),
        _or_dash(None if modelled.flops is None else modelled.flops / 1e9, "{:,.1f}"),
        megabytes(modelled.moved_bytes),
        _or_dash(modelled.kernels, "{}"),
        "–" if predicted is None else f"{100 * (predicted - 1):+.2f}%",
    )


def _red(row: Row) -> str:
    """GitHub shows no colours in Markdown; a red square stands out."""
    return f"🟥 **{row.state}**" if row.state == WRONG else row.state


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
