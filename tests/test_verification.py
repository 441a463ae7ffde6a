"""Verification: matches, inliers, scores, and the step on the local runner."""

import dataclasses

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.local_features import features
from transforms.arrays.quantization import quantized
from transforms.storage.feature_store import FeatureStore
from transforms.types import (
    Candidate,
    CandidateUnit,
    FeatureLocation,
    ImageFeatures,
    ImageRef,
    LocalFeatures,
    QuantizedFeatures,
    QueryCandidates,
)
from transforms.verification import (
    MIN_MATCHES,
    VerificationSettings,
    VerifyCandidates,
    count_inliers,
    pair_seed,
    verify_pair,
)

DEFAULT = VerificationSettings()
HOMOGRAPHY = np.array([[1.1, 0.1, 20.0], [-0.05, 0.95, 10.0], [1e-4, -5e-5, 1.0]])  # on (x, y, 1)


def none() -> LocalFeatures:
    return LocalFeatures(np.zeros((0, 2), np.float32), np.zeros((0, 0), np.float32))


def mapped(points) -> np.ndarray:
    """(y, x) points through HOMOGRAPHY."""
    x, y, w = HOMOGRAPHY @ np.stack([points[:, 1], points[:, 0], np.ones(len(points))])
    return np.stack([y / w, x / w], axis=1)


def two_views(good: int, bad: int, seed: int = 0) -> tuple[LocalFeatures, LocalFeatures]:
    """Query and candidate with matching descriptors; `good` keypoints follow HOMOGRAPHY to within 3 pixels,
    `bad` lie anywhere.
    """
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(good + bad, 128))
    points = rng.uniform(0, 600, (good + bad, 2))
    other = np.concatenate(
        [mapped(points[:good]) + rng.uniform(-2, 2, (good, 2)), rng.uniform(0, 600, (bad, 2))]
    )
    order = rng.permutation(good + bad)
    return features(descriptors, points), features(descriptors[order], other[order])


def quantized_views(good: int, bad: int) -> tuple[QuantizedFeatures, QuantizedFeatures]:
    query, candidate = two_views(good, bad)
    return quantized(query), quantized(candidate)


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("max_distance", 0.0, r"max_distance must be in \(0, 2\], not 0.0"),
        ("max_distance", 2.1, "not 2.1"),
        ("max_distance", float("nan"), "not nan"),
        (
            "max_reprojection_error",
            0.0,
            "max_reprojection_error must be a positive number of pixels, not 0.0",
        ),
        ("max_reprojection_error", float("inf"), "not inf"),
        ("max_ransac_iterations", 0, "max_ransac_iterations must be at least 1, not 0"),
        ("homography_confidence", 1.0, r"homography_confidence must be in \(0, 1\), not 1.0"),
        ("ratio_test", 0.0, r"ratio_test must be in \(0, 1\] or None, not 0.0"),
    ],
)
def test_settings_are_checked(name, value, text):
    with pytest.raises(ValueError, match=text):
        VerificationSettings(**{name: value})


def test_clear_homography_is_found():
    query, candidate = quantized_views(good=60, bad=140)
    verified = verify_pair("q", query, "c", candidate, DEFAULT)
    assert len(verified.matches) == 200 and verified.inliers == verified.inlier_mask.sum()
    assert verified.inlier_mask[:60].all()  # query order: the good ones come first
    assert verified.inlier_mask[60:].sum() < 20


def test_inliers_lie_within_the_reprojection_error():
    query, candidate = quantized_views(good=60, bad=0)
    strict = dataclasses.replace(DEFAULT, max_reprojection_error=0.01)
    assert (
        verify_pair("q", query, "c", candidate, strict).inliers
        < 30
        < verify_pair("q", query, "c", candidate, DEFAULT).inliers
    )


def test_many_query_features_on_one_candidate_feature_are_no_homography():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 600, (100, 2)).astype(np.float32)
    inliers, mask = count_inliers(points, np.full_like(points, 300.0), DEFAULT, 1)
    assert inliers == mask.sum() < 10


@pytest.mark.parametrize("count", range(MIN_MATCHES))
def test_few_matches_have_no_inliers(count):
    points = np.random.default_rng(0).uniform(0, 600, (count, 2)).astype(np.float32)
    inliers, mask = count_inliers(points, points, DEFAULT, 1)
    assert inliers == 0 and mask.shape == (count,) and not mask.any()


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.integers(5, 12), st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 600]))
def test_degenerate_points_are_no_crash(count, seed, side):
    rng = np.random.default_rng(seed)
    query, candidate = rng.integers(0, side, (2, count, 2)).astype(np.float32)
    inliers, mask = count_inliers(query, candidate, DEFAULT, seed)
    assert mask.shape == (count,) and mask.dtype == bool and inliers == mask.sum()


