"""The answers of a run as columns: beside the truth, beside another run's answers, and which of them a report
shows whole.

N is the number of queries; they stand in ascending order of image_id.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms import gap
from transforms.arrays import calibration
from transforms.storage import run_store, spelling, tables

OUTCOMES = {
    "right": "got the right landmark",
    "other": "shows no landmark and got one",
    "lost": "the right landmark was among the candidates and lost the vote",
    "missed": "the right landmark was not among the candidates",
    "unindexed": "shows a landmark that the index lacks",
    "unanswered": "shows a landmark and got none",
    "silent": "shows no landmark and got none",
    "unjudged": "does not count in the truth",
}
"""What the truth says of a query, in the order in which a report lists them."""

CHANGES = {
    "gained": "was wrong and is right",
    "lost": "was right and is wrong",
    "another": "got another landmark, right or wrong as before",
    "new": "is not in the other run",
    "same": "got the same landmark",
}
"""What became of a query between two runs."""

_ROWS = 50_000  # of a run, looked at together
_MAGNET_DEVIATIONS = 4.0
_SURE = 0.95  # precision of the answers above the threshold that scores get where the truth is known


def batches(run: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The predictions of a run, at least _ROWS at a time, so that thousands of small shards cost little."""
    waiting: list[pa.Table] = []
    for table in run_store.read_predictions(run, columns):
        waiting.append(table)
        if sum(map(len, waiting)) >= _ROWS:
            yield pa.concat_tables(waiting, promote_options="default")
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting, promote_options="default")


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a run says of its queries.

    Attributes:
      table: image_id, landmark_id (null where none), score, verified, probability; N rows.
      measure: what `confidence` is, "probability" or, without a calibration, "score".
      confidence: float64 [N]; NaN where there is none.
    """

    table: pa.Table
    measure: str
    confidence: np.ndarray

    @classmethod
    def read(cls, run: str) -> "Answers":
        """Reads the answers of a run."""
        names = [*tables.ANSWER_SCHEMA.names, "verified", "probability"]
        table = pa.concat_tables(
            [tables.ANSWER_SCHEMA.empty_table(), *batches(run, names)], promote_options="default"
        )
        for name, kind in (("verified", pa.bool_()), ("probability", pa.float64())):
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), kind))
        table = table.select(names).sort_by("image_id").combine_chunks()
        measure = "probability" if table["probability"].null_count < len(table) else "score"
        values = pc.fill_null(table[measure].cast(pa.float64()), np.nan).to_numpy()
        return cls(table, measure, values)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> pa.ChunkedArray:
        """The queries; string [N]."""
        return self.table["image_id"]

    @property
    def landmarks(self) -> pa.ChunkedArray:
        """What they got; string [N], null where nothing."""
        return self.table["landmark_id"]

    def by_confidence(self) -> np.ndarray:
        """Positions, the surest answer first, those without a confidence last; int64 [N]."""
        return np.argsort(np.where(np.isnan(self.confidence), np.inf, -self.confidence), kind="stable")


@dataclasses.dataclass(frozen=True)
class JudgedAnswers:
    """Answers beside the truth.

    Attributes:
      outcome: a key of OUTCOMES; str [N].
      cost: what each query takes from a GAP of 1, see `gap.costs`; float64 [N].
      truth: the landmarks that each query shows; lists of strings [N], null where the truth does not know it.
      metrics: see `gap.evaluate_predictions`.
      ranked: positions of the answers that count, in the official order; int64 [R].
      correct: whether they are right; bool [R].
    """

    outcome: np.ndarray
    cost: np.ndarray
    truth: pa.Array
    metrics: gap.Metrics
    ranked: np.ndarray
    correct: np.ndarray

    @classmethod
    def of(
        cls, run: str, answers: Answers, truth: pa.Table, indexed: pa.Array, top_k: int
    ) -> "JudgedAnswers":
        """Judges the answers of a run.

        Args:
          truth: see `tables.read_truth`.
          indexed: the landmarks of the index.
          top_k: candidates that vote.

        Raises:
          ValueError: answers and truth do not fit together, see `gap.rank`.
        """
        given = tables.ranked_by_probability(answers.table).select(tables.ANSWER_SCHEMA.names)
        ranking = gap.rank(given, truth)
        rows = ranking.rows
        counted = _booleans(pc.is_in(truth["usage"], pa.array(gap.SPLITS["all"])))
        has_landmark = _booleans(pc.greater(pc.list_value_length(truth["landmark_ids"]), 0))
        counts = counted[rows[ranking.order]]
        ranked, correct = ranking.order[counts], ranking.correct[counts]
        cost = np.zeros(len(truth))
        if (counted & has_landmark).any():
            cost = gap.costs(correct, rows[ranked], counted & has_landmark)
        shown = truth["landmark_ids"].combine_chunks()
        known = pc.is_in(
            pc.utf8_normalize(shown.flatten(), "NFC"), pc.utf8_normalize(indexed.cast(pa.string()), "NFC")
        )
        in_index = np.zeros(len(truth), bool)
        in_index[pc.list_parent_indices(shown).to_numpy()[_booleans(known)]] = True
        judged = rows >= 0
        judged[judged] = counted[rows[judged]]
        right = np.zeros(len(answers), bool)
        right[ranked] = correct
        answered = _booleans(pc.is_valid(answers.landmarks))
        shows = has_landmark[rows]
        outcome = np.select(
            [
                ~judged,
                right,
                ~shows & answered,
                ~shows,
                ~answered,
                ~in_index[rows],
                _retrieved(run, answers, rows, truth),
            ],
            ["unjudged", "right", "other", "silent", "unanswered", "unindexed", "lost"],
            "missed",
        )
        return cls(
            outcome,
            np.where(rows >= 0, cost[rows], 0.0),
            shown.take(pa.array(rows, mask=rows < 0)),
            gap.evaluate_predictions(_with_best_landmarks(run, given, top_k), truth),
            ranked,
            correct,
        )

    def causes(self) -> list[tuple[str, int, float]]:
        """What is missing from a GAP of 1, by outcome: outcome, queries, cost; the greatest cost first.

        Queries of the truth that have no row in the run are missing here.
        """
        counts = Counter(self.outcome.tolist())
        costs = {name: float(self.cost[self.outcome == name].sum()) for name in counts}
        return sorted(
            ((name, counts[name], costs[name]) for name in counts if costs[name]), key=lambda c: -c[2]
        )

    def confused(self, answers: Answers, most: int) -> list[tuple[str, str, int]]:
        """Pairs of landmarks, what was answered and what is shown, and how often; the most frequent first."""
        wrong = pa.array(np.flatnonzero(np.isin(self.outcome, ["lost", "missed", "unindexed"])))
        shown = pc.list_element(self.truth.take(wrong), 0).to_pylist()
        pairs = Counter(zip(answers.landmarks.take(wrong).to_pylist(), shown))
        return [(*pair, n) for pair, n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]]

    def precision(self) -> np.ndarray:
        """Precision of the first r + 1 answers; float64 [R]."""
        return self.correct.cumsum() / np.arange(1, len(self.correct) + 1)


def _with_best_landmarks(run: str, given: pa.Table, top_k: int) -> pa.Table:
    """Answers with the best landmarks of each query, see `tables.read_prediction_shard`."""
    best: dict[str, list[str]] = {}
    for table in batches(run, ["image_id", *tables.SCORED_LANDMARKS]):
        found = tables.best_of_candidates(table["candidates"], top_k)
        best.update(zip(table["image_id"].to_pylist(), found.to_pylist()))
    column = pa.array([best[name] for name in given["image_id"].to_pylist()], pa.list_(pa.string()))
    return given.append_column("best_landmarks", column)


def _retrieved(run: str, answers: Answers, rows: np.ndarray, truth: pa.Table) -> np.ndarray:
    """Whether one of the landmarks that a query shows is among its candidates; bool [N]."""
    found = np.zeros(len(answers), bool)
    for table in batches(run, ["image_id", "candidates.list.element.landmark_id"]):
        lists = table["candidates"].combine_chunks()
        at = pc.index_in(table["image_id"], answers.ids.combine_chunks()).to_numpy()
        queries = at[pc.list_parent_indices(lists).to_numpy()]
        landmarks = pa.chunked_array([pc.struct_field(lists.flatten(), "landmark_id")])
        known = rows[queries] >= 0
        right = gap.is_correct(landmarks.filter(pa.array(known)), rows[queries[known]], truth["landmark_ids"])
        found[queries[known][right]] = True
    return found


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Answers beside those of another run.

    Attributes:
      landmark: what the other run says; string [N], null where nothing.
      confidence: its confidence; float64 [N], NaN where there is none.
      change: a key of CHANGES, from the other run to this one; str [N].
      gain: of GAP, by query; float64 [N], None without a truth.
      gap: GAP of the other run; None without a truth.
      missing: how many queries only the other run has.
    """

    landmark: pa.ChunkedArray
    confidence: np.ndarray
    change: np.ndarray
    gain: np.ndarray | None
    gap: float | None
    missing: int

    @classmethod
    def of(
        cls,
        answers: Answers,
        judged: JudgedAnswers | None,
        other: Answers,
        other_judged: JudgedAnswers | None,
    ) -> "Comparison":
        """Compares; both are judged or none."""
        found = spelling.index_in(answers.ids.combine_chunks(), other.ids.combine_chunks())
        there = _booleans(pc.is_valid(found))
        at = pc.fill_null(found, 0).to_numpy()
        landmark = other.landmarks.take(found)
        same = pc.equal(pc.fill_null(answers.landmarks, ""), pc.fill_null(landmark, ""))
        conditions, names = [~there, _booleans(same)], ["new", "same"]
        gain = None
        if judged and other_judged:
            now, then = (np.isin(j.outcome, ["right", "silent"]) for j in (judged, other_judged))
            conditions += [now & ~then[at], ~now & then[at]]
            names += ["gained", "lost"]
            gain = np.where(there, other_judged.cost[at], 0.0) - judged.cost
        return cls(
            landmark,
            np.where(there, other.confidence[at], np.nan),
            np.select(conditions, names, "another"),
            gain,
            other_judged.metrics["all"]["gap"] if other_judged else None,
            len(other) - int(there.sum()),
        )


