"""Pairs of models: the global descriptor of one, the local features of another."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest

from beam_pipeline import main
from tests import tiny_models, tiny_onnx
from tests.pictures import textured
from tests.tiny_onnx import load
from transforms.models import catalog
from transforms.models.card import ExtractionSettings
from transforms.models.model import ModelError

IMAGE = textured(300, 400)


@pytest.fixture
def model(tmp_path):
    """A model of global descriptors alone."""
    (tmp_path / "m").mkdir()
    tiny_onnx.build(tmp_path / "m" / "tiny.onnx", "pooled")
    return str(tmp_path / "m" / "tiny.onnx")


@pytest.mark.parametrize("local", ["embedded", "rootsift-vlad"])
def test_each_gives_its_own_features(model, local):
    paired = load(catalog.combined(model, local)).extract(IMAGE)
    np.testing.assert_array_equal(paired.global_descriptor, load(model).extract(IMAGE).global_descriptor)
    alone = load(local).extract(IMAGE)
    for field in ("keypoints", "descriptors", "scores"):
        np.testing.assert_array_equal(getattr(paired, field), getattr(alone, field))


def test_each_sees_the_side_that_it_wants(model):
    pair = catalog.combined(model, "embedded")
    settings = catalog.settings(pair)
    assert settings.longest_side == 640 and settings.max_image_side == 512
    smaller = dataclasses.replace(settings, local=dataclasses.replace(settings.local, max_image_side=200))
    found = catalog.load(pair, smaller).extract(IMAGE)
    small = cv2.resize(IMAGE, (200, 150), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(found.keypoints, 2 * load("embedded").extract(small).keypoints, rtol=1e-6)
    whole = catalog.load(pair, dataclasses.replace(settings, max_image_side=200)).extract(IMAGE)
    np.testing.assert_array_equal(whole.global_descriptor, load(model).extract(small).global_descriptor)


def test_limits_are_those_of_local_features(model):
    pair = catalog.combined(model, "embedded")
    assert catalog.settings(pair).max_local_features == 700
    assert len(load(pair, max_local_features=50).extract(IMAGE).scores) == 50
    assert (
        catalog.card(pair)["max_distance"] == 0.9 and catalog.card(pair)["name"] == "tiny + landmarks-lite0"
    )


def test_a_saved_model_can_be_either(tmp_path, model):
    tiny_models.build("global_only", tmp_path / "global")
    tiny_models.build("local_only", tmp_path / "local")
    pair = catalog.combined(str(tmp_path / "global"), str(tmp_path / "local"))
    loaded = load(pair)
    assert (loaded.global_width, loaded.local_width) == (2048, 128)
    assert len(loaded.extract(IMAGE).keypoints)
    with pytest.raises(ModelError, match="offers no global descriptor for "):
        load(catalog.combined(str(tmp_path / "local"), "embedded"))
    with pytest.raises(ModelError, match="offers no local features for "):
        load(catalog.combined("embedded", model))
    with pytest.raises(ModelError, match="is no model, one with local"):
        catalog.combined(pair, "embedded")


def test_the_fingerprint_covers_both(model):
    names = [catalog.combined(model, local) for local in (None, "embedded", "rootsift-vlad")]
    names += [catalog.combined("rootsift-vlad", "embedded")]
    assert len({catalog.fingerprint(name) for name in names}) == 4


def test_settings_survive_json(model):
    settings = catalog.settings(catalog.combined(model, "embedded"))
    assert ExtractionSettings(**json.loads(json.dumps(settings.to_json()))) == settings
    assert "local" not in catalog.settings(model).to_json()


def test_inspect_shows_both(model):
    text = catalog.inspect(catalog.combined(model, "embedded"))
    assert "global descriptor [16], local [N, " in text and "landmarks-lite0, comes with the package" in text


def test_index_and_recognize(tmp_path, model, capsys):
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"p{number}.png"), textured(240, 320, number // 2))
    (tmp_path / "labels.csv").write_text("id,landmark_id\np0,a\np2,b\np4,c\n")
    queries, index = ["--images", str(tmp_path / "p[135].png")], str(tmp_path / "index")
    command = ["index", "--images", str(tmp_path / "p[024].png"), "--labels", str(tmp_path / "labels.csv")]
    command += ["--output", index, "--model", model]
    assert main.main([*command, "--local_model", "embedded"]) == 0
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["has_local_features"] and manifest["global_dimensions"] == tiny_onnx.WIDTH
    assert manifest["model"]["uri"] == f"{model} + embedded"
    assert main.main([*command, "--local_model", "rootsift-vlad"]) == 2
    assert "settings" in capsys.readouterr().err

    run = ["recognize", *queries, "--index", index]
    assert main.main([*run, "--output", str(tmp_path / "run")]) == 0
    assert "3 verified" in capsys.readouterr().out
    rows = (tmp_path / "run" / "submission.csv").read_text().splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["p1,a", "p3,b", "p5,c"]
    assert main.main([*run, "--output", str(tmp_path / "other"), "--local_model", "rootsift-vlad"]) == 2
    assert "is not the one the index was made with" in capsys.readouterr().err

    shutil.move(tmp_path / "m", tmp_path / "moved")
    assert main.main([*run, "--output", str(tmp_path / "gone")]) == 1
    assert f"{model} is no model: there is no such file" in capsys.readouterr().err
    moved = ["--model", str(tmp_path / "moved" / "tiny.onnx")]
    assert main.main([*run, "--output", str(tmp_path / "again"), *moved]) == 0
    again = (tmp_path / "again" / "submission.csv").read_bytes()
    assert again == (tmp_path / "run" / "submission.csv").read_bytes()


def test_an_index_of_one_model_takes_no_second(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "p0.png"), textured(240, 320))
    (tmp_path / "labels.csv").write_text("id,landmark_id\np0,a\n")
    images = ["--images", str(tmp_path / "p0.png")]
    index = ["--labels", str(tmp_path / "labels.csv"), "--output", str(tmp_path / "index")]
    assert main.main(["index", *images, *index]) == 0
    run = ["--index", str(tmp_path / "index"), "--output", str(tmp_path / "run")]
    assert main.main(["recognize", *images, *run, "--local_model", "rootsift-vlad"]) == 2
    assert "the index has embedded alone" in capsys.readouterr().err
