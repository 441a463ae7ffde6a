"""Finished runs that no job made: photographs, stores and predictions as a job would leave them."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from beam_pipeline import outputs
from tests.manifests import index_manifest, run_manifest
from tests.pictures import encoded
from transforms.storage import files, run_store
from transforms.storage.feature_store import FeatureStore
from transforms.types import (
    Candidate,
    FeatureLocation,
    ImageFeatures,
    ImageRef,
    LocalFeatures,
    Prediction,
    PredictionUnit,
)

SIZE = (240, 320)
_NOWHERE = FeatureLocation("", 0, 0)


def _features(folder: str, image_id: str, landmark_id: str | None) -> ImageFeatures:
    """A photograph of noise, written below `folder`, with local features that are the same in all."""
    rng = np.random.default_rng(0)
    uri = files.join(folder, f"{image_id.replace('/', '-')[:60]}.png")
    files.write_bytes(uri, encoded(rng.integers(0, 256, size=(*SIZE, 3), dtype=np.uint8)))
    local = LocalFeatures(
        rng.uniform(0, 200, size=(40, 2)).astype(np.float32), rng.standard_normal((40, 32)).astype(np.float32)
    )
    ref = ImageRef(image_id, uri, 1, landmark_id)
    return ImageFeatures(ref, SIZE[1], SIZE[0], 1.0, np.float32([1, 0]), local)


def make_index(folder: pathlib.Path | str, photographs: Mapping[str, str]) -> str:
    """An index of photographs, landmarks by image_id, in two shards; returns its folder."""
    store = FeatureStore(str(folder))
    place = files.join(store.root, "photographs")
    made = [_features(place, i, landmark) for i, landmark in photographs.items()]
    for unit, part in (("u0", made[::2]), ("u1", made[1::2])):
        store.write_unit(unit, part, [], 2)
    outputs.finish(store.root, index_manifest(shards=tuple(store.summaries(["u0", "u1"]))))
    return store.root


def candidate(image_id: str, landmark_id: str, score: float, inliers: int | None = 40) -> Candidate:
    """A candidate with a similarity below its score."""
    return Candidate(image_id, landmark_id, score / 2, _NOWHERE, inliers, score)


def make_run(
    folder: pathlib.Path | str,
    index: str,
    predictions: Sequence[Prediction],
    without_features: Sequence[str] = (),
) -> str:
    """A run with these predictions, in shards of ten, and the features of its queries; returns its folder."""
    run = str(folder)
    store, place = FeatureStore(files.join(run, "queries")), files.join(run, "photographs")
    with_features = [p for p in predictions if p.image_id not in without_features]
    made = [_features(place, p.image_id, None) for p in with_features]
    store.write_unit("v0", made, [], 2)
    for at in range(0, len(predictions), 10):
        unit = PredictionUnit(f"{at:06d}", tuple(predictions[at : at + 10]))
        run_store.write_predictions(run, unit)
    manifest = run_manifest(
        index=index,
        query_store=store.root,
        shards=tuple(store.summaries(["v0"])),
        hyperparameters={"num_to_rerank": 3, "top_k": 3},
    )
    outputs.finish(run, manifest)
    return run


def write_truth(path: pathlib.Path, landmarks: Mapping[str, str]) -> str:
    """A truth table; "" for a query without a landmark."""
    rows = "".join(f'"{i.replace(chr(34), chr(34) * 2)}","{v}",Public\n' for i, v in landmarks.items())
    files.write_bytes(str(path), f"id,landmarks,Usage\n{rows}".encode())
    return str(path)
