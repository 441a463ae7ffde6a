"""What an index learns of queries whose truth it knows: which scores rank best, and how probable a prediction
is.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from transforms.arrays.calibration import (
    Calibration,
    calibration_error,
    evidence,
    fit,
    probabilities,
    reliability,
    weighted_gap,
    weights_for,
    with_prior,
)
from transforms.arrays.scoring import CandidateTable, vote
from transforms.types import ScoringSettings

# Fewer queries of a kind teach nothing.
MIN_QUERIES = 20
FOLDS = 5
THRESHOLDS = (0.5, 0.8, 0.9, 0.95)

# What is tried. Of those that are less than one query worse than the best the first is taken: what is learned
# by few is to be what is good in general.
WEIGHTS = ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 2.0), (0.0, 4.0))
TRIED = tuple(
    ScoringSettings(top_k, limit, plain, augmented)
    for top_k, limit, (plain, augmented) in itertools.product((1, 3), (60, 30), WEIGHTS)
)


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries whose truth is known, and what was found for them.

    Attributes:
      table: their candidates.
      landmark: int64 [Q], the true landmark's number in the table; -1 where there is none in the index.
      fold: int64 [Q], in [0, FOLDS), equal for queries of one landmark.
      kind: int64 [Q]: 0 for a known landmark, 1 where it was left out of the index, 2 for other places.
    """

    table: CandidateTable
    landmark: np.ndarray
    fold: np.ndarray
    kind: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """bool [Q], whether the landmark is one of the index."""
        return self.landmark >= 0


def tune(queries: Queries, share: float) -> dict[str, Any]:
    """Chooses scores and fits probabilities.

    Args:
      queries: whose truth is known.
      share: of queries without a landmark that is expected.

    Returns:
      what a calibration's file says of it, `settings` those of scores alone; where there are too few queries
      the first of TRIED is taken, and `coefficients` is None.
    """
    known, kind = queries.known, queries.kind
    counts = {
        "known": int(known.sum()),
        "left_out": int((kind == 1).sum()),
        "negatives": int((kind == 2).sum()),
    }
    enough = counts["known"] >= MIN_QUERIES and (~known).sum() >= MIN_QUERIES
    scoring, tried = TRIED[0], []
    weights = weights_for(known, share)
    if enough:
        votes = [vote(queries.table, one) for one in TRIED]
        gaps = [_gap(queries, v.landmark, v.score, weights) for v in votes]
        lost = [round((max(gaps) - gap) * counts["known"], 6) for gap in gaps]  # queries
        scoring = next(one for one, queries_lost in zip(TRIED, lost) if queries_lost < 1)
        tried = [{**dataclasses.asdict(one), "gap": round(gap, 4)} for one, gap in zip(TRIED, gaps)]
    found: dict[str, Any] = {
        "settings": dataclasses.asdict(scoring),
        "coefficients": None,
        "non_landmark_share": share,
        "queries": counts,
        "tried": tried,
    }
    if enough:
        chosen = vote(queries.table, scoring)
        seen, correct = evidence(queries.table, chosen), known & (chosen.landmark == queries.landmark)
        learn = functools.partial(_learn, seen, correct, queries, share)
        found["coefficients"] = {
            name: float(f"{value:.6g}") for name, value in dataclasses.asdict(learn(None)).items()
        }
        held_out = np.empty(len(known))
        for fold in range(FOLDS):
            members = queries.fold == fold
            held_out[members] = probabilities(seen[members], learn(fold))
        found["cross_validated"] = _measures(queries, chosen.landmark, correct, held_out, weights)
    return found


def _learn(
    seen: np.ndarray, correct: np.ndarray, queries: Queries, share: float, without: int | None
) -> Calibration:
    """The calibration learned from all queries but those of one fold; those without a landmark have half of
    the weight, and of that half left out landmarks and other places each, where there are both.
    """
    chosen = np.ones(len(seen), bool) if without is None else queries.fold != without
    weights = np.zeros(len(seen))
    kinds = [chosen & (queries.kind == kind) for kind in range(3)]
    others = [members for members in kinds[1:] if members.any()]
    for members, part in [(kinds[0], 1.0), *((members, 1.0 / len(others)) for members in others)]:
        weights[members] = part / max(1, members.sum())
    return with_prior(fit(seen[chosen], correct[chosen], weights[chosen]), share)


def _gap(queries: Queries, landmark: np.ndarray, score: np.ndarray, weights: np.ndarray) -> float:
    given = np.flatnonzero(landmark >= 0)
    order = given[np.argsort(-score[given], kind="stable")]
    correct = queries.known & (landmark == queries.landmark)
    return weighted_gap(correct[order], weights[order], int(queries.known.sum())) or 0.0


def _measures(
    queries: Queries, landmark: np.ndarray, correct: np.ndarray, probability: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    error = calibration_error(reliability(probability, correct, weights))
    precision, recall = {}, {}
    for threshold in THRESHOLDS:
        above = probability >= threshold
        right, all_ = float(weights[above & correct].sum()), float(weights[above].sum())
        precision[str(threshold)] = round(right / all_, 4) if all_ else None
        recall[str(threshold)] = round(right / float(queries.known.sum()), 4)
    return {
        "gap": round(_gap(queries, landmark, probability, weights), 4),
        "calibration_error": None if error is None else round(error, 4),
        "precision": precision,
        "recall": recall,
    }
