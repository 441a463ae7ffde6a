"""What pairs of images say about labels: on arrays alone."""

import numpy as np
import pytest

from transforms.arrays import label_audit
from transforms.arrays.label_audit import (
    components,
    confirmations,
    confirmations_needed,
    kept_copies,
    label_pairs,
    label_votes,
    learn,
    pair_probabilities,
)


def pairs(*found):
    """(first, second, probability) of pairs as arrays."""
    first, second, probability = zip(*found)
    return np.array(first), np.array(second), np.array(probability, float)


def test_a_photograph_among_those_of_another_label_is_mislabelled():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 0])  # the last is among those of label 1
    found = label_votes(
        *pairs((0, 1, 0.9), (1, 2, 0.9), (4, 5, 0.9), (4, 6, 0.9), (4, 7, 0.95), (5, 7, 0.9), (0, 7, 0.1)),
        labels,
    )
    assert found.mislabelled.tolist() == [7]
    assert (found.label[7], found.neighbor[7]) == (1, 4)
    assert found.best[7] == pytest.approx(1.85) and found.own[7] == pytest.approx(0.1)
    assert found.label[2] == -1 and found.neighbor[2] == -1 and found.own[2] == pytest.approx(0.9)


def test_votes_are_those_of_the_best_neighbours_alone_and_ties_go_to_the_lower_label():
    labels = np.array([0, 1, 1, 1, 1, 2, 2, 2])
    many = pairs(*((0, n, 0.5 + n / 100) for n in range(1, 5)), *((0, n, 0.53) for n in range(5, 8)))
    found = label_votes(*many, labels)
    assert found.best[0] == pytest.approx(0.52 + 0.53 + 0.54) and found.label[0] == 1
    assert found.neighbor[0] == 4
    equal = label_votes(*pairs((0, 1, 0.5), (0, 5, 0.5)), labels)
    assert equal.label[0] == 1


@pytest.mark.parametrize("next_, named", [(0.4, [0]), (0.8, [])])
def test_a_third_of_the_next_label_speaks_against_the_best(next_, named):
    labels = np.array([0, 0, 1, 1, 2, 2])
    known = (0, 1, 0.2), (0, 2, 0.9), (0, 3, 0.9), (2, 3, 0.9), (4, 5, 0.9)
    found = label_votes(*pairs(*known, (0, 4, next_), (0, 5, next_)), labels)
    assert (found.own[0], found.best[0], found.second[0]) == pytest.approx((0.2, 1.8, 2 * next_))
    assert found.label[0] == 1 and found.mislabelled.tolist() == named
    assert found.second[1:].tolist() == [0] * 5 and found.label[1] == -1


def test_of_two_that_show_the_same_under_two_labels_neither_is_called_mislabelled():
    assert label_votes(*pairs((0, 1, 0.999)), np.array([0, 1, 0, 1])).mislabelled.tolist() == []


def test_of_copies_the_first_of_the_label_with_most_votes_is_kept():
    first, labels = np.array([0, 0, 2, 0, 2, 0, 6]), np.array([1, 0, 1, 0, 0, 0, 2])
    own = np.array([0.5, 0.7, 0.2, 1.9, 0.2, 1.8, 0])
    kept, votes = kept_copies(first, labels, own)
    assert kept.tolist() == [1, 1, 2, 1, 2, 1, 6]  # of label 0 with 1.9; of equal labels the first; alone
    assert votes.tolist() == [0.5, 1.9, 0.2, 1.9, 0.2, 1.9, 0]
    assert [len(array) for array in kept_copies(*np.zeros((2, 0), int), np.zeros(0))] == [0, 0]


def test_confirmations_are_of_the_own_label_and_needed_by_its_size():
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3])
    found = pairs((0, 1, 0.9), (0, 2, label_audit.CONFIRMED), (1, 2, 0.4), (0, 3, 0.9))
    assert confirmations(*found, labels).tolist() == [2, 1, 1] + [0] * 11
    assert confirmations_needed(labels).tolist() == [1, 1, 1, 1, 1, 0] + [3] * 8


def test_labels_whose_photographs_confirm_each_other_look_like_one_place():
    labels = np.repeat([0, 1, 2, 3], 4)
    found = pairs((0, 4, 0.9), (1, 5, 0.95), (2, 4, 0.9), (8, 12, 0.9), (8, 13, 0.9), (3, 8, 0.2))
    result = label_pairs(*found, labels, 0.3)
    assert (result.first.tolist(), result.second.tolist()) == ([0], [1])
    assert result.pairs.tolist() == [3] and result.share.tolist() == [0.75]
    assert result.example.tolist() == [[1, 5]]  # 8 alone of label 2 is no place
    assert len(label_pairs(*found, labels, 0.8).first) == 0
    assert len(label_pairs(*found, labels, 0.2, least=1).first) == 2


def test_components_are_those_of_a_search():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 300, (2, 200))
    found, neighbors = components(first, second, 300), {n: set() for n in range(300)}
    for a, b in zip(first.tolist(), second.tolist()):
        neighbors[a].add(b), neighbors[b].add(a)
    for start in range(300):
        seen, pending = {start}, [start]
        while pending:
            more = neighbors[pending.pop()] - seen
            seen |= more
            pending += more
        assert found[start] == min(seen)
    chain = np.arange(999)
    assert (components(chain, chain + 1, 1000) == 0).all()
    assert components(chain[:0], chain[:0], 3).tolist() == [0, 1, 2]


def test_probabilities_are_learned_from_the_pairs_themselves():
    rng = np.random.default_rng(0)
    same = rng.random(4000) < 0.4
    inliers = np.where(same, rng.poisson(40, 4000), rng.poisson(8, 4000))
    similarity = np.where(same, 0.5, 0.4) + rng.normal(0, 0.1, 4000)
    found = pair_probabilities(similarity, inliers, learn(similarity, inliers, same))
    assert found[same].mean() > 0.95 and found[~same].mean() < 0.05
    nothing = np.zeros(4000, int)
    without = pair_probabilities(similarity, nothing, learn(similarity, nothing, same))
    assert without[same].mean() > without[~same].mean() + 0.1
    pair = np.array([0.9, 0.1]), np.array([300, 2])
    few = pair_probabilities(*pair, learn(*pair, np.array([True, True])))
    assert few[0] > 0.9 and few[1] < 0.1


def test_no_pairs_say_nothing():
    none, labels = (np.zeros(0, int), np.zeros(0, int), np.zeros(0)), np.array([0, 0, 1])
    assert label_votes(*none, labels).mislabelled.tolist() == []
    assert confirmations(*none, labels).tolist() == [0, 0, 0]
    assert len(label_pairs(*none, labels, 0.3).first) == 0
    assert len(pair_probabilities(none[2], none[0], learn(none[2], none[0], none[0] > 0))) == 0
