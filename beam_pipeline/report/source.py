"""A run, read for a report: its tables, what of it is shown whole, and cards of that."""

import dataclasses
import heapq
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline import outputs
from beam_pipeline.config import ReportConfig
from beam_pipeline.manifest import IndexManifest, RunManifest
from beam_pipeline.matches import (
    STORED_COLUMNS,
    StoredImage,
    changed_photographs,
    find_images,
    read_index,
    stored_images,
    with_name,
)
from beam_pipeline.report.answers import (
    Answers,
    Comparison,
    JudgedAnswers,
    Landmarks,
    Pick,
    batches,
    threshold_of,
)
from beam_pipeline.report.cards import CandidateCard, LandmarkCard, QueryCard, class_sums
from beam_pipeline.report.pictures import SIDE, Lines, Photograph, thumbnail_size
from transforms.storage import files, tables
from transforms.storage.feature_store import FeatureStore, read_failures

CANDIDATES = 3  # shown of a query
EXAMPLES = 3  # photographs shown of a landmark in the index
STRIP = 6  # queries shown of a landmark, of either kind


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of a run before anything is shown.

    Attributes:
      config: what is asked for.
      manifest, index: of the run and its index.
      names: of landmarks, by id.
      answers, judged, compared, landmarks: see there; None without a truth, or another run.
      threshold: see `threshold_of`.
      failures: of the run, see FAILURE_SCHEMA.
    """

    config: ReportConfig
    manifest: RunManifest
    index: IndexManifest
    names: Mapping[str, str]
    answers: Answers
    judged: JudgedAnswers | None
    compared: Comparison | None
    landmarks: Landmarks
    threshold: tuple[float | None, str]
    failures: pa.Table

    @classmethod
    def read(cls, config: ReportConfig) -> "Source":
        """Reads the tables of a run.

        Raises:
          ConfigError: there is no such run, or its index is gone.
          TableError, ValueError: a table is wrong, or does not fit the run.
          OSError: a file cannot be read.
        """
        manifest = outputs.read_manifest(config.run, RunManifest)
        index = read_index(config.run, manifest)
        other = outputs.read_manifest(config.against, RunManifest) if config.against else None
        names = tables.read_names(config.names) if config.names else {}
        truth = tables.read_truth(config.truth) if config.truth else None
        counts = _landmark_counts(manifest.index, index)
        answers, indexed = Answers.read(config.run), pa.array(list(counts), pa.string())
        top_k = manifest.hyperparameters["top_k"]
        judged = JudgedAnswers.of(config.run, answers, truth, indexed, top_k) if truth else None
        compared = None
        if config.against and other:
            others = Answers.read(config.against)
            top_k = other.hyperparameters["top_k"]
            others_judged = JudgedAnswers.of(config.against, others, truth, indexed, top_k) if truth else None
            compared = Comparison.of(answers, judged, others, others_judged)
        return cls(
            config,
            manifest,
            index,
            names,
            answers,
            judged,
            compared,
            Landmarks.of(answers, counts),
            threshold_of(manifest.hyperparameters, answers, judged),
            read_failures(files.join(config.run, "failures")),
        )

    def pick(self) -> Pick:
        """The queries that are shown whole."""
        return Pick.of(self.answers, self.judged, self.compared, self.landmarks, self.config.max_queries)

    def named(self, landmark_id: str | None) -> str | None:
        """A landmark with its name; None for None."""
        return None if landmark_id is None else with_name(landmark_id, self.names)


def _landmark_counts(root: str, index: IndexManifest) -> Counter[str]:
    """How many photographs an index has of each landmark."""
    store, counts = FeatureStore(root), Counter[str]()
    for shard in index.shards:
        landmarks = store.read_images(shard.unit, ["landmark_id"])["landmark_id"].drop_null()
        for row in landmarks.value_counts().to_pylist():
            counts[row["values"]] += row["counts"]
    return counts


@dataclasses.dataclass(frozen=True)
class Shown:
    """The part of a run that is shown whole.

    Attributes:
      rows: predictions with their candidates, by image_id; see run_store.PREDICTION_SCHEMA.
      queries: photographs of the queries that have features, by image_id.
      index: photographs of the index that are shown, by image_id.
      examples: some of each landmark in the index, by landmark_id.
    """

    rows: Mapping[str, Mapping[str, Any]]
    queries: Mapping[str, StoredImage]
    index: Mapping[str, StoredImage]
    examples: Mapping[str, Sequence[StoredImage]]

    @classmethod
    def find(cls, source: Source, positions: np.ndarray, landmarks: Sequence[str] = ()) -> "Shown":
        """Finds the queries at `positions` with their best candidates, and photographs of `landmarks`."""
        ids = source.answers.ids.take(pa.array(positions)).combine_chunks()
        rows: dict[str, dict[str, Any]] = {}
        for table in batches(source.config.run, ["image_id", "candidates"]):
            for row in table.filter(pc.is_in(table["image_id"], value_set=ids)).to_pylist():
                rows[row["image_id"]] = row
        manifest = source.manifest
        queries = find_images(FeatureStore(manifest.query_store), manifest.shards, set(rows))
        wanted = {c["image_id"] for row in rows.values() for c in row["candidates"][:CANDIDATES]}
        index, examples = _index_images(source, wanted, landmarks)
        return cls(rows, queries, index, examples)

    def in_index(self) -> dict[str, StoredImage]:
        """All photographs of the index that are shown, by image_id."""
        return {i.ref.image_id: i for images in self.examples.values() for i in images} | dict(self.index)

    def candidates(self, image_id: str) -> list[StoredImage | None]:
        """The photographs of the candidates of a query that are shown; None where the index has one no
        more.
        """
        return [self.index.get(c["image_id"]) for c in self.rows[image_id]["candidates"][:CANDIDATES]]


def _index_images(
    source: Source, image_ids: set[str], landmarks: Sequence[str]
) -> tuple[dict[str, StoredImage], dict[str, list[StoredImage]]]:
    """Photographs of the index by their ids, and the first EXAMPLES of each landmark, by image_id."""
    store, found = FeatureStore(source.manifest.index), dict[str, StoredImage]()
    ids, of_landmarks = pa.array(sorted(image_ids), pa.string()), pa.array(landmarks, pa.string())
    examples: dict[str, list[StoredImage]] = {landmark_id: [] for landmark_id in landmarks}
    for shard in source.index.shards:
        table = store.read_images(shard.unit, STORED_COLUMNS)
        asked = pc.is_in(table["image_id"], value_set=ids)
        asked = pc.or_(asked, pc.is_in(table["landmark_id"], value_set=of_landmarks))
        for image in stored_images(shard.unit, table.filter(asked)):
            if image.ref.image_id in image_ids:
                found[image.ref.image_id] = image
            first = examples.get(image.ref.landmark_id or "")
            if first is not None:
                first[:] = heapq.nsmallest(EXAMPLES, [*first, image], key=lambda i: i.ref.image_id)
    return found, examples


def photographs(
    images: Sequence[StoredImage],
    wrong: Sequence[str],
    href: Callable[[int], str],
    root: str,
    index: IndexManifest | None = None,
) -> dict[str, Photograph]:
    """Photographs by image_id; `wrong` says by place which could not be read, `href` where the thumbnails of
    the others are. How many were changed since the output `root` was made is said on standard error, see
    `changed_photographs`.
    """
    changed = changed_photographs([image.ref for image in images], root, index)
    if changed:
        print(
            f"landmarks: {len(changed):,} of {len(images):,} photographs of {root} were changed since their "
            "features were found; they are marked",
            file=sys.stderr,
        )
    return {
        image.ref.image_id: Photograph(
            image.ref.image_id,
            image.ref.uri,
            "" if problem else href(number),
            *thumbnail_size(image),
            image.ref.uri in changed,
        )
        for number, (image, problem) in enumerate(zip(images, wrong))
    }


def query_cards(
    source: Source,
    positions: np.ndarray,
    shown: Shown,
    queries: Mapping[str, Photograph],
    index: Mapping[str, Photograph],
    lines: Mapping[str, Sequence[Sequence[Lines]]],
) -> list[QueryCard]:
    """The cards of the queries at `positions`, in their order; `lines` by image_id, for each candidate."""
    answers, judged, compared = source.answers, source.judged, source.compared
    failed = dict(zip(source.failures["image_id"].to_pylist(), source.failures["uri"].to_pylist()))
    answered = answers.table.take(pa.array(positions)).to_pylist()
    truths = judged.truth.take(pa.array(positions)).to_pylist() if judged else [None] * len(positions)
    before = compared.landmark.take(pa.array(positions)).to_pylist() if compared else [None] * len(positions)
    cards = []
    for at, answer, truth, previous in zip(positions.tolist(), answered, truths, before):
        image_id, confidence = answer["image_id"], float(answers.confidence[at])
        found = shown.rows[image_id]["candidates"]
        candidates = [
            CandidateCard(
                index.get(c["image_id"]) or Photograph(c["image_id"], "", "", SIDE, SIDE * 3 // 4),
                with_name(c["landmark_id"], source.names),
                c["similarity"],
                c.get("augmented"),
                c["inliers"],
                c["score"],
                None if truth is None else c["landmark_id"] in truth,
                of_pair,
            )
            for c, of_pair in zip(found[:CANDIDATES], lines.get(image_id) or [()] * CANDIDATES)
        ]
        cards.append(
            QueryCard(
                queries.get(image_id)
                or Photograph(image_id, failed.get(image_id, ""), "", SIDE, SIDE * 3 // 4),
                answer["landmark_id"],
                source.named(answer["landmark_id"]),
                answers.measure,
                None if np.isnan(confidence) else confidence,
                bool(answer["verified"]),
                candidates,
                max(0, len(found) - CANDIDATES),
                class_sums(found, source.manifest.hyperparameters["top_k"], source.names),
                None if judged is None else str(judged.outcome[at]),
                None if truth is None else [with_name(landmark_id, source.names) for landmark_id in truth],
                truth or (),
                0.0 if judged is None else float(judged.cost[at]),
                None if compared is None else str(compared.change[at]),
                source.named(previous),
                None if compared is None or compared.gain is None else float(compared.gain[at]),
            )
        )
    return cards


def landmark_cards(
    source: Source,
    positions: np.ndarray,
    shown: Shown,
    queries: Mapping[str, Photograph],
    index: Mapping[str, Photograph],
) -> list[LandmarkCard]:
    """The cards of the landmarks that have examples in `shown`, with those of their queries that are at
    `positions`.
    """
    answers, landmarks, (threshold, _) = source.answers, source.landmarks, source.threshold
    right = Counter[str]()
    if source.judged is not None:
        right.update(answers.landmarks.filter(pa.array(source.judged.outcome == "right")).to_pylist())
    ids = answers.ids.take(pa.array(positions)).to_pylist()
    got = answers.landmarks.take(pa.array(positions)).to_pylist()
    own: dict[str, list[tuple[Photograph, float]]] = {}
    for at, image_id, landmark_id in zip(positions.tolist(), ids, got):
        if landmark_id is not None and image_id in queries:
            own.setdefault(landmark_id, []).append((queries[image_id], float(answers.confidence[at])))
    cards = []
    for at, landmark_id in enumerate(landmarks.ids):
        if landmark_id not in shown.examples:
            continue
        members = sorted(own.get(landmark_id, []), key=lambda m: -m[1])
        accepted = [m for m in members if threshold is None or m[1] >= threshold][:STRIP]
        others = [m for m in members if m not in accepted]
        border = threshold or 0.0
        cards.append(
            LandmarkCard(
                landmark_id,
                with_name(landmark_id, source.names),
                int(landmarks.queries[at]),
                None if source.judged is None else right[landmark_id],
                int(landmarks.images[at]),
                float(landmarks.expected[at]),
                bool(landmarks.magnet[at]),
                [(index[image.ref.image_id], None) for image in shown.examples[landmark_id]],
                accepted,
                sorted(others, key=lambda m: abs(m[1] - border))[:STRIP],
            )
        )
    return cards
