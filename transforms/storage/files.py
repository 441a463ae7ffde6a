"""Whole files on this machine, in object stores and on any file system that Beam knows: atomic writes, ranged
reads, JSON and Parquet.

A file written here is whole or absent. What fails in passing is tried again.

- Locally it is written beside its place under a hidden temporary name, and renamed.
- In an object store (s3://, gs://) nothing can be renamed, and nothing needs to be: a store shows an object
  only when the last byte that the request announced has arrived. A writer that dies before leaves nothing.
  What stood there before stays until then.
- On another file system of Beam (hdfs://) it is written in place. A killed writer can leave a part there;
  what a job's records vouch for is compared with its size before it is used (beam_pipeline/integrity.py).
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import pathlib
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.storage.object_stores import READS_IN_FLIGHT, Entry, store_of
from transforms.storage.uris import is_local, join, member_of

_TEMPORARY = ".tmp"

_BUFFER = 4 << 20  # of a column of a Parquet file, read at a time

# Seconds before the second, third and fourth attempt.
_DELAYS = (0.2, 1.0, 5.0)

# Errors that waiting does not mend; any other of the system's may pass.
_LASTING = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EEXIST,
    errno.EXDEV,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ENXIO,
    errno.ENODEV,
    errno.EBADF,
}
_LASTING_TYPES = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)

_T = TypeVar("_T")
_R = TypeVar("_R")


def is_transient(error: Exception) -> bool:
    """Whether what failed may succeed when it is tried again: errors of the system that are not lasting,
    memory that others have, and HTTP's 408, 429 and 5xx.
    """
    if isinstance(error, MemoryError):
        return True
    status = getattr(error, "code", getattr(error, "status_code", None))  # of the object stores' clients
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    return (
        isinstance(error, OSError) and not isinstance(error, _LASTING_TYPES) and error.errno not in _LASTING
    )


def retried(attempt: Callable[[], _T]) -> _T:
    """What `attempt` returns; after a transient error it is called again, up to three times, after longer and
    longer waits.

    Raises:
      Exception: what the last attempt raised, or the first that is not transient.
    """
    for delay in _DELAYS:
        try:
            return attempt()
        except Exception as e:
            if not is_transient(e):
                raise
            logging.warning("%s: %s; trying again in %g s", type(e).__name__, e, delay)
            time.sleep(delay)
    return attempt()


def read_all(read: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """What `read` gives for each of the items, in their order; several at a time: an object store takes a
    while for each.
    """
    with ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="landmarks") as pool:
        return list(pool.map(read, items))


def absolute(path: str) -> str:
    """A local path from the root on, without what changes nothing in it ("./", "//"); an address stays."""
    return str(pathlib.Path(path).absolute()) if is_local(path) else path


def same_file(a: str, b: str) -> bool:
    """Whether two URIs name one file that is there."""
    if is_local(a) and is_local(b):
        return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)
    return a == b and exists(a)


def place_in(root: str, uri: str) -> str:
    """How an output in `root` names a place: from there where it lies in it, so that both can be moved, else
    from everywhere; `place_of` finds it again.
    """
    if is_local(root) and is_local(uri):
        for resolve in (os.path.abspath, os.path.realpath):  # a link in `root` is in it, wherever it leads
            inside = os.path.relpath(resolve(uri), resolve(root))
            if inside.split(os.sep)[0] != os.pardir:
                return inside
    elif uri.startswith(join(root, "")):
        return uri[len(join(root, "")) :]
    return absolute(uri)


def place_of(root: str, place: str) -> str:
    """The place that an output in `root` names.

    Earlier outputs have paths as they were typed: those hold in the folder that they were typed in.
    """
    if not is_local(place) or os.path.isabs(place):
        return place
    found = join(root, place)
    return place if is_local(root) and os.path.exists(place) and not os.path.exists(found) else found


def version_of(status: os.stat_result) -> int:
    """A number that is another when a local file was written, or replaced, in the meantime: the time of its
    last change in nanoseconds, which also tells of tools that set the time of modification back.
    """
    return max(status.st_mtime_ns, status.st_ctime_ns)


def exists(uri: str) -> bool:
    """Whether a file stands at `uri`; locally also a folder, which object stores do not have."""
    return os.path.exists(uri) if is_local(uri) else remote_entry(uri) is not None


def remote_entry(uri: str) -> Entry | None:
    """Size and time of a file that is not on this machine; None where there is none."""
    return retried(lambda: store_of(uri).entry(uri))


def remote_entries(folder: str, descend: bool = True) -> Iterator[Entry]:
    """The files in a folder that is not on this machine, and, with `descend`, below it; none where there is
    no such folder.
    """
    return store_of(folder).list(folder.rstrip("/") + "/", descend)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole file; folders are made as needed. A reader sees the old content, or all of the new.

    Raises:
      OSError: the file cannot be written; nothing is left under `uri`'s name.
    """
    retried(lambda: _write_local(uri, data) if is_local(uri) else store_of(uri).write(uri, data))


def _write_local(uri: str, data: bytes) -> None:
    folder, name = os.path.split(os.path.abspath(uri))
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, uri)
    except BaseException as e:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(e, OSError) and e.errno is not None:  # of a write it names no file
            raise OSError(e.errno, e.strerror, uri) from e
        raise


