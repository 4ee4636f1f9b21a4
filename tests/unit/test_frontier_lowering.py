"""The rows of the rig for GPU code, with rigs that are a few lines of Python: nothing in here compiles anything."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.contest.lowering import Lowering
from benchmarks.contest.results import FAILED, MEASURED, UNAVAILABLE, Journal, Row
from benchmarks.contest.tasks import Setting, Task

SETTING = Setting("tiny", "fp32", "gpu lowering")

RIG = """
import json, os, pathlib, sys, time
FOLDER = pathlib.Path({folder!r})
FIGURES = ("modelled_ns", "triton_kernels", "extern_kernels", "flops", "moved_bytes")
for line in sys.stdin:
    name = json.loads(line)["contestant"]["kind"]
    (FOLDER / f"{{name}}_begun").write_text(str(os.getpid()))
    if name == "dies":
        sys.exit(3)
    while name == "waits" and not (FOLDER / "goes_begun").exists():
        time.sleep(0.01)
    result = {{f"{{phase}}_{{figure}}": len(name) for phase in ("forward", "backward") for figure in FIGURES}}
    result |= {{"peak_bytes": 100, "returned_gradient_bytes": 10}}
    answer = {{"ok": True, "result": result, "report": None}}
    if name == "refuses":
        answer = {{"ok": False, "error": "Unavailable: not for this model"}}
    print(json.dumps(answer), flush=True)
"""


class Silent:
    def doing(self, what: str) -> None:
        pass

    def done(self, row: Row) -> None:
        pass


def run(folder: Path, names: Sequence[str], at_once: int) -> list[Row]:
    """The rows of some contestants, of which "inductor" is the anchor."""
    contestants = {name: SimpleNamespace(gpu=lambda options: {"kind": options["name"]}) for name in names}
    journal = Journal(folder / "journal.jsonl", {}, keep=False)
    command = (sys.executable, "-c", RIG.format(folder=str(folder)))
    lowering = Lowering(journal, folder, Silent(), contestants, at_once=at_once, timeout_seconds=10, command=command)
    tasks = [Task(SETTING, name, "family", True, "", {"name": name}) for name in names]
    lowering.run(SETTING, tasks, lambda rows: [])
    return journal.rows


def test_points_are_compiled_side_by_side_after_the_anchor_and_kept_in_their_order(tmp_path: Path) -> None:
    rows = run(tmp_path, ("waits", "goes", "inductor"), at_once=2)
    assert [row.contestant for row in rows] == ["inductor", "waits", "goes"]
    assert {row.state for row in rows} == {MEASURED}
    assert [row.modelled and row.modelled.ratio for row in rows] == [1, 5 / 8, 4 / 8]
    assert len({(tmp_path / f"{name}_begun").read_text() for name in ("waits", "goes")}) == 2


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_rig_that_dies_makes_a_row_and_others_go_on(tmp_path: Path, at_once: int) -> None:
    inductor, dead, refused, good = run(tmp_path, ("inductor", "dies", "refuses", "goes"), at_once)
    assert (inductor.state, good.state) == (MEASURED, MEASURED)
    assert (dead.state, dead.why) == (FAILED, "the process ended with status 3")
    assert (refused.state, refused.why) == (UNAVAILABLE, "not for this model")


def test_what_is_in_the_journal_is_not_compiled_again(tmp_path: Path) -> None:
    run(tmp_path, ("inductor",), at_once=1)
    (tmp_path / "inductor_begun").unlink()
    rows = run(tmp_path, ("inductor", "goes"), at_once=1)
    assert [row.contestant for row in rows] == ["inductor", "goes"]
    assert not (tmp_path / "inductor_begun").exists()
    assert rows[1].modelled is not None and rows[1].modelled.ratio == 4 / 8
