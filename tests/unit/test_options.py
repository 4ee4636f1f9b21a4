"""Options: what is accepted, what it becomes, who wins, and what the errors say."""

import fractions
import pathlib
import re

import numpy
import pytest

from remat_pass.errors import OptionError
from remat_pass.options import (
    MEMORY_BUDGET_VARIABLE,
    Options,
    parse_memory_budget,
    resolve_options,
    set_default_options,
)
from remat_pass.units import format_bytes, parse_bytes


@pytest.fixture(autouse=True)
def no_defaults(monkeypatch):
    monkeypatch.delenv(MEMORY_BUDGET_VARIABLE, raising=False)
    set_default_options()
    yield
    set_default_options()


class TestParseBytes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("6GiB", 6_442_450_944),
            ("512MiB", 536_870_912),
            ("1.5GB", 1_500_000_000),
            ("700 kB", 700_000),
            ("700 KB", 700_000),
            ("123B", 123),
            ("123b", 123),
            ("6gib", 6_442_450_944),
            ("6GIB", 6_442_450_944),
            ("6gb", 6_000_000_000),
            ("6mB", 6_000_000),
            ("2TiB", 2_199_023_255_552),
            ("2TB", 2_000_000_000_000),
            ("3 KiB", 3072),
            ("  1 MB\n", 1_000_000),
            (".5kB", 500),
            ("1.kB", 1000),
            ("0B", 0),
            ("0.1GiB", 107_374_182),  # rounded down from .4
            ("1.999B", 1),
            ("9007199254740993B", 9_007_199_254_740_993),  # exact past what a float holds
        ],
    )
    def test_accepts(self, text, expected):
        assert parse_bytes(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "GiB",
            "6",
            "6 potatoes",
            "-1GiB",
            "+1GiB",
            "1e3MiB",
            "6G",
            "6Gi",
            "6Gb",
            "6Kib",
            "1,5GB",
            "1 2GB",
            "٣GiB",
        ],
    )
    def test_refuses(self, text):
        with pytest.raises(OptionError, match=re.escape(f"{text!r} is not a size: write a number and one of B, kB")):
            parse_bytes(text)


class TestParseMemoryBudget:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (0.5, 0.5),
            (1.0, 1.0),
            (5e-324, 5e-324),
            (1, 1),
            (2**40, 2**40),
            (fractions.Fraction(1, 4), 0.25),
            (numpy.int64(4096), 4096),
            (numpy.uint8(7), 7),
            (numpy.float64(0.25), 0.25),
            (numpy.float32(0.5), 0.5),
            ("6GiB", 6_442_450_944),
            ("0.5", 0.5),
            (" 1.0 ", 1.0),
            ("5e-1", 0.5),
            ("123456", 123_456),
            ("+7", 7),
            ("1", 1),
            ("none", None),
            ("None", None),
            ("auto", "auto"),
            (" Auto ", "auto"),
        ],
    )
    def test_accepts(self, value, expected):
        parsed = parse_memory_budget(value)

        assert parsed == expected
        assert type(parsed) is type(expected)

    @pytest.mark.parametrize(
        "value", [0.0, -0.5, 1.5, 1.0000000000000002, float("nan"), float("inf"), "1.5", "nan", "-.5"]
    )
    def test_refuses_fractions_out_of_range(self, value):
        with pytest.raises(OptionError) as caught:
            parse_memory_budget(value)
        assert str(caught.value) == (
            f"memory_budget={value!r}: a float is a fraction of the unconstrained peak and must lie in (0, 1]; "
            'for bytes pass an int or a string such as "6GiB"'
        )

    @pytest.mark.parametrize("value", [-1, 0, numpy.int32(-3), "0", "-1", "0GiB", "0.1B"])
    def test_refuses_less_than_a_byte(self, value):
        expected = f"memory_budget={value!r}: a budget in bytes must be at least 1; for a fraction of the unconstrained"
        with pytest.raises(OptionError, match=re.escape(expected)):
            parse_memory_budget(value)

    @pytest.mark.parametrize(
        "value", [True, False, numpy.bool_(True), [1], (1,), {}, 1j, b"6GiB", numpy.ones(1), object]
    )
    def test_refuses_other_types(self, value):
        expected = f"memory_budget={value!r}: must be None, an int (bytes), a float in (0, 1]"
        with pytest.raises(OptionError, match=re.escape(expected)):
            parse_memory_budget(value)

    @pytest.mark.parametrize("value", ["6 potatoes", "", "6Gb", "50%"])
    def test_refuses_other_texts(self, value):
        expected = f"memory_budget={value!r}: {value!r} is not a size: write a number and one of B"
        with pytest.raises(OptionError, match=re.escape(expected)) as caught:
            parse_memory_budget(value)
        assert "a float in (0, 1] (fraction of the unconstrained peak)" in str(caught.value)


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (-1536, "-1.5 KiB"),
        (900 * 2**20, "900.0 MiB"),
        (2**30 - 1, "1.00 GiB"),  # not 1024.0 MiB
        (1_299_227_607, "1.21 GiB"),
        (3 * 2**40, "3.00 TiB"),
        (5000 * 2**40, "5000.00 TiB"),
    ],
)
def test_format_bytes(size_bytes, expected):
    assert format_bytes(size_bytes) == expected


