"""Aggregation: sums by landmark, ties, and the step on the local runner."""

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from transforms.aggregation import AggregatePredictions, aggregate, candidate_table
from transforms.arrays.scoring import best_landmarks, vote
from transforms.types import (
    Candidate,
    CandidateUnit,
    FeatureLocation,
    QueryCandidates,
    ScoringSettings,
    landmark_order,
)

NOWHERE = FeatureLocation("", 0, 0)


def query(*votes, image_id="q", verified=False):
    candidates = tuple(
        Candidate(f"i{n}", landmark, score, NOWHERE) for n, (landmark, score) in enumerate(votes)
    )
    return QueryCandidates(image_id, NOWHERE, candidates, verified)


@pytest.mark.parametrize(
    "votes, top_k, landmark, score",
    [
        pytest.param([("8", 1.5)], 3, "8", 1.5, id="one candidate"),
        pytest.param(
            [("8", 1.5), ("9", 1.0), ("9", 0.75)], 3, "9", 1.75, id="two of one class outvote the best"
        ),
        pytest.param([("8", 1.5), ("9", 1.0), ("9", 0.75)], 2, "8", 1.5, id="only the best top_k vote"),
        pytest.param([("10", 0.5), ("9", 0.5)], 2, "9", 0.5, id="ties by number"),
        pytest.param(
            [("tower", 0.5), ("10", 0.5), ("9", 0.5)],
            3,
            "10",
            0.5,
            id="ties by code points where not all are numbers",
        ),
        pytest.param([("7", 0.5), ("07", 0.5)], 2, "07", 0.5, id="equal numbers are two landmarks"),
        pytest.param([("8", -0.5), ("9", -0.25)], 2, "9", -0.25, id="negative scores"),
        pytest.param([], 3, None, None, id="no candidates"),
    ],
)
def test_aggregate(votes, top_k, landmark, score):
    prediction = aggregate(query(*votes), ScoringSettings(top_k))
    assert (prediction.landmark_id, prediction.score) == (landmark, score)


def test_candidates_are_ranked_by_total_score_then_id():
    candidates = (
        Candidate("c", "1", 0.5, NOWHERE, 0, augmented=0.25),
        Candidate("b", "2", 0.25, NOWHERE, 60, augmented=0.5),
        Candidate("a", "3", 0.5, NOWHERE, None, augmented=0.25),
    )
    prediction = aggregate(QueryCandidates("q", NOWHERE, candidates, verified=True), ScoringSettings())
    assert [(c.image_id, c.score) for c in prediction.candidates] == [("b", 1.25), ("a", 0.5), ("c", 0.5)]
    assert (prediction.image_id, prediction.verified) == ("q", True)
    assert [c.inliers for c in prediction.candidates] == [60, None, 0]


@pytest.mark.parametrize(
    "similarity, inliers, settings, expected",
    [
        (0.5, 30, {}, 1.0),
        (0.5, 60, {}, 1.5),
        (0.5, 600, {}, 1.5),
        (0.5, None, {}, 0.5),
        (-0.25, 0, {}, -0.25),
        (0.5, 7, {"max_inlier_score": 70, "global_weight": 0.25}, 0.225),
        (0.5, 30, {"max_inlier_score": 30, "global_weight": 0.0, "augmented_weight": 4.0}, 3.0),
    ],
)
def test_total_score(similarity, inliers, settings, expected):
    candidate = Candidate("i", "8", similarity, NOWHERE, inliers, augmented=0.5)
    prediction = aggregate(QueryCandidates("q", NOWHERE, (candidate,)), ScoringSettings(**settings))
    assert prediction.score == pytest.approx(expected)


def test_an_unknown_augmented_cosine_is_an_error_only_where_it_counts():
    assert aggregate(query(("8", 0.5)), ScoringSettings()).score == 0.5
    with pytest.raises(ValueError, match="cosines to augmented descriptors are not known"):
        aggregate(query(("8", 0.5)), ScoringSettings(augmented_weight=1.0))


def test_many_queries_at_once_are_scored_as_each_alone():
    rng = np.random.default_rng(0)
    queries = [
        QueryCandidates(
            f"q{q}",
            NOWHERE,
            tuple(
                Candidate(f"i{i:02d}", str(rng.integers(4)), rng.random(), NOWHERE, int(rng.integers(90)))
                for i in rng.permutation(50)[: rng.integers(12)]
            ),
        )
        for q in range(200)
    ]
    table, landmarks = candidate_table(queries)
    votes = vote(table, ScoringSettings(top_k=4))
    for row, query in enumerate(queries):
        alone = aggregate(query, ScoringSettings(top_k=4))
        assert alone.landmark_id == (landmarks[votes.landmark[row]] if query.candidates else None)
        assert alone.score == (votes.score[row] if query.candidates else None)


