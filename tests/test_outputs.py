"""The state of an output folder."""

import pytest

from beam_pipeline import outputs
from beam_pipeline.config import ConfigError

SETTINGS = {"command": "index", "extraction": {"scales": (1.0, 2.0), "side": 640}}


def unfinished(root, settings=SETTINGS, overwrite=False):
    with outputs.opened(root, settings, overwrite) as there_is_work:
        return there_is_work


def test_a_new_folder_an_unfinished_one_and_a_finished_one(tmp_path):
    root = str(tmp_path / "out")
    assert unfinished(root)
    assert unfinished(root)
    with pytest.raises(ConfigError, match="not finished: run the same `landmarks index` again"):
        outputs.read_manifest(root, "index")
    outputs.finish(root, {"command": "index", "format": outputs.FORMAT})
    assert not unfinished(root)
    assert outputs.read_manifest(root, "index")["command"] == "index"


def test_other_settings_are_named_and_only_overwritten_on_demand(tmp_path):
    root = str(tmp_path)
    unfinished(root)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "old.parquet").write_bytes(b"")
    other = {"command": "index", "extraction": {"scales": (1.0, 2.0), "side": 800}}
    with pytest.raises(ConfigError, match=r"extraction.side: 640 there, 800 wanted.*--overwrite starts anew"):
        unfinished(root, other)
    assert unfinished(root, other, True) and not (tmp_path / "images").exists()


def test_overwriting_a_finished_output_starts_anew_and_an_unfinished_one_goes_on(tmp_path):
    root, shard = str(tmp_path), tmp_path / "images" / "shard"
    for finished in (False, True):
        unfinished(root)
        shard.parent.mkdir(exist_ok=True)
        shard.write_bytes(b"")
        if finished:
            outputs.finish(root, {"command": "index", "format": outputs.FORMAT})
        assert unfinished(root, overwrite=True) and shard.exists() != finished


def test_a_deletion_that_was_killed_is_carried_on(tmp_path, monkeypatch):
    root, old = str(tmp_path), tmp_path / "predictions" / "old.parquet"
    unfinished(root)
    old.parent.mkdir()
    old.write_bytes(b"")
    other = {**SETTINGS, "command": "recognize"}
    with monkeypatch.context() as killed:
        killed.setattr(outputs.files, "delete_tree", lambda *arguments, **keywords: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unfinished(root, other, True)
    assert unfinished(root, SETTINGS) and not old.exists()  # nothing of the old output is taken for done, whatever is asked


@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_folder_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(ConfigError, match="not made by landmarks"):
        unfinished(str(tmp_path), SETTINGS, overwrite)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("manifest, message", [
    (None, "no output of `landmarks index`"),
    ({"command": "recognize", "format": outputs.FORMAT}, "'recognize'"),
    ({"command": "index", "format": 99}, "format 99"),
])
def test_a_manifest_of_something_else(tmp_path, manifest, message):
    if manifest:
        outputs.finish(str(tmp_path), manifest)
    with pytest.raises(ConfigError, match=message):
        outputs.read_manifest(str(tmp_path), "index")
