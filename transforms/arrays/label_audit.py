"""What pairs of images that show the same say about their labels.

Images are numbers below N, labels too; a pair stands once, with the probability that both images bear one
label. It is learned from the index itself, so that nothing here depends on the model.
"""

import dataclasses

import numpy as np

from transforms.arrays.calibration import Calibration, fit, probabilities

TOP = 3
"""So many of an image's neighbours of a label vote for it."""

MARGIN = 1.1
"""An image is probably mislabelled where another label has so many votes more than its own and a third of
those of the next label together: what resembles many places has votes from each. One neighbour alone never
makes that, as its own label may be the wrong one. Both were chosen on the first two parts of the photographs
(benchmarks/audit.py).
"""

CONFIRMED = 0.5
"""Two images of one label confirm each other from this probability on."""

NEEDED = 3
"""An image is confirmed by so many of its label (Google Landmarks v2 clean: Yokoo et al. 2020), in small
labels by half of the others.
"""

ONE_PLACE = 0.9
"""Two images without labels show one place from this probability on: of what forms a group, one wrong pair
joins two.
"""

MIN_GROUP = 3
"""Images of a group."""

_MIN_PAIRS = 50
# of the embedded model, where there are no labels, or too few, to learn from
TYPICAL = Calibration(-4.5, 4.6, 1.2)


def learn(similarity: np.ndarray, inliers: np.ndarray, same: np.ndarray) -> Calibration:
    """What tells that the images of a pair bear one label, by a logistic regression on pairs: log-odds =
    constant + augmented * cosine + inliers * log(1 + inliers). That of the embedded model where there are too
    few.

    Args:
      similarity: float [P], cosines.
      inliers: int [P]; 0 everywhere for a model without local features.
      same: bool [P], whether the labels are the same, nearly always rightly.
    """
    enough = min(same.sum(), (~same).sum()) >= _MIN_PAIRS
    return fit(_evidence(similarity, inliers), same, np.ones(len(same))) if enough else TYPICAL


def pair_probabilities(similarity: np.ndarray, inliers: np.ndarray, learned: Calibration) -> np.ndarray:
    """float64 [P], how probable it is that the images of a pair bear one label; arguments as `learn`."""
    return probabilities(_evidence(similarity, inliers), learned)


def _evidence(similarity: np.ndarray, inliers: np.ndarray) -> np.ndarray:
    return np.stack([similarity.astype(np.float64), np.log1p(inliers)], axis=1)


@dataclasses.dataclass(frozen=True)
class LabelVotes:
    """How much the neighbours of each image speak for its own label, and for the best two others.

    Attributes:
      own: float64 [N], sum of the TOP highest probabilities.
      best: float64 [N], that of the other label with most.
      second: float64 [N], that of the next one.
      label: int64 [N], whose votes `best` are; -1 where no neighbour bears another.
      neighbor: int64 [N], the neighbour that speaks most for `label`; -1 likewise.
    """

    own: np.ndarray
    best: np.ndarray
    second: np.ndarray
    label: np.ndarray
    neighbor: np.ndarray

    @property
    def mislabelled(self) -> np.ndarray:
        """int64 [M], the images that are probably mislabelled, the most probable first."""
        margin = self.best - self.own - self.second / 3
        found = np.flatnonzero(margin >= MARGIN)
        return found[np.argsort(-margin[found], kind="stable")]


def label_votes(
    first: np.ndarray, second: np.ndarray, probability: np.ndarray, labels: np.ndarray
) -> LabelVotes:
    """The votes of all images; equal ones go to the lower label.

    Args:
      first, second: int64 [P], the images of each pair.
      probability: float64 [P].
      labels: int64 [N].
    """
    image, other = np.concatenate([first, second]), np.concatenate([second, first])
    votes, label = np.concatenate([probability, probability]), labels[other]
    order = np.lexsort((-votes, label, image))
    image, other, label, votes = image[order], other[order], label[order], votes[order]
    begins = np.ones(len(image), bool)
    begins[1:] = (image[1:] != image[:-1]) | (label[1:] != label[:-1])
    group = np.cumsum(begins) - 1
    rank = np.arange(len(image)) - np.flatnonzero(begins)[group]
    total = np.bincount(group, np.where(rank < TOP, votes, 0.0))
    image, other, label = image[begins], other[begins], label[begins]
    mine = label == labels[image]
    own, best, second = np.zeros((3, len(labels)))
    which, neighbor = np.full((2, len(labels)), -1, np.int64)
    own[image[mine]] = total[mine]
    rows = np.flatnonzero(~mine)
    rows = rows[np.lexsort((label[rows], -total[rows], image[rows]))]
    place = np.arange(len(rows)) - np.searchsorted(image[rows], image[rows])
    top, next_ = rows[place == 0], rows[place == 1]
    best[image[top]], which[image[top]], neighbor[image[top]] = total[top], label[top], other[top]
    second[image[next_]] = total[next_]
    return LabelVotes(own, best, second, which, neighbor)


