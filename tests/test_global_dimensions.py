"""Leading axes of the global descriptor: which models allow it, and what an index and all that follows it
makes of it.
"""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from beam_pipeline import outputs
from beam_pipeline.manifest import IndexManifest
from tests import tiny_onnx
from tests.command_line import run
from tests.pictures import textured
from tests.tiny_onnx import load
from transforms.arrays.whitening import Whitening
from transforms.models import catalog
from transforms.models.card import read_card, settings_from_card
from transforms.models.model import Extracted, ExtractionError, ModelError, leading
from transforms.storage.feature_store import FeatureStore, descriptors_of

IMAGE = textured(240, 320)


def tiny(folder, **card):
    """A model of global descriptors alone, with a card."""
    folder.mkdir()
    tiny_onnx.build(folder / "tiny.onnx", "pooled")
    (folder / "landmarks_card.json").write_text(json.dumps(card))
    return str(folder / "tiny.onnx")


class TestModels:
    def test_a_row_has_unit_length_and_the_same_bits_alone_and_among_others(self):
        rows = np.random.default_rng(0).normal(size=(50, 384)).astype(np.float32)
        cut = leading(rows, 100)
        np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(cut / cut[:, :1], rows[:, :100] / rows[:, :1], rtol=1e-5)
        np.testing.assert_array_equal(leading(rows[7:8], 100)[0], cut[7])
        np.testing.assert_array_equal(leading(rows, 384), rows)

    def test_the_embedded_model_keeps_its_leading_axes_and_all_else(self):
        whole, cut = (load("embedded", global_dimensions=n).extract(IMAGE) for n in (None, 100))
        assert load("embedded", global_dimensions=100).global_width == 100
        np.testing.assert_array_equal(cut.global_descriptor, leading(whole.global_descriptor[None], 100)[0])
        for field in ("keypoints", "descriptors", "scores"):
            np.testing.assert_array_equal(getattr(cut, field), getattr(whole, field))

    def test_the_embedded_model_has_axes_in_the_order_of_their_variance(self):
        variances = np.stack([*stored(catalog.cohort("embedded")).values()]).var(axis=0)
        sums = variances.reshape(8, 64).sum(axis=1)
        assert (np.diff(sums) < 0).all() and sums[0] > 3 * sums[-1]

    def test_more_than_there_are_are_refused_and_all_are_all(self, tmp_path):
        model = tiny(tmp_path / "m")
        with pytest.raises(ModelError, match="--global_dimensions 17: the global descriptor of .* has 16"):
            load(model, global_dimensions=17)
        plain = load(model).extract(IMAGE).global_descriptor
        np.testing.assert_array_equal(
            load(model, global_dimensions=16).extract(IMAGE).global_descriptor, plain
        )

    def test_axes_in_no_order_are_refused_unless_the_card_says_that_they_are(self, tmp_path):
        model = tiny(tmp_path / "m")
        with pytest.raises(ModelError, match="nothing says that the 16 axes of .* are ordered"):
            load(model, global_dimensions=8)
        with pytest.raises(ModelError, match="nothing says that the 2048 axes of rootsift-vlad"):
            load("rootsift-vlad", global_dimensions=8)
        ordered = tiny(tmp_path / "o", ordered_axes=True)
        pair = catalog.combined(ordered, "embedded")
        expected = leading(load(ordered).extract(IMAGE).global_descriptor[None], 8)[0]
        for name in (ordered, pair):
            found = load(name, global_dimensions=8)
            np.testing.assert_array_equal(found.extract(IMAGE).global_descriptor, expected)
            assert found.global_width == 8
        assert '"ordered_axes": true' in catalog.inspect(ordered)

    def test_a_card_that_says_neither_yes_nor_no_is_refused(self, tmp_path):
        tiny(tmp_path / "m", ordered_axes="yes")
        with pytest.raises(ValueError, match="ordered_axes must be true or false, not 'yes'"):
            read_card(str(tmp_path / "m"))

    def test_they_are_cut_before_they_are_whitened(self, tmp_path):
        model, path = tiny(tmp_path / "m", ordered_axes=True), tmp_path / "w.npz"
        rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
        whitening = Whitening.learn(rows, 4, 0.1)
        path.write_bytes(whitening.to_bytes())
        found = load(catalog.combined(model, None, str(path)), global_dimensions=8)
        expected = whitening(leading(load(model).extract(IMAGE).global_descriptor[None], 8))[0]
        np.testing.assert_array_equal(found.extract(IMAGE).global_descriptor, expected)
        assert found.global_width == 4

    def test_a_descriptor_without_length_there_is_none(self):
        class Flat:
            settings, global_width, local_width = settings_from_card(None), 4, 0
            images_in_flight = None

            def extract(self, pixels):
                nothing = np.zeros((0, 2), np.float32), np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
                return Extracted(np.array([0, 0, 0, 1], np.float32), *nothing)

        settings = dataclasses.replace(Flat.settings, global_dimensions=3)
        with pytest.raises(ExtractionError, match="no length on its leading axes"):
            catalog.CombinedModel(Flat(), None, None, settings).extract(IMAGE)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photographs of 6 landmarks, two of each; an index of the first of each, whole and cut to 64."""
    root = tmp_path_factory.mktemp("dimensions")
    for number in range(12):
        noise = np.random.default_rng(number).normal(0, number % 2, (192, 256, 3))
        image = (textured(192, 256, number // 2) + noise).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(root / f"p{number:02d}.png"), image)
    (root / "labels.csv").write_text("id,landmark_id\n" + "".join(f"p{n:02d},l{n // 2}\n" for n in range(12)))
    assert index(root, "whole") == 0 and index(root, "cut", "--global_dimensions", "64") == 0
    return root


def index(root, output, *more, images="p*[02468].png"):
    command = ["index", "--images", str(root / images), "--labels", str(root / "labels.csv")]
    return run(*command, "--output", root / output, *more)


def recognize(root, of, output, *more):
    queries = ["--images", str(root / "p*[13579].png"), "--index", str(root / of)]
    return run("recognize", *queries, "--output", root / output, *more)


def manifest(root, output):
    return outputs.read_manifest(str(root / output), IndexManifest)


def stored(folder, units=None):
    """Global descriptors of a store by image id."""
    store, found = FeatureStore(str(folder)), {}
    for unit in units or store.units():
        table = store.read_images(unit)
        found.update(zip(table.column("image_id").to_pylist(), descriptors_of(table)))
    return found


def assert_cut(cut, whole, dimensions=64):
    assert cut.keys() == whole.keys() and whole
    for image_id, row in whole.items():
        np.testing.assert_array_equal(cut[image_id], leading(row[None], dimensions)[0])


class TestCommands:
    def test_an_index_remembers_and_its_queries_follow(self, made, capsys):
        whole, cut = manifest(made, "whole"), manifest(made, "cut")
        assert (whole.global_dimensions, cut.global_dimensions) == (512, 64)
        assert cut.recipe.identity["extraction"]["global_dimensions"] == 64
        assert "global_dimensions" not in whole.recipe.identity["extraction"]
        assert {s.unit for s in whole.shards}.isdisjoint(s.unit for s in cut.shards)
        assert_cut(stored(made / "cut"), stored(made / "whole"))
        store = "--query_store", str(made / "queries")
        assert recognize(made, "whole", "of_whole", *store) == 0
        before = FeatureStore(str(made / "queries")).units()
        assert recognize(made, "cut", "of_cut", *store, "--global_dimensions", "64") == 0
        after = set(FeatureStore(str(made / "queries")).units()) - {*before}
        assert_cut(stored(made / "queries", after), stored(made / "queries", before))
        for name in ("of_whole", "of_cut"):
            rows = (made / name / "submission.csv").read_text().splitlines()[1:]
            assert [row.split()[0] for row in rows] == [f"p{n:02d},l{n // 2}" for n in range(1, 12, 2)]
        assert run("verify", made / "cut") == 0

    @pytest.mark.parametrize(("of", "asked", "its"), [("cut", "128", "64"), ("whole", "64", "512")])
    def test_other_dimensions_than_the_indexs_are_refused(self, made, capsys, of, asked, its):
        assert recognize(made, of, "no", "--global_dimensions", asked) == 2
        assert f"--global_dimensions {asked} differs from the index's {its}" in capsys.readouterr().err
        assert recognize(made, of, f"yes_{of}", "--global_dimensions", its) == 0

    def test_the_same_command_with_other_dimensions_is_another_index(self, made, capsys):
        assert index(made, "cut") == 2
        assert "extraction.global_dimensions: 64 there, None wanted" in capsys.readouterr().err

    def test_wrong_ones_are_said_before_the_pipeline_starts(self, made, tmp_path, capsys):
        command = ["--images", str(made / "p00.png"), "--labels", str(made / "labels.csv")]
        output = ["--output", str(tmp_path / "x")]
        for job in (["index"], ["plan", "index"]):
            assert run(*job, *command, *output, "--global_dimensions", "513") == 1
            error = capsys.readouterr().err
            assert "--global_dimensions 513: the global descriptor of embedded has 512" in error
            assert "extract" not in error
        assert not (tmp_path / "x" / "images").exists()
        assert run("cohort", *command[:2], *output, "--global_dimensions", "0") == 2

    def test_what_is_added_and_a_whitening_follow(self, made, capsys):
        assert index(made, "grown", "--global_dimensions", "64", images="p0[02468].png") == 0
        assert index(made, "grown", "--append", images="p10.png") == 0
        assert stored(made / "grown").keys() == stored(made / "cut").keys()
        assert_cut(stored(made / "grown"), stored(made / "whole"))
        model = tiny(made / "ordered", ordered_axes=True)
        assert index(made, "of_ordered", "--model", model, "--global_dimensions", "8") == 0
        assert run("model", "whiten", "--index", made / "of_ordered", "--dimensions", "3") == 0
        assert "from 8 to 3 dimensions" in capsys.readouterr().out
        assert recognize(made, "of_ordered", "whitened", "--global_dimensions", "3") == 0
        assert {len(row) for row in stored(made / "whitened" / "queries").values()} == {3}

    def test_the_cohort_of_the_model_is_cut_like_the_index(self, made, monkeypatch, capsys):
        command = ["cohort", "--images", str(made / "p*[13579].png"), "--output", str(made / "others")]
        assert run(*command) == 0
        monkeypatch.setattr(catalog, "cohort", lambda model: str(made / "others"))
        assert run("calibrate", "--index", made / "cut") == 0
        assert "is not used" not in capsys.readouterr().err
        [copy] = (made / "cut" / "calibration").glob("*/cohort")
        assert_cut(stored(copy), stored(made / "others"))
        own = ["calibrate", "--index", str(made / "cut"), "--negatives", str(made / "others")]
        assert run(*own) == 2
        assert "extraction.global_dimensions: None there, 64 wanted" in capsys.readouterr().err
