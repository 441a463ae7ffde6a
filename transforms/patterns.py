"""From patterns to photographs: what folders, globs and lists name."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from transforms.processes.threads import map_ahead
from transforms.storage import files, globs, tar_files
from transforms.storage.object_stores import READS_IN_FLIGHT, Entry
from transforms.storage.uris import Member, member_of
from transforms.types import ImageRef

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

REFUSED = "members of tar files that are refused"
"""Stands in the place of a suffix for what an archive holds and nobody should read."""

HIDDEN = "hidden"
"""Stands in the place of a suffix for photographs that are no person's: in a folder, or under a name, that
begins with a dot, or in one where a system keeps what it makes or what was thrown away.
"""

_OF_SYSTEMS = frozenset(
    {"@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "__MACOSX", "lost+found"}
)

_PERHAPS_HIDDEN = re.compile("|".join([r"/\.", *(f"/{re.escape(name)}/" for name in sorted(_OF_SYSTEMS))]))

_LISTED_PER_REQUEST = 1000  # of S3 and of Google Cloud Storage

_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # how Python keeps the bytes of such a name
_LINE_ENDS = re.compile(r"\r\n|[\n\r\0]")  # `find -print0` writes NULs
_NAMES_SUFFIX = re.compile(r"\.[^.*?\[\]/]+$")
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f]|^\s|\s$")


class MatchError(ValueError):
    """The patterns match no image, or two images with one id."""


def image_id_of(uri: str) -> str:
    """The file's stem: "a/b/c/abc0.jpg" gives "abc0"."""
    return os.path.splitext(uri.replace("\\", "/").rsplit("/", 1)[-1])[0]


class Matches(NamedTuple):
    """What patterns match.

    Attributes:
      images: in ascending order of image_id; local ones with absolute paths.
      passed_over: how many files have another suffix than IMAGE_SUFFIXES, by suffix, the most first; and how
        many are REFUSED, and photographs HIDDEN.
    """

    images: list[ImageRef]
    passed_over: dict[str, int]


def match_images(patterns: Sequence[str], say: Callable[[str], None] = lambda line: None) -> Matches:
    """The images that `patterns` name.

    A pattern is a folder (searched recursively), a glob (see storage/globs.py), a file, or @LIST, a text file
    with a path per line; paths of a list that are not absolute start at the list's folder. Folders, and globs
    that name no suffix, give the files with IMAGE_SUFFIXES, in any case, that are not HIDDEN; what is named
    otherwise is taken as it is. What exists under the name of a pattern is meant before what it matches. A
    file that is reached twice, through links too, counts once. Tar files are like folders of what they hold.

    Args:
      say: is called with a line for each member of a tar file that is REFUSED, and each archive that is
        compressed.

    Raises:
      MatchError: a pattern matches nothing, two files have one id (both are named), or a name cannot be
        written to a table and read back: it is not UTF-8, or the id holds a control character or begins or
        ends with a space; or a compressed archive is named, or what is named as a tar file is none.
    """
    by_id: dict[str, ImageRef] = {}
    passed_over: Counter[str] = Counter()
    for pattern in patterns:
        found = False
        visible = _visible(pattern, _match(pattern), passed_over)
        for entry, chosen in _visible(pattern, _with_members(visible, passed_over, say), passed_over):
            uri, image_id = entry.uri, image_id_of(entry.uri)
            if not chosen and not uri.lower().endswith(IMAGE_SUFFIXES):
                passed_over[os.path.splitext(uri)[1].lower()] += 1
                continue
            found = True
            if _NOT_UTF8.search(uri) or _UNWRITABLE.search(image_id):
                raise MatchError(
                    f"{uri!r} has a name that no table can carry (bytes that are not UTF-8, control "
                    "characters, outer spaces); rename it"
                )
            other = by_id.get(image_id)
            if other is not None and other.uri != uri and not _is_same_file(other.uri, uri):
                first, second = sorted((uri, other.uri))
                raise MatchError(f"two files have the image id {image_id!r}: {first} and {second}")
            if other is None or uri < other.uri:
                by_id[image_id] = ImageRef(image_id, uri, entry.size, version=entry.version)
        if not found:
            raise MatchError(_nothing(pattern, passed_over))
    return Matches(
        sorted(by_id.values(), key=lambda ref: ref.image_id),
        dict(sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))),
    )


