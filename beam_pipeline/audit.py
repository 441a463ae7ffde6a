"""The audit job: an index searched in itself, for photographs that are twice in it, and for labels that look
wrong.

It says what it found, as tables and as pages to look at, and changes nothing: `landmarks index --remove` and
`--relabel` take its CSVs.
"""

import dataclasses
import hashlib
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import integrity, outputs, runner, self_search
from beam_pipeline.config import AuditConfig, ConfigError
from beam_pipeline.layout import AUDIT_TABLES
from beam_pipeline.manifest import FORMAT, IndexManifest
from beam_pipeline.self_search import Pairs, SelfSearch
from transforms.arrays import label_audit
from transforms.storage import files, tables
from transforms.storage.feature_store import FeatureStore
from transforms.types import FeatureLocation
from transforms.verification import SAME_VIEW

# Candidates for copies of one file: their features are the same to the bit, and so is their cosine to
# themselves.
_SAME = 1 - 1e-5
# Without local features two photographs are one view from this cosine on.
_SAME_GLOBALLY = 0.97
# Two labels look like one place where this part of the smaller one's images is confirmed by the other's.
_SAME_PLACE = 0.3

TABLES = dict(
    zip(
        AUDIT_TABLES,
        (
            "copies of the bytes of another photograph",
            "pairs of photographs that are one view",
            "photographs that probably bear a wrong label",
            "photographs that too few of their label confirm",
            "pairs of labels that look like one place",
        ),
    )
)


