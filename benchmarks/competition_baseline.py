"""What entrants of Google Landmark Recognition 2020 ran, as a script: the yardstick of the other benchmarks.

The procedure of the competition's baseline notebook, in our own words. Images are decoded for each pass;
global descriptors are float64; each query is searched by a cdist over all of them; local features of the
query and of every candidate are extracted again for each pair; putative matches come from a cKDTree,
homographies from pydegensac. Two things differ, so that answers can be compared: rows of global descriptors
are normalised before they are summed, and photographs are turned upright and shrunk as the product does.
"""

import argparse
import csv
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from scipy.spatial import cKDTree, distance

from transforms.models.card import ExtractionSettings, read_card, settings_from_card
from transforms.processes.tensorflow_runtime import import_tensorflow
from transforms.types import ScoringSettings, VerificationSettings

MIN_MATCHES = 5
Inliers = Callable[[np.ndarray, np.ndarray, VerificationSettings], int]


class Extractor:
    """The two passes of the baseline over one SavedModel.

    Args:
      folder: of the SavedModel, TF1-style or one with the signatures "local" and "global".
      settings: as the product runs it.
    """

    def __init__(self, folder: str, settings: ExtractionSettings):
        self._tf = import_tensorflow()
        self._settings = settings
        self._model = self._tf.saved_model.load(folder)
        self._inputs = {
            "input_scales": self._tf.constant(settings.image_scales, self._tf.float32),
            "input_max_feature_num": self._tf.constant(settings.max_local_features, self._tf.int32),
            "input_abs_thres": self._tf.constant(settings.score_threshold, self._tf.float32),
            "input_global_scales_ind": self._tf.constant(
                [i for i, scale in enumerate(settings.image_scales) if scale in settings.global_scales],
                self._tf.int32,
            ),
        }
        self._local = self._function("local", ["boxes", "features"])
        self._global = self._function("global", ["global_descriptors"])

    def _function(self, name: str, fetches: list[str]) -> Callable[[Any], list[np.ndarray]]:
        if hasattr(self._model, "prune"):
            feeds = ["input_image", *self._inputs]
            pruned = self._model.prune([f"{feed}:0" for feed in feeds], [f"{fetch}:0" for fetch in fetches])
            return lambda image: [t.numpy() for t in pruned(image, *self._inputs.values())]
        signature = self._model.signatures[name]
        known = {
            key: self._inputs[key] for key in signature.structured_input_signature[1] if key != "input_image"
        }

        def call(image: Any) -> list[np.ndarray]:
            outputs = signature(input_image=image, **known)
            return [outputs[fetch].numpy() for fetch in fetches]

        return call

    def load_image(self, path: str) -> Any:
        """A photograph as a tensor, uint8 [H, W, 3]."""
        image = PIL.ImageOps.exif_transpose(PIL.Image.open(path)).convert("RGB")
        scale = min(1.0, self._settings.max_image_side / max(image.size))
        if scale < 1.0:
            image = image.resize(
                [max(1, round(side * scale)) for side in image.size], PIL.Image.Resampling.BICUBIC
            )
        return self._tf.convert_to_tensor(np.array(image))

    def global_descriptor(self, path: str) -> np.ndarray:
        """float64 [D], unit length."""
        [rows] = self._global(self.load_image(path))
        return _unit(_unit(rows.astype(np.float64)).sum(axis=0))

    def local_features(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints [N, 2], (y, x), and descriptors [N, D], rows of unit length."""
        boxes, features = self._local(self.load_image(path))
        return (boxes[:, :2] + boxes[:, 2:]) / 2, _unit(features)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)


def pydegensac_inliers(
    query_points: np.ndarray, index_points: np.ndarray, settings: VerificationSettings
) -> int:
    """Inliers of the baseline's homography."""
    import pydegensac

    try:
        _, mask = pydegensac.findHomography(
            query_points,
            index_points,
            settings.max_reprojection_error,
            settings.homography_confidence,
            settings.max_ransac_iterations,
        )
    except np.linalg.LinAlgError:
        return 0
    return int(np.sum(mask))


def opencv_inliers(query_points: np.ndarray, index_points: np.ndarray, settings: VerificationSettings) -> int:
    """What stands in for pydegensac where that is not installed: OpenCV's plain RANSAC."""
    import cv2

    homography, mask = cv2.findHomography(
        query_points,
        index_points,
        cv2.RANSAC,
        2**0.5 * settings.max_reprojection_error,
        maxIters=settings.max_ransac_iterations,
        confidence=settings.homography_confidence,
    )
    return 0 if homography is None else int(mask.sum())


def inlier_counter() -> tuple[str, Inliers]:
    """The homography at hand, pydegensac's where it is installed, and its name."""
    try:
        import pydegensac  # noqa: F401
    except ImportError:
        return "OpenCV's RANSAC, since pydegensac is not installed", opencv_inliers
    return "pydegensac", pydegensac_inliers


def pair_inliers(
    query: tuple[np.ndarray, np.ndarray],
    candidate: tuple[np.ndarray, np.ndarray],
    settings: VerificationSettings,
    count: Inliers,
) -> int:
    """Inliers of a pair of images, each (keypoints, descriptors)."""
    if not len(query[0]) or not len(candidate[0]):
        return 0
    _, nearest = cKDTree(candidate[1]).query(query[1], distance_upper_bound=settings.max_distance)
    matched = nearest < len(candidate[0])
    if matched.sum() < MIN_MATCHES:
        return 0
    return count(query[0][matched], candidate[0][nearest[matched]], settings)


def recognize(
    extractor: Extractor,
    index: list[tuple[str, str]],
    queries: list[str],
    num_to_rerank: int,
    settings: VerificationSettings,
    scoring: ScoringSettings,
) -> tuple[list[tuple[str, float, float]], dict[str, float]]:
    """The whole procedure.

    Args:
      index: (path, landmark) of the labelled photographs.
      queries: paths.

    Returns:
      For each query the landmark, its confidence, and by how much that is above the next landmark's; and the
      seconds of the parts.
    """
    seconds: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        seconds[part] += time.perf_counter() - started
        return result

    _, count = inlier_counter()
    embeddings = np.stack([timed("global", extractor.global_descriptor, path) for path, _ in index])
    answers = []
    for query in queries:
        embedding = timed("global", extractor.global_descriptor, query)
        distances = timed("retrieval", distance.cdist, embeddings, embedding[None], "cosine")[:, 0]
        nearest = np.argpartition(distances, num_to_rerank - 1)[:num_to_rerank]
        local = timed("local", extractor.local_features, query)
        scored = []
        for i in nearest:
            candidate = timed("local", extractor.local_features, index[i][0])
            inliers = timed("pairs", pair_inliers, local, candidate, settings, count)
            scored.append(
                (
                    min(inliers, scoring.max_inlier_score) / scoring.max_inlier_score + 1 - distances[i],
                    index[i][1],
                )
            )
        sums: dict[str, float] = defaultdict(float)
        for score, landmark in sorted(scored, reverse=True)[: scoring.top_k]:
            sums[landmark] += score
        best, *others = sorted(sums.items(), key=lambda item: -item[1])
        answers.append((best[0], best[1], best[1] - (others[0][1] if others else 0.0)))
    return answers, dict(seconds)


def command(argv: list[str] | None = None) -> None:
    """`python -m benchmarks.competition_baseline`: predictions as JSON, {"answers": [landmark, confidence,
    margin], "seconds": {part: seconds}}.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the SavedModel")
    parser.add_argument("--index", required=True, help="CSV path,landmark without a header")
    parser.add_argument("--queries", required=True, help="text file, a path per line")
    parser.add_argument("--output", required=True, help="JSON to write")
    parser.add_argument("--num_to_rerank", type=int, default=3)
    parser.add_argument("--top_k", type=int, default=3)
    args = parser.parse_args(argv)
    with open(args.index, newline="") as f:
        index = [(path, landmark) for path, landmark in csv.reader(f)]
    with open(args.queries) as f:
        queries = f.read().splitlines()
    extractor = Extractor(args.model, settings_from_card(read_card(args.model)))
    answers, seconds = recognize(
        extractor, index, queries, args.num_to_rerank, VerificationSettings(), ScoringSettings(args.top_k)
    )
    with open(args.output, "w") as f:
        json.dump({"answers": answers, "seconds": seconds}, f)


if __name__ == "__main__":
    command()
