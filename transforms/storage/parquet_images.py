"""Parquet tables as folders of photographs: a column of their bytes, as Hugging Face's data sets have it, or
of their paths.

A row's photograph is read with its row group, of which no other column is; a unit reads each row group once.
"""

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.storage import files
from transforms.storage.uris import Row, image_id_of, row_of

SUFFIX = ".parquet"

_NAMES = ("image", "img", "photo", "picture", "jpg")  # of columns of images, where a table has several
_PATHS = ("path", "file_name", "image", "uri")
_IDS = ("id", "image_id")

_ROWS = 16  # decoded at a time
_HELD_BYTES = 256_000_000  # of photographs read before their turn


class TableOfImagesError(ValueError):
    """A Parquet file without a column of images, or with several; the text names it."""


class Columns(NamedTuple):
    """Where a table has its photographs; each a column, or a field of one as "image.bytes", None for none.

    Attributes:
      bytes: of their content.
      path: of their names, or of where they lie.
      id: of their ids.
    """

    bytes: str | None
    path: str | None
    id: str | None


def columns_of(schema: pa.Schema) -> Columns | None:
    """The columns that hold a table's photographs; None where there is none.

    Raises:
      TableOfImagesError: several may be meant.
    """
    fields = {field.name.casefold(): field for field in schema}
    found = {}
    for name, field in fields.items():
        if pa.types.is_struct(field.type):
            inner = {part.name: part.type for part in field.type}
            if _is_binary(inner.get("bytes")):
                path = f"{field.name}.path" if _is_text(inner.get("path")) else None
                found[name] = f"{field.name}.bytes", path
        elif _is_binary(field.type):
            found[name] = field.name, None
    named = [name for name in _NAMES if name in found]
    if len(found) > 1 and not named:
        raise TableOfImagesError(
            f"several columns of bytes, {', '.join(found)}; call that of the images image"
        )
    content, path = found[named[0] if named else next(iter(found))] if found else (None, None)
    if path is None:
        path = next((fields[n].name for n in _PATHS if n in fields and _is_text(fields[n].type)), None)
    ids = (fields[n] for n in _IDS if n in fields)
    of_ids = next((f.name for f in ids if _is_text(f.type) or pa.types.is_integer(f.type)), None)
    return Columns(content, path, of_ids) if content or path else None


