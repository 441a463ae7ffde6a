"""From patterns to photographs: what folders, globs and lists name."""

import itertools
import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from apache_beam.io.filesystems import FileSystems

from transforms.storage import files
from transforms.storage.object_stores import READS_IN_FLIGHT
from transforms.types import ImageRef

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_LISTED_PER_REQUEST = 1000  # of S3 and of Google Cloud Storage

_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # how Python keeps the bytes of such a name
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f]|^\s|\s$")


class MatchError(ValueError):
    """The patterns match no image, or two images with one id."""


def image_id_of(uri: str) -> str:
    """The file's stem: "a/b/c/abc0.jpg" gives "abc0"."""
    return os.path.splitext(uri.replace("\\", "/").rsplit("/", 1)[-1])[0]


def match_images(patterns: Sequence[str]) -> list[ImageRef]:
    """The images that `patterns` name, in ascending order of image_id.

    A pattern is a folder (searched recursively for IMAGE_SUFFIXES, any case), a glob, a file, or @LIST, a
    text file with a path per line; paths of a list that are not absolute start at the list's folder. A file
    named twice counts once.

    Raises:
      MatchError: a pattern matches nothing, two files have one id (both are named), or a name cannot be
        written to a table and read back: it is not UTF-8, or the id holds a control character or begins or
        ends with a space.
    """
    by_id: dict[str, ImageRef] = {}
    for pattern in patterns:
        found = False
        for uri, size in _match(pattern):
            found = True
            image_id = image_id_of(uri)
            if _NOT_UTF8.search(uri) or _UNWRITABLE.search(image_id):
                raise MatchError(
                    f"{uri!r} has a name that no table can carry (bytes that are not UTF-8, control "
                    "characters, outer spaces); rename it"
                )
            other = by_id.setdefault(image_id, ImageRef(image_id, uri, size)).uri
            if other != uri:
                raise MatchError(
                    f"two files have the image id {image_id!r}: {min(uri, other)} and {max(uri, other)}"
                )
        if not found:
            raise MatchError(f"no image matches {pattern!r} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return sorted(by_id.values(), key=lambda ref: ref.image_id)


def _match(pattern: str) -> Iterator[tuple[str, int]]:
    if pattern.startswith("@"):
        yield from _read_list(pattern[1:])
    elif files.is_local(pattern) and os.path.isdir(pattern):
        yield from _walk(pattern)
    elif files.is_local(pattern) and os.path.isfile(pattern):
        yield pattern, os.path.getsize(pattern)
    elif files.is_local(pattern):
        for metadata in FileSystems.match([pattern])[0].metadata_list:
            if _is_image_name(metadata.path):
                yield metadata.path, metadata.size_in_bytes
    elif _is_image_name(pattern) and not any(c in pattern for c in "*?["):
        yield from _remote_sizes([pattern]).items()
    else:
        for entry in files.remote_matches(
            pattern if any(c in pattern for c in "*?[") else files.join(pattern, "**")
        ):
            if _is_image_name(entry.uri):
                yield entry.uri, entry.size


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _raise(error: OSError) -> None:
    raise error  # os.walk would leave out, without a word, what it cannot list


def _walk(folder: str) -> Iterator[tuple[str, int]]:
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        here = os.stat(root)
        if (here.st_dev, here.st_ino) in seen:  # a loop of symbolic links
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        for name in names:
            if _is_image_name(name):
                path = os.path.join(root, name)
                try:
                    status = os.stat(path)
                except OSError:
                    yield path, 0  # a dangling link becomes a failure row when it is read
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield path, status.st_size


def _read_list(uri: str) -> Iterator[tuple[str, int]]:
    folder = uri.rsplit("/", 1)[0] if "/" in uri else ""
    try:
        lines = files.read_bytes(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise MatchError(f"{uri} is not UTF-8: {e}") from e
    remote = []
    for number, line in enumerate(lines, 1):
        path = line.strip()
        if not path:
            continue
        if files.is_local(path) and not os.path.isabs(path):
            if os.path.normpath(path).split(os.sep)[0] == os.pardir:
                raise MatchError(
                    f"{uri}, line {number}: {path!r} leads out of the list's folder; write an absolute path "
                    "if that is meant"
                )
            path = files.join(folder, path) if folder else path
        if files.is_local(path):
            yield path, os.path.getsize(path) if os.path.isfile(path) else 0
        else:
            remote.append(path)
    sizes = _remote_sizes(remote)
    for path in remote:
        yield path, sizes.get(path, 0)


def _remote_sizes(uris: Collection[str]) -> dict[str, int]:
    """Bytes of files that are not on this machine; those that are not there are left out.

    A listing tells of a thousand files in one request, but a folder may hold far more than are asked for: so
    as many pages of it are read as files are asked for, and what they do not hold is asked for one by one.
    That is never more than twice the requests of the latter alone.
    """
    by_folder: dict[str, set[str]] = {}
    for uri in uris:
        by_folder.setdefault(uri.rsplit("/", 1)[0], set()).add(uri)

    def listed(folder: str) -> dict[str, int]:
        wanted = by_folder[folder]
        entries = itertools.islice(
            files.remote_entries(folder, descend=False), _LISTED_PER_REQUEST * len(wanted)
        )
        return {entry.uri: entry.size for entry in entries if entry.uri in wanted}

    sizes: dict[str, int] = {}
    with ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="sizes") as pool:
        for found in pool.map(lambda folder: files.retried(lambda: listed(folder)), by_folder):
            sizes.update(found)
        for entry in pool.map(files.remote_entry, [uri for uri in uris if uri not in sizes]):
            if entry is not None:
                sizes[entry.uri] = entry.size
    return sizes
