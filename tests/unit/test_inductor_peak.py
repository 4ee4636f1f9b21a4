"""Peaks that are read off a schedule of Inductor, here one written by hand: a kernel a step, sizes in bytes."""

from remat_pass._torch_compat import InductorSchedule, ScheduledBuffer
from remat_pass.inductor_peak import _with_whole_storages, schedule_peak


def buffer(name: str, size: int, first: int, last: int, *, freed: int | None = None) -> ScheduledBuffer:
    return ScheduledBuffer(name, size, size if freed is None else freed, first, last, is_input=first == 0)


def schedule(count: int, *buffers: ScheduledBuffer, overwritten: dict[str, str] | None = None) -> InductorSchedule:
    return InductorSchedule(
        kernels=((),) * count,
        is_loop=(True,) * count,
        is_call=(False,) * count,
        is_template=(False,) * count,
        is_update=(False,) * count,
        call_layouts=((),) * count,
        moved_bytes=(0,) * count,
        buffers=buffers,
        overwritten=overwritten or {},
        result_strides=(),
        result_storages=(),
    )


def peak(of: InductorSchedule, **storages: tuple[str, int]) -> int:
    return schedule_peak(_with_whole_storages(of, storages), [0] * len(of.kernels))


def test_a_part_of_what_a_call_returned_is_written_over_at_its_own_size() -> None:
    """The call allocates its parts together: the first buffer has all bytes, a part has none but frees its own."""
    call, part = buffer("call", 8, 1, 1, freed=0), buffer("part", 0, 1, 2, freed=8)
    new = buffer("new", 8, 2, 3)
    assert peak(schedule(4, call, part, new)) == 16
    assert peak(schedule(4, call, part, new, overwritten={"new": "part"})) == 8
    larger = buffer("new", 9, 2, 3)
    assert peak(schedule(4, call, part, larger, overwritten={"new": "part"})) == 17


def test_inputs_of_one_storage_are_that_storage_until_the_last_of_them_is_read() -> None:
    read = schedule(4, buffer("a", 12, 0, 1), buffer("b", 12, 0, 2), buffer("later", 10, 3, 3))
    assert peak(read, a=("product", 12), b=("product", 12)) == 12
    assert peak(read, a=("product", 12), b=("other", 12)) == 24


def test_a_part_keeps_the_whole_alive() -> None:
    assert peak(schedule(2, buffer("part", 4, 0, 1)), part=("whole", 10)) == 10


def test_an_input_that_is_not_read_is_alive_to_the_end() -> None:
    read = schedule(4, buffer("a", 4, 0, 0), buffer("new", 6, 3, 3))
    assert peak(read, a=("a", 4)) == 6
    assert peak(read, a=("a", 4), shape=("shape", 5)) == 11


def test_what_is_written_over_a_part_keeps_the_whole_alive() -> None:
    read = schedule(
        5,
        buffer("a", 4, 0, 1),
        buffer("over", 4, 1, 2),
        buffer("again", 4, 2, 4),
        buffer("late", 8, 4, 4),
        overwritten={"over": "a", "again": "over"},
    )
    assert peak(read, a=("whole", 10)) == 18
    assert peak(read, a=("a", 4)) == 12