def _is_binary(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


class Photograph(NamedTuple):
    """A row of a table.

    Attributes:
      row: where its bytes lie; None where the table has just their path.
      path: as the table has it; None for none.
      id: likewise; where it has no path either, one made of the row's number.
    """

    row: Row | None
    path: str | None
    id: str | None


def photographs(table: str, content_only: bool) -> list[Photograph] | None:
    """The photographs of a table, in its order; None where it has no column of them.

    Args:
      content_only: a column of paths alone is none.

    Raises:
      TableOfImagesError: see `columns_of`; or it is no whole Parquet file.
      OSError: it cannot be read.
    """
    found: list[Photograph] = []
    with _damage_told(f"{table} is no whole Parquet file"), files.open_parquet(table) as file:
        try:
            columns = columns_of(file.schema_arrow)
        except TableOfImagesError as e:
            raise TableOfImagesError(f"{table} has {e}") from e
        if columns is None or (content_only and columns.bytes is None):
            return None
        for group in range(file.num_row_groups):
            found += _of_group(table, file, group, columns, len(found))
    return found


@contextlib.contextmanager
def _damage_told(what: str) -> Iterator[None]:
    """Turns the errors of Arrow, of which some are the system's by their type alone, into ours."""
    try:
        yield
    except TableOfImagesError:
        raise
    except (pa.ArrowException, OSError) as e:
        if isinstance(e, OSError) and (type(e) is not OSError or e.errno is not None):
            raise
        raise TableOfImagesError(f"{what}: {e}") from e


def _of_group(
    table: str, file: pq.ParquetFile, group: int, columns: Columns, before: int
) -> Iterator[Photograph]:
    count = file.metadata.row_group(group).num_rows
    paths, ids = (
        _texts(file, group, name) if name else [None] * count for name in (columns.path, columns.id)
    )
    there = _has_content(file, group, columns.bytes, count)
    for at, (path, image_id) in enumerate(zip(paths, ids)):
        image_id = image_id or (None if path else row_name(table, before + at))
        row = Row(table, group, at, path or image_id or "") if there[at] else None
        yield Photograph(row, path, image_id)


def row_name(table: str, number: int) -> str:
    """What a photograph is called that has neither a path nor an id."""
    return f"{image_id_of(table).replace('.', '_')}-{number:06d}"  # a dot would begin a suffix


def _texts(file: pq.ParquetFile, group: int, name: str) -> list[str | None]:
    return _leaf(file.read_row_group(group, [name], use_threads=False)).cast(pa.string()).to_pylist()


def _leaf(table: pa.Table) -> pa.ChunkedArray:
    """The one column of a table, or the one field of it."""
    return (table.flatten() if pa.types.is_struct(table.schema.field(0).type) else table).column(0)


def _has_content(file: pq.ParquetFile, group: int, name: str | None, count: int) -> list[bool]:
    """Whether each row has bytes; where some have and some have not, they are read."""
    if name is None:
        return [False] * count
    metadata = file.metadata.row_group(group)
    columns = (metadata.column(at) for at in range(metadata.num_columns))
    statistics = next(column.statistics for column in columns if column.path_in_schema == name)
    if statistics and statistics.has_null_count and statistics.null_count in (0, count):
        return [statistics.null_count == 0] * count
    return [value is not None for value in _contents(file, group, name)]


def _contents(file: pq.ParquetFile, group: int, name: str) -> Iterator[bytes | None]:
    batches = file.iter_batches(_ROWS, row_groups=[group], columns=[name], use_threads=False)
    for batch in batches:
        yield from _leaf(pa.Table.from_batches([batch])).to_pylist()


class RowReader:
    """Reads photographs of tables; of those named beforehand each row group is read once.

    Safe in several threads.
    """

    def __init__(self, uris: Iterable[str] = ()):
        self._wanted: dict[tuple[str, int], list[Row]] = defaultdict(list)
        for uri in uris:
            if row := row_of(uri):
                self._wanted[row.archive, row.group].append(row)
        self._held: dict[tuple[str, int, int], bytes] = {}
        self._lock = threading.Lock()

    def read(self, row: Row) -> bytes:
        """The bytes of a row's photograph.

        Raises:
          TableOfImagesError: the table is damaged, has no such row, or no bytes there.
          OSError: it cannot be read.
        """
        key = row.archive, row.group, row.row
        with self._lock:
            if key in self._held:
                return self._held.pop(key)
            wanted = {r.row for r in self._wanted.pop(key[:2], ())} | {row.row}
            place = f"{row.archive}, row {row.row} of row group {row.group}"
            with _damage_told(f"{place} cannot be decoded"):
                self._read_group(row, wanted)
            if (data := self._held.pop(key, None)) is None:
                raise TableOfImagesError(f"{place} is not there, or has no bytes")
            return data

    def _read_group(self, row: Row, wanted: set[int]) -> None:
        size = sum(map(len, self._held.values()))
        with files.open_parquet(row.archive) as file:
            columns = columns_of(file.schema_arrow)
            if columns is None or columns.bytes is None or row.group >= file.num_row_groups:
                return
            for at, data in enumerate(_contents(file, row.group, columns.bytes)):
                if at in wanted and data is not None and (at == row.row or size < _HELD_BYTES):
                    self._held[row.archive, row.group, at] = data
                    size += len(data)
                if at == max(wanted):
                    break


def place_of(table: str, path: str) -> str:
    """Where the photograph of a path in a table lies: from the table's folder on.

    Raises:
      TableOfImagesError: it leads out of that folder.
    """
    if not files.is_local(path) or os.path.isabs(path):
        return path
    if os.path.normpath(path).split(os.sep)[0] == os.pardir:
        raise TableOfImagesError(f"{table}: {path!r} leads out of the table's folder")
    return files.join(table.rpartition("/")[0] or ".", path)
