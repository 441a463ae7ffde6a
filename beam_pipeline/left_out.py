"""What photographs, tables and an index do not share: a line each on standard error, before the work."""

import sys
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline.config import ConfigError
from beam_pipeline.manifest import IndexManifest
from transforms.patterns import described
from transforms.storage import spelling
from transforms.storage.feature_store import FeatureStore
from transforms.types import ImageRef


def ids_of(images: Sequence[ImageRef]) -> pa.Array:
    """The images' ids, string [N]."""
    return pa.array([ref.image_id for ref in images], pa.string())


def beside(ids: pa.Array, known: pa.Array, place: str) -> str:
    """A remark on the first of `ids` that `known`, which `place` has, spells otherwise; "" where none is."""
    pair = spelling.near(ids, known)
    return f"; {pair[0]!r} is {pair[1]!r} in {place}" if pair else ""


def say_passed_over(photographs: int, passed_over: Mapping[str, int]) -> None:
    """Says how many files beside the photographs were not looked at, by suffix."""
    if passed_over:
        count = f"{photographs:,} photograph" + ("" if photographs == 1 else "s")
        print(f"{count}; passed over: {described(passed_over)}", file=sys.stderr)


def labels_without_image(labels: pa.Array, images: pa.Array, uri: str) -> int:
    """Counts the `labels` (ids of the table at `uri`) that none of `images` has, and says so."""
    used = spelling.index_in(images, labels).drop_null().unique()
    lacking = len(labels) - len(used)
    if lacking:
        rows = pa.array(range(len(labels)), pa.int32())
        first = pc.index(pc.is_in(rows, value_set=used), False).as_py()
        print(
            f"{lacking:,} of {len(labels):,} labels in {uri} have no photograph here, the first is "
            f"{labels[first].as_py()!r}",
            file=sys.stderr,
        )
    return lacking


def wanted_without_image(wanted: pa.Array, images: pa.Array, uri: str) -> None:
    """Says how many ids that a submission wants (of the table at `uri`) no photograph has, and how many
    photographs it does not want.

    Raises:
      ConfigError: it wants none of them.
    """
    lacking = wanted.filter(pc.is_null(spelling.index_in(wanted, images)))
    if len(lacking) == len(wanted):
        near = beside(wanted, images, "the photographs")
        raise ConfigError(
            f"none of the {len(wanted):,} ids in {uri} has a photograph here: it names "
            f"{wanted[0].as_py()!r}, photographs are {images[0].as_py()!r}{near}"
        )
    if len(lacking):
        print(
            f"{len(lacking):,} of {len(wanted):,} ids in {uri} have no photograph here, their rows stay "
            f"empty; the first is {lacking[0].as_py()!r}",
            file=sys.stderr,
        )
    if more := len(images) - (len(wanted) - len(lacking)):
        print(f"{more:,} of {len(images):,} images are not in {uri}, nor in the submission", file=sys.stderr)


def say_other_landmarks(predicted: pa.ChunkedArray, truth: pa.Table, uri: str) -> None:
    """Says that none of the landmarks that were predicted is one of the `truth` (tables.TRUTH_SCHEMA) at
    `uri`, where that is so.
    """
    found = predicted.drop_null().unique()
    wanted = pc.list_flatten(truth.column("landmark_ids").combine_chunks()).unique()
    if len(found) and len(wanted) and pc.index_in(found, value_set=wanted).null_count == len(found):
        print(
            f"no landmark that was predicted is one of {uri}: predicted is {found[0].as_py()!r}, there it "
            f"is {wanted[0].as_py()!r}{beside(found, wanted, uri)}",
            file=sys.stderr,
        )


def landmarks_not_indexed(truth: pa.Table, images: pa.Array, root: str, index: IndexManifest) -> int:
    """Counts the queries whose `truth` (tables.TRUTH_SCHEMA) names landmarks and none that the index in
    `root` has, and says so.
    """
    tables = FeatureStore(root).read_units([shard.unit for shard in index.shards], ["landmark_id"])
    known = pa.concat_tables(tables).column("landmark_id").unique()
    rows = truth.take(spelling.index_in(images, truth.column("image_id").combine_chunks()).drop_null())
    lists = rows.filter(pc.not_equal(rows.column("usage"), "Ignored")).column("landmark_ids").combine_chunks()
    names, parents = pc.list_flatten(lists), pc.list_parent_indices(lists)
    there = pc.is_valid(spelling.index_in(names, known))
    lacking = len(pc.unique(parents)) - len(pc.unique(parents.filter(there)))
    if lacking:
        absent = names.filter(pc.invert(there))
        print(
            f"{lacking:,} of {len(lists):,} queries show a landmark that {root} has no image of, such as "
            f"{absent[0].as_py()!r}{beside(absent, known, 'the index')}",
            file=sys.stderr,
        )
    return lacking
