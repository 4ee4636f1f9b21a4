"""Comparing two results files: peaks exactly, times beyond the noise."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.contest import results
from benchmarks.contest.results import FAILED, MEASURED, Modelled, Row, Timing


def row(ratio: float = 1.1, peak_bytes: int = 100, *, spread: float = 0.0, **more) -> Row:
    timing = Timing(25, ratio, (ratio, ratio), ratio, (ratio - spread, ratio + spread), 0)
    fields = {"model": "llama", "precision": "fp32", "target": "cpu", "through_inductor": True, "state": MEASURED}
    fields |= {"times": {"caching": timing}} | more
    return Row(contestant="remat", family="remat", point="0.5", options={}, peak_bytes=peak_bytes, **fields)


def verdicts(old: Row, new: Row) -> list[tuple[str, str]]:
    changes, compared = compare.compare([old], [new], allocator="caching")
    assert compared == 1
    return [(change.figure, change.verdict) for change in changes]


def test_nothing_changed() -> None:
    assert verdicts(row(), row()) == []


def test_peaks_compare_to_the_byte() -> None:
    assert verdicts(row(), row(peak_bytes=101)) == [("peak", "worse")]
    assert verdicts(row(), row(peak_bytes=99)) == [("peak", "better")]


def test_times_compare_beyond_the_noise() -> None:
    # Two processes alone may differ by 1% each: sqrt(2) percent together.
    assert verdicts(row(1.10), row(1.113)) == []
    assert verdicts(row(1.10), row(1.116)) == [("time", "worse")]
    assert verdicts(row(1.10), row(1.084)) == [("time", "better")]
    assert verdicts(row(1.10, spread=0.05), row(1.116, spread=0.05)) == []


def test_modelled_times_have_little_noise() -> None:
    old, same, new = (row(times={}, modelled=Modelled(1.0, ratio)) for ratio in (1.1, 1.101, 1.102))
    assert verdicts(old, same) == []
    assert verdicts(old, new) == [("modelled time", "worse")]


def test_states() -> None:
    failed = row(state=FAILED, why="no memory")
    assert verdicts(row(), failed) == [("state", "worse")]
    assert verdicts(failed, row()) == [("state", "better")]
    assert verdicts(failed, failed) == []


def test_rows_of_one_file_alone_do_not_count() -> None:
    assert compare.compare([row()], [dataclasses.replace(row(), point="0.6")], allocator="caching") == ([], 0)


@pytest.mark.parametrize(("peak_bytes", "status"), [(100, 0), (99, 0), (101, 1)])
def test_exit_status(peak_bytes: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = {"allocators": [{"name": "caching"}]}
    results.write(tmp_path / "old.json", meta, [row()])
    results.write(tmp_path / "new.json", meta, [row(peak_bytes=peak_bytes)])
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")])
    assert compare.main() == status
