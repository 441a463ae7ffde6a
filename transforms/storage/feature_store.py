"""Feature stores on disk: the features of an index, or of the queries of a run.

A feature store holds a shard per unit of work, under the unit's name:

    <root>/local_features/<unit>.bin   blocks of local features, one per image, see `encode_local_features`
    <root>/failures/<unit>.parquet     FAILURE_SCHEMA; only where an image of the unit failed
    <root>/summaries/<unit>.json       number of images, size and checksum of each file, see
    `FeatureStore.summary`
    <root>/images/<unit>.parquet       `image_schema`; written last: a unit with this file is done

Units that were changed since have names of their own, see overlays.py. Every file is written once, whole or
not at all (`files.write_bytes`).
"""

import dataclasses
import re
import struct
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.arrays.quantization import quantized, with_lengths
from transforms.storage import files
from transforms.storage.files import FileRecord
from transforms.storage.overlays import (
    CHANGED_UNIT,
    Changes,
    compacted_name,
    is_overlaid,
    overlaid,
    overlaid_name,
    overlay_table,
    shard_of,
)
from transforms.types import (
    Failure,
    FeatureLocation,
    ImageFeatures,
    LocalFeatures,
    QuantizedFeatures,
    ReadingConfig,
)

FAILURE_SCHEMA = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("limit", pa.string()),
        pa.field("needed", pa.int64()),
    ]
)


