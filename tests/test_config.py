"""Extraction settings from flags to the index and from the index to recognize."""

import pytest

from beam_pipeline import config, main, model_choice
from tests import tiny_models

INDEX = ["index", "--images", "x", "--labels", "y", "--output", "z"]


def overrides(*flags):
    return config.index_config(main.build_parser().parse_args([*INDEX, *flags])).overrides


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_models.build("delg_tf2", folder)
    return str(folder)


@pytest.mark.parametrize(
    "flags, precision",
    [((), "float32"), (("--precision", "float32"), "float32"), (("--precision", "bfloat16"), "bfloat16")],
)
def test_an_index_remembers_its_precision_and_recognize_follows_it(model, flags, precision):
    choice = model_choice.choose(model, overrides(*flags))
    assert choice.settings.precision == precision and choice.extraction()["precision"] == precision
    assert (
        model_choice.choose_as_indexed(None, config.ExtractionOverrides(), choice.as_json("r"), "r").settings
        == choice.settings
    )


def test_another_precision_than_the_indexs_is_refused(model):
    indexed = model_choice.choose(model, overrides("--precision", "bfloat16")).as_json("r")
    with pytest.raises(config.ConfigError, match="--precision float32 differs from the index's bfloat16"):
        model_choice.choose_as_indexed(None, overrides("--precision", "float32"), indexed, "r")


def test_an_unknown_precision_is_wrong_usage(capsys):
    assert main.main([*INDEX, "--precision", "float16"]) == 2
    assert "invalid choice: 'float16'" in capsys.readouterr().err
