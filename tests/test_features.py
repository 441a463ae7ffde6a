"""Extraction of units: every image becomes features or a failure row, and the shard holds just that."""

import functools

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from tests import tiny_models
from transforms import features
from transforms.delg.card import ExtractionSettings
from transforms.delg.saved_model import Extracted, ExtractionError, ModelError
from transforms.images import match_images, read_images
from transforms.stores import FeatureStore
from transforms.types import ImageUnit

SETTINGS = ExtractionSettings((0.7071, 1.0), (1.0,), 50, 0.0, 256)
READER = functools.partial(read_images, max_side=256, exif_orientation=True, max_pixels=10**6)


class FakeModel:
    """Gives the mean colour as the global descriptor, and fails on black images."""

    global_width = 3

    def extract(self, pixels):
        if not pixels.any():
            raise ExtractionError("non_finite", "black")
        colour = pixels.reshape(-1, 3).mean(axis=0).astype(np.float32)
        one = np.ones((1, 2), np.float32)
        return Extracted(colour / np.linalg.norm(colour), one, one / np.sqrt(np.float32(2)), np.ones(1, np.float32))


@pytest.fixture
def unit(tmp_path):
    for name, colour in (("a", (200, 10, 10)), ("b", (0, 0, 0)), ("d", (10, 10, 200))):
        Image.new("RGB", (120, 90), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"")
    return ImageUnit("unit", tuple(match_images([str(tmp_path)])))


def test_each_image_is_a_feature_or_a_failure(unit):
    result = features.extract_unit(unit, FakeModel(), READER)
    assert [f.ref.image_id for f in result.features] == ["a", "d"] and result.dimensions == 3
    assert [(f.image_id, f.stage, f.kind) for f in result.failures] == [("b", "extract", "non_finite"), ("c", "decode", "empty_file")]
    assert result.features[0].width == 120 and result.features[0].global_descriptor.argmax() == 0


def test_units_go_to_shards(unit, tmp_path):
    tiny_models.build("delg_tf1", tmp_path / "model")
    store = FeatureStore(str(tmp_path / "store"))
    handler = features.DelgModelHandler(str(tmp_path / "model"), SETTINGS, READER)
    with TestPipeline() as pipeline:
        names = pipeline | beam.Create([unit]) | features.ExtractFeatures(store.root, handler)
        assert_that(names, equal_to(["unit"]))
    assert store.read_images("unit").column("image_id").to_pylist() == ["a", "b", "d"]
    assert store.failures(["unit"]).column("image_id").to_pylist() == ["c"]


def test_a_model_that_cannot_retrieve_is_refused_before_anything_starts(tmp_path):
    tiny_models.build("local_only", tmp_path / "model")
    with pytest.raises(ModelError, match="offers no global descriptor"):
        features.check_model(str(tmp_path / "model"), SETTINGS)