def image_schema(dimensions: int) -> pa.Schema:
    """Columns of an image shard; `dimensions` is the width of the global descriptor."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("landmark_id", pa.string()),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("image_scale", pa.float32(), nullable=False),
            pa.field("local_count", pa.int32(), nullable=False),
            pa.field("local_offset", pa.int64(), nullable=False),
            pa.field("local_size", pa.int32(), nullable=False),
            pa.field("warning", pa.string()),
            pa.field(
                "global_descriptor",
                pa.list_(pa.field("item", pa.float32(), nullable=False), dimensions),
                nullable=False,
            ),
        ]
    )


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """What is recorded of a finished shard.

    Attributes:
      unit: its name.
      images: their number.
      files: records of its files, by path below the store's root.
    """

    unit: str
    images: int
    files: Mapping[str, FileRecord]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ShardSummary":
        """Reads what `dataclasses.asdict` made of one."""
        records = {name: FileRecord(**record) for name, record in value["files"].items()}
        return cls(value["unit"], value["images"], records)


_BLOCK_HEADER = struct.Struct("<IIf")
_HALF_RANGE = 32767  # of int16


def encode_local_features(local: LocalFeatures) -> bytes:
    """One image's block: count and width (uint32), step (float32), keypoints (int16 [N, 2], in steps),
    quantized descriptors (int8 [N, D]), little endian.

    The step is the image's largest coordinate over 32767, 0.02 px of 640. No features are no bytes.
    """
    if not len(local):
        return b""
    descriptors = quantized(local).descriptors
    step = np.float32(max(np.abs(local.keypoints).max(), 1.0) / _HALF_RANGE)
    keypoints = np.rint(local.keypoints / step).clip(-_HALF_RANGE, _HALF_RANGE)
    header = _BLOCK_HEADER.pack(*descriptors.shape, step)
    return header + keypoints.astype("<i2").tobytes() + descriptors.tobytes()


def decode_local_features(block: bytes) -> QuantizedFeatures:
    """The local features of an image's block.

    Raises:
      ValueError: the block's length does not fit its header.
    """
    if not block:
        return with_lengths(np.zeros((0, 2), np.float32), np.zeros((0, 0), np.int8))
    count, width, step = _BLOCK_HEADER.unpack_from(block.ljust(_BLOCK_HEADER.size, b"\0"))
    if len(block) != _BLOCK_HEADER.size + count * (4 + width):
        raise ValueError(f"a block of {len(block)} bytes cannot hold {count} local features of width {width}")
    keypoints = np.frombuffer(block, "<i2", count * 2, _BLOCK_HEADER.size).reshape(count, 2)
    descriptors = np.frombuffer(block, np.int8, count * width, _BLOCK_HEADER.size + count * 4)
    return with_lengths(keypoints * np.float32(step), descriptors.reshape(count, width))


@dataclasses.dataclass(frozen=True)
class FeatureStore:
    """A feature store under `root`, a folder on any Beam file system; see the module's text for its
    layout.
    """

    root: str

    def _path(self, part: str, unit: str) -> str:
        return files.join(self.root, self._name(part, shard_of(unit)))

    @staticmethod
    def _name(part: str, unit: str) -> str:
        return f"{part}/{unit}" + (".bin" if part == "local_features" else ".parquet")

    def _summary_path(self, unit: str) -> str:
        return files.join(self.root, "summaries", unit + ".json")

    def _overlay_path(self, unit: str) -> str:
        return files.join(self.root, "overlays", unit + ".parquet")

    def has_unit(self, unit: str) -> bool:
        """Whether the shard of `unit` is done."""
        return files.exists(self._path("images", unit))

    def current(self) -> list[tuple[str, int]]:
        """The units that count, and how many images each has: those that the manifest of an index names, or,
        where there is none, all that are done.
        """
        uri = files.join(self.root, "manifest.json")
        if files.exists(uri):
            return [(shard["unit"], shard["images"]) for shard in files.read_json(uri)["shards"]]
        return [(shard.unit, shard.images) for shard in self.summaries(self.units())]

    def units(self) -> list[str]:
        """Names of the finished shards, sorted."""
        return [
            uri.rsplit("/", 1)[-1][: -len(".parquet")]
            for uri in files.list_files(files.join(self.root, "images"), ".parquet")
        ]

    def write_unit(
        self, unit: str, features: Sequence[ImageFeatures], failures: Sequence[Failure], dimensions: int
    ) -> None:
        """Writes the shard of `unit`: what its images gave, in the order given, and which failed. A finished
        shard is left alone.

        Args:
          dimensions: width of the global descriptor; an image of another width is an error.

        Raises:
          ValueError: a global descriptor is not `dimensions` wide.
        """
        if self.has_unit(unit):
            return
        blocks = [encode_local_features(f.local) for f in features]
        sizes = [len(b) for b in blocks]
        offsets = np.cumsum([0, *sizes])[:-1]
        for f in features:
            if f.global_descriptor.shape != (dimensions,):
                raise ValueError(
                    f"global descriptor of {f.ref.image_id}: shape {f.global_descriptor.shape}, not "
                    f"({dimensions},)"
                )
        descriptors = np.array([f.global_descriptor for f in features], np.float32).reshape(
            len(features), dimensions
        )
        schema = image_schema(dimensions)
        table = pa.Table.from_arrays(
            [
                pa.array([f.ref.image_id for f in features], pa.string()),
                pa.array([f.ref.landmark_id for f in features], pa.string()),
                pa.array([f.ref.uri for f in features], pa.string()),
                pa.array([f.width for f in features], pa.int32()),
                pa.array([f.height for f in features], pa.int32()),
                pa.array([f.image_scale for f in features], pa.float32()),
                pa.array([len(f.local) for f in features], pa.int32()),
                pa.array(offsets, pa.int64()),
                pa.array(sizes, pa.int32()),
                pa.array([f.warning or None for f in features], pa.string()),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(descriptors.reshape(-1)), type=schema.field("global_descriptor").type
                ),
            ],
            schema=schema,
        )
        self._write(unit, table, b"".join(blocks), failure_table(failures))

    def write_projected(
        self, unit: str, source: "FeatureStore", of: str, project: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Writes the shard of `unit`, which has the images of the unit `of` of a store, but for their global
        descriptors: what `project` makes of these, float32 [N, D] to [N, D']. A finished shard is left alone.
        """
        if self.has_unit(unit):
            return
        table = source.read_images(of)
        descriptors = project(descriptors_of(table))
        schema = image_schema(descriptors.shape[1])
        columns = {name: table.column(name) for name in table.column_names}
        columns["global_descriptor"] = pa.FixedSizeListArray.from_arrays(
            pa.array(descriptors.reshape(-1)), type=schema.field("global_descriptor").type
        )
        local = files.read_bytes(source._path("local_features", of))
        self._write(unit, pa.table(columns, schema=schema), local, source.failures([of]))

    def write_changes(self, unit: str, changes: Changes) -> ShardSummary:
        """Writes the overlay of a unit that may have one, with further changes; returns the summary of the
        unit that it is then. Changes that leave everything as the shard has it are none.
        """
        shard = shard_of(unit)
        merged = {**self.read_changes(unit), **changes}
        labels = labels_in(files.read_parquet(self._path("images", shard), ["image_id", "landmark_id"]))
        merged = {name: to for name, to in merged.items() if to is None or to != labels.get(name)}
        name, below = overlaid_name(shard, merged), self.summary(shard)
        if not merged:
            return below
        content = files.parquet_bytes(overlay_table(merged))
        removed = sum(to is None and name in labels for name, to in merged.items())
        records = {**below.files, f"overlays/{name}.parquet": files.content_record(content)}
        summary = ShardSummary(name, below.images - removed, records)
        files.write_bytes(self._overlay_path(name), content)
        files.write_json(self._summary_path(name), dataclasses.asdict(summary))
        return summary

    def read_changes(self, unit: str) -> dict[str, str | None]:
        """What the overlay of a unit says; nothing for one without."""
        if not is_overlaid(unit):
            return {}
        return labels_in(files.read_parquet(self._overlay_path(unit)))

    def compact(self, unit: str) -> ShardSummary:
        """Writes the shard of a unit without what its overlay removed; returns the summary of that."""
        name = compacted_name(unit)
        if not self.has_unit(name):
            table, blocks = self.read_images(unit), files.read_bytes(self._path("local_features", unit))
            places = list(zip(*(table.column(c).to_pylist() for c in ("local_offset", "local_size"))))
            at = table.column_names.index("local_offset")
            offsets = pa.array(np.cumsum([0, *(size for _, size in places)])[:-1], pa.int64())
            table = table.set_column(at, table.schema.field(at), offsets)
            local = b"".join(blocks[start : start + size] for start, size in places)
            self._write(name, table, local, self.failures([unit]))
        return self.summary(name)

    def _write(self, unit: str, table: pa.Table, local: bytes, failures: pa.Table) -> None:
        """Writes the files of the shard of a unit, the one that makes it done last."""
        contents = {"local_features": local, "images": files.parquet_bytes(table)}
        if len(failures):
            contents["failures"] = files.parquet_bytes(failures)
        else:  # of an attempt that was killed
            files.delete(self._path("failures", unit))
        records = {self._name(part, unit): files.content_record(data) for part, data in contents.items()}
        images = contents.pop("images")
        for part, data in contents.items():
            files.write_bytes(self._path(part, unit), data)
        summary = ShardSummary(unit, len(table), records)
        files.write_json(self._summary_path(unit), dataclasses.asdict(summary))
        files.write_bytes(self._path("images", unit), images)

    def discard(self, unit: str) -> None:
        """Makes the shard of `unit` unfinished again."""
        files.delete(self._path("images", unit))

    def prune(self, keep: Collection[str]) -> None:
        """Deletes what there is of units that are none of `keep`, nor lie below one of them."""
        kept = {*keep, *map(shard_of, keep)}
        # The first makes a unit done.
        for part in ("images", "summaries", "failures", "local_features", "overlays"):
            for uri in files.list_files(files.join(self.root, part), ""):
                unit = uri.rsplit("/", 1)[-1].rpartition(".")[0]
                if re.fullmatch(CHANGED_UNIT, unit) and unit not in kept:
                    files.delete(uri)

    def summary(self, unit: str) -> ShardSummary:
        """What is recorded of a finished shard."""
        return ShardSummary.from_json(files.read_json(self._summary_path(unit)))

    def summaries(self, units: Sequence[str]) -> list[ShardSummary]:
        """The summaries of many finished shards, in their order."""
        return files.read_all(self.summary, units)

    def read_images(self, unit: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The image table of a unit (`image_schema`), or some of its columns."""
        if not is_overlaid(unit):
            return files.read_parquet(self._path("images", unit), columns)
        needed = None if columns is None else [*{"image_id": 0, **dict.fromkeys(columns)}]
        table = files.read_parquet(self._path("images", unit), needed)
        table = overlaid(table, files.read_parquet(self._overlay_path(unit)))
        return table if columns is None else table.select(list(columns))

    def read_units(self, units: Iterable[str], columns: Sequence[str]) -> list[pa.Table]:
        """Some columns of the image tables of many units, in their order."""
        return files.read_all(lambda unit: self.read_images(unit, columns), units)

    def read_local(self, location: FeatureLocation) -> QuantizedFeatures:
        """Local features of one image, by one ranged read; empty for a location of size 0."""
        if not location.size:
            return decode_local_features(b"")
        return decode_local_features(
            files.read_bytes(self._path("local_features", location.unit), location.offset, location.size)
        )

    def let_in(self, units: Sequence[str], reading: ReadingConfig) -> list[str]:
        """Those of these units in which an image failed for a limit that lets it in now, see `Failure`."""
        wanted = {self._path("failures", unit): unit for unit in units}
        uris = [
            uri for uri in files.list_files(files.join(self.root, "failures"), ".parquet") if uri in wanted
        ]
        tables = files.read_all(files.read_parquet, uris)
        return [wanted[uri] for uri, table in zip(uris, tables) if images_let_in(table, reading)]

    def failures(self, units: Sequence[str]) -> pa.Table:
        """The failure rows of these units, sorted by image_id, without those of what was removed."""
        wanted = {self._path("failures", unit) for unit in units if not is_overlaid(unit)}
        found = [read_failures(files.join(self.root, "failures"), wanted)]
        for unit in filter(is_overlaid, units):
            if files.exists(uri := self._path("failures", unit)):
                removed = [name for name, to in self.read_changes(unit).items() if to is None]
                rows = files.read_parquet(uri)
                found.append(
                    rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(removed, pa.string()))))
                )
        return _by_image(found)


def descriptors_of(images: pa.Table) -> np.ndarray:
    """The column global_descriptor of an image table as float32 [N, D], without a copy where it is one
    chunk.
    """
    column = images.column("global_descriptor").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)


def labels_in(images: pa.Table) -> dict[str, str | None]:
    """The column landmark_id of an image table by its image_id."""
    return dict(zip(*(images.column(name).to_pylist() for name in ("image_id", "landmark_id"))))


def failure_table(failures: Iterable[Failure]) -> pa.Table:
    """Failures as a table of FAILURE_SCHEMA."""
    return pa.Table.from_pylist([dataclasses.asdict(f) for f in failures], FAILURE_SCHEMA)


def images_let_in(failures: pa.Table, reading: ReadingConfig) -> set[str]:
    """The ids of images that failed for a limit which lets them in now, see `Failure`."""
    if "limit" not in failures.column_names:  # of an earlier version
        return set()
    rows = failures.select(["image_id", "limit", "needed"]).to_pylist()
    return {row["image_id"] for row in rows if reading.lets_in(row["limit"], row["needed"])}


def read_failures(folder: str, only: Container[str] | None = None) -> pa.Table:
    """The failure tables in `folder`, or `only` some of them, as one; sorted by image_id and stage."""
    uris = [uri for uri in files.list_files(folder, ".parquet") if only is None or uri in only]
    return _by_image(files.read_all(files.read_parquet, uris))


def _by_image(failures: Iterable[pa.Table]) -> pa.Table:
    # Earlier tables have no limits.
    table = pa.concat_tables([FAILURE_SCHEMA.empty_table(), *failures], promote_options="default")
    return table.sort_by([("image_id", "ascending"), ("stage", "ascending")])