@dataclasses.dataclass(frozen=True)
class Landmarks:
    """The landmarks that a run predicts, L of them.

    Attributes:
      ids: strings; magnets first, then those that most queries got.
      queries: how many queries got each; int64 [L].
      images: photographs of each in the index; int64 [L].
      expected: how many queries its share of the index would give it; float64 [L].
      magnet: whether it drew far more than that, by _MAGNET_DEVIATIONS standard deviations; bool [L].
    """

    ids: list[str]
    queries: np.ndarray
    images: np.ndarray
    expected: np.ndarray
    magnet: np.ndarray

    @classmethod
    def of(cls, answers: Answers, images: Mapping[str, int]) -> "Landmarks":
        """Counts; `images` is how many photographs of each landmark the index has."""
        counts = Counter(answers.landmarks.drop_null().to_pylist())
        ids = list(counts)
        queries = np.array([counts[i] for i in ids], np.int64)
        indexed = np.array([images.get(i, 0) for i in ids], np.int64)
        expected = queries.sum() * indexed / max(1, sum(images.values()))
        # Of so many draws from the index the number for one landmark is about Poisson's; 1 keeps a single
        # query of a landmark with one photograph from being a wonder.
        magnet = queries > expected + _MAGNET_DEVIATIONS * np.sqrt(expected + 1)
        order = sorted(range(len(ids)), key=lambda i: (not magnet[i], -queries[i], ids[i]))
        at = np.array(order, np.int64)
        return cls([ids[i] for i in order], queries[at], indexed[at], expected[at], magnet[at])


