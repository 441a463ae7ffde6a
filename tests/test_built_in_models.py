"""The models that come with the package: what they give, that it depends on nothing but the image, and that
it takes no TensorFlow.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.command_line import ONE_WORKER
from tests.pictures import textured
from transforms.models import catalog, embedded
from transforms.models.model import ExtractionError, ModelError


@pytest.fixture(scope="module", params=list(catalog.BUILT_IN))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def adapter(name):
    return catalog.BUILT_IN[name]


@pytest.fixture(scope="module")
def model(adapter):
    return adapter.load(adapter.CONSTANTS, adapter.SETTINGS)


def assert_same(first, second):
    for field, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, field))


class TestFeatures:
    @pytest.mark.parametrize("height, width", [(16, 16), (40, 1200), (97, 211), (480, 640), (900, 700)])
    def test_shapes_at_every_size(self, model, height, width):
        found = model.extract(textured(height, width))
        count = len(found.scores)
        assert 0 <= count <= model.settings.max_local_features
        assert found.keypoints.shape == (count, 2) and found.descriptors.shape == (count, model.local_width)
        assert found.global_descriptor.shape == (model.global_width,)
        assert {value.dtype for value in vars(found).values()} == {np.dtype(np.float32)}
        np.testing.assert_allclose(np.linalg.norm(found.global_descriptor), 1, rtol=1e-3)
        np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, rtol=1e-3)
        assert (found.keypoints >= 0).all() and (found.keypoints <= [height, width]).all()

    def test_max_local_features_keeps_the_strongest(self, adapter, model):
        image = textured(240, 320)
        fewer = dataclasses.replace(adapter.SETTINGS, max_local_features=50)
        many, few = model.extract(image), adapter.load(adapter.CONSTANTS, fewer).extract(image)
        assert len(many.scores) > 50 and (np.diff(many.scores) <= 0).all()
        np.testing.assert_array_equal(few.keypoints, many.keypoints[:50])
        np.testing.assert_allclose(few.descriptors, many.descriptors[:50], atol=1e-5)

    def test_score_threshold_cuts_the_scores(self, adapter, model):
        image = textured(120, 160)
        every = model.extract(image).scores
        threshold = float(np.median(every))
        higher = dataclasses.replace(adapter.SETTINGS, score_threshold=threshold)
        kept = adapter.load(adapter.CONSTANTS, higher).extract(image).scores
        assert 0 < len(kept) < len(every) and kept.min() >= threshold

    @pytest.mark.parametrize("level", [0, 90, 255])
    def test_a_flat_image_has_a_global_descriptor_alone(self, model, level):
        found = model.extract(np.full((120, 160, 3), level, np.uint8))
        assert len(found.keypoints) == len(found.descriptors) == len(found.scores) == 0
        assert np.isfinite(found.global_descriptor).all() and np.linalg.norm(found.global_descriptor) > 0.9

    def test_the_corner_of_a_square_is_a_keypoint(self, model):
        image = np.zeros((400, 600, 3), np.uint8)
        image[161:, 241:] = 200  # one corner, between pixels 160 and 161, 240 and 241
        keypoints = model.extract(image).keypoints
        assert np.abs(keypoints - [161, 241]).max(1).min() < 4

    def test_what_is_no_image_is_an_error(self, model):
        with pytest.raises(ValueError, match="uint8"):
            model.extract(np.zeros((10, 10, 3), np.float32))


_EXTRACTS = """
import sys; import cv2; import numpy as np; from tests.pictures import textured
from transforms.models import catalog; from transforms.processes.settings import one_thread
cv2.setNumThreads(int(sys.argv[1]))
for name, adapter in catalog.BUILT_IN.items():
    model = adapter.load(adapter.CONSTANTS, adapter.SETTINGS)
    with one_thread: found = model.extract(textured(480, 640))
    np.savez(f"{sys.argv[2]}/{name}.npz", **vars(found))
