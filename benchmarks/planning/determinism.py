"""The same plans, byte for byte, in processes whose sets and dictionaries of strings iterate in other orders."""

from collections.abc import Mapping, Sequence

from benchmarks.contest.goals import Goal
from benchmarks.planning.section import Row, Run, Section, Table, none_of
from benchmarks.planning.worker import worker

_SEEDS = range(8)
_TRIAL_SEEDS = range(2)
_TIMEOUT_SECONDS = 300.0


def measure(run: Run) -> list[Row]:
    """One row per hash seed: digests of all plans of each graph's frontier."""
    rows = []
    for seed in _TRIAL_SEEDS if run.trial else _SEEDS:
        run.doing(f"hash seed {seed}")
        with worker(run.scratch, "determinism", {"PYTHONHASHSEED": str(seed)}) as process:
            question = {"call": "benchmarks.planning.determinism_work:digests"}
            rows.append({"seed": seed, "digests": process.ask(question, _TIMEOUT_SECONDS)})
    return rows


def digests_by_graph(rows: Sequence[Row]) -> Mapping[str, list[str]]:
    """The different digests of each graph, in the order of the seeds; one each if plans are deterministic."""
    graphs = dict.fromkeys(name for row in rows for name in row["digests"])
    return {name: list(dict.fromkeys(row["digests"].get(name, "missing") for row in rows)) for name in graphs}


def tables(rows: Sequence[Row]) -> list[Table]:
    """One row per graph."""
    found = tuple(
        (name, str(len(rows)), str(len(digests)), " ".join(d[:12] for d in digests))
        for name, digests in digests_by_graph(rows).items()
    )
    note = "SHA-256 of all plans of a frontier with their peaks and times, in processes with other hash seeds."
    return [Table("Plans by hash seed", ("graph", "seeds", "different", "digests"), found, note)]


def goals(rows: Sequence[Row]) -> list[Goal]:
    """One digest per graph."""
    graphs = digests_by_graph(rows)
    different = [name for name, digests in graphs.items() if len(digests) > 1]
    return [none_of("the same plans for every hash seed", f"{len(rows)} seeds", different, len(graphs))]


SECTION = Section("determinism", "The same plan in every process", measure, tables, goals)
