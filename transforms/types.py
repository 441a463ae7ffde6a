"""The records that travel between steps.

Arrays are NumPy. Coordinates are (y, x) in pixels of the image as it was fed to the model, origin at the top
left. Landmark ids are strings everywhere, so that data sets with names instead of numbers work too.
"""

import dataclasses
import functools
import html
import math
from collections.abc import Callable, Iterable

import numpy as np


class LostError(Exception):
    """The engine lost elements of a pipeline."""


def landmark_order(landmark_ids: Iterable[str]) -> Callable[[str], tuple[int, str, str]]:
    """The sort key of these landmark ids: as numbers where all are decimal integers, else by code point.

    Equal numbers such as "7" and "07" are still two ids: the text decides between them.
    """
    numeric = all(name.isascii() and name.isdecimal() for name in landmark_ids)

    def key(name: str) -> tuple[int, str, str]:
        significant = name.lstrip("0") if numeric else ""
        return len(significant), significant, name

    return key


@dataclasses.dataclass(frozen=True, slots=True)  # the launcher holds one of every photograph
class ImageRef:
    """A photograph to process: where it lies and what it is called.

    Two references are to the same photograph where id, place, size and version are the same: one that was
    changed in place is another.

    Attributes:
      image_id: the file's stem; unique in a data set.
      uri: absolute path, or URI that a Beam file system opens.
      size_bytes: size of the file when it was matched.
      landmark_id: the label; None for a query or an unlabelled image.
      version: of the content when it was matched, see `files.version_of` and `object_stores.Entry`; 0 where
        there was no file.
    """

    image_id: str
    uri: str
    size_bytes: int
    landmark_id: str | None = None
    version: int = 0


