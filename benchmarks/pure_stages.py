"""What recognize does, by its stages' pure functions in threads and without Beam: the yardstick of Beam's own
overhead.
"""

import argparse
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

from beam_pipeline.config import ExtractionOverrides
from beam_pipeline.manifest import IndexManifest
from beam_pipeline.outputs import read_manifest
from beam_pipeline.recipe import choose_as_indexed
from transforms.aggregation import aggregate
from transforms.arrays.nearest import nearest
from transforms.features import LoadedModel, extract_unit
from transforms.models import catalog
from transforms.patterns import match_images
from transforms.retrieval import QueryBlock, read_index_block, read_query_block
from transforms.storage import run_store
from transforms.storage.feature_store import FeatureStore
from transforms.storage.worklist import make_units, write_worklist
from transforms.submission import write_submission
from transforms.types import (
    FeatureLocation,
    Prediction,
    PredictionUnit,
    QueryCandidates,
    ReadingConfig,
    ScoringSettings,
    VerificationSettings,
)
from transforms.verification import one_thread, verify_pair


def recognize(images: str, index_root: str, output: str, num_to_rerank: int = 3, top_k: int = 3) -> None:
    """Writes the predictions and the submission of a run with the default hyperparameters, on all cores."""
    cores, settings = len(os.sched_getaffinity(0)), VerificationSettings()
    manifest = read_manifest(index_root, IndexManifest)
    recipe = choose_as_indexed(
        None, None, ExtractionOverrides(), ReadingConfig(), manifest.recipe, manifest.global_dimensions
    )
    index, queries = FeatureStore(index_root), FeatureStore(os.path.join(output, "queries"))
    units = make_units(match_images([images]).images, "pure")
    write_worklist(output, units)
    with ThreadPoolExecutor(cores) as pool:
        model = LoadedModel(catalog.load(recipe.model, recipe.settings), pool, cores)
        for unit in units:
            extracted = extract_unit(unit, model, recipe.reader)
            queries.write_unit(unit.name, extracted.features, extracted.failures, extracted.dimensions)
    names = [unit.name for unit in units]
    block = read_query_block(queries, QueryBlock("", tuple(names)))
    neighbors = nearest(
        block, read_index_block(index, [shard.unit for shard in manifest.shards]), num_to_rerank
    )
    places = [
        (image_id, FeatureLocation(name, offset, size))
        for name in names
        for image_id, offset, size in zip(
            *(
                queries.read_images(name, ["image_id", "local_offset", "local_size"]).column(c).to_pylist()
                for c in ("image_id", "local_offset", "local_size")
            )
        )
    ]

    def predict(q: int) -> Prediction:
        image_id, place = places[q]
        local, candidates = queries.read_local(place), []
        for candidate in neighbors.candidates(q):
            other = index.read_local(candidate.location)
            inliers = verify_pair(image_id, local, candidate.image_id, other, settings).inliers
            candidates.append(dataclasses.replace(candidate, inliers=inliers))
        return aggregate(QueryCandidates(image_id, place, tuple(candidates)), ScoringSettings(top_k))

    with one_thread, ThreadPoolExecutor(cores) as pool:
        predictions = tuple(pool.map(predict, range(len(places))))
    run_store.write_predictions(output, PredictionUnit("pure", predictions))
    write_submission(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--images", "--index", "--output"):
        parser.add_argument(flag, required=True)
    args = parser.parse_args()
    recognize(args.images, args.index, args.output)
