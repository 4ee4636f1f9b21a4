"""The driver, with workers that are twenty lines of Python: nothing in here compiles anything."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest.allocators import CACHING, DEFAULT
from benchmarks.contest.channel import without_paths
from benchmarks.contest.driver import Driver, Pace
from benchmarks.contest.results import FAILED, MEASURED, UNAVAILABLE, WRONG, Journal, Row
from benchmarks.contest.tasks import Setting, Task

SETTING = Setting("tiny", "fp32", "cpu")
PACE = Pace(alive=3, compiling=1, warm_up_steps=1, rounds=3, compile_timeout_seconds=30, step_timeout_seconds=1)

WORKER = """
import json, os, signal, sys, time
FOLDER = {folder!r}
name, steps = "?", 0
def log(text):
    with open(f"{{FOLDER}}/order", "a") as file:
        file.write(text + "\\n")
for line in sys.stdin:
    question = json.loads(line)
    do, answer = question["do"], {{}}
    if do == "prepare":
        name = question["contestant"]
        log(f"start {{name}}")
        answer = {{"compile_seconds": 1.5, "plan": None, "held_bytes": 100, "free_bytes": {free}}}
        if name == "fails":
            answer = {{"failed": "ValueError: no"}}
        if name == "unavailable":
            answer = {{"failed": "not here", "unavailable": True}}
        if name == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
    elif do == "check":
        passed = name != "wrong"
        verdict = {{"against": "eager", "error": 0.5, "allowed": 0.001, "where": "weight", "passed": passed}}
        answer = {{"peak_bytes": 1000, "gradient_bytes": 400, "gradients": verdict}}
    elif do == "refer":
        log(f"refer {{name}}")
        open(question["path"], "w").close()
    elif do == "warm_up":
        answer = {{"compiles": 7, "held_bytes": 100, "free_bytes": {free}}}
    elif do == "step":
        if name == "hangs":
            time.sleep(60)
        steps += 1
        log(name)
        seconds = 0.2 if name == "inductor" else 0.3
        compiles = 8 if name == "recompiles" and steps == 2 else 7
        answer = {{"seconds": seconds, "page_faults": 0, "compiles": compiles}}
    print(json.dumps(answer), flush=True)
"""


class Silent:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def doing(self, what: str) -> None:
        pass

    def done(self, row: Row) -> None:
        self.rows.append(row)


def task(name: str, point: str = "") -> Task:
    return Task(SETTING, name, name, True, point)


def run(
    folder: Path,
    tasks: Sequence[Task],
    *,
    free: int = 10_000,
    allocators=(CACHING,),
    matched=lambda rows: [],
    draws=False,
):
    """Run the tasks; the rows and the lines of the order in which workers were started and stepped."""
    worker = folder / "worker.py"
    worker.write_text(WORKER.format(folder=str(folder), free=free))
    (folder / "order").write_text("")
    watcher = Silent()
    driver = Driver(
        Journal(folder / "journal", {}), folder / "scratch", PACE, watcher, command=(sys.executable, worker)
    )
    driver.run(SETTING, tasks, allocators, draws=draws, matched=matched)
    return watcher.rows, (folder / "order").read_text().split("\n")[:-1]


def test_steps_are_taken_in_turns_and_every_round_begins_one_later(tmp_path: Path) -> None:
    rows, order = run(tmp_path, [task("inductor"), task("a"), task("b")])
    steps = [line for line in order if not line.startswith(("start", "refer"))]
    assert steps == ["inductor", "a", "b", "a", "b", "inductor", "b", "inductor", "a"]
    by_name = {row.contestant: row for row in rows}
    assert by_name["a"].times["caching"].ratio == 0.3 / 0.2
    assert by_name["a"].times["caching"].rounds == 3
    assert by_name["a"].activation_peak_bytes == 600
    assert by_name["inductor"].times["caching"].ratio == 1


def test_every_group_holds_the_anchor_and_it_has_one_row(tmp_path: Path) -> None:
    rows, order = run(tmp_path, [task("inductor"), *(task("a", str(i)) for i in range(4))])
    assert order.count("start inductor") == 2
    assert [row.title for row in rows] == ["inductor", "a 0", "a 1", "a 2", "a 3"]


def test_whatever_goes_wrong_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    names = ("fails", "dies", "hangs", "unavailable", "recompiles", "wrong", "good")
    rows, _ = run(tmp_path, [task(name) for name in names])
    found = {row.contestant: (row.state, row.why) for row in rows}
    assert found == {
        "inductor": (MEASURED, None),
        "fails": (FAILED, "ValueError: no"),
        "dies": (FAILED, "the process was ended by SIGKILL, perhaps for want of memory"),
        "hangs": (FAILED, "no answer within 1 s; ended"),
        "unavailable": (UNAVAILABLE, "not here"),
        "recompiles": (FAILED, "recompiled while it was timed, in round 2"),
        "wrong": (WRONG, "error 5.0e-01 against eager, 1e-03 allowed, weight"),
        "good": (MEASURED, None),
    }


def test_a_second_run_starts_nobody(tmp_path: Path) -> None:
    tasks = [task("a"), task("fails")]
    run(tmp_path, tasks)
    assert run(tmp_path, tasks) == ([], [])


def test_what_was_cut_off_is_measured_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, [task("a")])
    rows, order = run(tmp_path, [task("a"), task("b")])
    assert [row.contestant for row in rows] == ["b"]
    assert [line for line in order if line.startswith("start")] == ["start inductor", "start b"]


def test_failures_under_the_first_allocator_are_not_tried_under_the_second(tmp_path: Path) -> None:
    rows, _ = run(tmp_path, [task("a"), task("fails"), task("wrong")], allocators=(CACHING, DEFAULT))
    assert [(row.contestant, *row.times) for row in rows] == [
        ("inductor", "caching"),
        ("a", "caching"),
        ("fails",),
        ("wrong", "caching"),
        ("inductor", "default"),
        ("a", "default"),
    ]


def test_a_group_takes_in_no_more_than_memory_holds(tmp_path: Path) -> None:
    tasks = [task("a", str(i)) for i in range(2)]
    for free, groups in ((1000, 1), (50, 2)):  # every worker holds 100 bytes; one beside the anchor is always tried
        folder = tmp_path / str(free)
        folder.mkdir()
        _, order = run(folder, tasks, free=free)
        assert [line for line in order if line.startswith("start")].count("start inductor") == groups


def test_the_reference_is_eager_or_the_anchor_where_random_numbers_are_drawn(tmp_path: Path) -> None:
    for draws, expected in ((False, "eager"), (True, "inductor")):
        folder = tmp_path / expected
        folder.mkdir()
        _, order = run(folder, [task("a")], draws=draws)
        assert [line for line in order if line.startswith("refer")] == [f"refer {expected}"]


def test_matched_tasks_follow_from_what_was_measured(tmp_path: Path) -> None:
    def matched(rows: Sequence[Row]) -> list[Task]:
        return [task("ours", f"at {row.title}") for row in rows if row.contestant == "a" and row.peak_bytes == 1000]

    rows, _ = run(tmp_path, [task("a", "0.5")], matched=matched)
    assert [row.title for row in rows] == ["inductor", "a 0.5", "ours at a 0.5"]


def test_messages_say_nothing_of_the_machine() -> None:
    text = f"RuntimeError: in /usr/lib/python3/site-packages/torch/nn.py:3, {Path.cwd()}/benchmarks/models.py:7"
    assert without_paths(text) == "RuntimeError: in torch/nn.py:3, benchmarks/models.py:7"