def test_same_pair_same_answer():
    query, candidate = quantized_views(good=12, bad=188)
    verified = [verify_pair("q", query, "c", candidate, DEFAULT) for _ in range(3)]
    assert len({v.inlier_mask.tobytes() for v in verified}) == 1


def test_pair_seed():
    seeds = [
        pair_seed("a", "b"),
        pair_seed("b", "a"),
        pair_seed("ab", ""),
        pair_seed("", "ab"),
        pair_seed("é", "b"),
    ]
    assert len(set(seeds)) == 5 and all(0 <= seed < 2**31 for seed in seeds)
    assert pair_seed("a", "b") == 2024456823  # the same on every machine


@pytest.fixture
def store(tmp_path):
    """A store with the images q (the query), same (another view of it), other and blank (without local
    features).
    """
    query, same = two_views(good=100, bad=100)
    images = {"q": query, "same": same, "other": two_views(good=200, bad=0, seed=1)[0], "blank": none()}
    made = [
        ImageFeatures(ImageRef(name, name, 0), 600, 600, 1.0, np.zeros(4, np.float32), local)
        for name, local in images.items()
    ]
    store = FeatureStore(str(tmp_path))
    store.write_unit("u", made, [], 4)
    return store


def locations(store) -> dict[str, FeatureLocation]:
    return {
        row["image_id"]: FeatureLocation("u", row["local_offset"], row["local_size"])
        for row in store.read_images("u").to_pylist()
    }


def check(store, query_location, candidate_locations, expect, **options) -> None:
    """Runs the step on a query whose candidates all have similarity 0.5, and calls `expect` with the unit it
    makes.
    """
    candidates = tuple(Candidate(name, "1", 0.5, place) for name, place in candidate_locations.items())
    unit = CandidateUnit("unit", (QueryCandidates("q", query_location, candidates),))

    def one(units):
        [verified] = units
        assert verified.name == "unit"
        expect(verified, verified.queries[0])

    with beam.Pipeline("FnApiRunner") as pipeline:
        assert_that(
            pipeline | beam.Create([unit]) | VerifyCandidates(store.root, store.root, DEFAULT, **options), one
        )


def test_step_counts_inliers(store):
    def expect(unit, query):
        assert query.verified and not unit.failures
        inliers = {c.image_id: c.inliers for c in query.candidates}
        assert inliers.pop("same") >= 100 and inliers == {"blank": 0, "other": 0}

    places = locations(store)
    check(store, places.pop("q"), places, expect)


def test_step_without_local_features_of_the_query_finds_no_inliers(store):
    def expect(unit, query):
        assert not unit.failures and [c.inliers for c in query.candidates] == [0]

    check(store, locations(store)["blank"], {"same": locations(store)["same"]}, expect)


def test_step_disabled_reads_nothing(store):
    def expect(unit, query):
        assert not query.verified and not unit.failures
        assert [c.inliers for c in query.candidates] == [None]

    check(
        store,
        FeatureLocation("missing", 0, 9),
        {"same": FeatureLocation("missing", 0, 9)},
        expect,
        enabled=False,
    )


@pytest.mark.parametrize(
    "place, message",
    [
        pytest.param(
            FeatureLocation("missing", 0, 9), r"FileNotFoundError: .*missing\.bin", id="no such shard"
        ),
        pytest.param(FeatureLocation("u", 0, 10**7), r"u\.bin ends at byte", id="shard too short"),
    ],
)
def test_unreadable_shard_is_an_error_that_names_it(store, place, message):
    with pytest.raises((RuntimeError, EOFError), match=message):  # as Beam passes it on
        check(store, locations(store)["q"], {"bad": place}, None)


def test_damaged_candidate_is_a_failure(store):
    place = FeatureLocation("u", 4, 99)

    def expect(unit, query):
        [failure] = unit.failures
        assert (failure.stage, failure.image_id, failure.kind) == ("verify", "bad", "unreadable_features")
        assert failure.uri.endswith("u.bin") and failure.message.startswith("ValueError")
        assert query.verified and [(c.image_id, c.inliers is None) for c in query.candidates] == [
            ("bad", True),
            ("same", False),
        ]

    places = locations(store)
    check(store, places["q"], {"bad": place, "same": places["same"]}, expect)


def test_damaged_query_is_one_failure(store):
    def expect(unit, query):
        [failure] = unit.failures
        assert failure.image_id == "q" and not query.verified
        assert [c.inliers for c in query.candidates] == [None, None]

    places = locations(store)
    check(store, FeatureLocation("u", 4, 99), {name: places[name] for name in ("same", "other")}, expect)
