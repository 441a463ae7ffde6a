"""Tar files as folders of photographs: where each member lies, so that it is read by range and nothing is
unpacked.

The list of members is made once, from the headers alone, and kept beside the archive as
<archive>.members.parquet, where that place can be written to. It may hold less than the archive does: what
it lacks is not used.
"""

import contextlib
import io
import re
import struct
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.storage import files
from transforms.storage.uris import Member

SUFFIX = ".tar"
LIST_SUFFIX = ".members.parquet"

# What cannot be read by range: there is no finding a member without all that comes before it.
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z", ".rar")

MEMBER_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
    ]
)

_ARCHIVE_BYTES, _REFUSED = b"archive_bytes", b"refused"  # metadata of a list
_BLOCK = tarfile.BLOCKSIZE

# Read at a time in search of headers. A request for a few bytes of an object takes as long as for a few MB.
_LOCAL_WINDOW, _REMOTE_WINDOW = 1 << 12, 1 << 22
_MAX_HEADER = 1 << 20  # of a member, with names of any length in it
_NAMED = 20  # refused members that are named

_MAGICS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class TarError(ValueError):
    """No tar file, or one whose beginning is damaged; the text names it."""


class Contents(NamedTuple):
    """What a tar file holds.

    Attributes:
      members: its files, in their order; a table of MEMBER_SCHEMA.
      refused: a line for each member that cannot be used, and for an archive that ends too early.
    """

    members: pa.Table
    refused: tuple[str, ...] = ()


def contents(archive: str, size: int) -> Contents:
    """The members of a tar file of `size` bytes, from the list beside it where there is one that fits; else
    they are looked for, and the list is made.

    Raises:
      TarError: it is no tar file, or a compressed one.
      OSError: it cannot be read.
    """
    found = _read_list(archive, size)
    if found is None:
        found = scan(archive, size)
        with contextlib.suppress(OSError):  # where nothing can be written, the next start looks again
            write_list(archive, size, found)
    return found


def scan(archive: str, size: int) -> Contents:
    """Looks for the members of a tar file of `size` bytes; see `contents`."""
    rows: list[Member] = []
    refused = []
    for member, problem in _members(archive, size):
        if problem:
            refused.append(f"{archive}: {problem}")
        elif member is not None:
            rows.append(member)
    columns = [[getattr(row, field.name) for row in rows] for field in MEMBER_SCHEMA]
    return Contents(pa.table(columns, MEMBER_SCHEMA), tuple(refused))


def write_list(archive: str, size: int, found: Contents) -> None:
    """Keeps what is to be used of an archive of `size` bytes beside it; it may come later."""
    more = len(found.refused) - _NAMED
    lines = [
        *found.refused[:_NAMED],
        *([f"{archive}: {more:,} members more are refused"] if more > 0 else []),
    ]
    table = found.members.replace_schema_metadata(
        {_ARCHIVE_BYTES: str(size).encode(), _REFUSED: "\n".join(lines).encode()}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    files.write_bytes(archive + LIST_SUFFIX, buffer.getvalue())


def _read_list(archive: str, size: int) -> Contents | None:
    uri = archive + LIST_SUFFIX
    try:
        table = files.read_parquet(uri) if files.exists(uri) else None
    except (OSError, ValueError):
        return None
    if table is None or not table.schema.equals(MEMBER_SCHEMA):
        return None
    said = table.schema.metadata or {}
    if said.get(_ARCHIVE_BYTES) != str(size).encode() or not _still_there(archive, table):
        return None
    refused = said.get(_REFUSED, b"").decode()
    return Contents(table.replace_schema_metadata(None), tuple(refused.splitlines()))


def _still_there(archive: str, members: pa.Table) -> bool:
    """Whether the last member lies where the list says: another archive of the same size holds others."""
    if not len(members):
        return True
    last = members.slice(len(members) - 1).to_pylist()[0]
    try:
        header = files.read_bytes(archive, last["offset"] - _BLOCK, _BLOCK)
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size == last["size"]
    except (tarfile.TarError, EOFError):
        return False


class _Headers(files.Ranged):
    """An archive as tarfile reads it, header after header: no more than a window is ever in memory."""

    def __init__(self, archive: str, size: int):
        super().__init__(archive, size)
        self._window = _LOCAL_WINDOW if files.is_local(archive) else _REMOTE_WINDOW
        self._start, self._held = 0, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        end = min(self._at + size, self._size)
        if self._at >= end:
            return b""
        if not self._start <= self._at or end > self._start + len(self._held):
            self._start = self._at
            wanted = min(max(self._window, end - self._at), self._size - self._at)
            self._held = files.read_bytes(self._uri, self._at, wanted)
        found = self._held[self._at - self._start : end - self._start]
        self._at = end
        return found


def _members(archive: str, size: int) -> Iterator[tuple[Member | None, str]]:
    """The files in an archive, each with what is wrong with it, "" for nothing."""
    headers = _Headers(archive, size)
    try:
        tar = tarfile.TarFile(fileobj=headers)
    except (tarfile.TarError, ValueError) as e:
        magic = files.read_bytes(archive, 0, min(size, 8))
        kind = next((name for first, name in _MAGICS.items() if magic.startswith(first)), None)
        if kind:
            raise TarError(
                f"{archive} is compressed by {kind}, so nothing in it can be read by range: unpack it to a "
                "plain .tar, or to files"
            ) from e
        raise TarError(f"{archive} is no tar file: {e}") from e
    known: set[str] = set()
    while True:
        try:
            info = tar.next()
            tar.members.clear()  # type: ignore[attr-defined]
        except (tarfile.TarError, ValueError, struct.error) as e:
            yield (
                None,
                f"damaged, or cut short, at byte {tar.offset:,} of {size:,} ({e}); what follows is lost",
            )
            return
        if info is None:
            break
        if not info.isdir():
            problem = _problem(info, size, known)
            known.add(info.name)
            yield ((None, problem) if problem else (_member(archive, info), ""))
    if tar.offset >= size or files.read_bytes(archive, tar.offset, 1) != b"\0":
        yield None, f"ends at byte {min(tar.offset, size):,} without the mark of an end; it may be cut short"


def _member(archive: str, info: tarfile.TarInfo) -> Member:
    return Member(archive, info.offset_data, info.size, info.name.removeprefix("./"))


def _problem(info: tarfile.TarInfo, size: int, known: set[str]) -> str:
    """Why a member is not used, as a line; "" where it is."""
    name = repr(info.name)
    if info.issym() or info.islnk():
        return f"{name} is a link"
    if not info.isreg() or info.issparse():
        return f"{name} is no plain file"
    if _UNWRITABLE.search(info.name):
        return f"{name} has a name that no table can carry"
    parts = info.name.replace("\\", "/").split("/")
    if ".." in parts or parts[0].endswith(":") or not parts[0]:
        return f"{name} leads out of the archive"
    if not 0 <= info.size <= size or info.offset_data + info.size > size:
        return f"{name} has {info.size:,} bytes by its header, beyond the archive's end"
    if info.name in known:
        return f"{name} stands there twice; the first is used"
    return ""
