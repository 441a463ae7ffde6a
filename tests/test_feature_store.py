"""What lies on disk reads back as it was written, by us and by others."""

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.arrays.quantization import dequantized
from transforms.storage import feature_store, files, run_store
from transforms.storage.feature_store import FeatureStore
from transforms.types import (
    Candidate,
    Failure,
    FeatureLocation,
    ImageFeatures,
    ImageRef,
    LocalFeatures,
    Prediction,
    PredictionUnit,
    ReadingConfig,
)

PLACE = 700 / 32767  # px that a keypoint moves at most: coordinates up to 700 have 16 bits


def local_features(count, width=128, seed=0):
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(count, width)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return LocalFeatures(rng.uniform(-50, 700, (count, 2)).astype(np.float32), descriptors)


def image(image_id, count=5, seed=0):
    descriptor = np.random.default_rng(seed).normal(size=64).astype(np.float32)
    return ImageFeatures(
        ImageRef(image_id, f"/p/{image_id}.jpg", 9, "7"),
        640,
        480,
        0.5,
        descriptor,
        local_features(count, seed=seed),
    )


@given(count=st.integers(0, 40), width=st.integers(1, 130), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_local_features_keep_their_place_and_direction(count, width, seed):
    local = local_features(count, width, seed)
    decoded = dequantized(feature_store.decode_local_features(feature_store.encode_local_features(local)))
    assert np.allclose(decoded.keypoints, local.keypoints, atol=PLACE)
    if count:
        assert np.allclose(np.linalg.norm(decoded.descriptors, axis=1), 1, atol=1e-5)
        # A step of 1/127 of the largest component, rounded: at most half of it per component.
        assert np.linalg.norm(decoded.descriptors - local.descriptors, axis=1).max() <= np.sqrt(width) / 127


def test_a_damaged_block_is_refused():
    block = feature_store.encode_local_features(local_features(3))
    with pytest.raises(ValueError, match="cannot hold 3 local features of width 128"):
        feature_store.decode_local_features(block[:-1])
    with pytest.raises(ValueError, match="a block of 5 bytes"):
        feature_store.decode_local_features(block[:5])


def test_a_unit_reads_back(tmp_path):
    store = FeatureStore(str(tmp_path))
    features = [image("a", 5, 1), image("b", 0, 2), image("c", 9, 3)]
    assert not store.has_unit("u")
    failure = Failure("decode", "x", "/p/x.jpg", "too_large", "large", "max_image_pixels", 9)
    store.write_unit("u", features, [failure], 64)
    store.write_unit("empty", [], [], 64)
    assert store.units() == ["empty", "u"]
    assert [s.images for s in store.summaries(["u", "empty"])] == [3, 0]
    table = store.read_images("u")
    assert np.array_equal(feature_store.descriptors_of(table), [f.global_descriptor for f in features])
    assert feature_store.descriptors_of(store.read_images("empty")).shape == (0, 64)
    for row, expected in zip(table.to_pylist(), features):
        local = store.read_local(FeatureLocation("u", row["local_offset"], row["local_size"]))
        assert (
            np.allclose(local.keypoints, expected.local.keypoints, atol=PLACE)
            and len(local) == row["local_count"]
        )
    assert store.failures(["u"]).to_pylist() == [vars(failure)]
    assert store.let_in(["u", "empty"], ReadingConfig(max_image_pixels=9)) == ["u"]
    assert store.let_in(["u", "empty"], ReadingConfig(max_image_pixels=8)) == []
    assert store.failures(["empty"]).num_rows == 0


def test_the_same_unit_is_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        FeatureStore(str(tmp_path / name)).write_unit("u", [image("a")], [], 64)
    for part in ("images/u.parquet", "local_features/u.bin"):
        assert (tmp_path / "one" / part).read_bytes() == (tmp_path / "two" / part).read_bytes()


def test_a_descriptor_of_another_width_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"descriptor of a: shape \(64,\), not \(65,\)"):
        FeatureStore(str(tmp_path)).write_unit("u", [image("a")], [], 65)
    assert not FeatureStore(str(tmp_path)).has_unit("u")


def test_pandas_and_duckdb_read_predictions_without_tricks(tmp_path):
    candidate = Candidate("i", "7", 0.5, FeatureLocation("u", 0, 0), 12, 0.7)
    predictions = (Prediction("b", "7", 0.7, (candidate,)), Prediction("a", None, None))
    run_store.write_predictions(
        str(tmp_path), PredictionUnit("u", predictions, (Failure("verify", "b", "x", "k", "m"),))
    )
    pattern = str(tmp_path / "predictions" / "*.parquet")
    assert duckdb.sql(
        f"select image_id, candidates[1].inliers, score from '{pattern}' order by 1"
    ).fetchall() == [("a", None, None), ("b", 12, 0.7)]
    frame = pd.read_parquet(tmp_path / "predictions")
    assert frame.image_id.tolist() == ["a", "b"] and frame.candidates[1][0]["image_id"] == "i"
    assert run_store.has_predictions(str(tmp_path), "u")
    assert feature_store.read_failures(files.join(str(tmp_path), "failures")).num_rows == 1


def test_pandas_and_duckdb_read_an_index_without_tricks(tmp_path):
    FeatureStore(str(tmp_path)).write_unit("u", [image("a"), image("b")], [], 64)
    frame = pd.read_parquet(tmp_path / "images")
    assert frame.global_descriptor[0].shape == (64,)
    pattern = str(tmp_path / "images" / "*.parquet")
    assert duckdb.sql(f"select count(*), any_value(len(global_descriptor)) from '{pattern}'").fetchall() == [
        (2, 64)
    ]
