"""The state of an output folder."""

import pytest

from beam_pipeline import outputs
from beam_pipeline.config import ConfigError

SETTINGS = {"command": "index", "extraction": {"scales": (1.0, 2.0), "side": 640}}


def test_a_new_folder_an_unfinished_one_and_a_finished_one(tmp_path):
    root = str(tmp_path / "out")
    assert outputs.prepare(root, SETTINGS, False)
    assert outputs.prepare(root, SETTINGS, False)
    with pytest.raises(ConfigError, match="not finished: run the same `landmarks index` again"):
        outputs.read_manifest(root, "index")
    outputs.finish(root, {"command": "index", "format": outputs.FORMAT})
    assert not outputs.prepare(root, SETTINGS, False)
    assert outputs.read_manifest(root, "index")["command"] == "index"


def test_other_settings_are_named_and_only_overwritten_on_demand(tmp_path):
    root = str(tmp_path)
    outputs.prepare(root, SETTINGS, False)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "old.parquet").write_bytes(b"")
    other = {"command": "index", "extraction": {"scales": (1.0, 2.0), "side": 800}}
    with pytest.raises(ConfigError, match=r"extraction.side: 640 there, 800 wanted.*--overwrite starts anew"):
        outputs.prepare(root, other, False)
    assert outputs.prepare(root, other, True) and not (tmp_path / "images").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_folder_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(ConfigError, match="not made by landmarks"):
        outputs.prepare(str(tmp_path), SETTINGS, overwrite)
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
