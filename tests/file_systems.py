"""Files for tests, and a file system of Beam's."""

import os
import pathlib
from typing import ClassVar

import pytest
from apache_beam.io import localfilesystem


def write(path: pathlib.Path, data: bytes | str = b"x") -> str:
    """Writes a file and the folders above it; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


class FolderFileSystem(localfilesystem.LocalFileSystem):
    """A remote file system: folder://a/b is a/b in the folder `root`; notes what is opened to be read."""

    root = ""
    opened: ClassVar[list[str]] = []

    @classmethod
    def use(cls, root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on it lies in `root`, and nothing has been opened."""
        monkeypatch.setattr(cls, "root", str(root))
        monkeypatch.setattr(cls, "opened", [])

    @classmethod
    def scheme(cls):
        return "folder"

    def _local(self, path):
        return os.path.join(self.root, path.removeprefix("folder://"))

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def _list(self, dir_or_prefix):
        for entry in super()._list(self._local(dir_or_prefix)):
            entry.path = "folder://" + os.path.relpath(entry.path, self.root)
            yield entry

    def create(self, path, *arguments, **keywords):
        return super().create(self._local(path), *arguments, **keywords)

    def open(self, path, *arguments, **keywords):
        self.opened.append(path)
        return super().open(self._local(path), *arguments, **keywords)

    def exists(self, path):
        return super().exists(self._local(path))

    def metadata(self, path):
        return super().metadata(self._local(path))

    def delete(self, paths):
        super().delete([self._local(path) for path in paths])
