"""Whole files: atomic, ranged, and clear about what is wrong."""

import errno
import os

import pyarrow as pa
import pytest

from transforms.storage import files


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "a" / "file"
    files.write_bytes(str(target), b"old")

    def no_space(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old" and os.listdir(target.parent) == ["file"]


def test_ranged_reads(tmp_path):
    uri = str(tmp_path / "file")
    files.write_bytes(uri, bytes(range(100)))
    assert files.read_bytes(uri, 10, 5) == bytes(range(10, 15))
    assert files.read_bytes(uri, 98) == bytes([98, 99])
    with pytest.raises(EOFError, match="ends at byte 100, 105 expected"):
        files.read_bytes(uri, 95, 10)


def test_lists_skip_temporaries_and_absent_folders(tmp_path):
    for name in ("b.parquet", "a.parquet", ".c.parquet.0.tmp", "d.bin"):
        (tmp_path / name).write_bytes(b"")
    assert [os.path.basename(u) for u in files.list_files(str(tmp_path), ".parquet")] == [
        "a.parquet",
        "b.parquet",
    ]
    assert files.list_files(str(tmp_path / "none"), ".parquet") == []


def test_json_refuses_nan_and_names_a_broken_file(tmp_path):
    uri = str(tmp_path / "x.json")
    files.write_json(uri, {"b": 1, "a": [1.5, None]})
    assert files.read_json(uri) == {"a": [1.5, None], "b": 1}
    with pytest.raises(ValueError):
        files.write_json(uri, {"a": float("nan")})
    files.write_bytes(uri, b"{")
    with pytest.raises(ValueError, match="x.json is not valid JSON"):
        files.read_json(uri)


def test_parquet(tmp_path):
    uri = str(tmp_path / "t.parquet")
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]})
    files.write_parquet(uri, table)
    assert files.read_parquet(uri).equals(table)
    assert files.read_parquet(uri, ["b"]).column_names == ["b"] and files.parquet_rows(uri) == 3


class _Status(Exception):
    def __init__(self, code):
        super().__init__(f"HTTP {code}")
        self.code = code


@pytest.mark.parametrize(
    "error, transient",
    [
        (OSError(errno.EIO, "I/O error"), True),
        (OSError(errno.ESTALE, "stale"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError("a client's own"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (FileNotFoundError("a client's own"), False),
        (_Status(503), True),
        (_Status(429), True),
        (_Status(404), False),
        (ValueError("a bug"), False),
    ],
    ids=repr,
)
def test_only_what_may_pass_is_tried_again(error, transient, monkeypatch):
    waits = []
    monkeypatch.setattr(files.time, "sleep", waits.append)

    def attempt():
        if len(waits) < 3:
            raise error
        return "done"

    if transient:
        assert files.retried(attempt) == "done" and waits == sorted(waits) and len(waits) == 3
    else:
        with pytest.raises(type(error)):
            files.retried(attempt)
        assert waits == []


def test_reads_and_writes_outlast_what_passes_and_report_what_does_not(tmp_path, monkeypatch):
    uri, failing = str(tmp_path / "file"), []

    def flaky(call):
        def called(*arguments, **keywords):
            if failing:
                raise OSError(failing.pop(), "fails in passing")
            return call(*arguments, **keywords)

        return called

    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "replace", flaky(os.replace))
    monkeypatch.setattr(os, "fstat", flaky(os.fstat))
    failing[:] = [errno.EIO] * 3
    files.write_bytes(uri, b"new")
    failing[:] = [errno.EIO] * 3
    assert files.read_bytes(uri) == b"new" and os.listdir(tmp_path) == ["file"]
    for call in (lambda: files.write_bytes(uri, b"newer"), lambda: files.read_bytes(uri)):
        failing[:] = [errno.EIO] * 4
        with pytest.raises(OSError, match="fails in passing"):
            call()
    assert files.read_bytes(uri) == b"new" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to(path.parent / "nothing"), "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
    ids=["pipe", "endless device", "loop", "dangling link", "folder"],
)
def test_what_is_no_file_is_an_error_at_once(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(OSError, match=message):
        files.read_bytes(str(tmp_path / "x"))


def test_a_damaged_parquet_file_is_named(tmp_path):
    uri = str(tmp_path / "t.parquet")
    files.write_parquet(uri, pa.table({"a": [1, 2, 3]}))
    with open(uri, "r+b") as f:
        f.truncate(100)
    for read in (files.read_parquet, files.parquet_rows):
        with pytest.raises(ValueError, match="t.parquet is no whole Parquet file"):
            read(uri)


@pytest.mark.parametrize(
    "root, uri, place",
    [
        ("run", "run/queries", "queries"),
        ("run/", "./run//queries/", "queries"),
        ("link", "run/queries", "queries"),
        ("run", "run/away", "away"),
        ("run", "run", "."),
        ("run", "running", "{here}/running"),
        ("run", "store/../index", "{here}/store/../index"),
        ("run", "gs://bucket/store", "gs://bucket/store"),
        ("gs://bucket/run", "gs://bucket/run/queries", "queries"),
        ("gs://bucket/run/", "gs://bucket/running", "gs://bucket/running"),
        ("gs://bucket/run", "index", "{here}/index"),
    ],
)
def test_a_place_is_named_from_the_output_that_holds_it(tmp_path, monkeypatch, root, uri, place):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "run" / "away").symlink_to("/")
    monkeypatch.chdir(tmp_path)
    named = files.place_in(root, uri)
    assert named == place.format(here=tmp_path)
    monkeypatch.chdir("/")
    found = files.place_of(root if "://" in root else str(tmp_path / root), named)
    assert found == uri if "://" in uri else os.path.realpath(found) == os.path.realpath(tmp_path / uri)
