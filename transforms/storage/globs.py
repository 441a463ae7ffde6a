"""Globs as pathlib and shells with globstar read them, on this machine and in object stores.

`*`, `?` and `[ab]`, `[!ab]`, `[a-z]` stay within one name; `**` between slashes stands for any number of
folders, none included, and at the end for every file below, as a slash at the end does. A name that begins
with a dot is matched only by one that does. Names may hold brackets, and people write `{a,b}`: where a glob
matches nothing, the second are expanded as shells do, and then the first taken as they stand.
"""

import contextlib
import errno
import fnmatch
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence

from transforms.storage import files
from transforms.storage.object_stores import Entry, store_of

_EVERY_FOLDER = "**"
_MAGIC = re.compile(r"[*?\[{]")
_WHOLE_FOLDER = re.compile(r"(.*?)(?:(?:^|(/))\*\*)+(?:/\*?)?")
_BRACKETS = re.compile(r"\[[!^]?+\]?+[^\]]*\]")


def has_magic(pattern: str) -> bool:
    """Whether `pattern` can be a glob and not only a name."""
    return bool(_MAGIC.search(pattern))


def folder_of(pattern: str) -> str:
    """The folder all of whose files a glob means, "p" of "p/**" and "p/**/*"; "" for another glob."""
    found = _WHOLE_FOLDER.fullmatch(pattern)
    return "" if found is None or has_magic(found[1]) else found[1] or found[2] or "."


def matches(pattern: str) -> Iterator[tuple[str, Entry]]:
    """The files that a glob matches, each with the reading of `pattern` that matches it.

    Local paths are absolute. Links are followed, after all else, and every folder is visited once: it is
    found where it lies. A link to nothing has size 0.

    Raises:
      OSError: a folder cannot be listed.
    """
    pattern += _EVERY_FOLDER if pattern.endswith("/") else ""
    for readings, either_way in (([pattern], False), (braces_expanded(pattern), False), ([pattern], True)):
        found = False
        for reading in readings:
            for entry in _matches(reading, either_way):
                found = True
                yield reading, entry
        if found:
            return


def _matches(pattern: str, either_way: bool) -> Iterator[Entry]:
    if files.is_local(pattern):
        yield from _local(*_split(str(files.absolute(pattern))), either_way)
        return
    literal = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    rest = pattern[len(literal) :]
    whole = re.compile(translate(pattern, either_way))
    deep = "/" in rest or _EVERY_FOLDER in rest
    yield from files.retried(
        lambda: [entry for entry in store_of(pattern).list(literal, deep) if whole.fullmatch(entry.uri)]
    )


def local_entry(path: str, status: os.stat_result) -> Entry:
    """What a listing would say of a local file."""
    return Entry(path, status.st_size, status.st_mtime, files.version_of(status))


def files_below(folder: str) -> Iterator[Entry]:
    """Every file below a local folder, hidden ones included; see `matches`."""
    yield from _local(str(files.absolute(folder)), [_EVERY_FOLDER], False, hidden=True)


def braces_expanded(pattern: str) -> list[str]:
    """What `{a,b}` in a pattern stands for, as shells expand it: "p/{a,b{1,2}}" gives p/a, p/b1 and p/b2."""
    for start in (at for at, character in enumerate(pattern) if character == "{"):
        depth, cuts = 0, [start]
        for at in range(start, len(pattern)):
            depth += {"{": 1, "}": -1}.get(pattern[at], 0)
            if pattern[at] == "," and depth == 1:
                cuts.append(at)
            elif depth == 0:
                if len(cuts) == 1:  # {a} is a name
                    break
                parts = [pattern[a + 1 : b] for a, b in zip(cuts, [*cuts[1:], at])]
                whole = [pattern[:start] + part + pattern[at + 1 :] for part in parts]
                return [expanded for one in whole for expanded in braces_expanded(one)]
    return [pattern]


def translate(pattern: str, either_way: bool = False) -> str:
    """The regular expression of a whole path; with `either_way` brackets also stand for themselves."""
    names = pattern.split("/")
    parts = [
        r"(?:(?!\.)[^/]*/)*" if name == _EVERY_FOLDER else _translate_name(name, either_way) + "/"
        for name in names[:-1]
    ]
    last = (
        r"(?:(?!\.)[^/]*/)*(?!\.)[^/]+"
        if names[-1] == _EVERY_FOLDER
        else _translate_name(names[-1], either_way)
    )
    return "".join([*parts, last])


