"""Names of files and folders: paths on this machine, addresses such as gs://bucket/file, members of tar files
such as photos.tar#1536+48211/a/b.jpg, a name that says from which byte on, and how many, they lie, and rows
of Parquet tables such as photos.parquet#3+17/b.jpg, by their row group and their place in it.
"""

import os
import re
from typing import NamedTuple

# What an image's id may be: the file's name without its suffix, or its path below the pattern.
IMAGE_IDS = ("name", "path")

_MEMBER = re.compile(r"(.+\.tar)#([0-9]{1,18})\+([0-9]{1,18})/(.+)", re.IGNORECASE | re.DOTALL)
_ROW = re.compile(r"(.+\.parquet)#([0-9]{1,9})\+([0-9]{1,9})/(.+)", re.IGNORECASE | re.DOTALL)


class Member(NamedTuple):
    """A file in an archive: its name there, its first byte in the archive, and how many it has."""

    archive: str
    offset: int
    size: int
    name: str

    @property
    def uri(self) -> str:
        """What `member_of` reads."""
        return f"{self.archive}#{self.offset}+{self.size}/{self.name}"


class Row(NamedTuple):
    """A photograph in a table: its row group, its row there, and its name."""

    archive: str
    group: int
    row: int
    name: str

    @property
    def uri(self) -> str:
        """What `row_of` reads."""
        return f"{self.archive}#{self.group}+{self.row}/{self.name}"

    @property
    def size(self) -> int:
        """0: only who reads it knows."""
        return 0


def is_local(uri: str) -> bool:
    """Whether `uri` is a path on this machine and not an address such as gs://bucket/file."""
    return "://" not in uri


def join(root: str, *names: str) -> str:
    """`root` and `names` joined by the rules of root's file system."""
    return os.path.join(root, *names) if is_local(root) else "/".join([root.rstrip("/"), *names])


def image_id_of(uri: str) -> str:
    """The file's stem: "a/b/c/abc0.jpg" gives "abc0"."""
    return os.path.splitext(uri.replace("\\", "/").rsplit("/", 1)[-1])[0]


def member_of(uri: str) -> Member | None:
    """The member of a tar file that `uri` names; None for a file of its own."""
    match = _MEMBER.fullmatch(uri) if "#" in uri else None
    return Member(match[1], int(match[2]), int(match[3]), match[4]) if match else None


def row_of(uri: str) -> Row | None:
    """The row of a table that `uri` names; None for a file of its own."""
    match = _ROW.fullmatch(uri) if "#" in uri else None
    return Row(match[1], int(match[2]), int(match[3]), match[4]) if match else None


def held_in(uri: str) -> Member | Row | None:
    """What of a tar file or of a table `uri` names; None for a file of its own."""
    return member_of(uri) or row_of(uri)
