"""The product's steps against the oracle of the whole algorithm, on warped views of scikit-image's
photographs.

Features are OpenCV's SIFT as RootSIFT, and a VLAD of them as the global descriptor: a stand-in for a model,
quick and independent of it.
"""

import pathlib

import cv2
import numpy as np
import pytest
import skimage
from skimage.transform import ProjectiveTransform, resize, warp

from tests import oracle
from transforms.aggregation import aggregate
from transforms.arrays.matching import putative_matches
from transforms.arrays.nearest import DescriptorBlock, IndexBlock, nearest
from transforms.arrays.quantization import dequantized, quantized
from transforms.types import (
    Candidate,
    FeatureLocation,
    LocalFeatures,
    QuantizedFeatures,
    QueryCandidates,
    ScoringSettings,
)
from transforms.verification import VerificationSettings, verify_pair

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "ihc.png", "rocket.jpg")
VIEWS = 4  # of each photograph: three in the index, one is a query
FEATURES, SIDE = 250, 300
NOWHERE = FeatureLocation("", 0, 0)

# Both count matches that agree with a homography from the candidate to the query, but RANSAC finds another
# one each time, and USAC polishes its own. Where most matches are right both see those; the wrong ones near
# enough to one of the two homographies by chance make the difference: at most a tenth of the count, or 3.
CLEAR = 30
TOLERANCE, LEAST = 0.1, 3


def views() -> list[tuple[str, str, np.ndarray]]:
    """(image id, landmark, grey uint8 image) of random homographies of each photograph."""
    rng = np.random.default_rng(0)
    found = []
    for landmark, name in enumerate(PHOTOGRAPHS):
        photograph = cv2.imread(
            str(pathlib.Path(skimage.__file__).parent / "data" / name), cv2.IMREAD_GRAYSCALE
        )
        photograph = resize(photograph, (SIDE, SIDE), anti_aliasing=True)
        corners = np.array([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]], np.float64)
        for view in range(VIEWS):
            moved = ProjectiveTransform.from_estimate(corners, corners + rng.uniform(-40, 40, (4, 2)))
            image = np.clip(warp(photograph, moved, mode="edge") + rng.normal(0, 0.01, (SIDE, SIDE)), 0, 1)
            found.append((f"{landmark}-{view}", str(landmark), np.rint(255 * image).astype(np.uint8)))
    return found