@dataclasses.dataclass(frozen=True)
class ImageUnit:
    """A unit of work: images whose features make one shard of a feature store.

    Attributes:
      name: deterministic, from the images and the extraction settings; the name of the shard.
      images: in ascending order of landmark_id and image_id.
    """

    name: str
    images: tuple[ImageRef, ...]


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why one image, or one step of it, gave no result.

    Attributes:
      stage: "read", "decode", "extract" or "verify".
      image_id: the image.
      uri: where it lies.
      kind: a short countable class, such as "empty_file", "truncated", "not_an_image", "too_small".
      message: what happened, for a person.
      limit: the field of ReadingConfig that keeps the image out; None for another reason.
      needed: what that would have to be to let it in.
    """

    stage: str
    image_id: str
    uri: str
    kind: str
    message: str
    limit: str | None = None
    needed: int | None = None


@dataclasses.dataclass(frozen=True)
class ReadingConfig:
    """How photographs are read.

    Attributes:
      exif_orientation: turn photographs as their EXIF orientation says; features depend on it, and not on the
        limits, which may differ whenever a job is started.
      max_image_pixels: larger photographs become failure rows before they are decoded.
      max_image_memory: so do those whose decoding would take more, by a safe estimate; in MB.
    """

    exif_orientation: bool = True
    max_image_pixels: int = 100_000_000
    max_image_memory: int = 480

    def lets_in(self, limit: str | None, needed: int | None) -> bool:
        """Whether what failed for one of these limits (see Failure) would not now."""
        return limit is not None and needed is not None and getattr(self, limit) >= needed

    @property
    def max_bytes(self) -> int:
        """`max_image_memory` in bytes."""
        return 1_000_000 * self.max_image_memory


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """A photograph ready for the model.

    Attributes:
      ref: the photograph.
      pixels: uint8 [height, width, 3], RGB, upright, possibly shrunk.
      width, height: of the upright original, in pixels.
      image_scale: side of `pixels` divided by the side of the original; 1.0 when it was not shrunk.
      warning: what is wrong with the file, though its picture is whole; "" for nothing.
    """

    ref: ImageRef
    pixels: np.ndarray
    width: int
    height: int
    image_scale: float
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class LocalFeatures:
    """Local features of one image, strongest attention first.

    Attributes:
      keypoints: float32 [N, 2], (y, x) in pixels of the image fed.
      descriptors: float32 [N, D], rows of unit length.
    """

    keypoints: np.ndarray
    descriptors: np.ndarray

    def __len__(self) -> int:
        return len(self.keypoints)


@dataclasses.dataclass(frozen=True)
class QuantizedFeatures:
    """Local features as they are stored and matched, see `transforms.arrays.quantization`; of a descriptor
    only the direction matters.

    Attributes:
      keypoints: float32 [N, 2], (y, x) in pixels of the image fed.
      descriptors: int8 [N, D].
      squared_lengths: float64 [N], of the descriptors; whole numbers.
    """

    keypoints: np.ndarray
    descriptors: np.ndarray
    squared_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.keypoints)

    @functools.cached_property
    def shortest_and_longest(self) -> tuple[float, float]:
        """The least and the greatest length of a descriptor, of those that are not 0: at least 1."""
        longest = self.squared_lengths.max(initial=1.0)
        shortest = self.squared_lengths.min(initial=longest)
        if not shortest:
            shortest = self.squared_lengths[self.squared_lengths > 0].min(initial=longest)
        return math.sqrt(shortest), math.sqrt(longest)

    @functools.cached_property
    def has_small_pairs(self) -> bool:
        """Whether the sizes of two neighbouring components, the first and second, the third and fourth and so
        on, add up to at most 128 in every descriptor, see `transforms.arrays.integer_product`.
        """
        if self.descriptors.shape[1] % 2:
            return False
        sizes = np.abs(self.descriptors).view(np.uint16)  # two in one; that of -128 is 128 without a sign
        return bool(((sizes & 255) + (sizes >> 8)).max(initial=0) <= 128)


@dataclasses.dataclass(frozen=True)
class ImageFeatures:
    """What the model gave for one image.

    Attributes:
      ref: the photograph.
      width, height: of the upright original, in pixels.
      image_scale: side of the image fed divided by the side of the original.
      global_descriptor: float32 [D], unit length.
      local: local features; empty for a global-only model.
      warning: see DecodedImage.
    """

    ref: ImageRef
    width: int
    height: int
    image_scale: float
    global_descriptor: np.ndarray
    local: LocalFeatures
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class FeatureLocation:
    """Where the local features of one image lie: a ranged read away.

    Attributes:
      unit: name of the shard in its feature store.
      offset: first byte in the shard's local feature file.
      size: number of bytes; 0 for an image without local features.
    """

    unit: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Neighbors:
    """Index images nearest to each query of a block: row q belongs to query q, columns best first.

    Rows with fewer than K neighbours are padded at the end: similarity -inf, empty ids, size 0. Ids are UTF-8
    bytes (NumPy "S"), whose order is the order of the code points.

    Attributes:
      similarity: float32 [Q, K], cosine of the global descriptors.
      image_id: bytes [Q, K].
      landmark_id: bytes [Q, K].
      unit: bytes [Q, K], name of the index shard that holds the image.
      local_offset: int64 [Q, K], see FeatureLocation.
      local_size: int32 [Q, K], see FeatureLocation.
    """

    similarity: np.ndarray
    image_id: np.ndarray
    landmark_id: np.ndarray
    unit: np.ndarray
    local_offset: np.ndarray
    local_size: np.ndarray

    def location(self, q: int, c: int) -> FeatureLocation:
        """Where the local features of neighbour c of query q lie."""
        unit = self.unit[q, c].decode()
        return FeatureLocation(unit, int(self.local_offset[q, c]), int(self.local_size[q, c]))

    def candidates(self, q: int) -> tuple["Candidate", ...]:
        """The neighbours of query q, without the padding."""
        return tuple(
            Candidate(
                self.image_id[q, c].decode(),
                self.landmark_id[q, c].decode(),
                float(self.similarity[q, c]),
                self.location(q, c),
            )
            for c in np.flatnonzero(self.similarity[q] > -np.inf).tolist()
        )


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An index image proposed for a query.

    Attributes:
      image_id: the index image.
      landmark_id: its label.
      similarity: cosine of the global descriptors, in [-1, 1].
      location: where its local features lie in the index.
      inliers: matches that agree with the homography; None before verification or where it is off.
      score: the total score that candidates are ranked by.
      augmented: cosine of the query's global descriptor and the image's, augmented by those of its label, see
        `transforms.arrays.database_augmentation`; None where the index has none.
    """

    image_id: str
    landmark_id: str
    similarity: float
    location: FeatureLocation
    inliers: int | None = None
    score: float = 0.0
    augmented: float | None = None


@dataclasses.dataclass(frozen=True)
class QueryCandidates:
    """A query with its candidates, most similar first.

    Attributes:
      image_id: the query image.
      location: where its local features lie in the query store.
      candidates: at most num_to_rerank.
      verified: whether its candidates went through geometric verification.
    """

    image_id: str
    location: FeatureLocation
    candidates: tuple[Candidate, ...]
    verified: bool = False

    @property
    def promise(self) -> float:
        """Similarity of the best candidate as retrieved; -1.0 where there is none."""
        return max((c.similarity for c in self.candidates), default=-1.0)


