"""Several runs of the same queries as one."""

import dataclasses

import pytest

from beam_pipeline import ensemble
from beam_pipeline.main import main
from transforms.types import Candidate, FeatureLocation, QueryCandidates

NOWHERE = FeatureLocation("", 0, 0)


def query(*candidates, verified=True):
    found = tuple(
        Candidate(name, name[0], similarity, NOWHERE, inliers if verified else None, augmented=augmented)
        for name, similarity, augmented, inliers in candidates
    )
    return QueryCandidates("q", NOWHERE, found, verified)


ONE = query(("a1", 0.75, 0.5, 30), ("b1", 0.5, 0.25, 4))
OTHER = query(("b1", 0.5, 0.75, 8), ("c1", 0.25, 0.5, 2))


def known(found):
    return {c.image_id: (c.similarity, c.augmented, c.inliers) for c in found.candidates}


def test_candidates_are_joined_by_hand():
    found = ensemble.joined([ONE, OTHER], (0.75, 0.25))
    assert [c.image_id for c in found.candidates] == ["a1", "b1", "c1"]
    assert known(found) == {
        "a1": (0.75 * 0.75 + 0.25 * 0.25, 0.75 * 0.5 + 0.25 * 0.5, 22),  # 22.5 is rounded to the even
        "b1": (0.5, 0.75 * 0.25 + 0.25 * 0.75, 5),
        "c1": (0.75 * 0.5 + 0.25 * 0.25, 0.75 * 0.25 + 0.25 * 0.5, 0),
    }
    assert found.verified and found.image_id == "q"


def test_one_run_alone_stays_as_it_is():
    assert ensemble.joined([ONE], (1.0,)) == ONE
    assert ensemble.joined([ONE, OTHER], (1.0, 0.0)) == ONE
    assert ensemble.joined([ONE, None], (0.5, 0.5)) == ONE  # which the other could not read
    assert ensemble.joined([ONE, ONE], (0.5, 0.5)) == ONE


def test_what_one_run_does_not_know_is_not_known():
    found = ensemble.joined([ONE, query(("a1", 0.5, None, 0), verified=False)], (0.5, 0.5))
    assert {c.augmented for c in found.candidates} == {None} == {c.inliers for c in found.candidates}
    assert not found.verified
    assert ensemble.joined([ONE, dataclasses.replace(OTHER, candidates=())], (0.5, 0.5)).candidates


def test_an_image_of_two_labels_is_an_error():
    other = dataclasses.replace(OTHER.candidates[0], landmark_id="z")
    with pytest.raises(ValueError, match="image b1 shows b in one run and z in another"):
        ensemble.joined([ONE, dataclasses.replace(OTHER, candidates=(other,))], (0.5, 0.5))


def test_weights_that_are_tried():
    assert ensemble.weightings(1) == [(1.0,)]
    assert ensemble.weightings(2) == [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75)]
    assert all(sum(weights) == 1 and weights[0] for weights in ensemble.weightings(3))


@pytest.mark.parametrize(
    "flags, problem",
    [
        ([], "--index is missing"),
        (["--index", "x", "--truth", "t.csv"], "--truth tells of the queries of a --run"),
        (["--run", "a"], "--run needs --truth, or another --run"),
        (["--run", "a", "--run", "b"], "needs an --output of its own"),
    ],
)
def test_what_a_calibration_needs(flags, problem, capsys):
    assert main(["calibrate", *flags]) == 2
    assert problem in capsys.readouterr().err
