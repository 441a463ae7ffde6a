"""Whole files: atomic, ranged, and clear about what is wrong."""

import os

import pyarrow as pa
import pytest

from transforms import files


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
    assert [os.path.basename(u) for u in files.list_files(str(tmp_path), ".parquet")] == ["a.parquet", "b.parquet"]
    assert files.list_files(str(tmp_path / "none"), ".parquet") == []
    assert files.delete_temporaries(str(tmp_path)) == 1 and (tmp_path / "d.bin").exists()


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
