"""From patterns to photographs: what folders, globs and lists name."""

import glob
import itertools
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from transforms.file_formats import HEIF_REMEDY, HEIF_SUFFIXES, READS_HEIF
from transforms.processes.threads import map_ahead
from transforms.storage import files, globs, parquet_images, tar_files
from transforms.storage.object_stores import READS_IN_FLIGHT, Entry
from transforms.storage.uris import IMAGE_IDS, Member, Row, held_in, image_id_of
from transforms.types import ImageRef

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif"),
    *(HEIF_SUFFIXES if READS_HEIF else ()),
)
"""Of the photographs that folders give."""

REFUSED = "members of tar files that are refused"
"""Stands in the place of a suffix for what an archive holds and nobody should read."""

HIDDEN = "hidden"
"""Stands in the place of a suffix for photographs that are no person's: in a folder, or under a name, that
begins with a dot, or in one where a system keeps what it makes or what was thrown away.
"""

EXCLUDED = "excluded"
"""Likewise for photographs and archives that are not wanted."""

UNWRITABLE = "with a name that no table can carry"
"""Stands in the place of a suffix for photographs whose names are not UTF-8, or hold what a table
cannot keep.
"""

_ARCHIVES = (tar_files.SUFFIX, parquet_images.SUFFIX)

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


class Matches(NamedTuple):
    """What patterns match.

    Attributes:
      images: in ascending order of image_id; local ones with absolute paths.
      passed_over: how many files have another suffix than IMAGE_SUFFIXES, by suffix, the most first; and how
        many are REFUSED or EXCLUDED, and photographs HIDDEN or UNWRITABLE.
    """

    images: list[ImageRef]
    passed_over: dict[str, int]


def match_images(
    patterns: Sequence[str],
    say: Callable[[str], None] = lambda line: None,
    image_ids: str = "name",
    label_levels: int = 0,
    exclude: Sequence[str] = (),
) -> Matches:
    """The images that `patterns` name.

    A pattern is a folder (searched recursively), a glob (see storage/globs.py), a file, or @LIST, a text file
    with a path per line; paths of a list that are not absolute start at the list's folder. Folders, and globs
    that name no suffix, give the files with IMAGE_SUFFIXES, in any case, that are not HIDDEN; what is named
    otherwise is taken as it is. What exists under the name of a pattern is meant before what it matches. A
    file that is reached twice, through links too, counts once. Tar files are like folders of what they hold,
    and so are Parquet files with a column of images (see storage/parquet_images.py), whose rows are called by
    their path there; of paths alone where they are named.

    The path below a pattern starts where it is searched: at the folder, the tar file, the list's folder, or
    before the first name of a glob that stands for several.

    Args:
      say: is called with a line for each member of a tar file that is REFUSED, each archive that is
        compressed, the first photograph of each pattern that is UNWRITABLE, and each of `exclude` that
        nothing matches.
      image_ids: what the ids are: "name", of the file without its suffix, or "path", the path below the
        pattern.
      label_levels: so many folders of that path, the nearest ones, are the landmark, in composed letters
        (NFC) and joined by slashes; a photograph without a folder there has none. 0 for no landmarks.
      exclude: globs of what is left out: a file, or all below a folder; without a slash of any name below the
        pattern, with one of the path from there on, or from the working folder on.

    Raises:
      MatchError: a pattern matches nothing, two files have one id (both are named), one file lies in folders
        of two landmarks, through a hard link, or what is named by itself is UNWRITABLE (it is not UTF-8, or
        the id or the landmark holds a control character, or the id begins or ends with a space), or a
        compressed archive, or a tar file that is none.
    """
    if image_ids not in IMAGE_IDS:
        raise ValueError(f"image_ids {image_ids!r} is none of {', '.join(IMAGE_IDS)}")
    by_id: dict[str, ImageRef] = {}
    id_of: dict[str, str] = {}  # by URI, where two patterns can give one file two ids
    passed_over: Counter[str] = Counter()
    unwanted = globs.Exclusion(exclude)
    for pattern in patterns:
        found = unwritable = False
        pattern = _as_folder(pattern)
        base, entries = _match(pattern, say)
        visible = _visible(pattern, base, entries, unwanted, passed_over)
        with_members = _with_members(visible, passed_over, say)
        for entry, chosen, given_id in _visible(pattern, base, with_members, unwanted, passed_over):
            uri, path = entry.uri, below(entry.uri, base) if image_ids == "path" or label_levels else ""
            if not chosen and not uri.lower().endswith(IMAGE_SUFFIXES):
                passed_over[os.path.splitext(uri)[1].lower()] += 1
                continue
            image_id = path if image_ids == "path" else given_id or image_id_of(uri)
            landmark = _landmark(path, label_levels) if label_levels else None
            if _NOT_UTF8.search(uri) or _UNWRITABLE.search(image_id) or _UNWRITABLE.search(landmark or ""):
                problem = (
                    f"{uri!r} has a name that no table can carry (bytes that are not UTF-8, control "
                    "characters, outer spaces); rename it"
                )
                if chosen and not globs.has_magic(pattern):
                    raise MatchError(problem)
                if not unwritable:
                    say(problem)
                unwritable = True
                passed_over[UNWRITABLE] += 1
                continue
            found = True
            if image_ids == "path":
                before = id_of.get(uri, image_id)
                image_id = max(before, image_id, key=len)  # of a folder and one in it, from the former on
                if before != image_id:
                    by_id.pop(before, None)
                id_of[uri] = image_id
            ref = ImageRef(image_id, uri, entry.size, landmark and sys.intern(landmark), entry.version)
            by_id[image_id] = _one_of(by_id.get(image_id), ref, image_ids)
        if not found:
            raise MatchError(_nothing(pattern, passed_over))
    if image_ids == "path" or label_levels:
        _drop_links(by_id)
    for excluded in unwanted.unused():
        say(f"--exclude {excluded!r} leaves out nothing")
    return Matches(
        sorted(by_id.values(), key=lambda ref: ref.image_id),
        dict(sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))),
    )


