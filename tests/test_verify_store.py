"""Damage to a store is found and named."""

import json
import os

import numpy as np
import pytest

from beam_pipeline import integrity, outputs
from beam_pipeline.main import main
from beam_pipeline.manifest import IndexManifest
from tests.manifests import index_manifest
from transforms.storage.feature_store import FeatureStore
from transforms.types import Failure, ImageFeatures, ImageRef, LocalFeatures


def features(image_id, count=5):
    rng = np.random.default_rng(count)
    local = LocalFeatures(
        rng.uniform(0, 99, (count, 2)).astype(np.float32), rng.normal(size=(count, 8)).astype(np.float32)
    )
    return ImageFeatures(
        ImageRef(image_id, f"/p/{image_id}.jpg", 9, "7"),
        64,
        48,
        1.0,
        rng.normal(size=16).astype(np.float32),
        local,
    )


@pytest.fixture
def store(tmp_path):
    """A finished index of two shards."""
    made = FeatureStore(str(tmp_path / "index"))
    made.write_unit(
        "u0", [features("a"), features("b", 9)], [Failure("decode", "x", "/p/x.jpg", "corrupt", "bad")], 16
    )
    made.write_unit("u1", [features("c")], [], 16)
    shards = made.summaries(["u0", "u1"])
    outputs.finish(made.root, index_manifest(shards=tuple(shards)))
    return made


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "altered": flip,
    "unreadable": lambda path: (path.rename(path.with_suffix(".kept")), path.mkdir()),
}


@pytest.mark.parametrize("part", ["local_features/u0.bin", "images/u1.parquet", "failures/u0.parquet"])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_every_damage_is_named(store, tmp_path, damage, part, capsys):
    assert main(["verify", store.root]) == 0
    assert "5 files, all as they were written" in capsys.readouterr().out
    DAMAGE[damage](tmp_path / "index" / part)
    assert main(["verify", store.root]) == 1
    out, err = capsys.readouterr()
    # The size of a folder in a file's place is another too.
    assert (
        out.startswith(f"{store.root}/{part}: ")
        and (damage in out or damage == "unreadable")
        and out.count("\n") == 1
    )
    said = "missing" if damage == "missing" else "not as they were written"
    assert f"1 of 5 files are {said}" in err


def test_several_are_all_named(store, tmp_path, capsys):
    flip(tmp_path / "index" / "local_features" / "u1.bin")
    (tmp_path / "index" / "images" / "u0.parquet").unlink()
    assert main(["verify", store.root]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["missing", "altered"]


def test_sizes_are_checked_without_reading(store, tmp_path):
    manifest = outputs.read_manifest(store.root, IndexManifest)
    flip(tmp_path / "index" / "local_features" / "u1.bin")
    integrity.check_sizes(store.root, manifest)
    os.truncate(tmp_path / "index" / "local_features" / "u1.bin", 3)
    with pytest.raises(
        integrity.DamagedError,
        match=r"is damaged: .*/local_features/u1.bin is truncated: 3 bytes, \d+ written",
    ):
        integrity.check_sizes(store.root, manifest)


def test_a_damaged_shard_of_an_unfinished_store_is_made_again(store, tmp_path):
    path = tmp_path / "index" / "local_features" / "u1.bin"
    before = path.read_bytes()
    assert integrity.discard_damaged(store, ["u0", "u1"]) == []
    path.write_bytes(before + b"more")
    [line] = integrity.discard_damaged(store, ["u0", "u1"])
    assert line == f"{path} is altered: {len(before) + 4} bytes, {len(before)} written"
    assert store.units() == ["u0"]
    store.write_unit("u1", [features("c")], [], 16)
    assert path.read_bytes() == before and integrity.find_problems(
        store.root, outputs.read_manifest(store.root, IndexManifest)
    ) == (5, {})


def test_a_failure_of_an_attempt_that_was_killed_is_forgotten(store, tmp_path):
    again = FeatureStore(str(tmp_path / "other"))
    again.write_unit("u", [], [Failure("read", "a", "/p/a.jpg", "unreadable", "passed since")], 16)
    again.discard("u")
    again.write_unit("u", [features("a")], [], 16)
    assert again.failures(["u"]).num_rows == 0 and not list((tmp_path / "other" / "failures").iterdir())


@pytest.mark.parametrize(
    "manifest", [None, {"command": "evaluate", "format": 1}], ids=["none", "of another command"]
)
def test_what_is_no_output_is_wrong_usage(tmp_path, manifest, capsys):
    if manifest:
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(tmp_path)]) == 2
    assert "index" in capsys.readouterr().err