class TestOurOptions:
    def test_defaults(self):
        expected = Options(None, "inductor", "raise", "roofline", None, None, None, ())

        assert resolve_options(None) == resolve_options({}) == Options() == expected

    def test_all_of_them(self, tmp_path):
        given = {
            "memory_budget": "1KiB",
            "lowering": "eager",
            "on_infeasible": "warn",
            "cost_model": "measured",
            "debug_dir": tmp_path / "debug",
            "plan": tmp_path,
            "reserve": None,
        }

        assert resolve_options(given) == Options(
            1024, "eager", "warn", "measured", str(tmp_path / "debug"), str(tmp_path), None, ()
        )

    def test_dashes_are_underscores(self):
        assert resolve_options({"memory-budget": 0.5}).memory_budget == 0.5

    def test_the_mapping_is_left_as_it_was(self):
        given = {"memory-budget": "1KiB", "mode": "max-autotune"}
        resolve_options(given)
        assert given == {"memory-budget": "1KiB", "mode": "max-autotune"}

    @pytest.mark.parametrize(
        ("name", "value", "choices"),
        [
            ("lowering", "Eager", "'inductor', 'eager'"),
            ("lowering", None, "'inductor', 'eager'"),
            ("on_infeasible", "ignore", "'raise', 'warn'"),
            ("cost_model", ["roofline"], "'roofline', 'measured'"),
        ],
    )
    def test_refuses_other_choices(self, name, value, choices):
        with pytest.raises(OptionError, match=re.escape(f"{name}={value!r}: must be one of {choices}")):
            resolve_options({name: value})

    @pytest.mark.parametrize("options", [[("memory_budget", 1)], "6GiB", 3])
    def test_refuses_what_is_no_mapping(self, options):
        with pytest.raises(OptionError, match=re.escape(f"options={options!r}: must be a mapping")):
            resolve_options(options)


class TestReserve:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [(None, None), (0, 0), (7, 7), (numpy.int64(4096), 4096), ("2GiB", 2**31), (" 12 ", 12), ("0", 0), ("0GiB", 0)],
    )
    def test_accepts(self, value, expected):
        assert resolve_options({"memory_budget": "auto", "reserve": value}) == Options("auto", reserve=expected)

    @pytest.mark.parametrize("value", [-1, 0.5, True, [1]])
    def test_refuses_other_values(self, value):
        expected = f"reserve={value!r}: must be None, an int of at least 0 (bytes) or a string such as"
        with pytest.raises(OptionError, match=re.escape(expected)):
            resolve_options({"memory_budget": "auto", "reserve": value})

    def test_refuses_other_texts(self):
        with pytest.raises(OptionError, match="reserve='a lot': 'a lot' is not a size"):
            resolve_options({"memory_budget": "auto", "reserve": "a lot"})

    @pytest.mark.parametrize("budget", [None, 0.5, 4096])
    def test_has_no_effect_on_other_budgets(self, budget):
        with pytest.raises(OptionError, match=f"reserve=12: would have no effect with memory_budget={budget}"):
            resolve_options({"memory_budget": budget, "reserve": 12})

    def test_another_budget_sets_a_default_reserve_aside(self, monkeypatch):
        monkeypatch.setenv(MEMORY_BUDGET_VARIABLE, "auto")
        set_default_options(reserve=12)
        assert resolve_options(None) == Options("auto", reserve=12)
        assert resolve_options({"memory_budget": 0.5}) == Options(0.5)