def threshold_of(
    hyperparameters: Mapping[str, Any], answers: Answers, judged: JudgedAnswers | None
) -> tuple[float | None, str]:
    """From which confidence on an answer is accepted, and why; None where nothing says so."""
    asked = hyperparameters.get("min_probability")
    if asked:
        return float(asked), "--min_probability of the run"
    if answers.measure == "probability":
        return 0.5, "more likely right than wrong"
    if judged is not None and len(judged.ranked):
        sure = np.flatnonzero(judged.precision() >= _SURE)
        if len(sure):
            return (
                float(answers.confidence[judged.ranked[sure[-1]]]),
                f"{_SURE:.0%} of the answers from there on are right",
            )
    return None, ""


@dataclasses.dataclass(frozen=True)
class Pick:
    """The queries that are shown whole.

    Attributes:
      positions: int64 [P], ascending.
      how: how they were picked, for people; empty where they are all.
    """

    positions: np.ndarray
    how: list[str]

    @classmethod
    def of(
        cls,
        answers: Answers,
        judged: JudgedAnswers | None,
        compared: Comparison | None,
        landmarks: Landmarks,
        most: int,
    ) -> "Pick":
        """At most `most` queries: a quarter each for the costliest mistakes, the greatest changes and the
        magnets, where there are any, and the rest evenly spread over the order by confidence.
        """
        if len(answers) <= most:
            return cls(np.arange(len(answers)), [])
        order, quarter = answers.by_confidence(), most // 4
        picked: set[int] = set()
        how = []

        def take(positions: np.ndarray, text: str) -> None:
            if len(positions):
                picked.update(positions.tolist())
                how.append(f"{len(positions):,} {text}")

        if judged is not None:
            costly = np.argsort(-judged.cost, kind="stable")[:quarter]
            take(costly[judged.cost[costly] > 0], "that cost the most GAP")
        if compared is not None:
            changed = order[~np.isin(compared.change[order], ["same", "new"])]
            if compared.gain is not None:
                changed = changed[np.argsort(-np.abs(compared.gain[changed]), kind="stable")]
            take(changed[:quarter], "whose answer changed, those of the greatest gain or loss first")
        magnets = [landmarks.ids[i] for i in np.flatnonzero(landmarks.magnet)[: max(1, quarter // 10)]]
        if magnets:
            codes = pc.index_in(answers.landmarks, pa.array(magnets)).to_numpy()[order]
            of_magnets = [_spread(order[codes == m], quarter // len(magnets)) for m in range(len(magnets))]
            take(np.concatenate(of_magnets), f"of the {len(magnets):,} strongest magnets")
        others = order[~np.isin(order, np.array(sorted(picked), np.int64))]
        take(_spread(others, most - len(picked)), "evenly spread over the order by confidence")
        return cls(np.array(sorted(picked), np.int64), how)


def _spread(positions: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the positions, evenly spread over their order."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(int)]


def reliability(
    confidence: np.ndarray, correct: np.ndarray, measure: str, bins: int = 10
) -> list[tuple[float, float, int]]:
    """How often answers of like confidence are right: mean confidence, share that is right, number.

    Probabilities fall into equal intervals of [0, 1]; scores, which have no scale, into parts of like size.
    """
    if not len(confidence):
        return []
    if measure == "probability":
        found = calibration.reliability(confidence, correct, np.ones(len(confidence)), bins)
        return [(bin_.probability, bin_.correct, round(bin_.weight)) for bin_ in found]
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return [(float(confidence[p].mean()), float(correct[p].mean()), len(p)) for p in parts if len(p)]


def _booleans(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