@dataclasses.dataclass(frozen=True)
class Audited:
    """The images of an index, and what is known of their pairs.

    Attributes:
      images: their ids, landmarks and places, by id.
      pairs: of them.
      probability: float64 [P], that both bear one label.
      labels: int64 [N], number of each image's landmark in `names`.
      names: the landmarks, ascending.
    """

    images: pa.Table
    pairs: Pairs
    probability: np.ndarray
    labels: np.ndarray
    names: list[str]

    @classmethod
    def of(cls, images: pa.Table, pairs: Pairs) -> "Audited":
        """Finds how probable it is that the images of a pair bear one label."""
        names = pc.unique(images["landmark_id"]).sort()
        labels = pc.index_in(images["landmark_id"], value_set=names).to_numpy().astype(np.int64)
        same = labels[pairs.first] == labels[pairs.second]
        inliers = np.maximum(pairs.inliers, 0)
        learned = label_audit.learn(pairs.similarity, inliers, same)
        probability = label_audit.pair_probabilities(pairs.similarity, inliers, learned)
        return cls(images, pairs, probability, labels, names.to_pylist())

    @property
    def evidence(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What `label_audit` judges by: first, second, probability, labels."""
        return self.pairs.first, self.pairs.second, self.probability, self.labels

    def column(self, name: str, rows: np.ndarray) -> pa.Array:
        """A column of some of the images."""
        return self.images[name].combine_chunks().take(pa.array(rows))

    def near_duplicates(self, exact: np.ndarray) -> np.ndarray:
        """int64 [M], the pairs that are one view, but for copies of one file; `exact`: int64 [N], the number
        of the first of the copies of each image. The likest first.
        """
        pairs = self.pairs
        local = bool((pairs.inliers >= 0).any())
        likeness = pairs.view if local else pairs.similarity.astype(np.float64)
        near = likeness >= (SAME_VIEW if local else _SAME_GLOBALLY)
        found = np.flatnonzero(near & (exact[pairs.first] != exact[pairs.second]))
        return found[np.argsort(-likeness[found], kind="stable")]


def run(config: AuditConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Audits an index, or goes on with that; returns the exit code.

    Raises:
      ConfigError, ValueError, OSError: something is wrong before the pipeline starts.
      OutOfTimeError: the time budget ended before a single photograph was searched for.
      PipelineError: the pipeline failed.
    """
    started = time.monotonic()
    index = outputs.read_manifest(config.index, IndexManifest)
    units = tuple((shard.unit, shard.images) for shard in index.shards if shard.images)
    if not units:
        raise ConfigError(f"{config.index} holds no images: there is nothing to audit")
    settings = self_search.settings_of(index.recipe) if index.has_local_features else None
    search = SelfSearch(config.index, units, config.neighbors, settings, config.output, views=True)
    made_with = {
        "command": "audit",
        "format": FORMAT,
        "index": index.digest(config.index),
        "neighbors": config.neighbors,
        "verification": settings and dataclasses.asdict(settings),
    }
    with outputs.opened(config.output, made_with, config.overwrite) as unfinished:
        if not unfinished:
            print(f"{config.output} is finished; nothing to do")
            return 0
        integrity.check_sizes(config.index, index)
        metrics, late = self_search.run(search, config.budget, options, engine)
        store = FeatureStore(config.index)
        images = self_search.read_images(store, [unit for unit, _ in units])
        image_ids = images["image_id"].combine_chunks()
        pairs = self_search.read_pairs(search, image_ids)
        if settings is not None:
            pairs = pairs[pairs.inliers >= 0]
        audited = Audited.of(images, pairs)
        found = _tables(audited, _exact(store, audited), self_search.searched(search, image_ids))
        files.delete(files.join(config.output, "index.html"))  # of fewer photographs, before time ran out
        for name, table in found.items():
            files.write_parquet(files.join(config.output, f"{name}.parquet"), table)
            tables.write_csv(files.join(config.output, f"{name}.csv"), _for_people(name, table))
        counts = {name: len(table) for name, table in found.items()}
        says = {**made_with, "index_uri": files.place_in(config.output, config.index)}
        sizes = {"images": len(images), "pairs": len(pairs.first)}
        seconds = runner.seconds(started, metrics)
        self_search.finish(search, says, {**sizes, **counts}, late, seconds)
        untold = found["exact_duplicates"]["removable"].to_pylist().count(False)
        _print_summary(config.output, len(images), counts, late, untold)
    return 0


def _exact(store: FeatureStore, audited: Audited) -> tuple[np.ndarray, dict[int, str]]:
    """Copies of one file: int64 [N], the number of the first copy of each image, itself where it is alone;
    and of each that has copies whether its "bytes" tell, or, where a file cannot be read any more, its
    "features".
    """
    pairs = audited.pairs
    alike = pairs.similarity >= _SAME
    suspects = np.unique(np.concatenate([pairs.first[alike], pairs.second[alike]]))

    def content(number: int) -> tuple[str, str]:
        row = {name: audited.images[name][number].as_py() for name in audited.images.column_names}
        try:
            return "bytes", hashlib.sha256(files.read_bytes(row["uri"])).hexdigest()
        except (OSError, EOFError):
            local = store.read_local(FeatureLocation(row["unit"], row["local_offset"], row["local_size"]))
            data = local.keypoints.tobytes() + local.descriptors.tobytes()
            return "features", hashlib.sha256(data).hexdigest()

    contents = dict(zip(suspects.tolist(), files.read_all(content, suspects.tolist())))
    first, proof = np.arange(len(audited.images)), dict[int, str]()
    seen: dict[tuple[str, str], int] = {}
    for number, key in contents.items():
        at = seen.setdefault(key, number)
        if at != number:
            first[number] = at
            proof[at] = proof[number] = key[0]
    return first, proof


def _tables(
    audited: Audited, exact: tuple[np.ndarray, dict[int, str]], searched: np.ndarray
) -> dict[str, pa.Table]:
    """What was found, by name; `searched`: bool [N], which images were."""
    return {
        "exact_duplicates": _exact_table(audited, *exact),
        "near_duplicates": _near_table(audited, audited.near_duplicates(exact[0])),
        "mislabelled": _mislabelled_table(audited),
        "unconfirmed": _unconfirmed_table(audited, searched),
        "label_pairs": _label_pairs_table(audited),
    }


def _exact_table(audited: Audited, first: np.ndarray, proof: dict[int, str]) -> pa.Table:
    """The copies but the one of each that is kept, see `label_audit.kept_copies`. Where their labels are
    different, and the votes do not tell which is right, both stay: that row is not `removable`.
    """
    one, other, probability, labels = audited.evidence
    others = first[one] != first[other]  # copies of each other prove no label
    own = label_audit.label_votes(one[others], other[others], probability[others], labels).own
    kept, votes = label_audit.kept_copies(first, labels, own)
    rows = np.array([number for number in proof if kept[number] != number], np.int64)
    rows = rows[np.lexsort((rows, first[rows]))]
    keep = kept[rows]
    same = labels[keep] == labels[rows]
    return pa.table(
        {
            "kept_image_id": audited.column("image_id", keep),
            "image_id": audited.column("image_id", rows),
            "kept_landmark_id": audited.column("landmark_id", keep),
            "landmark_id": audited.column("landmark_id", rows),
            "kept_votes": votes[keep],
            "votes": votes[rows],
            "removable": same | (votes[keep] - votes[rows] >= label_audit.CONFIRMED),
            "proof": pa.array([proof[row] for row in rows.tolist()], pa.string()),
            "uri": audited.column("uri", rows),
        }
    )


def _near_table(audited: Audited, rows: np.ndarray) -> pa.Table:
    pairs = audited.pairs[rows]
    return pa.table(
        {
            "image_id": audited.column("image_id", pairs.second),
            "other_image_id": audited.column("image_id", pairs.first),
            "landmark_id": audited.column("landmark_id", pairs.second),
            "other_landmark_id": audited.column("landmark_id", pairs.first),
            "similarity": pairs.similarity,
            "inliers": pa.array(pairs.inliers, pa.int32()),
            "view": pairs.view,
            "uri": audited.column("uri", pairs.second),
            "other_uri": audited.column("uri", pairs.first),
        }
    )


def _mislabelled_table(audited: Audited) -> pa.Table:
    votes = label_audit.label_votes(*audited.evidence)
    rows = votes.mislabelled
    return pa.table(
        {
            "image_id": audited.column("image_id", rows),
            "landmark_id": audited.column("landmark_id", rows),
            "suggested_landmark_id": pa.array([audited.names[n] for n in votes.label[rows]], pa.string()),
            "votes": votes.own[rows],
            "suggested_votes": votes.best[rows],
            "next_votes": votes.second[rows],
            "like_image_id": audited.column("image_id", votes.neighbor[rows]),
            "uri": audited.column("uri", rows),
        }
    )


def _unconfirmed_table(audited: Audited, searched: np.ndarray) -> pa.Table:
    confirmed = label_audit.confirmations(*audited.evidence)
    needed = label_audit.confirmations_needed(audited.labels)
    rows = np.flatnonzero(searched & (confirmed < needed))  # the others may be confirmed yet
    rows = rows[np.argsort(confirmed[rows], kind="stable")]
    return pa.table(
        {
            "image_id": audited.column("image_id", rows),
            "landmark_id": audited.column("landmark_id", rows),
            "confirmed_by": pa.array(confirmed[rows], pa.int32()),
            "needed": pa.array(needed[rows], pa.int32()),
            "uri": audited.column("uri", rows),
        }
    )


def _label_pairs_table(audited: Audited) -> pa.Table:
    found = label_audit.label_pairs(*audited.evidence, _SAME_PLACE)
    size = np.bincount(audited.labels, minlength=len(audited.names))
    return pa.table(
        {
            "landmark_id": pa.array([audited.names[n] for n in found.first], pa.string()),
            "other_landmark_id": pa.array([audited.names[n] for n in found.second], pa.string()),
            "images": pa.array(size[found.first], pa.int64()),
            "other_images": pa.array(size[found.second], pa.int64()),
            "pairs": found.pairs,
            "share": found.share,
            "image_id": audited.column("image_id", found.example[:, 0]),
            "other_image_id": audited.column("image_id", found.example[:, 1]),
        }
    )


def _for_people(name: str, table: pa.Table) -> pa.Table:
    """A table as its CSV has it: ids as `id`, and of what is mislabelled the suggested label as
    `landmark_id`, so that `landmarks index` takes it; of copies those that can be removed.
    """
    if name == "exact_duplicates":
        table = table.filter(table["removable"]).drop_columns("removable")
    new = {} if name == "label_pairs" else {"image_id": "id"}
    if name == "mislabelled":
        new |= {"landmark_id": "given_landmark_id", "suggested_landmark_id": "landmark_id"}
    return table.rename_columns([new.get(column, column) for column in table.column_names])


def _print_summary(output: str, images: int, counts: dict[str, int], late: int, untold: int) -> None:
    searched = images - late
    of = f" of {images:,}" if late else ""
    print(f"{output}: {searched:,}{of} photographs searched among themselves")
    for name, text in TABLES.items():
        print(f"{counts[name]:>9,} {text}: {files.join(output, name)}.csv")
    if untold:
        print(
            f"{untold:,} copies bear another label than the one that would be kept, and the votes do not "
            "tell which is right: they are on the page, and not in exact_duplicates.csv"
        )
    if 2 * counts["unconfirmed"] > searched:
        print(
            f"{counts['unconfirmed']:,} of {searched:,} unconfirmed: the model is too weak for this index "
            "for that table; look before you remove"
        )
    if late:
        print(f"{late:,} photographs were not searched for in time: the same command goes on from here")
