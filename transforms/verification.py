"""Geometric verification: do a query and a candidate show the same surface, seen from two places?

Local features of both are matched, a homography is fitted to the matches by RANSAC, and the matches that
agree with it, the inliers, are counted.
"""

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import cv2
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from transforms.arrays.matching import putative_matches
from transforms.processes.settings import one_thread
from transforms.processes.threads import map_ahead
from transforms.storage import files
from transforms.storage.feature_store import FeatureStore
from transforms.storage.object_stores import READS_IN_FLIGHT
from transforms.storage.overlays import shard_of
from transforms.types import (
    Candidate,
    CandidateUnit,
    Failure,
    FeatureLocation,
    QuantizedFeatures,
    QueryCandidates,
    VerificationSettings,
)

MIN_MATCHES = 5
"""Fewer putative matches than this are no evidence: four always fit a homography."""

SAME_VIEW = 0.6
"""From this part of the inliers on two photographs are one view. Chosen on the first part of the photographs
(benchmarks/audit.py).
"""

MAX_VIEW_ERROR = 4.0  # px of the query as it was fed to the model
MIN_VIEW_SHARE = 0.1  # of the query's local features are inliers: fewer are no copy, and not looked at

# Of a worker with 2 cores, the whole process, with room to spare (benchmarks/README.md, "Choices").
MIN_RAM = "2GB"


@dataclasses.dataclass(frozen=True)
class Verified:
    """What verification found in one pair of images.

    Attributes:
      inliers: number of matches that agree with the homography.
      matches: int32 [M, 2], putative matches: index of the query's local feature, index of the candidate's.
      inlier_mask: bool [M], which of them are inliers.
    """

    inliers: int
    matches: np.ndarray
    inlier_mask: np.ndarray


def pair_seed(query_id: str, candidate_id: str) -> int:
    """Seed of RANSAC for a pair of images, in [0, 2^31): the same on every machine and in every order."""
    key = f"{len(query_id)}:{query_id}{candidate_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little") & 0x7FFFFFFF


def count_inliers(
    query_points: np.ndarray, candidate_points: np.ndarray, settings: VerificationSettings, seed: int
) -> tuple[int, np.ndarray]:
    """Fits a homography from the candidate to the query to matched points and counts the matches that agree
    with it.

    A match agrees when its candidate point, mapped by the homography, lies less than sqrt(2)
    max_reprojection_error pixels from its query point: both points are off, and between views of one size
    moving each by half of that distance d makes them fit, a reprojection error of sqrt((d/2)^2 + (d/2)^2)
    (Hartley and Zisserman, Multiple View Geometry, section 4.2.3; pydegensac, which the competition's
    notebook calls, measures it by the Sampson error, to first order).

    The direction matters: without a mutual check many query features share one candidate feature, and a
    homography from the query that throws everything onto such a point would have them all as inliers; from
    the candidate it has one at most. Fewer than MIN_MATCHES matches have no inliers.

    Args:
      query_points, candidate_points: float32 [M, 2], (y, x) in pixels; row m of both is match m.
      settings: max_reprojection_error, max_ransac_iterations and homography_confidence are used.
      seed: of the random samples; in [0, 2^31).

    Returns:
      The number of inliers and bool [M], which they are.
    """
    if len(query_points) < MIN_MATCHES:
        return 0, np.zeros(len(query_points), bool)
    params = cv2.UsacParams()
    params.threshold = math.sqrt(2) * settings.max_reprojection_error
    params.maxIterations = settings.max_ransac_iterations
    params.confidence = settings.homography_confidence
    params.randomGeneratorState = seed
    params.score = cv2.SCORE_METHOD_RANSAC  # seeks what is counted, the number of inliers
    params.loMethod = cv2.LOCAL_OPTIM_INNER_LO
    params.final_polisher = cv2.NONE_POLISHER  # of thousands of pairs it changes the inliers of none
    source = np.ascontiguousarray(candidate_points[:, ::-1], np.float32)
    target = np.ascontiguousarray(query_points[:, ::-1], np.float32)
    homography, mask = cv2.findHomography(source, target, params)
    if homography is None:
        return 0, np.zeros(len(query_points), bool)
    mask = mask.ravel().astype(bool)
    return int(mask.sum()), mask


def verify_pair(
    query_id: str,
    query: QuantizedFeatures,
    candidate_id: str,
    candidate: QuantizedFeatures,
    settings: VerificationSettings,
) -> Verified:
    """Verifies one candidate of a query; an image without local features has no matches and no inliers."""
    matches = putative_matches(query, candidate, settings)
    inliers, mask = count_inliers(
        query.keypoints[matches[:, 0]],
        candidate.keypoints[matches[:, 1]],
        settings,
        pair_seed(query_id, candidate_id),
    )
    return Verified(inliers, matches, mask)


