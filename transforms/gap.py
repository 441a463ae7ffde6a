"""GAP@1, the metric of landmark recognition, after the official rules of google_landmarks_dataset/metrics.py.

GAP = (1/M) * sum over predictions in order of P(i) * rel(i): P(i) is the precision among the first i
predictions, rel(i) is 1 for a correct one, M is the number of queries whose truth is not empty, predicted or
not. A prediction on a query without a landmark is wrong; an empty prediction is skipped.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.arrays.calibration import calibration_error, reliability, weighted_gap, weights_for
from transforms.storage import spelling, tables
from transforms.types import landmark_order

Metrics = dict[str, dict[str, Any]]

THRESHOLDS = (0.5, 0.8, 0.9, 0.95)

SPLITS = {"all": ("Public", "Private"), "Public": ("Public",), "Private": ("Private",)}


def prediction_order(image_ids: Sequence[str], landmark_ids: Sequence[str], scores: np.ndarray) -> np.ndarray:
    """The official order: score descending, then image id ascending, then class ascending.

    Ids compare by code point. Classes compare as numbers when all of them are decimal integers, else by code
    point.

    Args:
      image_ids, landmark_ids: N strings each.
      scores: float64 [N], finite.

    Returns:
      int64 [N], positions, the first prediction first.
    """
    by_id = pc.rank(_text(image_ids), tiebreaker="min").to_numpy()
    classes = _text(landmark_ids).dictionary_encode()
    names = classes.dictionary.to_pylist()
    order = landmark_order(names)
    ordered = sorted(range(len(names)), key=lambda i: order(names[i]))
    by_class = np.empty(len(names), np.int64)
    by_class[ordered] = np.arange(len(names))
    return np.lexsort((by_class[classes.indices.to_numpy()], by_id, -np.asarray(scores, np.float64)))


def average_precision(correct: np.ndarray, num_landmark_queries: int) -> float | None:
    """GAP of predictions that are in order.

    Args:
      correct: bool [N], rel(i), the first prediction first.
      num_landmark_queries: M.

    Returns:
      GAP in [0, 1], the exactly rounded sum over M; None where M is 0.
    """
    if not num_landmark_queries:
        return None
    hits = np.flatnonzero(correct)
    precision = np.arange(1, len(hits) + 1) / (hits + 1)
    return math.fsum(precision) / num_landmark_queries


def global_average_precision(
    image_ids: Sequence[str],
    landmark_ids: Sequence[str],
    scores: np.ndarray,
    correct: np.ndarray,
    num_landmark_queries: int,
) -> float | None:
    """GAP of predictions in any order.

    Args:
      image_ids, landmark_ids: N strings each, the queries and the classes predicted for them.
      scores: float64 [N], finite.
      correct: bool [N], whether the class is one of the query's true classes.
      num_landmark_queries: M, the number of queries whose truth is not empty.

    Returns:
      GAP in [0, 1]; None where M is 0.
    """
    return average_precision(
        np.asarray(correct, bool)[prediction_order(image_ids, landmark_ids, scores)], num_landmark_queries
    )


def truth_rows(predictions: pa.Table, truth: pa.Table) -> np.ndarray:
    """Where each prediction's query stands in the truth.

    As in the official metric, an image may be predicted once, and only an empty prediction may name an image
    that the truth does not list: to leave others out unsaid would flatter the result.

    Args:
      predictions: a table of `tables.ANSWER_SCHEMA`, N rows.
      truth: a table of `tables.TRUTH_SCHEMA`.

    Returns:
      int64 [N], rows of `truth`; -1 for an image that is not in it.

    Raises:
      ValueError: an image is predicted twice, or predicted and not in the truth.
    """
    image_ids = predictions["image_id"]
    pair = tables.first_duplicate(image_ids)
    if pair is not None:
        raise ValueError(f"image {image_ids[pair[0]]} is predicted twice")
    known = spelling.index_in(_text(image_ids), truth["image_id"].combine_chunks())
    rows = _numpy(pc.fill_null(known, -1)).astype(np.int64)
    unknown = np.flatnonzero((rows < 0) & _numpy(pc.is_valid(predictions["landmark_id"])))
    if len(unknown):
        near = spelling.near(_text(image_ids).take(pa.array(unknown)), truth["image_id"].combine_chunks())
        if near:
            raise ValueError(
                f"{len(unknown)} of {len(rows)} predictions are for images that the truth does not list; "
                f"{near[0]!r} is {near[1]!r} in the truth"
            )
        if (rows < 0).all() and len(truth):
            raise ValueError(
                f"none of the {len(rows)} predictions is for an image of the truth: they are for "
                f"{image_ids[int(unknown[0])].as_py()!r}, its rows name {truth['image_id'][0].as_py()!r}"
            )
        raise ValueError(
            f"{len(unknown)} of {len(rows)} predictions are for images that the truth does not list, such as "
            f"{image_ids[int(unknown[0])]}: list them with no landmark, or with Usage Ignored to leave them "
            "out"
        )
    return rows


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Predictions beside the truth.

    Attributes:
      rows: int64 [N], see `truth_rows`.
      order: int64 [R], positions of the predictions that name a landmark for an image of the truth, in the
        official order.
      correct: bool [R], whether prediction order[r] names one of its query's true classes.
    """

    rows: np.ndarray
    order: np.ndarray
    correct: np.ndarray