def _as_folder(pattern: str) -> str:
    """The folder that a local glob means all of; any other pattern as it is."""
    folder = globs.folder_of(pattern) if files.is_local(pattern) else ""
    return folder if folder and os.path.isdir(folder) and not os.path.exists(pattern) else pattern


def _one_of(other: ImageRef | None, ref: ImageRef, image_ids: str) -> ImageRef:
    """The reference to the one file that `other`, of the same id, and `ref` are to."""
    if other is None:
        return ref
    if other.uri != ref.uri and not _is_same_file(other.uri, ref.uri):
        first, second = sorted((ref.uri, other.uri))
        lift = (
            "name one folder that holds both"
            if image_ids == "path"
            else "--image_ids path makes the path below the pattern the id"
        )
        raise MatchError(f"two files have the image id {ref.image_id!r}: {first} and {second}; {lift}")
    kept, gone = sorted((other, ref), key=lambda one: one.uri)
    less, landmark = sorted((kept.landmark_id or "", gone.landmark_id or ""), key=len)
    if less and not f"/{landmark}".endswith(f"/{less}"):
        real = [one for one in (kept, gone) if os.path.realpath(one.uri) == one.uri]
        if len(real) == 1:  # the other is a link to it, in an album maybe
            return real[0]
        raise MatchError(
            f"{kept.uri} and {gone.uri} are one file, and its landmark would be {kept.landmark_id!r} and "
            f"{gone.landmark_id!r}; --exclude leaves out one"
        )
    return ImageRef(kept.image_id, kept.uri, kept.size_bytes, landmark or None, kept.version)


def _drop_links(by_id: dict[str, ImageRef]) -> None:
    """Takes out what is a link to another of these files: it lies in no folder of its own."""
    real = {ref.uri for ref in by_id.values() if files.is_local(ref.uri)}
    for ref in sorted(by_id.values(), key=lambda ref: ref.uri):
        if ref.uri in real and os.path.islink(ref.uri):
            target = os.path.realpath(ref.uri)
            if target in real and target != ref.uri:
                del by_id[ref.image_id]
            real.add(target)


def below(uri: str, base: str) -> str:
    """The path of a file, or of a member of an archive, from the folder or archive `base` on; from the root
    on where it lies elsewhere.
    """
    if member := held_in(uri):
        if member.archive == base:
            return member.name.lstrip("/")
        uri = f"{member.archive}/{member.name}"
    elif base.lower().endswith(parquet_images.SUFFIX):
        base = base.rpartition("/")[0]
    start = base.rstrip("/") + "/"
    return uri[len(start) :] if uri.startswith(start) else uri.partition("://")[2] or uri.lstrip("/")


def _landmark(path: str, levels: int) -> str | None:
    folders = path.replace("\\", "/").split("/")[:-1][-levels:]
    names = (re.sub(r"\.(tar|parquet)$", "", name, flags=re.IGNORECASE).strip() for name in folders)
    return unicodedata.normalize("NFC", "/".join(names)) or None


