"""Groups, rows on disk, points matched to the knob's peaks, and the block of the README."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.contest import readme, results
from benchmarks.contest.results import FAILED, MEASURED, WRONG, Journal, Row, Timing, row_of
from benchmarks.contest.selection import Choice, matched_tasks, tasks_of
from benchmarks.contest.tasks import GPU_LOWERING, Setting, Task, in_groups, thin, turn

SETTING = Setting("llama", "fp32", "cpu")
TIMING = Timing(3, 0.2, (0.1, 0.3), 1.0, (0.9, 1.1), 0.0)


def row(contestant: str, point: str = "", peak_bytes: int | None = 100, *, family: str = "knob", **more) -> Row:
    return row_of(Task(SETTING, contestant, family, True, point), peak_bytes=peak_bytes, **more)


def test_groups_are_few_and_alike() -> None:
    assert in_groups(range(11), 5) == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert in_groups([], 5) == []
    with pytest.raises(ValueError, match="at least 1"):
        in_groups([1], 0)


def test_turns_rotate() -> None:
    assert [turn("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_thin_keeps_both_ends() -> None:
    assert thin(range(10), 4) == [0, 3, 6, 9]
    assert thin(range(3), 4) == [0, 1, 2]
    assert thin(range(3), 1) == [2]
    assert thin(range(3), None) == [0, 1, 2]


def test_rows_survive_the_journal_and_the_file(tmp_path: Path) -> None:
    rows = [row("a", times={"caching": TIMING}), row("b", state=FAILED, why="no", peak_bytes=None)]
    journal = Journal(tmp_path / "j", {"commit": "1"})
    rows = [journal.add(one) for one in rows]
    assert Journal(tmp_path / "j", {"commit": "1"}).rows == rows
    results.write(tmp_path / "r.json", {"date": "today"}, rows)
    assert results.read(tmp_path / "r.json") == ({"date": "today"}, rows)
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(ValueError, match="no results file"):
        results.read(tmp_path / "r.json")


def test_rows_of_another_commit_are_dropped_unless_kept(tmp_path: Path) -> None:
    Journal(tmp_path / "j", {"commit": "1"}).add(row("a"))
    kept = Journal(tmp_path / "j", {"commit": "2"}, keep=True)
    assert [one.made_by for one in kept.rows] == [{"commit": "1"}]
    fresh = Journal(tmp_path / "j", {"commit": "2"})
    assert fresh.rows == [] and fresh.dropped == 1
    assert Journal(tmp_path / "j", {"commit": "1"}).rows == []


def test_a_line_cut_off_by_a_crash_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", {})
    journal.add(row("a"))
    journal.add(row("b"))
    text = (tmp_path / "j").read_text()
    (tmp_path / "j").write_text(text[:-20])
    assert [one.contestant for one in Journal(tmp_path / "j", {}).rows] == ["a"]
    Journal(tmp_path / "j", {}).add(row("c"))
    assert [one.contestant for one in Journal(tmp_path / "j", {}).rows] == ["a", "c"]


def test_merging_adds_times_and_keeps_the_first_figures() -> None:
    first = row("a", times={"caching": TIMING})
    second = row("a", peak_bytes=None, times={"default": TIMING})
    (merged,) = results.merge([first, second])
    assert merged == dataclasses.replace(first, times={"caching": TIMING, "default": TIMING})
    (failed,) = results.merge([row("a", state=WRONG), second])
    assert failed.state == WRONG


def test_timing_pairs_rounds_with_the_anchor() -> None:
    steps = [{"seconds": s, "page_faults": f} for s, f in ((2.0, 0), (6.0, 4), (3.0, 2))]
    anchor = [{"seconds": s} for s in (1.0, 2.0, 2.0)]
    found = results.timing(steps, anchor)
    assert (found.rounds, found.median_seconds, found.ratio, found.page_faults) == (3, 3.0, 2.0, 2)
    assert found.quartile_ratios == (1.75, 2.5)
    assert results.timing(steps, []).ratio is None


OURS = SimpleNamespace(
    name="remat",
    family="remat",
    gpu=lambda options: {},
    points=lambda size: (SimpleNamespace(label="none", options={"memory_budget": None, "lowering": "inductor"}),),
)
PLAN = {"margin_permille": 10}
EAGER = SimpleNamespace(name="eager", family="eager", gpu=None, points=OURS.points)


def test_only_what_goes_through_inductor_goes_to_the_rig() -> None:
    contestants = {"eager": EAGER, "remat": OURS}
    assert [task.contestant for task in tasks_of(SETTING, contestants, "full", Choice())] == ["eager", "remat"]
    on_gpu = dataclasses.replace(SETTING, target=GPU_LOWERING)
    assert [task.contestant for task in tasks_of(on_gpu, contestants, "full", Choice())] == ["remat"]


@pytest.mark.parametrize(
    ("choice", "labels"),
    [
        (Choice(), ["1", "0.5", "0.2", "least"]),
        (Choice(count=2), ["1", "least"]),
        (Choice(frozenset({"least", "0.5", "none"})), ["0.5", "least"]),
        (Choice(frozenset({"1", "0.5", "0.2"}), 2), ["1", "0.2"]),
    ],
)
def test_settings_are_chosen_by_label_and_by_number(choice: Choice, labels: list[str]) -> None:
    points = [SimpleNamespace(label=label) for label in ("1", "0.5", "0.2", "least")]
    assert [point.label for point in choice.of(points)] == labels
    assert choice.of(points[:1]) == points[:1]


def test_budgets_are_the_peaks_of_others_and_the_prediction_error() -> None:
    rows = [
        row("remat", "none", 2000, family="remat", plan=PLAN),
        row("remat", "least", 500, family="remat", plan=PLAN),
        row("remat", "at knob dp 9", 100, family="remat", plan=PLAN),
        row("knob dp", "1", 2000),  # what we need without a budget
        row("knob dp", "0.5", 1000),
        row("knob ilp", "0.5", 1009),  # as good as the one above
        row("knob ilp", "0.2", 800),
        row("knob dp", "0.1", 499),  # below our least
        row("knob dp", "0.2", 700, state=WRONG),
        row("checkpoint inductor", "", 600, family="checkpoint"),
        dataclasses.replace(row("checkpoint eager", "", 650, family="checkpoint"), through_inductor=False),
    ]
    found = matched_tasks(rows, SETTING, {"remat": OURS}, "full")
    assert [(task.point, task.options) for task in found] == [
        ("at checkpoint inductor", {"memory_budget": 606, "lowering": "inductor"}),
        ("at knob ilp 0.2", {"memory_budget": 808, "lowering": "inductor"}),
        ("at knob dp 0.5", {"memory_budget": 1010, "lowering": "inductor"}),
    ]
    assert matched_tasks(rows, SETTING, {"remat": OURS}, "quick") == found[1:]
    anchor = row("inductor", "", 2100, family="inductor", gradient_bytes=300)
    on_gpu = dataclasses.replace(SETTING, target=GPU_LOWERING)
    lowered = [dataclasses.replace(r, target=GPU_LOWERING) for r in (*rows, anchor)]
    assert matched_tasks([*rows, anchor], SETTING, {"remat": OURS}, "full") == found
    less = matched_tasks(lowered, on_gpu, {"remat": OURS}, "full")
    assert [(task.point, task.options["memory_budget"]) for task in less if " of activations" in task.point] == [
        ("at 1/5 of activations", 666),  # 300 of gradients, 360 of activations
        ("at 1/3 of activations", 909),
    ]
    assert matched_tasks(rows[3:], SETTING, {"remat": OURS}, "full") == []
    assert {row.state for row in rows} == {MEASURED, WRONG}


def test_replacing_the_block_of_a_readme() -> None:
    text = f"a\n{readme.BEGIN}\nold\n{readme.END}\nb\n"
    once = readme.replace_block(text, "new")
    assert once == f"a\n{readme.BEGIN}\nnew\n{readme.END}\nb\n"
    assert readme.replace_block(once, "new") == once
    for wrong in ("a", f"{readme.END}{readme.BEGIN}", text + readme.BEGIN):
        with pytest.raises(ValueError, match="the README needs one"):
            readme.replace_block(wrong, "new")


def test_the_block_names_what_it_holds_for() -> None:
    machine = {"processor": "CPU", "cores": 2, "accelerator": None, "torch": "2.13", "remat_pass": "0.1"}
    machine |= {"python": "3.11", "commit": "abc"}
    meta = {"command": "run me", "machine": machine, "date": "2030-01-01", "models": {"llama": "a Llama"}}
    meta["allocators"] = [{"name": "caching", "title": "glibc"}]
    rows = [
        row("knob dp", "0.5", 2_000_000, gradient_bytes=500_000, times={"caching": TIMING}),
        row("knob dp", "0.1", 1_000_000, state=WRONG),
        row("remat", "0.5", 3_000_000, family="remat"),
    ]
    assert readme.block(meta, rows, "results/f.svg").splitlines() == [
        "`run me` on CPU, 2 cores; torch 2.13, remat_pass 0.1, Python 3.11, commit `abc`, 2030-01-01.",
        "a Llama.",
        "",
        "![Measured peak against step time of every contestant](results/f.svg)",
        "",
        "| contestant | point | peak MB | activations MB | step against inductor |",
        "|---|---|---|---|---|",
        "| **remat** | 0.5 | 3.0 | – | – |",
        "| knob dp | 0.5 | 2.0 | 1.5 | +0.0% |",
    ]
    on_gpu = dataclasses.replace(rows[0], target=GPU_LOWERING, times={}, modelled=results.Modelled(1.0, 1.25))
    last = readme.block(meta, [*rows, on_gpu], "results/f.svg").splitlines()[-2:]
    assert last == ["| **remat** | 0.5 | 3.0 | – | – | – | – |", "| knob dp | 0.5 | 2.0 | 1.5 | +0.0% | 2.0 | +25.0% |"]
