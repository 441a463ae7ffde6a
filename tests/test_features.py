"""Extraction of units: every image becomes features or a failure row, and the shard holds just that."""

import functools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from tests import tiny_models
from transforms import features
from transforms.extraction import ExtractFeatures, image_units
from transforms.images import read_images
from transforms.models import catalog
from transforms.models.card import ExtractionSettings
from transforms.models.model import Extracted, ExtractionError, ModelError
from transforms.models.saved_model import DelgModel
from transforms.patterns import match_images
from transforms.storage.feature_store import FeatureStore
from transforms.types import ImageUnit

SETTINGS = ExtractionSettings((0.7071, 1.0), (1.0,), 50, 0.0, 256)
READER = functools.partial(read_images, max_side=256)


class FakeModel:
    """Gives the mean colour as the global descriptor, and fails on black images."""

    global_width = 3
    images_in_flight = None

    def extract(self, pixels):
        if not pixels.any():
            raise ExtractionError("non_finite", "black")
        colour = pixels.reshape(-1, 3).mean(axis=0).astype(np.float32)
        one = np.ones((1, 2), np.float32)
        return Extracted(
            colour / np.linalg.norm(colour), one, one / np.sqrt(np.float32(2)), np.ones(1, np.float32)
        )


@pytest.fixture
def unit(tmp_path):
    for name, colour in (("a", (200, 10, 10)), ("b", (0, 0, 0)), ("d", (10, 10, 200))):
        Image.new("RGB", (120, 90), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"")
    return ImageUnit("unit", tuple(match_images([str(tmp_path)]).images))


def test_each_image_is_a_feature_or_a_failure(unit):
    result = features.extract_unit(unit, FakeModel(), READER)
    assert [f.ref.image_id for f in result.features] == ["a", "d"] and result.dimensions == 3
    assert [(f.image_id, f.stage, f.kind) for f in result.failures] == [
        ("b", "extract", "non_finite"),
        ("c", "decode", "empty_file"),
    ]
    assert result.features[0].width == 120 and result.features[0].global_descriptor.argmax() == 0


def test_what_is_wrong_with_a_whole_picture_stands_in_the_store(unit, tmp_path):
    photo = tmp_path / "e.jpg"
    Image.new("RGB", (64, 48), (10, 200, 10)).save(photo)
    photo.write_bytes(photo.read_bytes()[:-2])
    unit = ImageUnit("unit", (*unit.images, *match_images([str(photo)]).images))
    result = features.extract_unit(unit, FakeModel(), READER)
    store = FeatureStore(str(tmp_path / "store"))
    store.write_unit("unit", result.features, result.failures, result.dimensions)
    warnings = store.read_images("unit", ["image_id", "warning"]).to_pylist()
    assert {row["image_id"]: row["warning"] for row in warnings} == {
        "a": None,
        "d": None,
        "e": "the file lacks its last bytes; every row of its picture is there",
    }


def test_photographs_of_a_unit_are_in_the_model_side_by_side(unit):
    class MeetingModel(FakeModel):
        meeting = threading.Barrier(3)

        def extract(self, pixels):
            self.meeting.wait(30)  # for the three photographs that can be decoded
            return super().extract(pixels)

    with ThreadPoolExecutor(3) as pool:
        together = features.extract_unit(unit, features.LoadedModel(MeetingModel(), pool, 3), READER)
    alone = features.extract_unit(unit, FakeModel(), READER)
    assert [f.ref for f in together.features] == [
        f.ref for f in alone.features
    ] and together.failures == alone.failures


@pytest.mark.parametrize("slots", [None, 2])
def test_a_unit_that_is_not_done_in_time_gives_nothing(unit, slots):
    with ThreadPoolExecutor(2) as pool:
        model = features.LoadedModel(FakeModel(), pool, slots) if slots else FakeModel()
        assert features.extract_unit(unit, model, READER, deadline=time.time() - 1) is None


def test_a_model_is_loaded_once_for_as_long_as_its_files_stay(tmp_path):
    tiny_models.build("delg_tf2", tmp_path / "model")
    first = catalog.load(str(tmp_path / "model"), SETTINGS)
    assert catalog.load(str(tmp_path / "model"), SETTINGS) is first
    os.utime(tmp_path / "model" / "saved_model.pb", (1, time.time() + 10))
    assert catalog.load(str(tmp_path / "model"), SETTINGS) is not first


@pytest.mark.parametrize("wanted, asked, slots", [(None, None, None), (None, 5, 5), (4, None, 4), (4, 16, 4)])
def test_how_many_photographs_are_in_flight(monkeypatch, wanted, asked, slots):
    model = FakeModel()
    model.images_in_flight = wanted
    monkeypatch.setattr(catalog, "load", lambda *_: model)
    loaded = features.UnitModelHandler(
        "a model", SETTINGS, READER, FeatureStore("a store"), asked
    ).load_model()
    assert (loaded.pool is None) == (slots is None) and loaded.slots == (slots or 1)


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_another_image_size_is_no_new_trace(tmp_path, kind):
    from tensorflow.python.eager import context  # TensorFlow's public API does not tell what has been traced

    tiny_models.build(kind, tmp_path / "model")
    model = DelgModel.load(str(tmp_path / "model"), SETTINGS)
    model.extract(tiny_models.textured(96, 128))
    traced = set(context.context().list_function_names())
    for height, width in ((128, 96), (75, 200), (200, 200)):
        model.extract(tiny_models.textured(height, width))
    assert set(context.context().list_function_names()) == traced


def test_units_go_to_shards(unit, tmp_path):
    tiny_models.build("delg_tf1", tmp_path / "model")
    store = FeatureStore(str(tmp_path / "store"))
    extract = ExtractFeatures(str(tmp_path / "model"), store.root, SETTINGS, images_in_flight=2)
    with TestPipeline() as pipeline:
        names = pipeline | beam.Create([unit]) | extract
        assert_that(names, equal_to(["unit"]))
    assert store.read_images("unit").column("image_id").to_pylist() == ["a", "b", "d"]
    assert store.failures(["unit"]).column("image_id").to_pylist() == ["c"]


def test_units_of_another_model_are_refused(tmp_path):
    tiny_models.build("delg_tf1", tmp_path / "model")
    Image.new("RGB", (120, 90)).save(tmp_path / "a.png")
    units = image_units(match_images([str(tmp_path / "a.png")]).images, "rootsift-vlad")
    extract = ExtractFeatures(str(tmp_path / "model"), str(tmp_path / "store"), SETTINGS)
    with pytest.raises(Exception, match="made for another model"), TestPipeline() as pipeline:
        pipeline | beam.Create(units) | extract
    assert FeatureStore(str(tmp_path / "store")).units() == []


def test_a_model_that_cannot_retrieve_is_refused_before_anything_starts(tmp_path):
    tiny_models.build("local_only", tmp_path / "model")
    with pytest.raises(ModelError, match="offers no global descriptor"):
        catalog.load_for_retrieval(str(tmp_path / "model"), SETTINGS)