def _nothing(pattern: str, passed_over: dict[str, int]) -> str:
    if files.is_local(pattern) and not glob.has_magic(pattern) and not os.path.exists(pattern):
        return f"{pattern!r}: there is no such file or folder"
    text = f"no image matches {pattern!r} (looked for {', '.join(IMAGE_SUFFIXES)}"
    if passed_over:
        text += f"; passed over {described(passed_over)}"
    if re.search(r"[^/]\*\*|\*\*[^/]", pattern):
        text += "; ** goes through folders only between slashes: **/*.jpg"
    return text + ")"


def described(passed_over: Mapping[str, int]) -> str:
    """Counts by suffix for people: "6 .mov, 1 without a suffix"."""

    def remedy(suffix: str) -> str:
        return "" if suffix not in HEIF_SUFFIXES or READS_HEIF else f" ({HEIF_REMEDY})"

    counts = passed_over.items()
    return ", ".join(f"{count:,} {suffix or 'without a suffix'}{remedy(suffix)}" for suffix, count in counts)


class _Found(NamedTuple):
    """A file, a member of a tar file, or a row of a table.

    Attributes:
      chosen: whether the pattern says that it is meant, whatever its suffix.
      image_id: what the table calls it; None for its name.
    """

    entry: Entry
    chosen: bool
    image_id: str | None = None


def _visible(
    pattern: str, base: str, found: Iterable[_Found], unwanted: globs.Exclusion, passed_over: Counter[str]
) -> Iterator[_Found]:
    """The files of a pattern, but for those that are EXCLUDED, or HIDDEN and not meant."""
    for one in found:
        entry, chosen, _ = one
        name = entry.uri.lower()
        if unwanted and (below(entry.uri, base), entry.uri) in unwanted:
            if chosen or name.endswith((*IMAGE_SUFFIXES, *_ARCHIVES)):
                passed_over[EXCLUDED] += 1
        elif chosen or not _is_hidden(entry.uri, pattern):
            yield one
        elif name.endswith(IMAGE_SUFFIXES):
            passed_over[HIDDEN] += 1


def _is_hidden(uri: str, pattern: str) -> bool:
    """Whether a file is HIDDEN below the folder `pattern`, or in a tar file; a glob finds what begins with a
    dot only where it says so.
    """
    if not _PERHAPS_HIDDEN.search(uri):
        return False
    if member := held_in(uri):
        pattern, uri = member.archive, f"{member.archive}/{member.name}"
    is_folder = not globs.has_magic(pattern) or uri.startswith(files.join(files.absolute(pattern), ""))
    folder = files.absolute(pattern) if is_folder else files.absolute(re.split(r"[*?\[{]", pattern)[0])
    names = uri.removeprefix(folder.rstrip("/")).split("/")
    return any((is_folder and name.startswith(".")) or name in _OF_SYSTEMS for name in names)


def _match(pattern: str, say: Callable[[str], None]) -> tuple[str, Iterator[_Found]]:
    """The folder or archive that a pattern is searched from, and its files."""
    if pattern.startswith("@"):
        listed = (_Found(entry, True) for entry in _read_list(pattern[1:], say))
        return files.absolute(os.path.dirname(pattern[1:])), listed
    found = _local_named(pattern) if files.is_local(pattern) else _remote_named(pattern)
    place = files.absolute(pattern).rstrip("/")
    if found is not None:
        entries, chosen = found
        if chosen and not place.lower().endswith(_ARCHIVES):
            place = place.rpartition("/")[0]
        return place, (_Found(entry, chosen) for entry in entries)
    start = re.split(r"[*?\[{]", place, maxsplit=1)[0].rpartition("/")[0]
    if not globs.has_magic(pattern):
        return start, iter(())
    return start, (
        _Found(entry, _NAMES_SUFFIX.search(reading) is not None) for reading, entry in globs.matches(pattern)
    )


def _with_members(
    found: Iterable[_Found], passed_over: Counter[str], say: Callable[[str], None]
) -> Iterator[_Found]:
    """The files of a pattern, with the members of tar files and the rows of tables in their places."""
    archives = []
    for one in found:
        entry, chosen, _ = one
        name = entry.uri.lower()
        if name.endswith(tar_files.SUFFIX):
            archives.append(entry)
        elif name.endswith(tar_files.COMPRESSED):
            problem = f"{entry.uri} is compressed: nothing in it can be read by range; unpack it"
            if chosen:
                raise MatchError(problem)
            say(problem)
            yield one
        elif name.endswith(tar_files.SUFFIX + tar_files.LIST_SUFFIX):
            continue
        elif name.endswith(parquet_images.SUFFIX):
            rows = _rows(entry, chosen)
            yield from [one] if rows is None else rows
        else:
            yield one

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
                yield _Found(Entry(uri, size, archive.updated, archive.version), False)


