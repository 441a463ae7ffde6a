"""Extraction settings from flags to the index and from the index to recognize."""

import dataclasses
import shutil

import pytest

from beam_pipeline import config, flags, main, outputs, recipe, recognize
from tests import tiny_models
from tests.manifests import index_manifest
from transforms.models import card
from transforms.storage.feature_store import ShardSummary
from transforms.types import ReadingConfig

INDEX = ["index", "--images", "x", "--labels", "y", "--output", "z"]


def overrides(*given):
    return flags.index_config(main.build_parser().parse_args([*INDEX, *given])).overrides


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_models.build("delg_tf2", folder)
    return str(folder)


@pytest.mark.parametrize(
    "given, precision",
    [((), "float32"), (("--precision", "float32"), "float32"), (("--precision", "bfloat16"), "bfloat16")],
)
def test_an_index_remembers_its_precision_and_recognize_follows_it(model, given, precision):
    made = recipe.choose(model, overrides(*given), ReadingConfig())
    assert made.settings.precision == precision and made.identity["extraction"]["precision"] == precision
    indexed = recipe.Recipe.from_json(made.to_json("index"), "index")
    other = ReadingConfig(max_image_pixels=7)
    followed = recipe.choose_as_indexed(None, None, config.ExtractionOverrides(), other, indexed, 2048)
    assert followed == dataclasses.replace(made, reading=other)


@pytest.mark.parametrize("of_index", [None, True, False])
@pytest.mark.parametrize("of_queries", [None, True, False])
def test_photographs_are_turned_as_those_of_the_index_or_the_flag_is_refused_by_name(
    model, of_index, of_queries
):
    def named(turned):
        return [] if turned is None else ["--exif_orientation" if turned else "--no-exif_orientation"]

    made = recipe.choose(model, overrides(*named(of_index)), ReadingConfig())
    turned = of_index is not False
    assert made.reading.exif_orientation is turned
    indexed = recipe.Recipe.from_json(made.to_json("index"), "index")
    if of_queries not in (None, turned):
        text = f"{named(of_queries)[0]} differs from the index's {named(turned)[0]}: both sides need"
        with pytest.raises(config.ConfigError, match=text):
            recipe.choose_as_indexed(
                None, None, overrides(*named(of_queries)), ReadingConfig(), indexed, 2048
            )
    else:
        followed = recipe.choose_as_indexed(
            None, None, overrides(*named(of_queries)), ReadingConfig(), indexed, 2048
        )
        assert followed == made


def test_another_precision_than_the_indexs_is_refused(model):
    indexed = recipe.choose(model, overrides("--precision", "bfloat16"), ReadingConfig())
    with pytest.raises(config.ConfigError, match="--precision float32 differs from the index's bfloat16"):
        recipe.choose_as_indexed(
            None, None, overrides("--precision", "float32"), ReadingConfig(), indexed, 2048
        )


def test_an_unknown_precision_is_wrong_usage(capsys):
    assert main.main([*INDEX, "--precision", "float16"]) == 2
    assert "invalid choice: 'float16'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, of_card, distance",
    [
        ((), None, 0.9),
        ((), 0.7, 0.7),
        (("--max_distance", "0.5"), 0.7, 0.5),
        (("--preset", "host"), 0.7, 0.7),
    ],
    ids=["preset", "card before preset", "flag before card", "card before named preset"],
)
def test_how_near_descriptors_must_be_is_the_models_business(model, tmp_path, given, of_card, distance):
    shutil.copytree(model, tmp_path / "model")
    if of_card:
        card.write_card(str(tmp_path / "model"), card.OFFICIAL_DELG, max_distance=of_card)
    made = recipe.choose(str(tmp_path / "model"), config.ExtractionOverrides(), ReadingConfig())
    outputs.finish(
        str(tmp_path / "index"), index_manifest(recipe=made, shards=(ShardSummary("unit", 1, {}),))
    )
    (tmp_path / "query.png").write_bytes(b"")
    paths = ["--images", str(tmp_path), "--index", str(tmp_path / "index"), "--output", str(tmp_path / "run")]
    args = main.build_parser().parse_args(["recognize", *paths, *given])
    prepared = recognize.prepare(flags.recognize_config(args))
    assert prepared.config.verification.max_distance == distance
    assert prepared.hyperparameters["max_distance"] == distance