def rank(predictions: pa.Table, truth: pa.Table) -> Ranking:
    """Ranks predictions and compares them with the truth; arguments as `evaluate_predictions`.

    Raises:
      ValueError: see `truth_rows`; or a score is missing or not finite.
    """
    rows = truth_rows(predictions, truth)
    given = _numpy(pc.is_valid(predictions["landmark_id"]))
    scores = predictions["score"].to_numpy()
    bad = np.flatnonzero(given & ~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"score {scores[bad[0]]} of image {predictions['image_id'][int(bad[0])]} is not finite"
        )
    ranked = np.flatnonzero(given & (rows >= 0))
    answers = predictions.take(pa.array(ranked))
    order = ranked[prediction_order(answers["image_id"], answers["landmark_id"], scores[ranked])]
    landmarks = predictions["landmark_id"].take(pa.array(order))
    return Ranking(rows, order, is_correct(landmarks, rows[order], truth["landmark_ids"]))


def costs(correct: np.ndarray, rows: np.ndarray, landmark_queries: np.ndarray) -> np.ndarray:
    """What each query takes from a GAP of 1; all together take 1 - GAP.

    With C right predictions GAP is (C - sum over right i of W(i)/i) / M, where W(i) wrong ones stand before
    i: so a wrong prediction takes 1/(i M) for every right one at a rank i behind it, and a landmark query
    without a right prediction takes 1/M.

    Args:
      correct: bool [N], the first prediction first.
      rows: int64 [N], their queries, as rows of the truth; no row twice.
      landmark_queries: bool [T], whether the query of a row counts and has a landmark; M of them, not 0.

    Returns:
      float64 [T].
    """
    queries = landmark_queries.sum()
    shares = np.where(correct, 1 / np.arange(1, len(correct) + 1), 0.0) / queries
    behind = shares[::-1].cumsum()[::-1]  # a wrong one has no share of its own
    taken = landmark_queries / queries
    taken[rows[correct]] = 0.0
    taken[rows[~correct]] += behind[~correct]
    return taken