def _translate_name(name: str, either_way: bool) -> str:
    parts = [] if name.startswith(".") or not has_magic(name) else [r"(?!\.)"]
    at = 0
    while at < len(name):
        brackets = _BRACKETS.match(name, at)
        text = brackets[0] if brackets else name[at]
        if brackets:
            characters = "[!" + text[2:] if text[1] == "^" else text
            one = "(?!/)" + fnmatch.translate(characters)[4:-3]
            parts.append(f"(?:{one}|{re.escape(text)})" if either_way else one)
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(text, re.escape(text)))
        at += len(text)
    return "".join(parts)


class Exclusion:
    """Globs of what is not wanted: a file, or all below a folder. Without a slash one matches any name below
    the place searched, with one a path from there on, or from the working folder on. In what normal form of
    Unicode makes no difference.
    """

    def __init__(self, patterns: Sequence[str]):
        self._unused = dict.fromkeys(patterns)
        self._whole: list[tuple[str, re.Pattern[str], re.Pattern[str] | None]] = []
        for glob in patterns:
            for reading in braces_expanded(glob.rstrip("/")):
                reading = unicodedata.normalize("NFC", reading)
                below = translate(reading.removeprefix("./").lstrip("/"))
                if "/" in reading:
                    typed = re.compile(translate(files.absolute(reading)) + "(?:/.*)?", re.DOTALL)
                    self._whole.append((glob, re.compile(below + "(?:/.*)?", re.DOTALL), typed))
                else:
                    self._whole.append((glob, re.compile(f"(?:.*/)?{below}(?:/.*)?", re.DOTALL), None))

    def __bool__(self) -> bool:
        return bool(self._whole)

    def __contains__(self, place: tuple[str, str]) -> bool:
        """Whether a file, given as (path below the pattern, URI), is not wanted."""
        below, uri = (unicodedata.normalize("NFC", name) for name in place)
        for glob, of_below, of_uri in self._whole:
            if of_below.fullmatch(below) or (of_uri and of_uri.fullmatch(uri)):
                self._unused.pop(glob, None)
                return True
        return False

    def unused(self) -> list[str]:
        """Those that nothing matched."""
        return list(self._unused)


def _split(path: str) -> tuple[str, list[str]]:
    """The folder that an absolute glob starts from, and the names below it."""
    names = path.split("/")
    first = next((i for i, name in enumerate(names) if has_magic(name)), len(names) - 1)
    return "/".join(names[:first]) or "/", names[first:]


def _local(folder: str, names: Sequence[str], either_way: bool, hidden: bool = False) -> Iterator[Entry]:
    whole = [
        None if name == _EVERY_FOLDER else re.compile(_translate_name(name, either_way)) for name in names
    ]
    seen: set[tuple[int, int, int]] = set()  # folders and how much of the glob led to them: links make loops
    links: list[tuple[str, int]] = []

    def visit(folder: str, position: int) -> Iterator[Entry]:
        try:
            here = os.stat(folder)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return
            raise
        if not stat.S_ISDIR(here.st_mode) or (here.st_dev, here.st_ino, position) in seen:
            return
        seen.add((here.st_dev, here.st_ino, position))
        name, pattern, last = names[position], whole[position], position == len(names) - 1
        if pattern is None and not last:
            yield from visit(folder, position + 1)
        if not last and pattern is not None and not has_magic(name):
            yield from visit(os.path.join(folder, name), position + 1)
            return
        with os.scandir(folder) as entries:
            found = sorted(
                (
                    entry
                    for entry in entries
                    if (
                        hidden or not entry.name.startswith(".")
                        if pattern is None
                        else pattern.fullmatch(entry.name)
                    )
                ),
                key=lambda entry: entry.name,
            )
        for entry in found:
            if _is_folder(entry):
                if pattern is None or not last:
                    there = entry.path, position + (pattern is not None)
                    if entry.is_symlink():
                        links.append(there)
                    else:
                        yield from visit(*there)
            elif last:
                status = None
                with contextlib.suppress(OSError):  # a link to nothing becomes a failure row when it is read
                    status = entry.stat()
                if status is None or stat.S_ISREG(status.st_mode):
                    yield local_entry(entry.path, status) if status else Entry(entry.path, 0, 0.0)

    yield from visit(folder, 0)
    while links:
        yield from visit(*links.pop(0))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link; as a file it becomes a failure row when it is read
        return False
