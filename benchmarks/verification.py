"""Verification of pairs of real photographs: this product, and what a user would take instead.

500 pairs with the same label and 500 with different ones, local features by the embedded model, the default
settings. Each way matches the local features of a pair and counts the inliers of a homography: the product by
one matrix product of integers and USAC, "degensac" by cKDTree and pydegensac, "ransac" by cKDTree and
scikit-image's ransac with 1,000 trials. All count the same thing: ransac's homography goes from the candidate
to the query, with the product's tolerance there, and pydegensac's Sampson error is what that tolerance stands
for, see `transforms.verification.count_inliers`. CPU time of all threads counts.

How long scikit-image takes depends on how many matches there are, so a part of the pairs is done again with a
larger max_distance for all: its own share in the time is shown for both, beside that of cKDTree.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy loads its BLAS
    os.environ.setdefault(_name, "1")

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from benchmarks import commands
from benchmarks.goals import Goals
from transforms.arrays.quantization import dequantized
from transforms.storage.feature_store import decode_local_features, encode_local_features
from transforms.types import LocalFeatures, QuantizedFeatures
from transforms.verification import MIN_MATCHES, VerificationSettings, pair_seed, verify_pair

FAR = 1.1  # max_distance of the second table, at which most pairs have matches enough for RANSAC
TRIALS = 1000  # of scikit-image's ransac, all of them, as in DELF's own example


class View(NamedTuple):
    """The local features of one photograph, as the product takes them and as the others do."""

    stored: QuantizedFeatures
    local: LocalFeatures


Counter = Callable[[str, View, str, View, VerificationSettings], int]


class Result(NamedTuple):
    """Inliers of the true and of the false pairs of one way, int64 each, and its milliseconds per pair."""

    true: np.ndarray
    false: np.ndarray
    milliseconds: float

    @property
    def auc(self) -> float:
        """Chance that a true pair has more inliers than a false one, ties counting half."""
        above = self.true[:, None] > self.false
        return float(above.mean() + 0.5 * (self.true[:, None] == self.false).mean())

    @property
    def median(self) -> float:
        return float(np.median(self.true))


def choose_pairs(
    photos: pathlib.Path, count: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], dict[str, str]]:
    """`count` pairs of ids with one label, `count` with two, drawn by a fixed seed, and the path of each
    photograph.
    """
    rows = [
        row
        for row in sorted(commands.photographs(photos))
        if row.label and row.kind not in ("distractor", "unlabelled")
    ]
    label = {row.id: row.label for row in rows}
    members: dict[str, list[str]] = {}
    for image, name in label.items():
        members.setdefault(name, []).append(image)
    labels = sorted(name for name, images in members.items() if len(images) > 1)
    rng, images = np.random.default_rng(1), list(label)
    true: dict[tuple[str, str], None] = {}
    false: dict[tuple[str, str], None] = {}
    while len(true) < count:
        true[tuple(map(str, rng.choice(members[labels[rng.integers(len(labels))]], 2, replace=False)))] = None
    while len(false) < count:
        pair = tuple(map(str, rng.choice(images, 2, replace=False)))
        if label[pair[0]] != label[pair[1]]:
            false[pair] = None
    return list(true), list(false), {row.id: row.path for row in rows}


def extract(photos: pathlib.Path, paths: dict[str, str], images: set[str]) -> dict[str, View]:
    """Local features of `images` by the embedded model, as they come back from a feature store."""
    from PIL import Image

    from transforms.models import catalog

    settings = catalog.settings(catalog.EMBEDDED)
    model = catalog.load(catalog.EMBEDDED, settings)
    features = {}
    for image in sorted(images):
        with Image.open(photos / paths[image]) as opened:
            opened.draft("RGB", (settings.max_image_side, settings.max_image_side))
            photograph = opened.convert("RGB")
        photograph.thumbnail((settings.max_image_side, settings.max_image_side))
        extracted = model.extract(np.asarray(photograph))
        stored = decode_local_features(
            encode_local_features(LocalFeatures(extracted.keypoints, extracted.descriptors))
        )
        features[image] = View(stored, dequantized(stored))
    return features


def product(a: str, query: View, b: str, candidate: View, settings: VerificationSettings) -> int:
    return verify_pair(a, query.stored, b, candidate.stored, settings).inliers


def tree_matches(
    query: LocalFeatures, candidate: LocalFeatures, settings: VerificationSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Matched points of query and candidate, float32 [M, 2] each in (x, y), as the competition's notebook
    finds them.
    """
    distances, nearest = cKDTree(candidate.descriptors).query(
        query.descriptors, distance_upper_bound=settings.max_distance
    )
    found = np.isfinite(distances)
    if settings.mutual_check:
        found[found] = cKDTree(query.descriptors).query(candidate.descriptors[nearest[found]])[
            1
        ] == np.flatnonzero(found)
    return query.keypoints[found][:, ::-1], candidate.keypoints[nearest[found]][:, ::-1]