def extract(image: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Global descriptor [2048], keypoints [N, 2] (y, x), descriptors [N, 128]; float32, unit lengths."""
    keypoints, sift = cv2.SIFT_create(FEATURES).detectAndCompute(image, None)
    descriptors = np.sqrt(sift[:FEATURES] / sift[:FEATURES].sum(axis=1, keepdims=True))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    vlad = np.zeros_like(centroids)
    np.add.at(vlad, (descriptors @ centroids.T).argmax(axis=1), descriptors)
    vlad = np.sqrt(vlad).ravel()
    points = np.array([k.pt[::-1] for k in keypoints[:FEATURES]], np.float32)
    local = dequantized(quantized(LocalFeatures(points, descriptors.astype(np.float32))))
    return (vlad / np.linalg.norm(vlad)).astype(np.float32), local.keypoints, local.descriptors


@pytest.fixture(scope="module")
def data() -> tuple[list[oracle.OracleImage], list[oracle.OracleImage]]:
    """Index and queries."""
    centroids = np.abs(np.random.default_rng(1).normal(size=(16, 128))).astype(np.float32)
    images = [
        oracle.OracleImage(name, landmark, *extract(image, centroids)) for name, landmark, image in views()
    ]
    queries = [image for image in images if image.image_id.endswith(f"-{VIEWS - 1}")]
    return [image for image in images if not image.image_id.endswith(f"-{VIEWS - 1}")], queries


def local(image: oracle.OracleImage) -> QuantizedFeatures:
    return quantized(LocalFeatures(image.keypoints, image.descriptors))


def product_nearest(
    index: list[oracle.OracleImage], queries: list[oracle.OracleImage], k: int
) -> dict[str, list[tuple[str, float]]]:
    """Query id -> (index id, similarity), best first."""

    def ids(images):
        return np.array([image.image_id.encode() for image in images])

    def descriptors(images):
        return np.array([image.global_descriptor for image in images], np.float32)

    block = IndexBlock(
        ids(index),
        descriptors(index),
        landmark_ids=np.array([image.landmark_id.encode() for image in index]),
        units=np.full(len(index), b"u"),
        local_offset=np.zeros(len(index), np.int64),
        local_size=np.zeros(len(index), np.int32),
    )
    found = nearest(DescriptorBlock(ids(queries), descriptors(queries)), block, k)
    return {
        query.image_id: [(i.decode(), float(s)) for i, s in zip(found.image_id[q], found.similarity[q]) if i]
        for q, query in enumerate(queries)
    }


def product_recognize(index, queries, settings, num_to_rerank, top_k) -> dict[str, tuple]:
    """The product's pure functions in the order of the pipeline; the form of oracle.recognize."""
    by_id = {image.image_id: image for image in index}
    results = {}
    found = product_nearest(index, queries, num_to_rerank)
    for query in queries:
        candidates = []
        for name, similarity in found[query.image_id]:
            verified = verify_pair(query.image_id, local(query), name, local(by_id[name]), settings)
            candidates.append(Candidate(name, by_id[name].landmark_id, similarity, NOWHERE, verified.inliers))
        prediction = aggregate(
            QueryCandidates(query.image_id, NOWHERE, tuple(candidates)), ScoringSettings(top_k)
        )
        results[query.image_id] = (prediction.candidates, prediction.landmark_id, prediction.score)
    return results


def test_same_nearest_images(data):
    index, queries = data
    ours = product_nearest(index, queries + index[:3], 5)
    for query in queries + index[:3]:  # images of the index, too: each finds itself
        expected = [
            (image.image_id, pytest.approx(similarity, abs=1e-6))
            for image, similarity in oracle.nearest_images(query, index, 5)
        ]
        assert ours[query.image_id] == expected


@pytest.mark.parametrize("mutual_check, ratio_test", [(False, None), (True, None), (False, 0.8), (True, 0.8)])
def test_same_putative_matches(data, mutual_check, ratio_test):
    index, queries = data
    settings = VerificationSettings(mutual_check=mutual_check, ratio_test=ratio_test)
    parameters = oracle.OracleParameters(mutual_check=mutual_check, ratio_test=ratio_test)
    for query in queries:
        for candidate in index[::4]:
            ours = putative_matches(local(query), local(candidate), settings).tolist()
            assert [tuple(match) for match in ours] == oracle.putative_matches(query, candidate, parameters)


def test_inliers_agree_where_the_homography_is_clear(data):
    index, queries = data
    settings, parameters = VerificationSettings(mutual_check=True), oracle.OracleParameters(mutual_check=True)
    clear = 0
    for query in queries:
        for candidate in index:
            if candidate.landmark_id != query.landmark_id:
                continue
            expected = oracle.count_inliers(
                query, candidate, oracle.putative_matches(query, candidate, parameters), parameters
            )
            if expected >= CLEAR:
                clear += 1
                ours = verify_pair(
                    query.image_id, local(query), candidate.image_id, local(candidate), settings
                ).inliers
                assert abs(ours - expected) <= max(TOLERANCE * expected, LEAST), (
                    query.image_id,
                    candidate.image_id,
                    ours,
                    expected,
                )
    assert clear >= 10


@pytest.mark.parametrize(
    "mutual_check, num_to_rerank, top_k",
    [
        pytest.param(False, 3, 3, id="defaults"),
        pytest.param(True, 4, 3, id="mutual check, more candidates"),
        pytest.param(True, 40, 2, id="more candidates than images"),
    ],
)
def test_same_predictions(data, mutual_check, num_to_rerank, top_k):
    index, queries = data
    queries = queries[:1] if num_to_rerank > len(index) else queries
    settings = VerificationSettings(mutual_check=mutual_check)
    ours = product_recognize(index, queries, settings, num_to_rerank, top_k)
    expected = oracle.recognize(
        index,
        queries,
        oracle.OracleParameters(num_to_rerank=num_to_rerank, top_k=top_k, mutual_check=mutual_check),
    )
    for query in queries:
        candidates, landmark, score = expected[query.image_id]
        our_candidates, our_landmark, our_score = ours[query.image_id]
        assert our_landmark == landmark == query.landmark_id
        assert {c.image_id for c in our_candidates} == {c.image_id for c in candidates}
        assert our_score == pytest.approx(score, abs=0.1 * top_k)