def kept_copies(first: np.ndarray, labels: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the copies of one image the one to keep, int64 [N]: the first of the label with the most votes, of
    equal ones the first of all. And the votes of the label that each bears, float64 [N]: the most that one of
    its copies with that label has.

    Args:
      first: int64 [N], number of the first copy of each image, itself where there is no other.
      labels: int64 [N].
      own: float64 [N], votes for the own label, see `LabelVotes`, of images that are no copies.
    """
    _, which = np.unique(first * (labels.max(initial=0) + 1) + labels, return_inverse=True)
    votes = np.zeros(len(labels))
    np.maximum.at(votes, which, own)
    votes = votes[which]
    order = np.lexsort((-votes, first))
    return order[np.searchsorted(first[order], first)], votes


def confirmations(
    first: np.ndarray, second: np.ndarray, probability: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """int64 [N], how many images of its label confirm each image; arguments as `label_votes`."""
    good = (probability >= CONFIRMED) & (labels[first] == labels[second])
    return np.bincount(np.concatenate([first[good], second[good]]), minlength=len(labels))


def confirmations_needed(labels: np.ndarray) -> np.ndarray:
    """int64 [N], how many each image needs; 0 for the only one of its label."""
    size = np.bincount(labels, minlength=1)[labels]
    return np.minimum(NEEDED, size // 2)


@dataclasses.dataclass(frozen=True)
class LabelPairs:
    """Pairs of labels that look like one place, the likest first.

    Attributes:
      first, second: int64 [L], the labels, first < second.
      pairs: int64 [L], of images that show one place.
      share: float64 [L], the part of the images of the smaller label that show one place with an image of the
        other.
      example: int64 [L, 2], the images, of each label one, that are likeliest to be of one place.
    """

    first: np.ndarray
    second: np.ndarray
    pairs: np.ndarray
    share: np.ndarray
    example: np.ndarray


def label_pairs(
    first: np.ndarray,
    second: np.ndarray,
    probability: np.ndarray,
    labels: np.ndarray,
    share: float,
    least: int = 2,
) -> LabelPairs:
    """Pairs of labels, of whose images at least `least` of each and `share` of the smaller one are confirmed
    by the other's; arguments as `label_votes`.
    """
    good = np.flatnonzero((probability >= ONE_PLACE) & (labels[first] != labels[second]))
    good = good[np.argsort(-probability[good], kind="stable")]
    a, b = first[good], second[good]
    swap = labels[a] > labels[b]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    size, count, wide = np.bincount(labels, minlength=1), len(labels), labels.max(initial=0) + 1
    keys, best, which, pairs = np.unique(
        labels[a] * wide + labels[b], return_index=True, return_inverse=True, return_counts=True
    )
    images = [np.bincount(np.unique(which * count + side) // count, minlength=len(keys)) for side in (a, b)]
    low, high = np.divmod(keys, wide)
    part = np.where(size[low] <= size[high], images[0] / size[low], images[1] / size[high])
    kept = np.flatnonzero((np.minimum(*images) >= least) & (part >= share))
    kept = kept[np.lexsort((keys[kept], -pairs[kept], -part[kept]))]
    example = np.stack([a[best[kept]], b[best[kept]]], axis=1)
    return LabelPairs(low[kept], high[kept], pairs[kept], part[kept], example)


def components(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """int64 [count], the connected component of each image: the lowest number in it."""
    lowest = np.arange(count)
    while True:
        ends = np.minimum(lowest[first], lowest[second])
        before = lowest.copy()
        np.minimum.at(lowest, lowest[first], ends)
        np.minimum.at(lowest, lowest[second], ends)
        lowest = lowest[lowest]
        if (lowest == before).all():
            return lowest
