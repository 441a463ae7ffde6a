"""The steps of landmark recognition, one module per step, in the order of the data.

What a program needs of them is here, under one name: `from transforms import ExtractFeatures`. Nothing is
imported before it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transforms.aggregation import AggregatePredictions as AggregatePredictions
    from transforms.aggregation import PredictionRows as PredictionRows
    from transforms.database_augmentation import AugmentCandidates as AugmentCandidates
    from transforms.database_augmentation import AugmentIndex as AugmentIndex
    from transforms.extraction import ExtractFeatures as ExtractFeatures
    from transforms.extraction import image_units as image_units
    from transforms.gap import EvaluatePredictions as EvaluatePredictions
    from transforms.images import read_images as read_images
    from transforms.models.card import ExtractionSettings as ExtractionSettings
    from transforms.patterns import match_images as match_images
    from transforms.retrieval import GroupIntoBlocks as GroupIntoBlocks
    from transforms.retrieval import RetrieveNearest as RetrieveNearest
    from transforms.retrieval import plan_blocks as plan_blocks
    from transforms.storage.feature_store import FeatureStore as FeatureStore
    from transforms.types import Candidate as Candidate
    from transforms.types import CandidateUnit as CandidateUnit
    from transforms.types import Failure as Failure
    from transforms.types import ImageRef as ImageRef
    from transforms.types import ImageUnit as ImageUnit
    from transforms.types import Prediction as Prediction
    from transforms.types import PredictionUnit as PredictionUnit
    from transforms.types import QueryCandidates as QueryCandidates
    from transforms.types import ReadingConfig as ReadingConfig
    from transforms.types import ScoringSettings as ScoringSettings
    from transforms.types import VerificationSettings as VerificationSettings
    from transforms.verification import VerifyCandidates as VerifyCandidates

_MODULES = {
    "AggregatePredictions": "aggregation",
    "AugmentCandidates": "database_augmentation",
    "AugmentIndex": "database_augmentation",
    "Candidate": "types",
    "CandidateUnit": "types",
    "EvaluatePredictions": "gap",
    "ExtractFeatures": "extraction",
    "ExtractionSettings": "models.card",
    "Failure": "types",
    "FeatureStore": "storage.feature_store",
    "GroupIntoBlocks": "retrieval",
    "ImageRef": "types",
    "ImageUnit": "types",
    "Prediction": "types",
    "PredictionRows": "aggregation",
    "PredictionUnit": "types",
    "QueryCandidates": "types",
    "ReadingConfig": "types",
    "RetrieveNearest": "retrieval",
    "ScoringSettings": "types",
    "VerificationSettings": "types",
    "VerifyCandidates": "verification",
    "image_units": "extraction",
    "match_images": "patterns",
    "plan_blocks": "retrieval",
    "read_images": "images",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
