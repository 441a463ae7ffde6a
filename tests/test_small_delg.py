"""The model small-delg: its weights, where its local features lie, and what its descriptors are made of."""

import os

import numpy as np
import pytest

from tests.builtin_models import caller, textured
from transforms.models import builtin, small_delg
from transforms.tensorflow_runtime import import_tensorflow


@pytest.fixture(scope="module")
def extract(tmp_path_factory):
    tf = import_tensorflow()

    folder = builtin.model_dir("embedded", str(tmp_path_factory.mktemp("cache")))
    return caller(tf.saved_model.load(folder), small_delg.SETTINGS)


class TestWeights:
    def test_the_file_is_small(self):
        assert os.path.getsize(small_delg.CONSTANTS) <= 20_000_000

    def test_every_layer_has_its_kernel_and_bias(self):
        constants = small_delg.load_constants()
        for layer in small_delg.layers():
            assert constants[layer.name].shape == (layer.size, layer.size, layer.inputs, layer.outputs)
            assert constants[f"{layer.name}/bias"].shape == (layer.outputs,)
        assert constants["embedding"].shape == small_delg.EMBEDDING[1:]
        assert all(np.isfinite(value).all() for value in constants.values())

    def test_both_parts_make_2048_dimensions(self):
        constants = small_delg.load_constants()
        assert small_delg.EMBEDDING_DIMENSIONS + constants["vlad/centroids"].size == 2048


class TestLocalFeatures:
    def test_they_lie_where_those_of_rootsift_vlad_lie(self, extract, tmp_path_factory):
        tf = import_tensorflow()

        folder = builtin.model_dir("rootsift-vlad", str(tmp_path_factory.mktemp("cache")))
        image = textured(240, 320)
        expected, found = caller(tf.saved_model.load(folder), small_delg.SETTINGS)(image), extract(image)
        np.testing.assert_allclose(found["boxes"], expected["boxes"])
        np.testing.assert_allclose(found["scores"], expected["scores"])

    def test_descriptors_have_unit_length_and_their_shares(self, extract):
        features = extract(textured(240, 320))["features"]
        assert features.shape[1] == 128
        np.testing.assert_allclose((features**2).sum(1), 1, rtol=1e-4)
        kept = small_delg.load_constants()["rootsift/projection"].shape[1]
        np.testing.assert_allclose(
            (features[:, :kept] ** 2).sum(1), small_delg.ROOTSIFT_LOCAL_SHARE, rtol=1e-4
        )

    def test_sampling_is_bilinear_between_the_middles_of_cells(self):
        tf = import_tensorflow()

        maps = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
        points = np.array([[7.5, 7.5], [15.5, 31.5], [11.5, 7.5], [13.5, 21.5], [-5, 900]], np.float32)
        found = small_delg.sample(tf, tf.constant(maps[None]), tf.constant(points[None]))[0].numpy()
        between = 0.25 * (0.25 * maps[0, 1] + 0.75 * maps[0, 2]) + 0.75 * (
            0.25 * maps[1, 1] + 0.75 * maps[1, 2]
        )
        expected = [maps[0, 0], maps[1, 3], (maps[0, 0] + maps[1, 0]) / 2, between, maps[0, 4]]
        position = (points[3] - 7.5) / 8
        np.testing.assert_allclose(position, [0.75, 1.75])
        np.testing.assert_allclose(found, expected, atol=0.01)

    def test_a_cell_of_the_network_lies_where_its_pixels_are(self):
        tf = import_tensorflow()

        constants = small_delg.load_constants()

        convolve = small_delg.convolution(tf, constants)
        flat = np.full((256, 256, 3), 110, np.float32)
        marked = flat.copy()
        marked[112:144, 144:176] = textured(32, 32, seed=2)
        maps = [
            small_delg.forward(tf, (image[None] - 128) / 64, convolve)[1][0].numpy()
            for image in (flat, marked)
        ]
        change = np.linalg.norm(maps[1] - maps[0], axis=2) ** 2
        rows, columns = np.indices(change.shape) * small_delg.LOCAL_STRIDE + small_delg.LOCAL_STRIDE - 0.5
        middle = np.array([(change * rows).sum(), (change * columns).sum()]) / change.sum()
        np.testing.assert_allclose(middle, [127.5, 159.5], atol=6)


class TestGlobalDescriptor:
    def test_parts_have_their_shares(self, extract):
        rows = extract(textured(240, 320))["global_descriptors"]
        assert rows.shape[1] == 2048
        np.testing.assert_allclose(
            (rows[:, : small_delg.EMBEDDING_DIMENSIONS] ** 2).sum(1), small_delg.EMBEDDING_SHARE, atol=1e-3
        )
        np.testing.assert_allclose((rows**2).sum(1), 1, atol=1e-3)

    def test_only_scales_that_are_asked_for_are_described(self, extract):
        assert extract(textured(240, 320), global_scales=[2])["global_descriptors"].shape == (1, 2048)

    def test_the_same_scene_in_another_light_is_nearer_than_another_scene(self, extract):
        def describe(image):
            rows = extract(image)["global_descriptors"].sum(0)
            return rows / np.linalg.norm(rows)

        from skimage import data

        first, other = data.rocket(), data.chelsea()
        darker = (first[20:-20, 30:-10] * 0.6 + 10).astype(np.uint8)
        assert describe(first) @ describe(darker) > describe(first) @ describe(other) + 0.3
