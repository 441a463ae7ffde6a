"""Batches of pairs of views. A batch depends on the seed and its number alone, so training resumes with the
same ones.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator

import numpy as np

from training import augment
from training.correspondences import Correspondences
from training.split import Photograph

VERIFIED_PARTNER, LABEL_PARTNER = (
    0.45,
    0.15,
)  # shares of second views that show another photograph, where there is one
FLIPPED = 0.3  # of the pairs; a mirrored landmark is another landmark


@dataclasses.dataclass(frozen=True)
class Batch:
    """B pairs of views.

    Attributes:
      views: uint8 [2 B, side, side, 3]; views b and B + b are a pair.
      classes: int32 [2 B]; views of one class show the same thing.
      places: int32 [2 B]; views of one place but different classes say nothing of each other.
      points: float32 [B, POINTS, 4], (y, x) in the first view and (y, x) in the second, in px.
      valid: bool [B, POINTS].
    """

    views: np.ndarray
    classes: np.ndarray
    places: np.ndarray
    points: np.ndarray
    valid: np.ndarray


class Batches:
    """Draws batches from decoded photographs."""

    def __init__(
        self, photographs: list[Photograph], pixels: list[np.ndarray], found: list[Correspondences], seed: int
    ):
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
        """Batch `number`. Photographs come in a new order in every pass over them."""
        chosen = [self._photograph(number * pairs + slot) for slot in range(pairs)]
        views = np.empty((2 * pairs, side, side, 3), np.uint8)
        points = np.zeros((pairs, augment.POINTS, 4), np.float32)
        valid = np.zeros((pairs, augment.POINTS), bool)
        classes, places = np.zeros((2, pairs), np.int32), np.zeros((2, pairs), np.int32)
        for slot, first in enumerate(chosen):
            rng = np.random.default_rng((self._seed, number, slot))
            _, both, shared = self._pair(first, side, rng)
            flipped = rng.random() < FLIPPED
            for half, view in enumerate(both):
                views[half * pairs + slot] = view[:, ::-1] if flipped else view
            if flipped:
                shared = shared.copy()
                shared[:, [1, 3]] = side - shared[:, [1, 3]]
            points[slot, : len(shared)], valid[slot, : len(shared)] = shared, True
            classes[:, slot] = 2 * self._classes[first] + flipped  # also of a verified partner in an area
            places[:, slot] = self._places[first]
        return Batch(views, classes.ravel(), places.ravel(), points, valid)

    def _photograph(self, drawn: int) -> int:
        count = len(self._pixels)
        return int(np.random.default_rng((self._seed, drawn // count)).permutation(count)[drawn % count])

    def _pair(self, first: int, side: int, rng: np.random.Generator):
        draw = rng.random()
        partners, members = self._partners[first], self._members[self._classes[first]]
        size = self._pixels[first].shape[:2]
        if partners and draw < VERIFIED_PARTNER:
            second, agreed = partners[rng.integers(len(partners))]
            middle = agreed[rng.integers(len(agreed))]
            size2 = self._pixels[second].shape[:2]
            warps = [
                augment.warp(s, side, m * s + rng.normal(0, 0.06, 2) * s, rng)
                for s, m in ((size, middle[:2]), (size2, middle[2:]))
            ]
            shared = augment.inside(
                *(
                    augment.project(w, m * s)
                    for w, m, s in zip(warps, (agreed[:, :2], agreed[:, 2:]), (size, size2))
                ),
                side,
            )
        elif len(members) > 1 and draw > 1 - LABEL_PARTNER:
            second = members[rng.integers(len(members))]
            warps = [
                augment.warp(s, side, augment.centre_of(s, rng), rng)
                for s in (size, self._pixels[second].shape[:2])
            ]
            shared = np.zeros((0, 4))
        else:
            second = first
            centre = augment.centre_of(size, rng)
            warps = [augment.warp(size, side, centre + rng.normal(0, 0.06, 2) * size, rng) for _ in range(2)]
            shared = augment.shared_points(*warps, side, rng)
        views = [
            augment.render(self._pixels[number], warp, side, rng)
            for number, warp in zip((first, second), warps)
        ]
        return second, views, shared.astype(np.float32)
