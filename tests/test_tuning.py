"""What an index learns of queries whose truth it knows, on tables alone."""

import numpy as np
import pytest

from beam_pipeline import calibrate, tuning
from beam_pipeline.config import ConfigError
from beam_pipeline.prediction_rule import PredictionRule
from transforms.arrays import calibration
from transforms.arrays.scoring import CandidateTable, vote
from transforms.retrieval import plan_groups
from transforms.types import Candidate, CandidateUnit, FeatureLocation, QueryCandidates

NOWHERE = FeatureLocation("", 0, 0)


def queries(known: int, others: int, seed: int = 0) -> tuning.Queries:
    """Queries whose true candidate, in the first column, has more inliers and a higher cosine than others,
    most of the time; those without a landmark have none.
    """
    rng, count, width = np.random.default_rng(seed), known + others, 5
    has = np.arange(count) < known
    right = has[:, None] & (np.arange(width) == 0)
    strength = np.where(right, rng.normal(0.7, 0.15, (count, width)), rng.normal(0.35, 0.12, (count, width)))
    inliers = np.rint(np.exp(4 * strength + rng.normal(0, 0.4, strength.shape))).astype(int)
    landmark = rng.integers(0, 50, (count, width))
    table = CandidateTable(
        strength - 0.1, strength, inliers, np.arange(count * width).reshape(count, width), landmark
    )
    truth = np.where(has, landmark[:, 0], -1)
    kind = np.where(has, 0, np.where(np.arange(count) % 2, 1, 2))
    return tuning.Queries(table, truth, landmark[:, 0] % tuning.FOLDS, kind)


def test_probabilities_hold_on_other_queries():
    found = tuning.tune(queries(400, 400), 0.5)
    asked = queries(1000, 1000, seed=1)
    learned = calibration.Calibration(**found["coefficients"])
    for share in (0.5, 0.9):
        votes = vote(asked.table, tuning.ScoringSettings(**found["settings"]))
        correct = asked.known & (votes.landmark == asked.landmark)
        probable = calibration.probabilities(
            calibration.evidence(asked.table, votes), calibration.with_prior(learned, share)
        )
        weights = calibration.weights_for(asked.known, share)
        assert calibration.calibration_error(calibration.reliability(probable, correct, weights)) < 0.05
        # A prior that does not hold is seen.
        wrong = calibration.weights_for(asked.known, 1 - share if share != 0.5 else 0.95)
        assert calibration.calibration_error(calibration.reliability(probable, correct, wrong)) > 0.06


def test_the_order_of_queries_and_their_number_of_copies_make_no_difference():
    asked = queries(100, 100)
    order = np.random.default_rng(5).permutation(200)
    table = CandidateTable(*(value[order] for value in vars(asked.table).values()))
    mixed = tuning.Queries(table, asked.landmark[order], asked.fold[order], asked.kind[order])
    one, other = tuning.tune(asked, 0.5), tuning.tune(mixed, 0.5)
    assert one["settings"] == other["settings"]
    for name, value in one["coefficients"].items():
        assert other["coefficients"][name] == pytest.approx(value, rel=1e-4)


def test_of_settings_less_than_a_query_apart_the_first_is_taken(monkeypatch):
    gaps = [0.5, 0.97, 0.971, *[0.9] * (len(tuning.TRIED) - 4), 0.98]
    answers = iter([*gaps, 0.9])  # and the cross-validated one
    monkeypatch.setattr(tuning, "_gap", lambda *given: next(answers))
    found = tuning.tune(queries(100, 100), 0.5)
    assert tuning.ScoringSettings(**found["settings"]) == tuning.TRIED[2]
    assert [one["gap"] for one in found["tried"]] == gaps


@pytest.mark.parametrize("known, others", [(0, 0), (19, 100), (100, 19), (0, 40)])
def test_too_few_queries_are_said_and_teach_nothing(known, others):
    found = tuning.tune(queries(known, others), 0.5)
    assert found["coefficients"] is None and found["tried"] == []
    assert found["settings"] == tuning.dataclasses.asdict(tuning.TRIED[0])
    assert "too little to learn from" in calibrate.summary({**found, "seconds": {"total": 1.0}})


def test_gap_with_weights_is_that_of_copies():
    correct = np.array([True, False, True, False, True])
    landmark = np.array([True, False, True, False, True])
    weights = np.where(landmark, 1.0, 3.0)
    copies = np.repeat(correct, np.where(landmark, 1, 3))
    hits = np.flatnonzero(copies)
    want = sum((n + 1) / (at + 1) for n, at in enumerate(hits)) / 4
    assert calibration.weighted_gap(correct, weights, 4) == pytest.approx(want)
    assert calibration.weights_for(landmark, 0.5) == pytest.approx([1, 1.5, 1, 1.5, 1])
    assert calibration.weighted_gap(correct, weights, 0) is None


def test_reliability_by_hand():
    table = calibration.reliability(
        np.array([0.05, 0.95, 1.0, 0.91]),
        np.array([False, True, True, False]),
        np.array([2.0, 1.0, 1.0, 2.0]),
    )
    assert [(b.low, b.high, b.weight, b.correct) for b in table] == [(0, 0.1, 2, 0), (0.9, 1, 4, 0.5)]
    mean = (0.95 + 1.0 + 2 * 0.91) / 4
    assert table[1].probability == pytest.approx(mean)
    assert calibration.calibration_error(table) == pytest.approx((2 * 0.05 + 4 * (mean - 0.5)) / 6)


def candidates(*names: str) -> tuple[Candidate, ...]:
    return tuple(Candidate(name, name[0], 1 - at / 1000, NOWHERE) for at, name in enumerate(names))


def test_photographs_of_an_index_ask_for_the_rest(monkeypatch):
    monkeypatch.setattr(calibrate, "NUM_TO_RERANK", 3)
    unit = CandidateUnit(
        "u",
        (
            QueryCandidates("a1", NOWHERE, candidates("a1", "a2", "b1", "a3", "a4", "c1", "b2", "b3", "b4")),
            QueryCandidates("lost", NOWHERE, candidates("a1")),
        ),
    )
    [query] = calibrate.as_queries(unit).queries
    assert [c.image_id for c in query.candidates] == ["a2", "b1", "a3", "c1", "b2"]


def test_a_sample_is_of_many_units_and_always_the_same(monkeypatch):
    monkeypatch.setattr(calibrate, "_SAMPLE_UNITS", 10)
    units = [(f"u{n:03d}", 50) for n in range(100)]
    [block] = calibrate.sample_blocks(units, 100)
    assert len(block.units) == 10 and block.share == pytest.approx(0.2)
    assert calibrate.sample_blocks(units[::-1], 100) == [block] and list(block.units) == sorted(block.units)
    assert len(plan_groups(units)) == 1
    [all_] = calibrate.sample_blocks(units[:3], 1000)
    assert all_.share >= 1 and all_.units == ("u000", "u001", "u002")


def test_a_rule_of_another_version_is_refused_with_a_word():
    values = {"top_k": 3, "max_inlier_score": 60, "global_weight": 1.0}
    with pytest.raises(ConfigError, match=r"another version of landmarks.*augmented_weight"):
        PredictionRule.of(values)