@dataclasses.dataclass
class VerifyCandidates(beam.PTransform):
    """CandidateUnits as retrieved -> the same, their candidates verified.

    Local features are read where they lie, each image's by one ranged read. Where what is read is no block of
    features the unit gets a Failure of stage "verify", and the `inliers` of what could not be verified stay
    None. A shard that cannot be read, or is cut short, is an error: a later start, with the
    shard mended, goes on from there.

    Attributes:
      index: folder of the index, a feature store.
      queries: folder of the queries' feature store.
      settings: how pairs are verified.
      enabled: False where the model has no local features: nothing is read, `inliers` stays None.
      deadline: as time.time() tells it. Queries that are not verified by then stay as they are, and their
        units are not final. With a deadline the most promising units come first, see
        QueryCandidates.promise, since a verified query outranks those that are not
        (benchmarks/README.md, "Choices").
      promising_first: False where what is verified in time is to be a fair sample: with a deadline the units
        come in an order that has nothing to do with their queries.
    """

    index: str
    queries: str
    settings: VerificationSettings = VerificationSettings()
    enabled: bool = True
    deadline: float = math.inf
    promising_first: bool = True

    def expand(self, units: beam.PCollection[CandidateUnit]) -> beam.PCollection[CandidateUnit]:
        verify = _Verify(
            FeatureStore(self.index),
            FeatureStore(self.queries),
            self.settings,
            self.enabled,
            self.deadline,
            _promise_of if self.promising_first else _hash_of,
        )
        # Retrieval ends with few keys on few workers; ids and numbers are cheap to spread again.
        return units | "Spread" >> beam.Reshuffle() | "Verify" >> beam.ParDo(verify)


@beam.typehints.with_input_types(CandidateUnit)
@beam.typehints.with_output_types(CandidateUnit)
class _Verify(beam.DoFn):
    """Verifies one query at a time, so that its own features are read once for all its candidates."""

    def __init__(
        self,
        index: FeatureStore,
        queries: FeatureStore,
        settings: VerificationSettings,
        enabled: bool,
        deadline: float,
        order: Callable[[CandidateUnit], Any],
    ):
        self._index, self._queries, self._settings, self._enabled, self._deadline = (
            index,
            queries,
            settings,
            enabled,
            deadline,
        )
        self._order = order
        self._waiting: list[CandidateUnit] = []
        self._in = Metrics.counter("landmarks", "verify_in")
        self._out = Metrics.counter("landmarks", "verify_out")
        self._pairs = Metrics.counter("landmarks", "verify_pairs")
        self._failed = Metrics.counter("landmarks", "verify_failed")
        self._milliseconds = Metrics.distribution("landmarks", "verify_milliseconds")

    def setup(self) -> None:
        self._held = contextlib.ExitStack()
        self._held.enter_context(one_thread)
        readers = ThreadPoolExecutor(READS_IN_FLIGHT, "read")  # has no thread until it is used
        self._readers = self._held.enter_context(readers)

    def teardown(self) -> None:
        self._held.close()

    def start_bundle(self) -> None:
        self._waiting = []

    def process(self, unit: CandidateUnit) -> Iterable[CandidateUnit]:
        if self._deadline == math.inf:
            yield self._verify_unit(unit)
        else:
            self._waiting.append(unit)

    def finish_bundle(self) -> Iterable[WindowedValue]:
        for unit in sorted(self._waiting, key=self._order):
            yield GlobalWindows.windowed_value_at_end_of_window(self._verify_unit(unit))

    def _verify_unit(self, unit: CandidateUnit) -> CandidateUnit:
        started = time.monotonic()
        self._in.inc(len(unit.queries))
        failures = list(unit.failures)
        by_promise = sorted(unit.queries, key=lambda query: (-query.promise, query.image_id))
        queries = sorted(
            (self._verify(query, failures) for query in by_promise), key=lambda query: query.image_id
        )
        self._failed.inc(len(failures) - len(unit.failures))
        self._out.inc(len(queries))
        self._milliseconds.update(round(1000 * (time.monotonic() - started)))
        return CandidateUnit(unit.name, tuple(queries), tuple(failures), final=not self._late())

    def _late(self) -> bool:
        return time.time() >= self._deadline

    def _verify(self, query: QueryCandidates, failures: list[Failure]) -> QueryCandidates:
        """The query with its candidates verified where that is possible in time; what could not be read goes
        to `failures`.
        """
        verified = self._count_inliers(query, failures) if self._enabled else None
        return (
            query
            if verified is None
            else dataclasses.replace(query, candidates=tuple(verified), verified=True)
        )

    def _count_inliers(self, query: QueryCandidates, failures: list[Failure]) -> list[Candidate] | None:
        """Candidates with their inliers; None where the query's own features cannot be read, or not in
        time.
        """
        if self._late():
            return None
        local = _read(self._queries, query.image_id, query.location)
        if isinstance(local, Failure):
            failures.append(local)
            return None
        candidates = []
        for candidate, other in zip(query.candidates, self._read_all(query.candidates)):
            if self._late():
                return None
            if isinstance(other, Failure):
                failures.append(other)
            else:
                verified = verify_pair(query.image_id, local, candidate.image_id, other, self._settings)
                candidate = dataclasses.replace(candidate, inliers=verified.inliers)
                self._pairs.inc()
            candidates.append(candidate)
        return candidates

    def _read_all(self, candidates: Sequence[Candidate]) -> Iterator[QuantizedFeatures | Failure]:
        def read(candidate: Candidate) -> QuantizedFeatures | Failure:
            return _read(self._index, candidate.image_id, candidate.location)

        remote = not files.is_local(
            self._index.root
        )  # where an answer takes longer to begin than a pair to verify
        return (
            map_ahead(self._readers, read, candidates, READS_IN_FLIGHT) if remote else map(read, candidates)
        )