def _nothing(pattern: str, passed_over: dict[str, int]) -> str:
    text = f"no image matches {pattern!r} (looked for {', '.join(IMAGE_SUFFIXES)}"
    if passed_over:
        text += f"; passed over {described(passed_over)}"
    if re.search(r"[^/]\*\*|\*\*[^/]", pattern):
        text += "; ** goes through folders only between slashes: **/*.jpg"
    return text + ")"


def described(passed_over: Mapping[str, int]) -> str:
    """Counts by suffix for people: "6 .jfif, 1 without a suffix"."""
    return ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in passed_over.items())


def _visible(
    pattern: str, found: Iterable[tuple[Entry, bool]], passed_over: Counter[str]
) -> Iterator[tuple[Entry, bool]]:
    """The files of a pattern, see `_match`, but for those that are HIDDEN and not meant."""
    for entry, chosen in found:
        if chosen or not _is_hidden(entry.uri, pattern):
            yield entry, chosen
        elif entry.uri.lower().endswith(IMAGE_SUFFIXES):
            passed_over[HIDDEN] += 1


def _is_hidden(uri: str, pattern: str) -> bool:
    """Whether a file is HIDDEN below the folder `pattern`, or in a tar file; a glob finds what begins with a
    dot only where it says so.
    """
    if not _PERHAPS_HIDDEN.search(uri):
        return False
    if member := member_of(uri):
        pattern, uri = member.archive, f"{member.archive}/{member.name}"
    is_folder = not globs.has_magic(pattern) or uri.startswith(files.join(files.absolute(pattern), ""))
    folder = files.absolute(pattern) if is_folder else files.absolute(re.split(r"[*?\[{]", pattern)[0])
    names = uri.removeprefix(folder.rstrip("/")).split("/")
    return any((is_folder and name.startswith(".")) or name in _OF_SYSTEMS for name in names)


def _match(pattern: str) -> Iterator[tuple[Entry, bool]]:
    """The files of a pattern, and whether it says of each that it is meant, whatever its suffix."""
    if pattern.startswith("@"):
        for entry in _read_list(pattern[1:]):
            yield entry, True
        return
    found = _local_named(pattern) if files.is_local(pattern) else _remote_named(pattern)
    if found is not None:
        entries, chosen = found
        for entry in entries:
            yield entry, chosen
    elif globs.has_magic(pattern):
        for reading, entry in globs.matches(pattern):
            yield entry, _NAMES_SUFFIX.search(reading) is not None


def _with_members(
    found: Iterable[tuple[Entry, bool]], passed_over: Counter[str], say: Callable[[str], None]
) -> Iterator[tuple[Entry, bool]]:
    """The files of a pattern, see `_match`, with the members of tar files in their places."""
    archives = []
    for entry, chosen in found:
        name = entry.uri.lower()
        if name.endswith(tar_files.SUFFIX):
            archives.append(entry)
        elif name.endswith(tar_files.COMPRESSED):
            problem = f"{entry.uri} is compressed: nothing in it can be read by range; unpack it"
            if chosen:
                raise MatchError(problem)
            say(problem)
            yield entry, chosen
        elif not name.endswith(tar_files.SUFFIX + tar_files.LIST_SUFFIX):
            yield entry, chosen

    def opened(archive: Entry) -> tuple[Entry, tar_files.Contents]:
        try:
            return archive, tar_files.contents(archive.uri, archive.size)
        except tar_files.TarError as e:
            raise MatchError(str(e)) from e

    with ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="archives") as pool:
        for archive, (members, refused) in map_ahead(pool, opened, archives, READS_IN_FLIGHT):
            for line in refused:
                say(line)
            if refused:
                passed_over[REFUSED] += len(refused)
            for name, offset, size in zip(*(column.to_pylist() for column in members.columns)):
                uri = Member(archive.uri, offset, size, name).uri
                yield Entry(uri, size, archive.updated, archive.version), False


def _local_named(pattern: str) -> tuple[Iterable[Entry], bool] | None:
    """The files below the folder `pattern`, or that file itself; None where there is neither."""
    if os.path.isdir(pattern):
        return globs.files_below(pattern), False
    if os.path.isfile(pattern):
        return [_local_entry(pattern)], True
    return None