class TestPaths:
    @pytest.mark.parametrize("as_given", [str, pathlib.Path])
    def test_relative_paths_become_absolute(self, as_given, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "saved.json").touch()

        options = resolve_options({"debug_dir": as_given("out"), "plan": as_given("saved.json")})

        assert (options.debug_dir, options.plan) == (str(tmp_path / "out"), str(tmp_path / "saved.json"))

    def test_home_is_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert resolve_options({"debug_dir": "~/out"}).debug_dir == str(tmp_path / "out")

    def test_none_is_none(self):
        assert resolve_options({"debug_dir": None, "plan": None}) == Options()

    @pytest.mark.parametrize("name", ["debug_dir", "plan"])
    @pytest.mark.parametrize("value", [3, True, b"here", ""])
    def test_refuses_what_is_no_path(self, name, value):
        with pytest.raises(OptionError, match=re.escape(f"{name}={value!r}: must be a path")):
            resolve_options({name: value})

    def test_refuses_a_missing_plan(self, tmp_path):
        with pytest.raises(OptionError, match=f"{tmp_path}/gone does not exist; name a plan file or the debug_dir"):
            resolve_options({"plan": tmp_path / "gone"})

    def test_refuses_a_file_as_debug_dir(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OptionError, match=f"{tmp_path}/file is a file; name a folder"):
            resolve_options({"debug_dir": tmp_path / "file"})


class TestInductorOptions:
    def test_pass_through_in_the_order_of_their_names(self):
        given = {"triton.cudagraphs": False, "max-autotune": True, "fallback_random": True, "memory_budget": 0.5}

        assert resolve_options(given).inductor == (
            ("fallback_random", True),
            ("max_autotune", True),
            ("triton.cudagraphs", False),
        )

    def test_values_are_not_copied(self):
        value = [1, 2]
        [(_, passed)] = resolve_options({"cuda.cutlass_max_profiling_swizzle_options": value}).inductor
        assert passed is value

    @pytest.mark.parametrize(
        ("key", "value", "expected"),
        [
            ("max_autotune", 1, "max_autotune=1: this option of Inductor must be of type bool, not int"),
            ("max-autotune", "yes", "max-autotune='yes': this option of Inductor must be of type bool, not str"),
            ("worker_log_path", 5, "worker_log_path=5: this option of Inductor must be None, not int"),
        ],
    )
    def test_types_are_checked_as_torch_does(self, key, value, expected):
        with pytest.raises(OptionError, match=re.escape(expected)):
            resolve_options({key: value})

    def test_a_type_that_torch_cannot_check_is_let_through(self):
        assert resolve_options({"cudagraph_policy": None}).inductor == (("cudagraph_policy", None),)

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [
            ("memory_bugdet", "memory_budget"),
            ("budget", "memory_budget"),
            ("max_autotun", "max_autotune"),
            ("modes", "mode"),
            ("on-infeasable", "on_infeasible"),
            ("triton.cudagraph", "triton.cudagraphs"),
        ],
    )
    def test_unknown_names_get_the_nearest_one(self, key, nearest):
        with pytest.raises(OptionError, match=re.escape(f"unknown option {key!r}: did you mean {nearest!r}?")):
            resolve_options({key: 1})

    def test_names_are_strings(self):
        with pytest.raises(OptionError, match="option 3: option names are strings"):
            resolve_options({3: 1})

    @pytest.mark.parametrize("key", ["custom_partitioner_fn", "custom-partitioner-fn"])
    def test_the_partitioner_is_ours(self, key):
        with pytest.raises(OptionError, match=f'{key}: backend="remat" sets this option of Inductor itself'):
            resolve_options({key: None})


class TestMode:
    MAX_AUTOTUNE = (("coordinate_descent_tuning", True), ("max_autotune", True), ("triton.cudagraphs", True))

    def test_expands(self):
        assert resolve_options({"mode": "max-autotune"}).inductor == self.MAX_AUTOTUNE
        assert resolve_options(None, mode="max-autotune").inductor == self.MAX_AUTOTUNE
        assert resolve_options({"mode": "default"}).inductor == ()

    @pytest.mark.parametrize("order", [1, -1])
    def test_options_written_out_win(self, order):
        given = dict([("mode", "max-autotune"), ("triton.cudagraphs", False)][::order])

        assert resolve_options(given).inductor == (*self.MAX_AUTOTUNE[:2], ("triton.cudagraphs", False))

    @pytest.mark.parametrize("mode", ["max-autotunes", "", 3, None])
    def test_refuses_other_modes(self, mode):
        with pytest.raises(OptionError, match=re.escape(f"mode={mode!r}: ")):
            resolve_options({"mode": mode})

    def test_refuses_two_modes(self):
        with pytest.raises(OptionError, match="pass the mode once"):
            resolve_options({"mode": "max-autotune"}, mode="max-autotune")

    @pytest.mark.parametrize(
        ("options", "mode", "named"),
        [
            ({"max_autotune": True}, None, "max_autotune"),
            ({"mode": "reduce-overhead"}, None, "triton.cudagraphs"),
            ({}, "reduce-overhead", "triton.cudagraphs"),
        ],
    )
    def test_refuses_what_eager_would_ignore(self, options, mode, named):
        with pytest.raises(OptionError, match=f'{named}: would have no effect with lowering="eager"'):
            resolve_options({"lowering": "eager", **options}, mode=mode)

    def test_eager_with_the_mode_that_sets_nothing(self):
        assert resolve_options({"lowering": "eager", "mode": "default"}) == Options(lowering="eager")