def evaluate_predictions(
    predictions: pa.Table, truth: pa.Table, non_landmark_share: float | None = None
) -> Metrics:
    """Scores predictions against the truth. The order of rows in either table makes no difference.

    Args:
      predictions: a table of `tables.ANSWER_SCHEMA`; landmark_id is null for an empty prediction. It may have
        the best landmarks of each query, see `tables.read_prediction_shard`.
      truth: a table of `tables.TRUTH_SCHEMA`; queries with Usage Ignored do not count.
      non_landmark_share: queries without a landmark weigh as if this part of all were such; None for each
        query alike. Of use for the judgement of "all" alone.

    Returns:
      for each of "all" (Public and Private together), "Public" and "Private": gap: GAP@1.
        gap_landmark_queries: GAP@1 with predictions on queries without a landmark left out. top1: share of
        the landmark queries that are predicted correctly. top5: share of those one of whose landmarks is
        among the five best of their candidates; None without these. counts: queries = predicted + empty +
        missing (a prediction; an empty one; no row at all), landmark_queries (with a landmark),
        predicted_landmark_queries, correct; for "all" also ignored and unknown, the rows on images with Usage
        Ignored and on images not in the truth, which do not count; and judgement, see `judge`, and landmarks,
        of each that a query shows or is predicted to show: queries, predicted, correct, and top5, those of
        its queries that have it among the five best; None where these are not known. Shares of nothing are
        None.

    Raises:
      ValueError: see `truth_rows`; or a score is missing or not finite.
    """
    ranking = rank(predictions, truth)
    rows, correct = ranking.rows, ranking.correct
    ranked_rows = rows[ranking.order]
    usage = truth["usage"]
    has_landmark = _numpy(pc.greater(pc.list_value_length(truth["landmark_ids"]), 0))

    among = _among_best(predictions, rows, truth)
    found = None if among is None else np.bincount(among[0], minlength=len(truth)) > 0
    metrics: Metrics = {}
    for split, usages in SPLITS.items():
        counted = _numpy(pc.is_in(usage, pa.array(usages)))
        landmark_queries = int((counted & has_landmark).sum())
        in_split = counted[ranked_rows]
        on_landmark = in_split & has_landmark[ranked_rows]
        num_correct = int(correct[in_split].sum())
        answered = int(counted[rows[rows >= 0]].sum())
        metrics[split] = {
            "gap": average_precision(correct[in_split], landmark_queries),
            "gap_landmark_queries": average_precision(correct[on_landmark], landmark_queries),
            "top1": num_correct / landmark_queries if landmark_queries else None,
            "top5": None
            if found is None or not landmark_queries
            else int((found & counted).sum()) / landmark_queries,
            "counts": {
                "queries": int(counted.sum()),
                "landmark_queries": landmark_queries,
                "predicted": int(in_split.sum()),
                "predicted_landmark_queries": int(on_landmark.sum()),
                "correct": num_correct,
                "empty": answered - int(in_split.sum()),
                "missing": int(counted.sum()) - answered,
            },
        }
    counted = _numpy(pc.is_in(usage, pa.array(SPLITS["all"])))
    in_all = counted[ranked_rows]
    metrics["all"]["judgement"] = judge(
        correct[in_all],
        predictions["score"].to_numpy()[ranking.order][in_all],
        ranked_rows[in_all],
        np.where(counted, weights_for(has_landmark & counted, non_landmark_share, counted), 0.0),
        has_landmark & counted,
    )
    named = predictions["landmark_id"].take(pa.array(ranking.order[in_all]))
    best = None if among is None else among[1].filter(pa.array(counted[among[0]]))
    metrics["all"]["landmarks"] = _by_landmark(
        truth["landmark_ids"].filter(counted), named, correct[in_all], best
    )
    unknown = int((rows < 0).sum())
    counts = metrics["all"]["counts"]
    counts["ignored"] = len(rows) - unknown - counts["predicted"] - counts["empty"]
    counts["unknown"] = unknown
    return metrics


def judge(
    correct: np.ndarray,
    scores: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    landmark_queries: np.ndarray,
) -> dict[str, Any]:
    """How far scores tell right predictions from wrong ones.

    Args:
      correct: bool [N], the first prediction first.
      scores: float64 [N].
      rows: int64 [N], their queries, as rows of the truth.
      weights: float64 [T], of the queries; 0 for those that do not count.
      landmark_queries: bool [T], whether a query counts and has a landmark.

    Returns:
      gap: with these weights. Where all scores lie in [0, 1], and so may be probabilities, also
      calibration_error, reliability: see `transforms.arrays.calibration`, and thresholds: of the predictions
      with at least this score precision, recall of the landmark queries, and coverage, the part of all
      queries.
    """
    weight, total = weights[rows], float(weights[landmark_queries].sum())
    found: dict[str, Any] = {"gap": weighted_gap(correct, weight, int(landmark_queries.sum()))}
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return found
    table = reliability(scores, correct, weight)
    thresholds = []
    for threshold in THRESHOLDS:
        above = scores >= threshold
        given, right = float(weight[above].sum()), float(weight[above & correct].sum())
        thresholds.append(
            {
                "threshold": threshold,
                "precision": right / given if given else None,
                "recall": right / total if total else None,
                "coverage": given / float(weights.sum()),
            }
        )
    return {
        **found,
        "calibration_error": calibration_error(table),
        "reliability": [dataclasses.asdict(bin_) for bin_ in table],
        "thresholds": thresholds,
    }