def tree(a: str, query: View, b: str, candidate: View, settings: VerificationSettings) -> int:
    """Matches alone, to tell what a way spends on them."""
    return len(tree_matches(query.local, candidate.local, settings)[0])


def degensac(a: str, query: View, b: str, candidate: View, settings: VerificationSettings) -> int:
    import pydegensac

    source, target = tree_matches(query.local, candidate.local, settings)
    if len(source) < MIN_MATCHES:
        return 0
    _, mask = pydegensac.findHomography(
        source,
        target,
        settings.max_reprojection_error,
        settings.homography_confidence,
        settings.max_ransac_iterations,
        seed=pair_seed(a, b),
    )
    return int(np.sum(mask))


def ransac(a: str, query: View, b: str, candidate: View, settings: VerificationSettings) -> int:
    from skimage import measure, transform

    source, target = tree_matches(query.local, candidate.local, settings)
    if len(source) < MIN_MATCHES:
        return 0
    _, mask = measure.ransac(
        (target, source),
        transform.ProjectiveTransform,
        min_samples=4,
        residual_threshold=2**0.5 * settings.max_reprojection_error,
        max_trials=TRIALS,
        rng=pair_seed(a, b),
    )
    return 0 if mask is None else int(mask.sum())


def measure_way(
    count: Counter, true: list, false: list, features: dict[str, View], settings: VerificationSettings
) -> Result:
    """Counts the inliers of all pairs by one way, in CPU time of this process, which other work on the
    machine changes little.
    """
    count(
        true[0][0], features[true[0][0]], true[0][1], features[true[0][1]], settings
    )  # imports and first-time set-up
    started = time.process_time()
    inliers = [count(a, features[a], b, features[b], settings) for a, b in true + false]
    milliseconds = 1000 * (time.process_time() - started) / len(inliers)
    return Result(np.array(inliers[: len(true)]), np.array(inliers[len(true) :]), milliseconds)


def show(results: dict[str, Result], settings: VerificationSettings) -> None:
    """Prints a table; of cKDTree's row the medians are of matches, not of inliers."""
    ours = results["product"]
    print(f"{len(ours.true) + len(ours.false)} pairs, max_distance {settings.max_distance}")
    print(f"{'':10}{'ms/pair':>10}{'/ product':>11}{'median true':>13}{'median false':>14}{'AUC':>8}")
    for name, r in results.items():
        ratio = r.milliseconds / ours.milliseconds
        print(
            f"{name:10}{r.milliseconds:10.2f}{ratio:11.1f}{r.median:13.1f}{np.median(r.false):14.1f}{r.auc:8.3f}"
        )
    ransac_alone = 1 - results["cKDTree"].milliseconds / results["ransac"].milliseconds
    print(f"scikit-image's own share in the time of ransac: {ransac_alone:.0%}\n")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="verification", description=__doc__)
    commands.add_photos_flag(parser)
    parser.add_argument("--pairs", type=int, default=500, help="pairs of each kind")
    parser.add_argument(
        "--mutual_check", action="store_true", help="match with a mutual check, which is no default"
    )
    args = parser.parse_args(argv)
    import cv2

    cv2.setNumThreads(1)
    settings = VerificationSettings(mutual_check=args.mutual_check)
    true, false, paths = choose_pairs(pathlib.Path(args.photos), args.pairs)
    features = extract(pathlib.Path(args.photos), paths, {image for pair in true + false for image in pair})
    ways = {"product": product, "degensac": degensac, "ransac": ransac, "cKDTree": tree}
    results = {name: measure_way(count, true, false, features, settings) for name, count in ways.items()}
    show(results, settings)
    far = dataclasses.replace(settings, max_distance=FAR)
    part = slice(max(1, args.pairs // 10))
    show(
        {name: measure_way(count, true[part], false[part], features, far) for name, count in ways.items()},
        far,
    )
    goals, ours = Goals(), results["product"]
    for name, goal in (("degensac", {"AMX": 50, "VNNI": 50, "AVX2": 30}), ("ransac", 100)):
        other = results[name]
        goals.at_least(f"verification vs {name}, speed", other.milliseconds / ours.milliseconds, goal)
        goals.at_least(f"verification vs {name}, median inliers of true pairs", ours.median, other.median)
        goals.at_least(f"verification vs {name}, AUC of true against false pairs", ours.auc, other.auc)
    return goals.exit_code