class TestPrecedence:
    def test_options_over_defaults_over_environment(self, monkeypatch):
        monkeypatch.setenv(MEMORY_BUDGET_VARIABLE, "3KiB")
        assert resolve_options(None).memory_budget == 3072
        set_default_options(memory_budget="2KiB", on_infeasible="warn")
        assert resolve_options(None) == Options(memory_budget=2048, on_infeasible="warn")
        assert resolve_options({"memory_budget": "1KiB"}) == Options(memory_budget=1024, on_infeasible="warn")

    def test_an_explicit_none_is_a_choice(self, monkeypatch):
        monkeypatch.setenv(MEMORY_BUDGET_VARIABLE, "0.5")
        assert resolve_options({"memory_budget": None}).memory_budget is None
        set_default_options(memory_budget=None)
        assert resolve_options(None).memory_budget is None

    @pytest.mark.parametrize(
        ("text", "expected"), [("0.25", 0.25), ("4096", 4096), ("none", None), ("", None), (" ", None)]
    )
    def test_environment(self, monkeypatch, text, expected):
        monkeypatch.setenv(MEMORY_BUDGET_VARIABLE, text)
        assert resolve_options(None).memory_budget == expected

    def test_environment_errors_name_the_variable(self, monkeypatch):
        monkeypatch.setenv(MEMORY_BUDGET_VARIABLE, "lots")
        with pytest.raises(OptionError, match="REMAT_MEMORY_BUDGET='lots': 'lots' is not a size"):
            resolve_options(None)

    def test_inductor_options_of_both_layers(self):
        set_default_options(mode="max-autotune", fallback_random=True)

        assert resolve_options({"max_autotune": False}).inductor == (
            ("coordinate_descent_tuning", True),
            ("fallback_random", True),
            ("max_autotune", False),
            ("triton.cudagraphs", True),
        )

    def test_a_mode_in_options_wins_over_defaults(self):
        set_default_options(max_autotune=False)
        assert dict(resolve_options({"mode": "max-autotune"}).inductor)["max_autotune"] is True

    def test_an_explicit_eager_sets_inductor_defaults_aside(self):
        set_default_options(max_autotune=True)
        assert resolve_options({"lowering": "eager"}) == Options(lowering="eager")

    def test_inductor_options_clash_with_a_default_eager(self):
        set_default_options(lowering="eager")
        with pytest.raises(OptionError, match="max_autotune: would have no effect"):
            resolve_options({"max_autotune": True})


class TestSetDefaultOptions:
    def test_a_call_replaces_the_one_before(self):
        set_default_options(memory_budget=0.5)
        set_default_options(on_infeasible="warn")
        assert resolve_options(None) == Options(on_infeasible="warn")

    def test_no_arguments_clear(self):
        set_default_options(memory_budget=0.5)
        set_default_options()
        assert resolve_options(None) == Options()

    @pytest.mark.parametrize(
        "bad",
        [{"memory_budget": -1}, {"memory_bugdet": 1}, {"max_autotune": 3}, {"lowering": "eager", "max_autotune": True}],
    )
    def test_an_error_changes_nothing(self, bad):
        set_default_options(memory_budget=0.5)
        with pytest.raises(OptionError):
            set_default_options(on_infeasible="warn", **bad)
        assert resolve_options(None) == Options(memory_budget=0.5)

    def test_a_relative_path_is_of_the_folder_it_was_set_in(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        set_default_options(debug_dir="out")
        monkeypatch.chdir("/")
        assert resolve_options(None).debug_dir == str(tmp_path / "out")