@given(
    st.lists(st.tuples(st.sampled_from(["1", "2", "10"]), st.integers(-8, 8)), max_size=8), st.integers(1, 9)
)
def test_aggregate_agrees_with_the_oracle(votes, top_k):
    candidates = [
        oracle.OracleCandidate(f"i{n}", landmark, 0.0, 0, float(score))
        for n, (landmark, score) in enumerate(votes)
    ]
    candidates.sort(key=lambda c: (-c.score, c.image_id))
    prediction = aggregate(query(*votes), ScoringSettings(top_k))
    assert (prediction.landmark_id, prediction.score) == oracle.predict(candidates, top_k)


@given(
    st.lists(
        st.tuples(st.sampled_from(["1", "2", "3", "4", "5", "6", "10"]), st.integers(-4, 4)), max_size=12
    ),
    st.integers(1, 9),
    st.integers(1, 7),
)
def test_the_best_landmarks_agree_with_the_oracle_and_begin_with_the_predicted_one(votes, top_k, count):
    prediction = aggregate(query(*votes), ScoringSettings(top_k))
    candidates = [
        oracle.OracleCandidate(c.image_id, c.landmark_id, 0.0, 0, c.score) for c in prediction.candidates
    ]
    names, totals = [c.landmark_id for c in candidates], [c.score for c in candidates]
    best = best_landmarks(names, totals, top_k, count)
    assert best == oracle.best_landmarks(candidates, top_k, count)
    assert best[:1] == ([] if prediction.landmark_id is None else [prediction.landmark_id])


@pytest.mark.parametrize(
    "votes, top_k, best",
    [
        ([("8", 3.0), ("9", 2.0), ("9", 1.5), ("7", 1.0)], 3, ["9", "8", "7"]),
        ([("8", 3.0), ("9", 2.0), ("7", 1.5), ("9", 1.25)], 1, ["8", "9", "7"]),
        ([("8", -1.0), ("9", -2.0), ("7", -3.0)], 1, ["8", "9", "7"]),
        ([("10", 1.0), ("9", 1.0), ("b", 1.0)], 1, ["10", "9", "b"]),
        ([("b", 1.0), ("10", 1.0), ("9", 1.0)], 3, ["10", "9", "b"]),
    ],
    ids=["sums first", "then the best candidate", "a vote below 0 is one", "one vote", "names among numbers"],
)
def test_the_best_landmarks_by_hand(votes, top_k, best):
    names, totals = zip(*votes)
    assert best_landmarks(names, totals, top_k, 5) == best


@pytest.mark.parametrize(
    "name, value, problem",
    [
        ("top_k", 0, "top_k must be at least 1, not 0"),
        ("max_inlier_score", 0, "max_inlier_score must be at least 1, not 0"),
        ("global_weight", -0.1, "global_weight must be a number not below 0, not -0.1"),
        ("augmented_weight", float("nan"), "augmented_weight must be a number not below 0, not nan"),
    ],
)
def test_settings_are_checked(name, value, problem):
    with pytest.raises(ValueError, match=problem):
        ScoringSettings(**{name: value})


def test_step_on_the_local_runner():
    units = [CandidateUnit("u", (query(("8", 1.5), image_id="a"), query(image_id="b")), (), final=True)]
    with beam.Pipeline("FnApiRunner") as pipeline:
        predicted = (
            pipeline
            | beam.Create(units)
            | AggregatePredictions()
            | beam.Map(
                lambda unit: (unit.name, [(p.image_id, p.landmark_id, p.score) for p in unit.predictions])
            )
        )
        assert_that(predicted, equal_to([("u", [("a", "8", 1.5), ("b", None, None)])]))


def test_equal_sums_go_to_the_lowest_landmark_id_as_a_number_where_all_are():
    def order(*names):
        return sorted(names, key=landmark_order(names))

    assert order("10", "9", "07", "7") == ["07", "7", "9", "10"]
    assert order("10", "9", "x") == ["10", "9", "x"]
    assert order("10", "٩") == ["10", "٩"]  # decimal, but no number of a table
