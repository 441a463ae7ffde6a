"""Manifests for outputs that no job made."""

import dataclasses

from beam_pipeline.manifest import IndexCounts, IndexManifest, RunCounts, RunManifest
from beam_pipeline.recipe import Recipe
from transforms.models.card import OFFICIAL_DELG
from transforms.types import ReadingConfig, ScoringSettings, VerificationSettings

RECIPE = Recipe("/models/delg", "delg", "f" * 64, OFFICIAL_DELG, ReadingConfig())
_COMMON = dict(recipe=RECIPE, shards=(), seconds={"total": 1.0})


def index_manifest(**fields) -> IndexManifest:
    """A manifest of an index, with these `fields`."""
    counts = IndexCounts(0, 0, 0, 0, 0)
    own = dict(global_dimensions=16, has_local_features=True, counts=counts, failures={})
    return IndexManifest(**{**_COMMON, **own, **fields})


def run_manifest(**fields) -> RunManifest:
    """A manifest of a run, with these `fields`."""
    settings = dataclasses.asdict(VerificationSettings()) | dataclasses.asdict(ScoringSettings())
    own = dict(
        index="/index",
        query_store="/run/queries",
        hyperparameters={"num_to_rerank": 3, **settings},
        reranked=True,
        counts=RunCounts(0, 0, 0, 0, 0),
        files={},
    )
    return RunManifest(**{**_COMMON, **own, **fields})