def _promise_of(unit: CandidateUnit) -> tuple[float, str]:
    return -max((query.promise for query in unit.queries), default=-1.0), unit.name


def _hash_of(unit: CandidateUnit) -> bytes:
    return hashlib.blake2b(unit.name.encode()).digest()


def _read(store: FeatureStore, image_id: str, location: FeatureLocation) -> QuantizedFeatures | Failure:
    try:
        return store.read_local(location)
    except ValueError as e:
        uri = files.join(store.root, "local_features", shard_of(location.unit) + ".bin")
        return Failure("verify", image_id, uri, "unreadable_features", f"{type(e).__name__}: {e}")


def similarity_share(query_points: np.ndarray, candidate_points: np.ndarray) -> float:
    """The part of matched points, in [0, 1], that one similarity transform (a turn, a scale and a shift)
    explains to MAX_VIEW_ERROR.

    A photograph taken again from elsewhere, or a moment later by hand, agrees by a homography alone; a copy
    that was encoded again, cropped or scaled agrees by a similarity, to a few pixels.

    Args:
      query_points, candidate_points: float32 [M, 2], (y, x) in pixels; row m of both is match m.
    """
    if len(query_points) < MIN_MATCHES:
        return 0.0
    source, target = (np.ascontiguousarray(points[:, ::-1]) for points in (candidate_points, query_points))
    _, mask = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=MAX_VIEW_ERROR
    )
    return 0.0 if mask is None else float(mask.mean())


@dataclasses.dataclass
class MeasureViews(beam.PTransform):
    """Verified CandidateUnits -> the same, the `score` of each candidate being `similarity_share` of its
    inliers; 0 for those with few.

    Attributes:
      index: folder of the candidates' feature store.
      queries: folder of the queries'.
      settings: that candidates were verified by.
    """

    index: str
    queries: str
    settings: VerificationSettings

    def expand(self, units: beam.PCollection[CandidateUnit]) -> beam.PCollection[CandidateUnit]:
        return units | "Views" >> beam.ParDo(
            _Views(FeatureStore(self.index), FeatureStore(self.queries), self.settings)
        )


@beam.typehints.with_input_types(CandidateUnit)
@beam.typehints.with_output_types(CandidateUnit)
class _Views(beam.DoFn):
    def __init__(self, index: FeatureStore, queries: FeatureStore, settings: VerificationSettings) -> None:
        self._index, self._queries, self._settings = index, queries, settings

    def process(self, unit: CandidateUnit) -> Iterator[CandidateUnit]:
        with one_thread:
            queries = tuple(map(self._measured, unit.queries))
        yield dataclasses.replace(unit, queries=queries)

    def _measured(self, query: QueryCandidates) -> QueryCandidates:
        best = max((candidate.inliers or 0 for candidate in query.candidates), default=0)
        if not query.verified or best < MIN_MATCHES:
            return query
        local, candidates = self._queries.read_local(query.location), []
        for candidate in query.candidates:
            if (candidate.inliers or 0) >= max(MIN_MATCHES, MIN_VIEW_SHARE * len(local)):
                other = self._index.read_local(candidate.location)
                pair = verify_pair(query.image_id, local, candidate.image_id, other, self._settings)
                inliers = pair.matches[pair.inlier_mask]
                points = local.keypoints[inliers[:, 0]], other.keypoints[inliers[:, 1]]
                candidate = dataclasses.replace(candidate, score=similarity_share(*points))
            candidates.append(candidate)
        return dataclasses.replace(query, candidates=tuple(candidates))
