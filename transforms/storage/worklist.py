"""The work list of a job: which images make which unit of work, written once and read unit by unit.

It lies on disk, since the pipeline's graph has no room for a million paths: workers get (file, row group)
and read their unit's images themselves. Layout: <root>/plan/<file>.parquet, a row group per unit.
"""

import dataclasses
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.storage import files
from transforms.types import ImageRef, ImageUnit

WORKLIST_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("landmark_id", pa.string()),
        pa.field("version", pa.int64(), nullable=False),
    ]
)

NO_VERSION = -1

UNIT_NAME = r"\d{6}-[0-9a-f]{16}"  # a regular expression

_UNITS_PER_FILE = 64


@dataclasses.dataclass(frozen=True)
class ListedUnit:
    """A unit by name and place in the work list.

    Attributes:
      name: of the unit, in the order of the image ids.
      images: how many it has.
      file: number of the file of the list.
      row_group: of that file.
    """

    name: str
    images: int
    file: int
    row_group: int


def unit_size(images: int) -> int:
    """Images per unit, from their number alone: 8 to 64, so that small sets show progress and large ones have
    few files.
    """
    return min(64, max(8, -(-images // 64)))


def make_units(images: Sequence[ImageRef], settings: Any) -> list[ImageUnit]:
    """Splits images into units, in ascending order of landmark and image_id, so that images of a landmark lie
    together.

    Args:
      settings: JSON-able; all that the features depend on beside the images. A unit's name has a digest of it
        and of its images, so that a shard of this name holds just these features.
    """
    size = unit_size(len(images))
    ordered = sorted(images, key=lambda ref: (ref.landmark_id or "", ref.image_id))
    groups = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
    return [ImageUnit(_unit_name(at, group, settings), group) for at, group in enumerate(groups)]


def is_of_others(unit: ImageUnit, settings: Any) -> bool:
    """Whether a unit has a name of `make_units`, and not the one that it gives with these settings."""
    named = re.fullmatch(UNIT_NAME, unit.name)
    return named is not None and unit.name != _unit_name(int(unit.name[:6]), unit.images, settings)


def _unit_name(position: int, images: Sequence[ImageRef], settings: Any) -> str:
    content = json.dumps([settings, [dataclasses.astuple(ref) for ref in images]], sort_keys=True)
    return f"{position:06d}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def places(units: Sequence[ImageUnit]) -> list[ListedUnit]:
    """Where each of `units` stands in their list."""
    return [
        ListedUnit(unit.name, len(unit.images), *divmod(position, _UNITS_PER_FILE))
        for position, unit in enumerate(units)
    ]


def write_worklist(root: str, units: Sequence[ImageUnit]) -> list[ListedUnit]:
    """Writes the work list of `units` below `root` and returns where each stands in it."""
    for file, start in enumerate(range(0, len(units), _UNITS_PER_FILE)):
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, WORKLIST_SCHEMA) as writer:
            for unit in units[start : start + _UNITS_PER_FILE]:
                rows = [dataclasses.asdict(ref) for ref in unit.images]
                writer.write_table(
                    pa.Table.from_pylist(rows, WORKLIST_SCHEMA), row_group_size=max(1, len(rows))
                )
        files.write_bytes(_file_uri(root, file), buffer.getvalue())
    return places(units)


def read_unit(root: str, listed: ListedUnit) -> ImageUnit:
    """Reads one unit from the list below `root`."""
    parquet = pq.ParquetFile(io.BytesIO(files.read_bytes(_file_uri(root, listed.file))))
    rows = parquet.read_row_group(listed.row_group, use_threads=False).to_pylist()
    return ImageUnit(listed.name, tuple(ImageRef(**row) for row in rows))


def read_worklist(root: str, only: Collection[str] | None = None) -> list[ImageRef]:
    """The photographs of the list below `root`, in its order, or `only` those with these ids; none where
    there is no list. Earlier lists know no versions: those are NO_VERSION.
    """
    refs = []
    for uri in files.list_files(files.join(root, "plan"), ".parquet"):
        rows = files.read_parquet(uri)
        if only is not None:
            rows = rows.filter(pc.is_in(rows["image_id"], value_set=pa.array(sorted(only), pa.string())))
        refs += [ImageRef(**{"version": NO_VERSION, **row}) for row in rows.to_pylist()]
    return refs


def label_counts(root: str) -> Counter[str]:
    """How many photographs of the list below `root` have each label."""
    counts: Counter[str] = Counter()
    for uri in files.list_files(files.join(root, "plan"), ".parquet"):
        for pair in pc.value_counts(files.read_parquet(uri, ["landmark_id"]).column("landmark_id")):
            counts[pair["values"].as_py()] += pair["counts"].as_py()
    return counts


def unit_count(root: str) -> int:
    """The number of units of the list below `root`."""
    uris = files.list_files(files.join(root, "plan"), ".parquet")
    return sum(pq.ParquetFile(io.BytesIO(files.read_bytes(uri))).num_row_groups for uri in uris)


def listed_image_ids(root: str) -> Iterator[str]:
    """The ids of all images of the list below `root`, ascending."""
    for uri in files.list_files(files.join(root, "plan"), ".parquet"):
        yield from files.read_parquet(uri, ["image_id"]).column("image_id").to_pylist()


def _file_uri(root: str, file: int) -> str:
    return files.join(root, "plan", f"{file:06d}.parquet")


@dataclasses.dataclass
class ReadUnits(beam.PTransform):
    """ListedUnits -> ImageUnits, each read from the list below `root`."""

    root: str

    def expand(self, listed: beam.PCollection[ListedUnit]) -> beam.PCollection[ImageUnit]:
        # Spread the few bytes of a ListedUnit, not the unit: references too are many in a unit.
        return listed | "Spread" >> beam.Reshuffle() | "ReadUnit" >> beam.ParDo(_ReadUnit(self.root))


@beam.typehints.with_input_types(ListedUnit)
@beam.typehints.with_output_types(ImageUnit)
class _ReadUnit(beam.DoFn):
    def __init__(self, root: str):
        self._root = root

    def process(self, listed: ListedUnit) -> Iterable[ImageUnit]:
        yield read_unit(self._root, listed)
