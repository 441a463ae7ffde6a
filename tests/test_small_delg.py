"""The model small-delg: where its local features lie, and its global descriptor against a slow NumPy oracle."""

import numpy as np
import pytest

from tests.builtin_models import caller, textured
from transforms.delg import builtin, small_delg


@pytest.fixture(scope="module")
def extract(tmp_path_factory):
    import tensorflow as tf

    folder = builtin.model_dir("embedded", str(tmp_path_factory.mktemp("cache")))
    return caller(tf.saved_model.load(folder), small_delg.SETTINGS)


def centres(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


class TestWeights:
    def test_the_file_is_small(self):
        import os

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
    def test_they_move_with_what_they_show(self, extract):
        scene = textured(480, 640, seed=5)
        moved = 64  # px: a whole number of cells and of sides at this scale
        first = extract(scene[:384, :512], scales=(1.0,), threshold=0.0, max_features=10**6)
        second = extract(scene[moved:384 + moved, moved:512 + moved], scales=(1.0,), threshold=0.0, max_features=10**6)
        # Away from the borders, whose padding a cell sees from afar, the keypoints are the same.
        here = {tuple(c) for c in np.round(centres(first["boxes"]) - moved, 2) if (c > 96).all() and c[0] < 220 and c[1] < 350}
        there = {tuple(c) for c in np.round(centres(second["boxes"]), 2)}
        assert len(here) > 10 and len(here & there) >= 0.6 * len(here)

    def test_cells_lie_where_their_pixels_are(self, extract):
        image = np.full((256, 256, 3), 110, np.uint8)
        image[120:136, 120:136] = textured(16, 16, seed=2)
        found = extract(image, scales=(1.0,), threshold=0.0, max_features=10**6)
        flat = extract(np.full((256, 256, 3), 110, np.uint8), scales=(1.0,), threshold=0.0, max_features=10**6)
        changed = [c for c, s in zip(centres(found["boxes"]), found["scores"])
                   if not any(np.allclose(c, f) and abs(s - g) < 1e-3 for f, g in zip(centres(flat["boxes"]), flat["scores"]))]
        assert np.linalg.norm(np.mean(changed, 0) - 128) < 12

    def test_descriptors_have_unit_length(self, extract):
        features = extract(textured(240, 320))["features"]
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-4)

    def test_boxes_are_the_receptive_field_over_the_scale(self, extract):
        found = extract(textured(480, 640), threshold=0.0)
        sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
        # A side becomes a multiple of 32 px, so a scale is met only about.
        np.testing.assert_allclose(sides / found["scales"][:, None], small_delg.RECEPTIVE_FIELD, rtol=0.12)


class TestGlobalDescriptor:
    def test_vlad_equals_its_definition(self):
        import tensorflow as tf

        rng = np.random.default_rng(3)
        rows = rng.standard_normal((50, 8)).astype(np.float32)
        centroids = rng.standard_normal((3, 8)).astype(np.float32)
        weights = rng.random((50, 1)).astype(np.float32)
        sums = np.zeros((3, 8))
        for row, weight in zip(rows, weights):
            nearest = min(range(3), key=lambda k: np.linalg.norm(row - centroids[k]))
            sums[nearest] += weight[0] * (row - centroids[nearest])
        sums /= np.sqrt((sums**2).sum(1, keepdims=True) + small_delg.NOISE)
        expected = (np.sign(sums) * np.sqrt(np.abs(sums))).ravel()
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(small_delg.vlad(tf, rows, weights, centroids)[0], expected, atol=1e-5)

    def test_parts_have_their_shares(self, extract):
        rows = extract(textured(240, 320))["global_descriptors"]
        share = float(small_delg.load_constants()["share"])
        np.testing.assert_allclose((rows[:, :small_delg.EMBEDDING_DIMENSIONS] ** 2).sum(1), share, atol=1e-3)
        np.testing.assert_allclose((rows**2).sum(1), 1, atol=1e-3)
