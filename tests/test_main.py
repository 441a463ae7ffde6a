"""The command line: what it takes, refuses and explains."""

import argparse
import subprocess
import sys

import pytest

from beam_pipeline import config, flags, main
from transforms.types import ScoringSettings, VerificationSettings

INDEX = ["index", "--images", "p", "--labels", "l", "--output", "o"]
RECOGNIZE = ["recognize", "--images", "p", "--index", "i", "--output", "o"]


def parsed(argv):
    return main.build_parser().parse_args(argv)


def test_the_defaults_are_the_entry_preset():
    made = flags.recognize_config(parsed(RECOGNIZE))
    assert config.Preset(made.num_to_rerank, made.verification, made.scoring) == config.PRESETS["entry"]
    assert (made.num_to_rerank, made.verification) == (3, VerificationSettings())
    assert made.scoring == ScoringSettings(3, 60, 1.0, 0.0)


def test_a_preset_sets_all_and_a_flag_overrides():
    made = flags.recognize_config(
        parsed([*RECOGNIZE, "--preset", "host", "--max_inlier_score", "55", "--mutual_check"])
    )
    assert (made.num_to_rerank, made.scoring.top_k, made.verification.max_reprojection_error) == (10, 5, 4.0)
    assert (made.scoring.max_inlier_score, made.verification.mutual_check) == (55, True)
    accurate = flags.recognize_config(parsed([*RECOGNIZE, "--preset", "accurate", "--no-mutual_check"]))
    assert accurate.num_to_rerank >= 20 and not accurate.verification.mutual_check


def test_a_smaller_num_to_rerank_takes_the_presets_top_k_with_it():
    assert flags.recognize_config(parsed([*RECOGNIZE, "--num_to_rerank", "1"])).scoring.top_k == 1
    with pytest.raises(config.ConfigError, match="--top_k 3 is more than --num_to_rerank 2"):
        flags.recognize_config(parsed([*RECOGNIZE, "--num_to_rerank", "2", "--top_k", "3"]))


def test_extraction_flags_are_overrides_only_where_given():
    assert flags.index_config(parsed(INDEX)).overrides.given() == {}
    made = flags.index_config(
        parsed([*INDEX, "--image_scales", "0.5,1,2", "--max_image_side", "800", "--no-exif_orientation"])
    )
    assert made.overrides.given() == {"image_scales": (0.5, 1.0, 2.0), "max_image_side": 800}
    assert made.overrides.exif_orientation is False


@pytest.mark.parametrize(
    "flags",
    [
        ["--num_to_rerank", "0"],
        ["--top_k", "x"],
        ["--max_distance", "nan"],
        ["--homography_confidence", "1"],
        ["--max_reprojection_error", "0"],
        ["--ratio_test", "1.5"],
        ["--image_scales", "1,1"],
        ["--image_scales", "0"],
        ["--max_image_side", "3"],
        ["--preset", "best"],
        ["--global_weight", "inf"],
    ],
    ids=" ".join,
)
def test_nonsense_values_are_wrong_usage(flags, capsys):
    assert main.main([*RECOGNIZE, *flags]) == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag, proposal",
    [
        ("--num_to_rernk=3", "--num_to_rerank"),
        ("--direct_num_wrkers=2", "--direct_num_workers"),
        ("--zzzzqqqq=1", None),
    ],
)
def test_unknown_options_are_refused_with_a_proposal(flag, proposal, capsys):
    assert main.main([*RECOGNIZE, flag]) == 2
    error = capsys.readouterr().err
    assert f"unknown option {flag!r}" in error and (
        f"did you mean {proposal}?" in error if proposal else "mean" not in error
    )


def test_an_option_of_another_command_is_told_to_be_one(capsys):
    assert main.main([*RECOGNIZE, "--relabel", "labels.csv"]) == 2
    assert "unknown option '--relabel'; other commands have it\n" in capsys.readouterr().err


def test_options_of_beam_pass():
    options = main.beam_options(["--runner=DataflowRunner", "--project", "p", "--direct_num_workers=2"])
    assert (
        options.get_all_options()["project"] == "p" and options.get_all_options()["direct_num_workers"] == 2
    )
    with pytest.raises(config.ConfigError, match="wrong value"):
        main.beam_options(["--direct_num_workers=two"])


def test_commands_without_a_pipeline_take_no_options_of_beam(capsys):
    assert main.main(["demo", "--output", "x", "--runner=DirectRunner"]) == 2
    assert "unknown option '--runner=DirectRunner'" in capsys.readouterr().err


def test_errors_before_the_pipeline(tmp_path, capsys):
    given = [f"--images={tmp_path}", f"--index={tmp_path}", f"--output={tmp_path}/o"]
    assert main.main(["recognize", *given]) == 2
    assert "no output of `landmarks index`" in capsys.readouterr().err
    assert main.main(["index", given[0], f"--labels={tmp_path}/none.csv", "--output=o"]) == 1
    assert "none.csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [[], ["index"], ["recognize"], ["evaluate"], ["verify"], ["model", "inspect"], ["demo"], ["matches"]],
    ids=" ".join,
)
def test_help_names_every_option(command, capsys):
    assert main.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: landmarks" in text and max(len(line) for line in text.splitlines()) <= 200
    for action in _parser(command)._actions:
        assert action.help, f"{action.dest} has no help"


def _parser(command):
    parser = main.build_parser()
    for name in command:
        parser = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[name]
    return parser


def test_help_imports_neither_tensorflow_nor_beam():
    code = (
        "import sys; from beam_pipeline.main import main; main(['--help']); sys.exit(bool({'tensorflow', "
        "'apache_beam', 'cv2', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