"""


@pytest.fixture(scope="module")
def extracted_with(tmp_path_factory):
    """A function: the folder of what all models make in a process with so many threads, made once."""

    @functools.cache
    def extract(threads):
        folder = tmp_path_factory.mktemp("threads")
        counts = {f"{library}_NUM_THREADS": threads for library in ("OMP", "OPENBLAS", "MKL")}
        command = [sys.executable, "-c", _EXTRACTS, threads, str(folder)]
        subprocess.run(command, check=True, env={**os.environ, **counts})
        return folder

    return extract


class TestSameBytes:
    def test_threads_that_share_a_model(self, model):
        images = [textured(150 + 10 * n, 200, n) for n in range(8)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for one, other in zip(map(model.extract, images), pool.map(model.extract, images)):
                assert_same(one, other)

    @pytest.mark.parametrize("threads", ["1", "2", "5"])
    def test_processes_with_other_numbers_of_threads(self, name, extracted_with, threads):
        model = catalog.load(name, catalog.BUILT_IN[name].SETTINGS)
        from transforms.processes.settings import one_thread

        with one_thread:
            expected = model.extract(textured(480, 640))
        with np.load(extracted_with(threads) / f"{name}.npz") as found:
            for field, value in vars(expected).items():
                assert value.tobytes() == found[field].tobytes(), field


class TestCatalog:
    def test_card_and_fingerprint(self, name, adapter):
        card = catalog.card(name)
        assert card["name"] == adapter.NAME and card["max_distance"] == adapter.MAX_DISTANCE
        assert {key: card[key] for key in dataclasses.asdict(adapter.SETTINGS)} == dataclasses.asdict(
            adapter.SETTINGS
        )
        assert len(catalog.fingerprint(name)) == 64
        assert len({catalog.fingerprint(other) for other in catalog.BUILT_IN}) == len(catalog.BUILT_IN)

    def test_another_version_has_another_fingerprint(self, name, adapter, monkeypatch):
        before = catalog.fingerprint(name)
        monkeypatch.setattr(adapter, "VERSION", adapter.VERSION + 1)
        assert catalog.fingerprint(name) != before

    def test_inspect_says_what_it_gives(self, name, adapter):
        text = catalog.inspect(name)
        assert adapter.NAME in text and catalog.fingerprint(name) in text

    def test_settings_that_a_model_has_not_are_refused(self, name, adapter):
        with pytest.raises(ModelError, match="bfloat16"):
            adapter.load(adapter.CONSTANTS, dataclasses.replace(adapter.SETTINGS, precision="bfloat16"))


class TestEmbedded:
    def test_other_scales_are_refused(self):
        settings = dataclasses.replace(
            embedded.EmbeddedModel.SETTINGS, image_scales=(0.5, 1.0), global_scales=(0.5,)
        )
        with pytest.raises(ModelError, match=r"image_scales \(1.0,\) and no other, not \(0.5, 1.0\)"):
            embedded.EmbeddedModel.load(embedded.EmbeddedModel.CONSTANTS, settings)

    def test_a_few_pixels_are_too_small(self):
        model = catalog.load(catalog.EMBEDDED, embedded.EmbeddedModel.SETTINGS)
        with pytest.raises(ExtractionError, match="4 x 9 px") as error:
            model.extract(textured(4, 9))
        assert error.value.kind == "too_small"

    def test_size_on_disk(self):
        model = catalog.load(catalog.EMBEDDED, embedded.EmbeddedModel.SETTINGS)
        assert os.path.getsize(model.CONSTANTS) <= 8_000_000
        assert model.settings.max_local_features * (4 + model.local_width) <= 50_000

    @pytest.mark.parametrize("stride", embedded.STRIDES)
    def test_the_grid_reads_the_middle_of_a_cell(self, stride):
        """Against ONNX's definition: -1 and 1 are the borders of the map."""
        seen = np.zeros((96, 128, 3), np.uint8)
        cells = np.array([[0, 0], [2, 3], [1, 5]])
        grid = embedded.feeds(seen, cells * stride + stride - 1)[f"grid{stride}"][0, :, 0]
        sides = np.array(seen.shape[:2]) / stride
        np.testing.assert_allclose((grid[:, ::-1] + 1) / 2 * sides - 0.5, cells, atol=1e-5)

    def test_corners_are_apart(self):
        corners, scores = embedded.strongest_corners(textured(288, 384), 10**6, 0.0)
        apart = np.abs(corners[:, None] - corners[None]).max(2) + 99 * np.eye(len(corners), dtype=int)
        near = apart < embedded.MIN_DISTANCE
        assert len(corners) > 100 and (scores[near.nonzero()[0]] == scores[near.nonzero()[1]]).all()

    def test_the_same_surface_seen_larger_has_near_descriptors_at_the_same_places(self):
        model = catalog.load(catalog.EMBEDDED, embedded.EmbeddedModel.SETTINGS)
        image = cv2.GaussianBlur(textured(480, 640), (0, 0), 2)
        one, other = model.extract(image), model.extract(cv2.resize(image, (768, 576)))
        assert one.global_descriptor @ other.global_descriptor > 0.9
        nearest = (one.descriptors @ other.descriptors.T).argmax(1)
        offset = np.linalg.norm(one.keypoints * 1.2 - other.keypoints[nearest], axis=1)
        assert (offset < 8).mean() > 0.5


_BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def without_tensorflow(tmp_path_factory):
    """The environment of a process, and of its children, that cannot import TensorFlow."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text(_BLOCKED)
    paths = [str(folder), os.environ.get("PYTHONPATH", os.getcwd())]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_the_block_blocks(without_tensorflow):
    done = subprocess.run(
        [sys.executable, "-c", "import tensorflow"], env=without_tensorflow, capture_output=True, text=True
    )
    assert done.returncode == 1 and "tensorflow is blocked" in done.stderr


def test_commands_run_without_tensorflow(without_tensorflow, tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(6):
        cv2.imwrite(str(photographs / f"p{number}.jpg"), textured(240, 320, number // 2))
    (tmp_path / "labels.csv").write_text("id,landmark_id\np0,a\np2,b\np4,c\n")
    index = ["index", "--images", str(photographs / "p[024].jpg"), "--labels", "labels.csv"]
    recognize = ["recognize", "--images", str(photographs / "p[135].jpg")]
    commands = []
    for name in catalog.BUILT_IN:
        commands += [
            [*index, "--output", f"index-{name}", "--model", name],
            [*recognize, "--index", f"index-{name}", "--output", f"run-{name}"],
            ["matches", "--run", f"run-{name}", "--image_id", "p1", "--output", "matches.png"],
        ]
    commands = [[*command, ONE_WORKER] for command in commands]
    code = (
        "import json, sys; from beam_pipeline.main import main; "
        "sys.exit(any(main(command) for command in json.loads(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        env=without_tensorflow,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in catalog.BUILT_IN:
        assert (tmp_path / f"run-{name}" / "submission.csv").read_text().count(",a ") == 1
