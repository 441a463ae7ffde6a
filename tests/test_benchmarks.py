"""How the benchmarks start; what they measure is seen where they run."""

import argparse
import importlib.util
import pathlib
import sys

import pytest

from benchmarks import audit, commands, goals, run


@pytest.mark.parametrize("name", sorted(run.NEEDS))
def test_what_a_benchmark_lacks_is_named_with_the_command_that_installs_it(name, monkeypatch, capsys):
    for package in run.NEEDS[name]:
        monkeypatch.setitem(sys.modules, package, None)
    assert run.main([name.replace("_", "-")]) == 2
    needed = ", ".join(run.NEEDS[name])
    assert capsys.readouterr().err == f"{name.replace('_', '-')} needs {needed}: pip install '.[bench]'\n"


def test_only_benchmarks_need_something():
    assert set(run.NEEDS) <= set(run.NAMES)


def test_an_unknown_benchmark_is_wrong_usage_with_the_names(capsys):
    assert run.main(["retrieve"]) == 2 and "retrieval, retrieval-full, scale" in capsys.readouterr().err


def test_photographs_come_from_the_environment_where_no_flag_says_otherwise(monkeypatch):
    def parsed(*flags):
        parser = argparse.ArgumentParser(exit_on_error=False)
        commands.add_photos_flag(parser)
        return parser.parse_args(flags).photos

    monkeypatch.setenv("LANDMARKS_PHOTOS", "/photos")
    assert parsed() == pathlib.Path("/photos") and parsed("--photos", "others") == pathlib.Path("others")
    monkeypatch.delenv("LANDMARKS_PHOTOS")
    with pytest.raises(SystemExit):
        parsed()


def test_every_benchmark_of_photographs_takes_them_so():
    for name in run.NAMES:
        source = pathlib.Path(importlib.util.find_spec(f"benchmarks.{name}").origin).read_text("utf-8")
        assert "args.photos" not in source or "commands.add_photos_flag(parser)" in source, name


@pytest.mark.parametrize(
    "sets, line",
    [
        (("AMX", "VNNI", "AVX2"), "speed: 3 (goal 4) FAILED"),
        (("VNNI", "AVX2"), "speed: 3 (goal 2) ok"),
        (("AVX2",), "speed: 3 (goal with AMX or VNNI; not on this processor)"),
        ((), "speed: 3 (goal with AMX or VNNI; not on this processor)"),
    ],
)
def test_a_goal_of_some_instruction_sets_fails_nowhere_else(sets, line, monkeypatch, capsys):
    monkeypatch.setattr(goals, "processor", lambda: ("name", sets))
    found = goals.Goals()
    found.at_least("speed", 3, {"AMX": 4, "VNNI": 2})
    assert capsys.readouterr().out == line + "\n" and found.exit_code == line.endswith("FAILED")


def test_wrong_labels_are_judged_by_the_mean_of_draws_and_on_the_last_two_parts(capsys):
    part_of = {f"{part}{n}": part for part in audit.PARTS for n in range(4)}
    wrong = dict.fromkeys(("train0", "choose0", "choose1", "report0"), "another")
    found = goals.Goals()
    draws = [{*wrong}, {*wrong, "choose2"}, {*wrong} - {"choose1", "train0"}]
    audit.check_labels([(named, wrong) for named in draws], part_of, found)
    assert [line.split(" of mislabelled, ") for line in capsys.readouterr().out.splitlines()] == [
        ["precision", "train, mean of 3 draws (0.000 to 1.000): 0.667 (goal 0) ok"],
        ["recall", "train, mean of 3 draws (0.000 to 1.000): 0.667 (goal 0) ok"],
        ["precision", "choose, mean of 3 draws (0.667 to 1.000): 0.889 (goal 0.9) FAILED"],
        ["recall", "choose, mean of 3 draws (0.500 to 1.000): 0.833 (goal 0.8) ok"],
        ["precision", "report, mean of 3 draws (1.000 to 1.000): 1 (goal 0.9) ok"],
        ["recall", "report, mean of 3 draws (1.000 to 1.000): 1 (goal 0.8) ok"],
    ]