def _among_best(
    predictions: pa.Table, rows: np.ndarray, truth: pa.Table
) -> tuple[np.ndarray, pa.ChunkedArray] | None:
    """Right landmarks among the best of each query, R of them: int64 [R], rows of the truth, and strings [R];
    None where the best are not known.
    """
    if "best_landmarks" not in predictions.column_names:
        return None
    lists = predictions["best_landmarks"].combine_chunks()
    at, landmarks = rows[pc.list_parent_indices(lists).to_numpy()], pa.chunked_array([lists.flatten()])
    at, landmarks = at[at >= 0], landmarks.filter(pa.array(at >= 0))
    right = is_correct(landmarks, at, truth["landmark_ids"])
    return at[right], landmarks.filter(pa.array(right))


def _by_landmark(
    truth: pa.ChunkedArray, named: pa.ChunkedArray, correct: np.ndarray, best: pa.ChunkedArray | None
) -> dict[str, Any]:
    names = named.to_pylist()
    queries = Counter(name for names_ in truth.to_pylist() for name in names_)
    predicted, right = Counter(names), Counter(name for name, ok in zip(names, correct) if ok)
    among = Counter(() if best is None else best.to_pylist())
    return {
        name: {
            "queries": queries[name],
            "predicted": predicted[name],
            "correct": right[name],
            "top5": None if best is None else among[name],
        }
        for name in sorted({*queries, *predicted, *among})
    }


def _evaluate(
    shards: list[str], truth_uri: str, non_landmark_share: float | None, top_k: int | None
) -> Metrics:
    read = [tables.read_prediction_shard(shard, top_k) for shard in sorted(shards)]
    predictions = pa.concat_tables([tables.ANSWER_SCHEMA.empty_table(), *read], promote_options="default")
    return evaluate_predictions(predictions, tables.read_truth(truth_uri), non_landmark_share)


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(dict)
@dataclasses.dataclass
class EvaluatePredictions(beam.PTransform):
    """Files of predictions, see `tables.prediction_shards`, in any order to one metrics dict, see
    `evaluate_predictions`.

    Precision at a rank needs every prediction at one place. Only the files' names travel there: a local
    shuffle holds several times its payload.

    Attributes:
      truth_uri: the truth, see `tables.read_truth`.
      non_landmark_share: see `evaluate_predictions`.
      top_k: see `tables.read_prediction_shard`.
    """

    truth_uri: str
    non_landmark_share: float | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not self.truth_uri:
            raise ValueError("truth_uri is empty")

    def expand(self, shards: beam.PCollection[str]) -> beam.PCollection[dict]:
        return (
            shards
            | "Gather" >> beam.combiners.ToList()
            | "Evaluate"
            >> beam.Map(_evaluate, self.truth_uri, self.non_landmark_share, self.top_k)
            .with_input_types(list[str], str, float | None, int | None)
            .with_output_types(dict)
        )


def is_correct(landmark_ids: pa.ChunkedArray, rows: np.ndarray, truth: pa.ChunkedArray) -> np.ndarray:
    """Whether class i is among the true classes in row rows[i] of `truth`, lists of strings; bool [N]."""
    lists = truth.combine_chunks()
    classes = pc.utf8_normalize(lists.flatten(), "NFC").dictionary_encode()
    # A (row, class) pair is one integer, so that membership in a list is membership in a set.
    width = len(classes.dictionary) + 1
    true_pairs = (
        pc.list_parent_indices(lists).to_numpy().astype(np.int64) * width + classes.indices.to_numpy()
    )
    codes = _numpy(
        pc.fill_null(pc.index_in(pc.utf8_normalize(landmark_ids, "NFC"), classes.dictionary), width - 1)
    )
    return np.isin(rows * width + codes, true_pairs)


def _text(values: Sequence[str] | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values, pa.string())


def _numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