@dataclasses.dataclass(frozen=True)
class VerificationSettings:
    """How pairs are verified; every value is checked.

    Attributes:
      max_distance: descriptors match when their Euclidean distance is below this; in (0, 2], rows have unit
        length.
      max_reprojection_error: in pixels of the image as fed to the model; a match is an inlier where both of
        its points need to move by less than this together, see `transforms.verification.count_inliers`.
      max_ransac_iterations: homographies tried at most.
      homography_confidence: chance of having found the best one at which RANSAC stops; in (0, 1).
      mutual_check: whether each of two matched descriptors must be the nearest of the other.
      ratio_test: the nearest descriptor must be nearer than this times the second nearest; in (0, 1]; None
        for no such test.
    """

    max_distance: float = 0.9
    max_reprojection_error: float = 16.5
    max_ransac_iterations: int = 10_000
    homography_confidence: float = 0.999
    mutual_check: bool = False
    ratio_test: float | None = None

    def __post_init__(self) -> None:
        _check(self, "max_distance", 0 < self.max_distance <= 2, "in (0, 2]")
        pixels = 0 < self.max_reprojection_error < math.inf
        _check(self, "max_reprojection_error", pixels, "a positive number of pixels")
        _check(self, "max_ransac_iterations", self.max_ransac_iterations >= 1, "at least 1")
        _check(self, "homography_confidence", 0 < self.homography_confidence < 1, "in (0, 1)")
        _check(self, "ratio_test", self.ratio_test is None or 0 < self.ratio_test <= 1, "in (0, 1] or None")


@dataclasses.dataclass(frozen=True)
class ScoringSettings:
    """How candidates are scored and become a prediction, see `transforms.arrays.scoring`; every value is
    checked.

    Attributes:
      top_k: so many of the best candidates vote, each with its total score for its landmark.
      max_inlier_score: number of inliers that gives the full geometric score of 1; more add nothing.
      global_weight: weight of the cosine in the total score; not negative.
      augmented_weight: weight of the cosine to the augmented descriptor; not negative.
    """

    top_k: int = 3
    max_inlier_score: int = 60
    global_weight: float = 1.0
    augmented_weight: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "top_k", self.top_k >= 1, "at least 1")
        _check(self, "max_inlier_score", self.max_inlier_score >= 1, "at least 1")
        for name in ("global_weight", "augmented_weight"):
            _check(self, name, 0 <= getattr(self, name) < math.inf, "a number not below 0")


def _check(settings: object, name: str, ok: bool, wanted: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {wanted}, not {getattr(settings, name)!r}")


@dataclasses.dataclass(frozen=True)
class CandidateUnit:
    """A unit of verification: queries whose predictions make one shard.

    Attributes:
      name: deterministic, the name of the shard.
      queries: in ascending order of image_id.
      failures: what verification could not read.
      final: False where time ran out: a later run makes the unit again.
    """

    name: str
    queries: tuple[QueryCandidates, ...]
    failures: tuple[Failure, ...] = ()
    final: bool = True


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one query.

    Attributes:
      image_id: the query image.
      landmark_id: the class with the highest sum; None where nothing can be said.
      score: its sum, the confidence; None where there is no class.
      candidates: in their final order, best total score first.
      verified: as in QueryCandidates.
      probability: that the landmark is right, in [0, 1]; None without a calibration.
    """

    image_id: str
    landmark_id: str | None
    score: float | None
    candidates: tuple[Candidate, ...] = ()
    verified: bool = False
    probability: float | None = None

    def _repr_html_(self) -> str:
        """A table of the candidates, for a notebook."""
        score = "" if self.score is None else f", score {self.score:.3f}"
        head = f"{self.image_id}: {self.landmark_id or 'no landmark'}{score}"
        columns = ("landmark", "image", "similarity", "inliers", "score")
        rows = [
            (
                c.landmark_id,
                c.image_id,
                f"{c.similarity:.3f}",
                "" if c.inliers is None else c.inliers,
                f"{c.score:.3f}",
            )
            for c in self.candidates
        ]
        cells = "".join(
            f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in row)}</tr>"
            for tag, row in [("th", columns), *(("td", row) for row in rows)]
        )
        return f"<table><caption>{html.escape(head)}</caption>{cells}</table>"


@dataclasses.dataclass(frozen=True)
class PredictionUnit:
    """The predictions of a CandidateUnit, under its name.

    Attributes:
      name: of the shard.
      predictions: in ascending order of image_id.
      failures: as in CandidateUnit.
      final: as in CandidateUnit.
    """

    name: str
    predictions: tuple[Prediction, ...]
    failures: tuple[Failure, ...] = ()
    final: bool = True
