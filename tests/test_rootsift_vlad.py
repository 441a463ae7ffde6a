"""The embedded model: its contract, its bytes, and its numbers against a slow NumPy oracle."""

import concurrent.futures
import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from transforms.delg import embedded, rootsift_vlad
from transforms.delg.card import read_card, settings_from_card

INPUTS = ("input_image", "input_scales", "input_max_feature_num", "input_abs_thres", "input_global_scales_ind")
OUTPUTS = ("boxes", "features", "scales", "scores", "global_descriptors")
SCALES = rootsift_vlad.SETTINGS.image_scales


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return embedded.model_dir(str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def model(folder):
    import tensorflow as tf

    return tf.saved_model.load(folder)


@pytest.fixture(scope="module")
def extract(model):
    import tensorflow as tf

    pruned = model.prune([f"{name}:0" for name in INPUTS], [f"{name}:0" for name in OUTPUTS])

    def call(image, scales=SCALES, max_features=1000, threshold=20.0, global_scales=None):
        chosen = range(len(scales)) if global_scales is None else global_scales
        outputs = pruned(tf.constant(image), tf.constant(scales, tf.float32), tf.constant(max_features),
                         tf.constant(threshold, tf.float32), tf.constant(list(chosen), tf.int32))
        return {name: value.numpy() for name, value in zip(OUTPUTS, outputs)}

    return call


def textured(height, width, seed=0):
    """An image uint8 [height, width, 3] of random patches, with corners at several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for size in (4, 16):
        coarse = rng.integers(0, 128, (-(-height // size), -(-width // size), 3))
        image += np.kron(coarse, np.ones((size, size, 1)))[:height, :width]
    return image.astype(np.uint8)


class TestContract:
    def test_signature_names_and_dtypes(self, model):
        signature = model.signatures["serving_default"]
        given = {name: spec.dtype.name for name, spec in signature.structured_input_signature[1].items()}
        assert given == dict(zip(INPUTS, ("uint8", "float32", "int32", "float32", "int32")))
        assert {name: spec.dtype.name for name, spec in signature.structured_outputs.items()} == dict.fromkeys(OUTPUTS, "float32")

    def test_signature_and_prune_agree(self, model, extract):
        import tensorflow as tf

        image = textured(120, 160)
        feeds = (image, np.float32(SCALES), np.int32(100), np.float32(20), np.int32([1, 2]))
        by_signature = model.signatures["serving_default"](**{name: tf.constant(value) for name, value in zip(INPUTS, feeds)})
        for name, value in extract(image, max_features=100, global_scales=[1, 2]).items():
            np.testing.assert_allclose(by_signature[name], value, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("height, width", [(1, 1), (16, 16), (3, 400), (97, 211), (480, 640)])
    def test_shapes_at_every_size(self, extract, height, width):
        found = extract(textured(height, width))
        count = len(found["boxes"])
        assert count <= 1000
        assert found["boxes"].shape == (count, 4) and found["features"].shape == (count, 128)
        assert found["scales"].shape == (count,) and found["scores"].shape == (count, 1)
        assert found["global_descriptors"].shape == (len(SCALES), 2048)
        assert all(np.isfinite(value).all() for value in found.values())

    def test_global_rows_follow_the_scales_that_were_asked_for(self, extract):
        image = textured(100, 140)
        every = extract(image)["global_descriptors"]
        np.testing.assert_allclose(extract(image, global_scales=[3, 1])["global_descriptors"], every[[1, 3]], atol=1e-6)

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

    def test_scales_are_reciprocal_and_boxes_follow_them(self, extract):
        found = extract(textured(480, 640))
        assert set(np.round(found["scales"], 3)) <= set(np.round(1 / np.float32(SCALES), 3))
        sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
        np.testing.assert_allclose(sides, 18.0 * found["scales"][:, None] * [1, 1], rtol=0.02)

    def test_keypoint_lies_on_a_corner(self, extract):
        image = np.zeros((200, 300, 3), np.uint8)
        image[81:, 121:] = 200  # one corner, between pixels 80 and 81, 120 and 121
        box = extract(image, scales=(1.0,))["boxes"][0]
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, [81, 121], atol=2)

    @pytest.mark.parametrize("level", [0, 90, 255])
    def test_flat_image_has_no_features_and_a_finite_descriptor(self, extract, level):
        found = extract(np.full((120, 160, 3), level, np.uint8))
        assert len(found["boxes"]) == len(found["features"]) == len(found["scores"]) == 0
        assert np.isfinite(found["global_descriptors"]).all()
        assert (np.linalg.norm(found["global_descriptors"], axis=1) > 0.1).all()


class TestOracle:
    """One descriptor after the other, from the definitions."""

    @staticmethod
    def cell(dx, dy, centre_y, centre_x):
        """Orientation histogram [8] over a triangular window, in blocks of 2 px, around a block."""
        histogram = np.zeros(8)
        for block_y, weight_y in zip(range(centre_y - 1, centre_y + 2), (1, 2, 1)):
            for block_x, weight_x in zip(range(centre_x - 1, centre_x + 2), (1, 2, 1)):
                for y in (2 * block_y, 2 * block_y + 1):
                    for x in (2 * block_x, 2 * block_x + 1):
                        length, angle = math.hypot(dx[y, x], dy[y, x]), math.atan2(dy[y, x], dx[y, x])
                        for k in range(8):
                            near = math.cos(angle - k * math.pi / 4) - math.cos(math.pi / 4)
                            histogram[k] += weight_y * weight_x * length * max(0.0, near) / 64
        return histogram

    @classmethod
    def root_sift(cls, gray, row, column):
        """RootSIFT [128] of the patch whose first block is (row, column)."""
        dx, dy = gray[1:-1, 2:] - gray[1:-1, :-2], gray[2:, 1:-1] - gray[:-2, 1:-1]
        parts = []
        for i in range(4):
            for j in range(4):
                weight = math.exp(-((i - 1.5) ** 2 + (j - 1.5) ** 2) / 8)
                parts.append(weight * cls.cell(dx, dy, row + 1 + 2 * i, column + 1 + 2 * j))
        parts = np.concatenate(parts)
        return np.sqrt(parts / (parts.sum() + 1.0))

    def test_local_descriptors_and_attention(self, extract):
        image, constants = textured(60, 70, 1), rootsift_vlad.load_constants()
        gray = image @ np.array([0.299, 0.587, 0.114])
        found = extract(image, scales=(1.0,))
        assert len(found["boxes"]) > 5
        for box, feature in list(zip(found["boxes"], found["features"]))[:5]:
            row, column = (int(round((side - 1) / 2)) for side in box[:2])
            expected = (self.root_sift(gray, row, column) - constants["local_mean"]) @ constants["local_projection"]
            np.testing.assert_allclose(feature, expected, atol=2e-3)

    def test_attention_is_the_smaller_eigenvalue_of_the_structure_tensor(self, extract):
        image = textured(60, 70, 2)
        gray = image @ np.array([0.299, 0.587, 0.114])
        dx, dy = gray[1:-1, 2:] - gray[1:-1, :-2], gray[2:, 1:-1] - gray[:-2, 1:-1]
        found = extract(image, scales=(1.0,))
        window = np.repeat([1, 2, 1], 2) / 8
        window = np.outer(window, window)
        for box, score in list(zip(found["boxes"], found["scores"]))[:10]:
            y, x = (int(round((low + high) / 2)) - 4 for low, high in zip(box[:2], box[2:]))
            gradients = np.stack([dx[y:y + 6, x:x + 6], dy[y:y + 6, x:x + 6]]).reshape(2, -1)
            tensor = (gradients * window.reshape(-1)) @ gradients.T
            np.testing.assert_allclose(score[0], np.linalg.eigvalsh(tensor)[0], rtol=1e-3)

    def test_vlad(self, extract):
        image, constants = textured(40, 44, 3), rootsift_vlad.load_constants()
        gray = image @ np.array([0.299, 0.587, 0.114])
        centroids = constants["centroids"]
        blocks = (40 - 2) // 2, (44 - 2) // 2
        sums = np.zeros((16, 128))
        for row in range(0, blocks[0] - 8, 2):
            for column in range(0, blocks[1] - 8, 2):
                descriptor = self.root_sift(gray, row, column)
                nearest = np.argmin(((centroids - descriptor) ** 2).sum(1))
                sums[nearest] += (descriptor - centroids[nearest]) * (descriptor**2).sum()
        sums /= np.sqrt((sums**2).sum(1, keepdims=True) + 1e-4)
        vlad = (np.sign(sums) * np.sqrt(np.abs(sums))).reshape(-1)
        vlad /= np.sqrt((vlad**2).sum() + 1e-4)
        expected = vlad - constants["global_mean"]
        for axis, loss in zip(constants["global_axes"], constants["global_loss"]):
            expected = expected - loss * ((vlad - constants["global_mean"]) @ axis) * axis
        np.testing.assert_allclose(extract(image, scales=(1.0,))["global_descriptors"][0], expected, atol=3e-3)

    def test_global_axes_are_orthonormal_as_far_as_their_rounding_allows(self):
        axes = rootsift_vlad.load_constants()["global_axes"]
        np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=0.02)


class TestBytesAndCache:
    def test_two_processes_build_the_same_bytes(self, folder, tmp_path):
        script = "import sys, tensorflow as tf; tf.Graph(); from transforms.delg import rootsift_vlad as r; r.build(sys.argv[1])"
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True)
        for name in ("saved_model.pb", "landmarks_card.json"):
            with open(os.path.join(folder, name), "rb") as cached:
                assert (tmp_path / name).read_bytes() == cached.read()

    def test_two_builds_in_one_process_are_the_same(self):
        digests = {hashlib.sha256(rootsift_vlad.saved_model_bytes()).hexdigest() for _ in range(2)}
        assert len(digests) == 1

    def test_card_states_the_settings(self, folder):
        card = read_card(folder)
        assert card["name"] == "rootsift-vlad" and card["max_distance"] == rootsift_vlad.MAX_DISTANCE
        assert settings_from_card(card) == rootsift_vlad.SETTINGS

    def test_concurrent_builders_get_one_folder(self, tmp_path):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            folders = set(pool.map(lambda _: embedded.model_dir(str(tmp_path)), range(4)))
        assert [os.path.basename(path) for path in folders] == os.listdir(tmp_path)

    def test_built_once(self, folder):
        before = os.stat(os.path.join(folder, "saved_model.pb")).st_mtime_ns
        assert embedded.model_dir(os.path.dirname(folder)) == folder
        assert os.stat(os.path.join(folder, "saved_model.pb")).st_mtime_ns == before

    def test_cache_folder_follows_the_environment(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert os.path.dirname(embedded.model_dir()) == str(tmp_path / "landmarks")

    def test_a_cache_that_cannot_be_written_is_an_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            embedded.model_dir(str(tmp_path / "file" / "cache"))
