"""The demo's results as people read them: a table and verdicts on the terminal, and one page with the curves.

The page holds everything it needs, plotly.js included, so that it can be mailed or attached and opens offline.
"""

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.demo_results import LOSS_LIMIT, mib

_COLORS = {"a": "#64748b", "b": "#2563eb", "c": "#ea580c"}
_FIGURES = (
    "budget",
    "predicted peak",
    "measured peak",
    "prediction error",
    "median step",
    "against (a)",
    "loss, first step",
    "loss, last step",
)


def print_results(results: dict[str, Any], console: Console) -> None:
    """The figures, one column per run so that they fit a narrow terminal, then one line per check."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("", *(f"({run['label']}) {run['title']}" for run in results["runs"])):
        table.add_column(heading, justify="right" if heading else "left")
    for name, *cells in zip(_FIGURES, *(_figures(run) for run in results["runs"]), strict=True):
        table.add_row(name, *cells)
    console.print(table)
    for check in results["checks"]:
        verdict = "[green]passed[/]" if check["passed"] else "[bold red]FAILED[/]"
        console.print(f"{verdict}  {check['claim']}: {check['figures']}", highlight=False, soft_wrap=True)


def _figures(run: dict[str, Any]) -> list[str]:
    """The figures of one run, in the order of `_FIGURES`."""
    error = run["prediction_error"]
    return [
        mib(run["budget_bytes"]),
        mib(run["predicted_peak_bytes"]),
        mib(run["measured_peak_bytes"]),
        "–" if error is None else f"{error:+.2%}",
        f"{run['median_step_seconds'] * 1000:,.0f} ms",
        f"{run['slowdown']:+.1%}" if run["label"] != "a" else "–",
        f"{run['losses'][0]:.5f}",
        f"{run['losses'][-1]:.5f}",
    ]


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write `results.json` and `index.html` into `folder`, which is created if missing; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("demo_page.html.j2").render(
        results=results,
        colors=_COLORS,
        names=_FIGURES,
        figures=_figures,
        plotly=get_plotlyjs(),
        memory_figure=_html(_memory_figure(results["runs"])),
        loss_figure=_html(_loss_figure(results["runs"])),
        mib=mib,
    )
    target = folder / "index.html"
    target.write_text(page, encoding="utf-8")
    return target


def _memory_figure(runs: list[dict[str, Any]]) -> go.Figure:
    """Bytes alive over one step of each run, its peak marked, its budget as a dashed line."""
    figure = go.Figure()
    for run in runs:
        color, timeline = _COLORS[run["label"]], run["timeline"]
        times_ms = [0.0, *(time_ns / 1e6 for time_ns in timeline["times_ns"])]
        alive_mib = [0.0, *(count / 2**20 for count in timeline["allocated_bytes"])]
        peak = max(range(len(alive_mib)), key=alive_mib.__getitem__)
        name = f"({run['label']}) {run['title']}"
        figure.add_scatter(
            x=times_ms,
            y=alive_mib,
            name=name,
            line={"color": color, "width": 1.6, "shape": "hv"},
            fill="tozeroy",
            fillcolor=_transparent(color, 0.10),
            hovertemplate="%{y:.1f} MiB at %{x:.0f} ms<extra>" + name + "</extra>",
        )
        figure.add_annotation(
            x=times_ms[peak],
            y=alive_mib[peak],
            text=f"<b>{alive_mib[peak]:.0f} MiB</b>",
            font={"color": color},
            bgcolor="rgba(255, 255, 255, 0.85)",
            arrowcolor=color,
            arrowhead=6,
            ax=0,
            ay=-24,
        )
        if run["budget_bytes"] is not None:
            figure.add_hline(
                y=run["budget_bytes"] / 2**20,
                line={"color": color, "dash": "dash", "width": 1.5},
                annotation={"text": f"budget of ({run['label']})", "font": {"color": color}},
                annotation_position="top right",
            )
    figure.update_xaxes(title="ms since the step began, under the profiler")
    figure.update_yaxes(title="MiB alive", rangemode="tozero")
    return _styled(figure, height=460)


def _loss_figure(runs: list[dict[str, Any]]) -> go.Figure:
    """The losses over each other, and below how far each is from those of the first run."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.66, 0.34], vertical_spacing=0.06)
    styles: tuple[dict[str, Any], ...] = (
        {"width": 9},
        {"width": 4},
        {"width": 1.5},
    )  # each leaves the one below it visible
    for run, style in zip(runs, styles, strict=True):
        color, name = _COLORS[run["label"]], f"({run['label']}) {run['title']}"
        steps = list(range(1, len(run["losses"]) + 1))
        shown = _transparent(color, 0.4) if run is runs[0] else color
        figure.add_scatter(x=steps, y=run["losses"], name=name, line={"color": shown, **style}, row=1, col=1)
        if run is not runs[0]:
            # A logarithmic axis has no place for exact agreement; such steps are left out.
            differences = [difference or None for difference in run["loss_differences"]]
            figure.add_scatter(
                x=steps,
                y=differences,
                name=f"({run['label']}) against (a)",
                mode="lines+markers",
                line={"color": color, "width": 1.5},
                marker={"size": 4},
                showlegend=False,
                row=2,
                col=1,
            )
    figure.add_hline(y=LOSS_LIMIT, line={"color": "#b91c1c", "dash": "dash", "width": 1}, row=2, col=1)
    figure.update_xaxes(title="training step", row=2, col=1)
    figure.update_yaxes(title="loss, nats per byte", row=1, col=1)
    figure.update_yaxes(
        title="relative difference", type="log", exponentformat="power", dtick=1, range=[-8, -2], row=2, col=1
    )
    return _styled(figure, height=520)


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 30, "b": 55},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1e293b"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="x unified",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def _html(figure: go.Figure) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})


def _transparent(color: str, opacity: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"
