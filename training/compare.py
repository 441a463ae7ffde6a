"""Compares models on one part of the split: `python -m training.compare --photographs FOLDER --part report`.

Every model goes through the product's own functions under the same settings: 60 % of every label are the
index, the rest and as many photographs without a landmark are the queries. Features are extracted once, and
cut to --global_dimensions as the option of the commands does it.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from training import opencv_sift, photographs, split
from training.features import Features
from transforms import gap
from transforms.aggregation import aggregate
from transforms.arrays.quantization import quantized
from transforms.models import catalog
from transforms.models.model import leading
from transforms.types import (
    Candidate,
    FeatureLocation,
    LocalFeatures,
    QueryCandidates,
    ScoringSettings,
    VerificationSettings,
)
from transforms.verification import verify_pair

NOWHERE = FeatureLocation("", 0, 0)
# name: num_to_rerank, whether candidates are verified, mutual check
RUNS = {
    "global alone": (3, False, False),
    "defaults": (3, True, False),
    "20 candidates, mutual check": (20, True, True),
}


def saved_model_features(model: str, folder: str, chosen: list[split.Photograph]) -> Iterator[Features]:
    """Features of photographs by a SavedModel that the product knows by that name, folder or URI."""
    settings = catalog.settings(model)
    loaded = catalog.load(model, settings)
    for photograph in chosen:
        (pixels,) = photographs.load(folder, [photograph], settings.max_image_side)
        found = loaded.extract(pixels)
        yield Features(
            photograph.id,
            photograph.label,
            found.global_descriptor,
            quantized(LocalFeatures(found.keypoints, found.descriptors)),
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """What one run gave.

    Attributes:
      gap, gap_landmarks: GAP@1 of all queries, and of landmark queries alone.
      top1: share of the landmark queries whose landmark is predicted.
      true_inliers, false_inliers: medians over candidates of the right label and of another one, for landmark
        queries; None where nothing is verified.
    """

    gap: float
    gap_landmarks: float
    top1: float
    true_inliers: float | None
    false_inliers: float | None


def measure(
    index: list[Features],
    queries: list[Features],
    num_to_rerank: int,
    verify: bool,
    settings: VerificationSettings,
    verified: dict[tuple[str, str, bool], int],
) -> Result:
    """Retrieves, verifies and predicts, as the product does, and compares with the labels.

    Args:
      verified: inliers by the ids of a pair and whether the check was mutual, filled as they become known.
    """
    similarity = np.stack([q.descriptor for q in queries]) @ np.stack([x.descriptor for x in index]).T
    predictions, inliers = [], {True: [], False: []}
    for row, query in zip(similarity, queries):
        candidates = []
        for at in np.argsort(-row, kind="stable")[:num_to_rerank]:
            pair = query.id, index[at].id, settings.mutual_check
            if verify and pair not in verified:
                local = index[at].local
                verified[pair] = verify_pair(query.id, query.local, index[at].id, local, settings).inliers
            found = verified[pair] if verify else None
            candidates.append(Candidate(index[at].id, index[at].label, float(row[at]), NOWHERE, found))
            if verify and query.label:
                inliers[index[at].label == query.label].append(found)
        predictions.append(
            aggregate(QueryCandidates(query.id, NOWHERE, tuple(candidates)), ScoringSettings())
        )

    def score(kept: list[int]) -> float:
        return gap.global_average_precision(
            [queries[i].id for i in kept],
            [predictions[i].landmark_id for i in kept],
            np.array([predictions[i].score for i in kept]),
            right[kept],
            len(landmarks),
        )

    right = np.array(
        [prediction.landmark_id == query.label for prediction, query in zip(predictions, queries)]
    )
    landmarks = [i for i, query in enumerate(queries) if query.label]
    medians = [float(np.median(inliers[kind])) if inliers[kind] else None for kind in (True, False)]
    return Result(
        score(list(range(len(queries)))), score(landmarks), float(right[landmarks].mean()), *medians
    )


def cut(features: Features, dimensions: int) -> Features:
    """Features with the leading axes of the global descriptor alone."""
    [descriptor] = leading(features.descriptor[None], dimensions)
    return dataclasses.replace(features, descriptor=descriptor)


def main() -> None:
    """Prints one table row for each model and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", required=True, help="folder with photos.csv")
    parser.add_argument("--part", choices=split.PARTS, default="report")
    parser.add_argument(
        "--models", nargs="+", default=[catalog.ROOTSIFT_VLAD, catalog.EMBEDDED, opencv_sift.NAME]
    )
    parser.add_argument("--global_dimensions", nargs="+", type=int, help="leading axes kept (default: all)")
    args = parser.parse_args()
    everything = split.read_photographs(args.photographs)
    index, queries = split.index_and_queries(everything, args.part)
    print(
        f"{args.part}: index {len(index)}, queries {len(queries)}, {sum(bool(q.label) for q in queries)} of "
        "them with a landmark"
    )
    print(
        "| model | dimensions | run | GAP | GAP of landmark queries | top-1 | median inliers, true | false "
        "|\n|---|---|---|---|---|---|---|---|"
    )
    for model in args.models:
        extract: Callable
        if model == opencv_sift.NAME:
            extract, max_distance = (
                opencv_sift.Extractor(args.photographs, everything).features,
                opencv_sift.MAX_DISTANCE,
            )
        else:
            extract, max_distance = (saved_model_features, catalog.card(model)["max_distance"])
        extracted = [list(extract(model, args.photographs, part)) for part in (index, queries)]
        verified: dict[tuple[str, str, bool], int] = {}
        for dimensions in args.global_dimensions or [len(extracted[0][0].descriptor)]:
            parts = [[cut(features, dimensions) for features in part] for part in extracted]
            for name, (count, verify, mutual) in RUNS.items():
                settings = VerificationSettings(max_distance=max_distance, mutual_check=mutual)
                result = measure(*parts, count, verify, settings, verified)
                text = [
                    "-" if value is None else f"{value:.3f}" if value <= 1 else f"{value:.0f}"
                    for value in dataclasses.astuple(result)
                ]
                print(f"| {model} | {dimensions} | {name} | {' | '.join(text)} |", flush=True)


if __name__ == "__main__":
    main()