def _remote_named(pattern: str) -> tuple[Iterable[Entry], bool] | None:
    bucket, _, key = pattern.partition("://")[2].partition("/")
    if globs.has_magic(bucket):
        raise MatchError(f"{pattern!r}: no glob can stand for a bucket, name it in full")
    if key and not key.endswith("/") and (entry := files.remote_entry(pattern)) is not None:
        return [entry], True
    entries = files.retried(lambda: list(files.remote_entries(pattern)))
    return (entries, False) if entries else None


def current(uri: str) -> Entry | None:
    """What a listing says of one photograph now; None where it is not there."""
    if member := member_of(uri):
        archive = current(member.archive)
        return archive and archive._replace(uri=uri, size=member.size)
    if not files.is_local(uri):
        return files.remote_entry(uri)
    return _local_entry(uri) if os.path.isfile(uri) else None


def _local_entry(path: str) -> Entry:
    if member := member_of(path):
        return _member_entry(files.absolute(path), _local_entry(member.archive), member)
    return globs.local_entry(files.absolute(path), os.stat(path))


def _member_entry(uri: str, archive: Entry, member: Member) -> Entry:
    return Entry(uri, member.size, archive.updated, archive.version)


def _is_file(path: str) -> bool:
    """Whether a local file, or the archive that it lies in, is there."""
    member = member_of(path)
    return os.path.isfile(member.archive if member else path)


def _is_same_file(first: str, second: str) -> bool:
    try:
        return files.is_local(first) and files.is_local(second) and os.path.samefile(first, second)
    except OSError:
        return False


def _read_list(uri: str) -> Iterator[Entry]:
    folder = uri.rsplit("/", 1)[0] + "/" if "/" in uri else ""
    try:
        text = files.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise MatchError(f"{uri} is not UTF-8: {e}") from e
    paths, relative = [], []
    for number, line in enumerate(_LINE_ENDS.split(text), 1):
        path = line.strip()
        if not path:
            continue
        if files.is_local(path) and not os.path.isabs(path):
            if os.path.normpath(path).split(os.sep)[0] == os.pardir:
                raise MatchError(
                    f"{uri}, line {number}: {path!r} leads out of the list's folder; write an absolute path "
                    "if that is meant"
                )
            relative.append(path)
            path = folder + path
        paths.append(path)
    there = _remote_entries([path for path in paths if not files.is_local(path)])
    there.update((path, _local_entry(path)) for path in paths if files.is_local(path) and _is_file(path))
    if relative and not any(folder + path in there for path in relative) and any(map(_is_file, relative)):
        raise MatchError(
            f"{uri}: its paths start at the list's folder, {folder}, and none is there; from the working "
            "folder they are: move the list there, or write absolute paths"
        )
    for path in paths:
        yield there.get(path) or Entry(files.absolute(path), 0, 0.0)  # a failure row when it is read


def _remote_entries(uris: Collection[str]) -> dict[str, Entry]:
    """Sizes and times of files that are not on this machine; those that are not there are left out.

    A listing tells of a thousand files in one request, but a folder may hold far more than are asked for: so
    as many pages of it are read as files are asked for, and what they do not hold is asked for one by one.
    That is never more than twice the requests of the latter alone.
    """
    members = {uri: member for uri in uris if (member := member_of(uri))}
    if members:
        archives = _remote_entries({member.archive for member in members.values()})
        there = _remote_entries([uri for uri in uris if uri not in members])
        for uri, member in members.items():
            if member.archive in archives:
                there[uri] = _member_entry(uri, archives[member.archive], member)
        return there
    by_folder: dict[str, set[str]] = {}
    for uri in uris:
        by_folder.setdefault(uri.rsplit("/", 1)[0], set()).add(uri)

    def listed(folder: str) -> dict[str, Entry]:
        wanted = by_folder[folder]
        entries = itertools.islice(files.remote_entries(folder), _LISTED_PER_REQUEST * len(wanted))
        return {entry.uri: entry for entry in entries if entry.uri in wanted}

    there = {}
    with ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="sizes") as pool:
        for found in pool.map(lambda folder: files.retried(lambda: listed(folder)), by_folder):
            there.update(found)
        for entry in pool.map(files.remote_entry, [uri for uri in uris if uri not in there]):
            if entry is not None:
                there[entry.uri] = entry
    return there