def read_bytes(uri: str, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes of a file, or of a member of a tar file, from `offset`; all from there when size is None.

    Raises:
      OSError: the file cannot be read, or is none (a pipe or a device may never end).
      EOFError: it ends before `size` bytes.
    """
    if member := member_of(uri):
        size = max(0, member.size - offset) if size is None else size
        return read_bytes(member.archive, member.offset + offset, size)
    data = retried(
        lambda: _read_local(uri, offset, size) if is_local(uri) else store_of(uri).read(uri, offset, size)
    )
    if size is not None and len(data) != size:
        raise EOFError(f"{uri} ends at byte {offset + len(data)}, {offset + size} expected")
    return data


def swap_remote(uri: str, old: bytes | None, new: bytes) -> bool:
    """Replaces the content `old` of a file that is not on this machine by `new`, None standing for no file;
    gives whether it was so.

    Of several that try at once only one succeeds: S3 and GCS write on the condition that nothing was written
    meanwhile. Another file system of Beam writes, reads back and believes.

    Raises:
      OSError: the file cannot be read or written.
    """
    return retried(lambda: store_of(uri).swap(uri, old, new))


def _read_local(path: str, offset: int, size: int | None) -> bytes:
    with _open_local(path) as f:
        if offset:
            f.seek(offset)
        return f.read() if size is None else f.read(size)


def _open_local(path: str) -> BinaryIO:
    # Opening a pipe waits for its writer, unless O_NONBLOCK is set; on a file the flag does nothing.
    opened = open(  # noqa: SIM115
        path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    )
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return opened


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a file's content, by which damage to it is found."""

    bytes: int
    sha256: str


def content_record(data: bytes) -> FileRecord:
    """The record of a file's content."""
    return FileRecord(len(data), hashlib.sha256(data).hexdigest())


def list_files(folder: str, suffix: str) -> list[str]:
    """URIs of the files in `folder` (not below it) whose name ends in `suffix`, sorted; none where there is
    no folder.
    """
    if is_local(folder):
        if not os.path.isdir(folder):
            return []
        names = [
            n for n in retried(lambda: os.listdir(folder)) if n.endswith(suffix) and not n.startswith(".")
        ]
        return [os.path.join(folder, n) for n in sorted(names)]
    return sorted(_remote_sizes(folder, suffix))


def file_sizes(folder: str, suffix: str) -> dict[str, int]:
    """Bytes by URI of the files that `list_files` lists."""
    if is_local(folder):
        return {uri: os.path.getsize(uri) for uri in list_files(folder, suffix)}
    return _remote_sizes(folder, suffix)


def _remote_sizes(folder: str, suffix: str) -> dict[str, int]:
    return {
        e.uri: e.size
        for e in retried(lambda: list(remote_entries(folder, descend=False)))
        if e.uri.endswith(suffix)
    }


def delete(uri: str) -> None:
    """Deletes a file; fine where there is none."""
    if is_local(uri):
        with contextlib.suppress(FileNotFoundError):
            os.remove(uri)
    else:
        retried(lambda: store_of(uri).delete(uri))


def delete_empty(folder: str) -> None:
    """Deletes a local folder where nothing is in it; object stores have none."""
    if is_local(folder):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def write_json(uri: str, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys; NaN is refused, since it is no JSON."""
    write_bytes(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The content of a JSON file, see `write_json`; what `json.loads` makes of it gives the same bytes
    again.
    """
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(uri: str) -> Any:
    """Reads a JSON file.

    Raises:
      ValueError: the file is no JSON; the text names it.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as e:
        raise ValueError(f"{uri} is not valid JSON: {e}") from e


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file's content, uncompressed: descriptors do not compress, and reading them has to be
    fast.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="NONE", use_dictionary=False)
    return buffer.getvalue()


def write_parquet(uri: str, table: pa.Table) -> None:
    """Writes a Parquet file, see `parquet_bytes`."""
    write_bytes(uri, parquet_bytes(table))


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a Parquet file, or some of its columns, in file order.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no whole Parquet file; the text names it.
    """
    try:
        if is_local(uri):
            return retried(
                lambda: pq.ParquetFile(uri, memory_map=True).read(columns=columns, use_threads=False)
            )
        return pq.ParquetFile(io.BytesIO(read_bytes(uri))).read(columns=columns, use_threads=False)
    except pa.ArrowInvalid as e:
        raise ValueError(f"{uri} is no whole Parquet file: {e}") from e


def open_parquet(uri: str) -> pq.ParquetFile:
    """A Parquet file of which only what is asked for is read; closed as a context manager.

    Raises:
      OSError: the file cannot be read.
      pa.ArrowInvalid: it is no whole Parquet file.
    """
    if is_local(uri):
        _open_local(uri).close()  # a pipe would be waited for
        return pq.ParquetFile(uri, buffer_size=_BUFFER, pre_buffer=False)
    entry = remote_entry(uri)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, "no such file", uri)
    source = pa.PythonFile(Ranged(uri, entry.size), mode="r")
    return pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False)


class Ranged(io.RawIOBase):
    """A file of so many bytes, read by range."""

    def __init__(self, uri: str, size: int):
        self._uri, self._size, self._at = uri, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        data = read_bytes(self._uri, self._at, end - self._at) if end > self._at else b""
        self._at += len(data)
        return data


def parquet_rows(uri: str) -> int:
    """Number of rows of a Parquet file, without reading them; errors as `read_parquet`."""
    try:
        return pq.read_metadata(uri if is_local(uri) else io.BytesIO(read_bytes(uri))).num_rows
    except pa.ArrowInvalid as e:
        raise ValueError(f"{uri} is no whole Parquet file: {e}") from e
