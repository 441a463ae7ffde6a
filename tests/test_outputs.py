"""The state of an output folder."""

import json
import os

import pytest

from beam_pipeline import integrity, layout, outputs
from beam_pipeline.config import ConfigError
from beam_pipeline.main import main
from beam_pipeline.manifest import IndexManifest
from tests.file_systems import FolderFileSystem
from tests.manifests import index_manifest
from transforms.storage.feature_store import FeatureStore
from transforms.types import Failure

UNIT = f"000000-{'0' * 16}"
SETTINGS = {"command": "index", "extraction": {"scales": (1.0, 2.0), "side": 640}}


def unfinished(root, settings=SETTINGS, overwrite=False):
    with outputs.opened(root, settings, overwrite) as there_is_work:
        return there_is_work


def test_a_new_folder_an_unfinished_one_and_a_finished_one(tmp_path):
    root = str(tmp_path / "out")
    assert unfinished(root)
    assert unfinished(root)
    with pytest.raises(ConfigError, match="not finished: run the same `landmarks index` again"):
        outputs.read_manifest(root, IndexManifest)
    outputs.finish(root, index_manifest())
    assert not unfinished(root)
    assert outputs.read_manifest(root, IndexManifest) == index_manifest()


def test_other_settings_are_named_and_only_overwritten_on_demand(tmp_path):
    root = str(tmp_path)
    unfinished(root)
    shard = tmp_path / "images" / f"{UNIT}.parquet"
    shard.parent.mkdir()
    shard.write_bytes(b"")
    other = {"command": "index", "extraction": {"scales": (1.0, 2.0), "side": 800}}
    with pytest.raises(ConfigError, match=r"extraction.side: 640 there, 800 wanted.*--overwrite starts anew"):
        unfinished(root, other)
    assert unfinished(root, other, True) and not shard.parent.exists()


@pytest.mark.parametrize("command", layout.COMMANDS)
def test_every_command_says_what_it_overwrites(tmp_path, command, capsys):
    settings = {"command": command, "side": 640}
    unfinished(str(tmp_path), settings)
    assert unfinished(str(tmp_path), {**settings, "side": 800}, True)
    assert f"{tmp_path}: --overwrite deletes the unfinished " in capsys.readouterr().err


def test_overwriting_a_finished_output_starts_anew_and_an_unfinished_one_goes_on(tmp_path):
    root, shard = str(tmp_path), tmp_path / "images" / f"{UNIT}.parquet"
    for finished in (False, True):
        unfinished(root)
        shard.parent.mkdir(exist_ok=True)
        shard.write_bytes(b"")
        if finished:
            outputs.finish(root, index_manifest())
        assert unfinished(root, overwrite=True) and shard.exists() != finished


def test_a_deletion_that_was_killed_is_carried_on(tmp_path, monkeypatch):
    root, old = str(tmp_path), tmp_path / "images" / f"{UNIT}.parquet"
    unfinished(root)
    old.parent.mkdir()
    old.write_bytes(b"")
    with monkeypatch.context() as killed:
        killed.setattr(layout, "delete", lambda *arguments, **keywords: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unfinished(root, {**SETTINGS, "extraction": {}}, True)
    with pytest.raises(ConfigError, match="is an output of `landmarks index`.*name another folder"):
        unfinished(root, {**SETTINGS, "command": "recognize"}, True)
    # Nothing of the old output is taken for done, whatever is asked.
    assert unfinished(root, SETTINGS) and not old.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_folder_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(ConfigError, match="not made by landmarks"):
        unfinished(str(tmp_path), SETTINGS, overwrite)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    "manifest, message",
    [
        (None, "no output of `landmarks index`"),
        ({"command": "recognize", "format": 1}, "'recognize'"),
        ({"command": "index", "format": 99}, "format 99"),
        (
            {"command": "index", "format": 1, "model": {"name": "small-delg"}},
            r"another version of landmarks, with the model 'small-delg'.* again with --overwrite",
        ),
    ],
)
def test_a_manifest_of_something_else(tmp_path, manifest, message):
    if manifest:
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=message):
        outputs.read_manifest(str(tmp_path), IndexManifest)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    FolderFileSystem.use(tmp_path, monkeypatch)
    return "folder://out"


def test_a_remote_output_is_locked_resumed_overwritten_and_verified(remote, tmp_path):
    store, units = FeatureStore(remote), [UNIT, f"000001-{'1' * 16}"]
    with outputs.opened(remote, SETTINGS) as work:
        assert work
        with pytest.raises(ConfigError, match="is being written by process"):
            unfinished(remote)
        (tmp_path / "out" / "notes.txt").write_text("mine")
        for unit in units:
            store.write_unit(unit, [], [Failure("read", unit, "x", "k", "m")], 8)
    assert unfinished(remote) and store.units() == units
    manifest = index_manifest(shards=tuple(store.summaries(store.units())))
    outputs.finish(remote, manifest)
    assert not unfinished(remote) and integrity.find_problems(remote, manifest) == (6, {})
    os.truncate(tmp_path / "out" / "images" / f"{units[1]}.parquet", 9)
    (tmp_path / "out" / "failures" / f"{units[0]}.parquet").unlink()
    problems = integrity.find_problems(remote, manifest)[1]
    assert problems.pop(f"{remote}/failures/{units[0]}.parquet") == "missing"
    assert problems.popitem()[1].startswith("truncated: 9 bytes") and not problems
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is an output of `landmarks index`.*name another folder"):
            unfinished(remote, {**SETTINGS, "command": "recognize"}, overwrite)
    with outputs.opened(remote, {**SETTINGS, "extraction": {}}, True):
        left = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
        assert left == [".lock.json", "notes.txt", "settings.json"]
    assert not (tmp_path / "out" / ".lock.json").exists()


def test_nothing_is_written_into_the_folders_of_an_output(tmp_path, capsys):
    for name, command in (("run", "recognize"), ("index", "index"), ("mine", "of somebody else")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text(json.dumps({"command": command}))
    run = tmp_path / "run"
    for uri in (
        run / "predictions" / "x.png",
        run / "queries",
        tmp_path / "index" / "calibration" / "a" / "b.json",
    ):
        with pytest.raises(ConfigError, match="keeps its own files, in"):
            outputs.check_outside(str(uri))
    for uri in (run, run / "x.png", run / "report", tmp_path / "mine" / "predictions" / "x.png"):
        outputs.check_outside(str(uri))
    picture = ["matches", "--run", str(run), "--image_id", "q", "--output", f"{run}/predictions/x.png"]
    assert main(picture) == 2 and "keeps its own files" in capsys.readouterr().err


def test_a_result_replaces_an_earlier_one_alone(tmp_path):
    result = tmp_path / "result.json"
    outputs.check_result(None, "gap"), outputs.check_result(str(result), "gap")
    result.write_text('{"gap": 1}')
    outputs.check_result(str(result), "gap")
    for content in ('{"command": "index"}', "[]", "id,landmark_id"):
        result.write_text(content)
        with pytest.raises(ConfigError, match="result.json is there and was not written by this command"):
            outputs.check_result(str(result), "gap")
    with pytest.raises(ConfigError, match="is there and was not"):
        outputs.check_result(str(tmp_path), "gap")
