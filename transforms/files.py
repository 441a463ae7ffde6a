"""Whole files on any file system that Beam knows: atomic writes, ranged reads, JSON and Parquet.

A file written here is whole or absent. Locally it is written beside its place under a hidden temporary name and renamed; an
object store publishes an object when its upload ends, so there it is written in place.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from typing import Any, Optional, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

_TEMPORARY = ".tmp"


def is_local(uri: str) -> bool:
    """Whether `uri` is a path on this machine and not an address such as gs://bucket/file."""
    return "://" not in uri


def join(root: str, *names: str) -> str:
    """`root` and `names` joined by the rules of root's file system."""
    return os.path.join(root, *names) if is_local(root) else "/".join([root.rstrip("/"), *names])


def exists(uri: str) -> bool:
    """Whether a file or folder stands at `uri`."""
    return os.path.exists(uri) if is_local(uri) else FileSystems.exists(uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole file; folders are made as needed. A reader sees the old content, or all of the new.

    Raises:
      OSError: the file cannot be written; nothing is left under `uri`'s name.
    """
    if not is_local(uri):
        with FileSystems.create(uri, compression_type="uncompressed") as f:
            f.write(data)
        return
    folder, name = os.path.split(os.path.abspath(uri))
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, uri)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def read_bytes(uri: str, offset: int = 0, size: Optional[int] = None) -> bytes:
    """`size` bytes of a file from `offset`; all from there when size is None.

    Raises:
      OSError: the file cannot be read.
      EOFError: it ends before `size` bytes.
    """
    opened = open(uri, "rb", buffering=0) if is_local(uri) else FileSystems.open(uri, compression_type="uncompressed")
    with opened as f:
        if offset:
            f.seek(offset)
        data = f.read() if size is None else f.read(size)
    if size is not None and len(data) != size:
        raise EOFError(f"{uri} ends at byte {offset + len(data)}, {offset + size} expected")
    return data


def list_files(folder: str, suffix: str) -> list[str]:
    """URIs of the files in `folder` (not below it) whose name ends in `suffix`, sorted; none where there is no folder."""
    if is_local(folder):
        if not os.path.isdir(folder):
            return []
        names = [n for n in os.listdir(folder) if n.endswith(suffix) and not n.startswith(".")]
        return [os.path.join(folder, n) for n in sorted(names)]
    [result] = FileSystems.match([join(folder, "*" + suffix)])
    return sorted(m.path for m in result.metadata_list)


def delete_tree(folder: str) -> None:
    """Deletes a folder with everything in it; fine where there is none."""
    if exists(folder):
        FileSystems.delete([folder if is_local(folder) else folder.rstrip("/") + "/"])


def delete_temporaries(root: str) -> int:
    """Deletes what killed writers left below a local `root`; returns how many files that were."""
    count = 0
    if is_local(root):
        for folder, _, names in os.walk(root):
            for name in names:
                if name.startswith(".") and name.endswith(_TEMPORARY):
                    os.remove(os.path.join(folder, name))
                    count += 1
    return count


def write_json(uri: str, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys; NaN is refused, since it is no JSON."""
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(uri: str) -> Any:
    """Reads a JSON file.

    Raises:
      ValueError: the file is no JSON; the text names it.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as e:
        raise ValueError(f"{uri} is not valid JSON: {e}") from e


def write_parquet(uri: str, table: pa.Table, row_group_size: Optional[int] = None) -> None:
    """Writes a Parquet file, uncompressed: descriptors do not compress, and reading them has to be fast."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_size, compression="NONE", use_dictionary=False)
    write_bytes(uri, buffer.getvalue())


def read_parquet(uri: str, columns: Optional[Sequence[str]] = None) -> pa.Table:
    """Reads a Parquet file, or some of its columns, in file order."""
    if is_local(uri):
        return pq.ParquetFile(uri, memory_map=True).read(columns=columns, use_threads=False)
    return pq.ParquetFile(io.BytesIO(read_bytes(uri))).read(columns=columns, use_threads=False)


def parquet_rows(uri: str) -> int:
    """Number of rows of a Parquet file, without reading them."""
    return pq.read_metadata(uri if is_local(uri) else io.BytesIO(read_bytes(uri))).num_rows