def _rows(table: Entry, chosen: bool) -> list[_Found] | None:
    """The photographs of a Parquet file, whose bytes it has or whose paths; None for one of something else,
    or of paths alone, that is not `chosen`.
    """
    try:
        photographs = parquet_images.photographs(table.uri, content_only=not chosen)
        if photographs is None:
            if chosen:
                raise MatchError(f"{table.uri} has no column of images, their bytes or their paths")
            return None
        places = {
            p.path: parquet_images.place_of(table.uri, p.path) for p in photographs if not p.row and p.path
        }
    except parquet_images.TableOfImagesError as e:
        raise MatchError(str(e)) from e
    there = _entries(list(places.values()))
    found: list[_Found] = []
    for photograph in photographs:
        if photograph.row:
            entry = Entry(photograph.row.uri, 0, table.updated, table.version)
        elif photograph.path:
            place = places[photograph.path]
            entry = there.get(place) or Entry(files.absolute(place), 0, 0.0)
        else:
            raise MatchError(f"{table.uri}, row {len(found) + 1}: neither an image's bytes nor its path")
        found.append(_Found(entry, True, photograph.id))
    return found


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
    folder = pattern.rstrip("/") + "/"  # a file system of Beam takes the folder's name for a glob
    entries = files.retried(lambda: [e for e in files.remote_entries(pattern) if e.uri.startswith(folder)])
    return (entries, False) if entries else None


def current(uri: str) -> Entry | None:
    """What a listing says of one photograph now; None where it is not there."""
    if member := held_in(uri):
        archive = current(member.archive)
        return archive and archive._replace(uri=uri, size=member.size)
    if not files.is_local(uri):
        return files.remote_entry(uri)
    return _local_entry(uri) if os.path.isfile(uri) else None


def _local_entry(path: str) -> Entry:
    if member := held_in(path):
        return _member_entry(files.absolute(path), _local_entry(member.archive), member)
    return globs.local_entry(files.absolute(path), os.stat(path))


def _member_entry(uri: str, archive: Entry, member: Member | Row) -> Entry:
    return Entry(uri, member.size, archive.updated, archive.version)


def _is_file(path: str) -> bool:
    """Whether a local file, or the archive that it lies in, is there."""
    member = held_in(path)
    return os.path.isfile(member.archive if member else path)


def _is_same_file(first: str, second: str) -> bool:
    try:
        return files.is_local(first) and files.is_local(second) and os.path.samefile(first, second)
    except OSError:
        return False


def _read_list(uri: str, say: Callable[[str], None]) -> Iterator[Entry]:
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
    if not paths:
        raise MatchError(f"{uri} names no photograph")
    there = _entries(paths)
    if relative and not any(folder + path in there for path in relative) and any(map(_is_file, relative)):
        raise MatchError(
            f"{uri}: its paths start at the list's folder, {folder}, and none is there; from the working "
            "folder they are: move the list there, or write absolute paths"
        )
    if gone := [path for path in paths if path not in there and files.is_local(path)]:
        say(
            f"{len(gone):,} of {len(paths):,} paths of {uri} {'does' if len(gone) == 1 else 'do'} not exist: "
            f"{gone[0]}"
        )
    for path in paths:
        yield there.get(path) or Entry(files.absolute(path), 0, 0.0)  # a failure row when it is read


def _entries(places: Sequence[str]) -> dict[str, Entry]:
    """Sizes and times of files; those that are not there are left out."""
    there = _remote_entries([place for place in places if not files.is_local(place)])
    there.update(
        (place, _local_entry(place)) for place in places if files.is_local(place) and _is_file(place)
    )
    return there


def _remote_entries(uris: Collection[str]) -> dict[str, Entry]:
    """Sizes and times of files that are not on this machine; those that are not there are left out.

    A listing tells of a thousand files in one request, but a folder may hold far more than are asked for: so
    as many pages of it are read as files are asked for, and what they do not hold is asked for one by one.
    That is never more than twice the requests of the latter alone.
    """
    members = {uri: member for uri in uris if (member := held_in(uri))}
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
