"""The models that come with the package: their contract, their bytes and the folder where they are built."""

import concurrent.futures
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.builtin_models import INPUTS, OUTPUTS, caller, textured
from transforms.models import builtin
from transforms.models.card import read_card, settings_from_card
from transforms.tensorflow_runtime import import_tensorflow


@pytest.fixture(scope="module", params=list(builtin.MODELS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def settings(name):
    return builtin.MODELS[name].SETTINGS


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return builtin.model_dir(name, str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def model(folder):
    tf = import_tensorflow()

    return tf.saved_model.load(folder)


@pytest.fixture(scope="module")
def extract(model, settings):
    return caller(model, settings)


class TestContract:
    def test_signature_names_and_dtypes(self, model):
        signature = model.signatures["serving_default"]
        given = {name: spec.dtype.name for name, spec in signature.structured_input_signature[1].items()}
        assert given == dict(zip(INPUTS, ("uint8", "float32", "int32", "float32", "int32")))
        assert {
            name: spec.dtype.name for name, spec in signature.structured_outputs.items()
        } == dict.fromkeys(OUTPUTS, "float32")

    def test_signature_and_prune_agree(self, model, extract, settings):
        tf = import_tensorflow()

        image = textured(120, 160)
        feeds = (
            image,
            np.float32(settings.image_scales),
            np.int32(100),
            np.float32(settings.score_threshold),
            np.int32([1, 2]),
        )
        by_signature = model.signatures["serving_default"](
            **{name: tf.constant(value) for name, value in zip(INPUTS, feeds)}
        )
        for name, value in extract(image, max_features=100, global_scales=[1, 2]).items():
            np.testing.assert_allclose(by_signature[name], value, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("height, width", [(1, 1), (16, 16), (3, 400), (97, 211), (480, 640)])
    def test_shapes_at_every_size(self, extract, settings, height, width):
        found = extract(textured(height, width))
        count = len(found["boxes"])
        assert count <= 1000
        assert found["boxes"].shape == (count, 4) and found["features"].shape == (count, 128)
        assert found["scales"].shape == (count,) and found["scores"].shape == (count, 1)
        assert found["global_descriptors"].shape == (len(settings.image_scales), 2048)
        assert all(np.isfinite(value).all() for value in found.values())

    def test_global_rows_follow_the_scales_that_were_asked_for(self, extract):
        image = textured(100, 140)
        every = extract(image)["global_descriptors"]
        np.testing.assert_allclose(
            extract(image, global_scales=[3, 1])["global_descriptors"], every[[1, 3]], atol=1e-6
        )

    def test_max_features_keeps_the_strongest(self, extract):
        image = textured(240, 320)
        many, few = extract(image), extract(image, max_features=50)
        assert len(many["scores"]) > 50 and len(few["scores"]) == 50
        assert (np.diff(many["scores"][:, 0]) <= 0).all()
        np.testing.assert_allclose(few["scores"], many["scores"][:50], rtol=1e-5)
        np.testing.assert_allclose(few["boxes"], many["boxes"][:50], rtol=1e-5)

    def test_threshold_cuts_the_scores(self, extract):
        image = textured(240, 320)
        every = extract(image, max_features=10**6, threshold=0.0)["scores"][:, 0]
        threshold = float(np.median(every))
        kept = extract(image, max_features=10**6, threshold=threshold)["scores"][:, 0]
        assert len(kept) == (every >= np.float32(threshold)).sum() < len(every)

    def test_scales_are_reciprocal(self, extract, settings):
        found = extract(textured(480, 640))
        assert set(np.round(found["scales"], 3)) <= set(np.round(1 / np.float32(settings.image_scales), 3))

    @pytest.mark.parametrize("level", [0, 90, 255])
    def test_the_descriptor_of_a_flat_image_is_finite(self, extract, level):
        found = extract(np.full((120, 160, 3), level, np.uint8))
        assert np.isfinite(found["global_descriptors"]).all()
        assert (np.linalg.norm(found["global_descriptors"], axis=1) > 0.1).all()


class TestBytesAndCache:
    def test_two_processes_build_the_same_bytes(self, name, folder, tmp_path):
        script = (
            "import sys, tensorflow as tf; tf.Graph(); from transforms.models.builtin import model_dir; "
            "print(model_dir(*sys.argv[1:]))"
        )
        built = subprocess.run(
            [sys.executable, "-c", script, name, str(tmp_path)], check=True, capture_output=True, text=True
        ).stdout.strip()
        assert os.path.basename(built) == os.path.basename(folder)
        for name in ("saved_model.pb", "landmarks_card.json"):
            with (
                open(os.path.join(folder, name), "rb") as first,
                open(os.path.join(built, name), "rb") as second,
            ):
                assert first.read() == second.read()

    def test_two_builds_in_one_process_are_the_same(self, name):
        digests = {hashlib.sha256(builtin.MODELS[name].saved_model_bytes()).hexdigest() for _ in range(2)}
        assert len(digests) == 1

    def test_card_states_the_settings(self, name, folder, settings):
        card = read_card(folder)
        assert (
            card["name"] == builtin.MODELS[name].NAME
            and card["max_distance"] == builtin.MODELS[name].MAX_DISTANCE
        )
        assert settings_from_card(card) == settings

    def test_concurrent_builders_get_one_folder(self, name, tmp_path):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            folders = set(pool.map(lambda _: builtin.model_dir(name, str(tmp_path)), range(4)))
        assert [os.path.basename(path) for path in folders] == os.listdir(tmp_path)

    def test_built_once(self, name, folder):
        before = os.stat(os.path.join(folder, "saved_model.pb")).st_mtime_ns
        assert builtin.model_dir(name, os.path.dirname(folder)) == folder
        assert os.stat(os.path.join(folder, "saved_model.pb")).st_mtime_ns == before

    def test_cache_folder_follows_the_environment(self, name, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert os.path.dirname(builtin.model_dir(name)) == str(tmp_path / "landmarks")

    def test_a_cache_that_cannot_be_written_is_an_error(self, name, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            builtin.model_dir(name, str(tmp_path / "file" / "cache"))
