"""Aggregation: sums by landmark, ties, and the step on the local runner."""

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from transforms.aggregation import AggregatePredictions, aggregate
from transforms.types import Candidate, CandidateUnit, FeatureLocation, QueryCandidates, landmark_order

NOWHERE = FeatureLocation("", 0, 0)


def query(*votes, image_id="q", verified=False):
    candidates = tuple(
        Candidate(f"i{n}", landmark, 0.5, NOWHERE, 7, score) for n, (landmark, score) in enumerate(votes)
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
    prediction = aggregate(query(*votes), top_k)
    assert (prediction.landmark_id, prediction.score) == (landmark, score)


def test_candidates_and_verified_travel_on():
    asked = query(("8", 1.5), ("9", 1.0), verified=True)
    prediction = aggregate(asked, 1)
    assert (prediction.image_id, prediction.candidates, prediction.verified) == ("q", asked.candidates, True)


@given(
    st.lists(st.tuples(st.sampled_from(["1", "2", "10"]), st.integers(-8, 8)), max_size=8), st.integers(1, 9)
)
def test_aggregate_agrees_with_the_oracle(votes, top_k):
    candidates = [oracle.OracleCandidate("i", landmark, 0.0, 0, float(score)) for landmark, score in votes]
    prediction = aggregate(query(*votes), top_k)
    assert (prediction.landmark_id, prediction.score) == oracle.predict(candidates, top_k)


def test_top_k_is_checked():
    with pytest.raises(ValueError, match="top_k must be at least 1, not 0"):
        AggregatePredictions(0)


def test_step_on_the_local_runner():
    units = [CandidateUnit("u", (query(("8", 1.5), image_id="a"), query(image_id="b")), (), final=True)]
    with beam.Pipeline("FnApiRunner") as pipeline:
        predicted = (
            pipeline
            | beam.Create(units)
            | AggregatePredictions(3)
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
