"""Batches of pairs of views. A batch depends on the seed and its number alone, so training resumes with the
same ones.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator

import numpy as np

from training import image_augmentation
from training.correspondences import Correspondences
from training.split import Photograph

# Shares of second views that show another photograph, where there is one.
VERIFIED_PARTNER, LABEL_PARTNER = 0.45, 0.15
FLIPPED = 0.3  # of the pairs; a mirrored landmark is another landmark
GROUP = 5  # pairs that follow each other in a batch look alike, as seen by the network before it was tuned
ALIKE = 40  # the most similar photographs of other places that a group is drawn from


@dataclasses.dataclass(frozen=True)
class Batch:
    """B pairs of views.

    Attributes:
      views: uint8 [2 B, side, side, 3]; views b and B + b are a pair.
      classes: int32 [2 B]; views of one class show the same thing.
      places: int32 [2 B]; views of one place but different classes say nothing of each other.
    """

    views: np.ndarray
    classes: np.ndarray
    places: np.ndarray


class Batches:
    """Draws batches from decoded photographs."""

    def __init__(
        self,
        photographs: list[Photograph],
        pixels: list[np.ndarray],
        found: list[Correspondences],
        descriptors: np.ndarray,
        seed: int,
    ):
        """Takes P photographs, their pixels, verified pairs, and global descriptors [P, D] of unit length."""
        self._pixels, self._seed = pixels, seed
        self._partners = collections.defaultdict(list)
        for pair in found:
            self._partners[pair.first].append((pair.second, pair.points))
            self._partners[pair.second].append((pair.first, pair.points[:, [2, 3, 0, 1]]))
        # In an area, a label's photographs show different buildings, so each is a class of its own.
        names = [p.label if p.label and p.kind != "area" else p.id for p in photographs]
        self._classes = np.unique(names, return_inverse=True)[1]
        self._places = np.unique([p.place for p in photographs], return_inverse=True)[1]
        self._members = collections.defaultdict(list)
        for number, label in enumerate(self._classes):
            self._members[label].append(number)
        # Facades without a label may be of one building, so none serves as a near miss of another.
        similarity = descriptors @ descriptors.T
        similarity[self._places[:, None] == self._places[None]] = -np.inf
        similarity[:, [p.kind == "unlabelled" for p in photographs]] = -np.inf
        self._alike = np.argsort(-similarity, kind="stable")[:, :ALIKE]

    def stream(self, start: int, stop: int, pairs: int, side: int) -> Iterator[Batch]:
        """Batches number `start` to `stop` - 1, made a few ahead in the background."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            waiting = collections.deque(
                pool.submit(self.make, number, pairs, side) for number in range(start, min(start + 4, stop))
            )
            for number in range(start + 4, stop + 4):
                yield waiting.popleft().result()
                if number < stop:
                    waiting.append(pool.submit(self.make, number, pairs, side))

    def make(self, number: int, pairs: int, side: int) -> Batch:
        """Batch `number`. The first photographs of its groups come in a new order in every pass over them."""
        groups = -(-pairs // GROUP)
        chosen = []
        for group in range(groups):
            first = self._photograph(number * groups + group)
            rng = np.random.default_rng((self._seed, number, pairs + group))
            alike = self._alike[first]
            chosen += [first, *rng.choice(alike, min(GROUP - 1, len(alike)), replace=False).tolist()]
        views = np.empty((2 * pairs, side, side, 3), np.uint8)
        classes, places = np.zeros((2, pairs), np.int64), np.zeros((2, pairs), np.int64)
        for slot, first in enumerate(chosen[:pairs]):
            rng = np.random.default_rng((self._seed, number, slot))
            both = self._pair(first, side, rng)
            flipped = rng.random() < FLIPPED
            for half, view in enumerate(both):
                views[half * pairs + slot] = view[:, ::-1] if flipped else view
            classes[:, slot] = 2 * self._classes[first] + flipped  # also of a verified partner in an area
            places[:, slot] = self._places[first]
        return Batch(views, classes.ravel(), places.ravel())

    def _photograph(self, drawn: int) -> int:
        count = len(self._pixels)
        return int(np.random.default_rng((self._seed, drawn // count)).permutation(count)[drawn % count])

    def _pair(self, first: int, side: int, rng: np.random.Generator) -> list[np.ndarray]:
        draw = rng.random()
        partners, members = self._partners[first], self._members[self._classes[first]]
        size = self._pixels[first].shape[:2]
        if partners and draw < VERIFIED_PARTNER:
            second, agreed = partners[rng.integers(len(partners))]
            middle = agreed[rng.integers(len(agreed))]
            centres = [m * self._pixels[n].shape[:2] for n, m in ((first, middle[:2]), (second, middle[2:]))]
        elif len(members) > 1 and draw > 1 - LABEL_PARTNER:
            second = members[rng.integers(len(members))]
            centres = [image_augmentation.centre_of(self._pixels[n].shape[:2], rng) for n in (first, second)]
        else:
            second, centres = first, [image_augmentation.centre_of(size, rng)] * 2
        views = []
        for number, centre in zip((first, second), centres):
            size = self._pixels[number].shape[:2]
            warp = image_augmentation.warp(size, side, centre + rng.normal(0, 0.06, 2) * size, rng)
            views.append(image_augmentation.render(self._pixels[number], warp, side, rng))
        return views
