"""What `landmarks info` says of outputs."""

import json
import os

import pytest

from beam_pipeline import info, outputs
from beam_pipeline.config import ConfigError
from beam_pipeline.main import main
from beam_pipeline.manifest import IndexCounts, IndexManifest, RunCounts, RunManifest
from tests import finished_runs
from tests.file_systems import FolderFileSystem
from tests.manifests import run_manifest
from transforms import patterns
from transforms.database_augmentation import augmented_shards
from transforms.storage import files, worklist
from transforms.types import ImageUnit, Prediction

LABELS = {"a": "Eiffel Tower", "b": "Eiffel Tower", "c": "Louvre", "d": "Rome", "e": "Rome", "f": "Rome"}


def replaced(root, kind, **fields):
    """Rewrites the manifest of an output with other `fields`."""
    manifest = outputs.read_manifest(root, kind)
    outputs.finish(root, type(manifest)(**{**vars(manifest), **fields}))


@pytest.fixture
def index(tmp_path):
    root = finished_runs.make_index(tmp_path / "index", LABELS)
    refs = patterns.match_images([f"{root}/photographs"]).images
    worklist.write_worklist(root, [ImageUnit("u0", tuple(refs[:3])), ImageUnit("u1", tuple(refs[3:]))])
    files.write_json(f"{root}/settings.json", {"command": "index"})
    counts = IndexCounts(matched=9, indexed=6, failed=2, out_of_time=0, without_label=1)
    fields = {"failures": {"corrupt": 2}, "passed_over": {".mov": 3}, "image_ids": "path"}
    replaced(root, IndexManifest, counts=counts, **fields)
    return root


@pytest.fixture
def run(tmp_path, index):
    candidates = (finished_runs.candidate("a", "Eiffel Tower", 1.0),)
    predictions = [Prediction("q1", "Eiffel Tower", 1.0, candidates), Prediction("q2", None, None)]
    root = finished_runs.make_run(tmp_path / "run", index, predictions)
    digest = outputs.read_manifest(index, IndexManifest).digest(index)
    files.write_json(f"{root}/settings.json", {"command": "recognize", "index": digest})
    replaced(root, RunManifest, counts=RunCounts(queries=3, predicted=1, verified=1, failed=1, out_of_time=0))
    return root


def said(capsys, *arguments):
    assert main(["info", *arguments]) == 0
    return capsys.readouterr().out


def test_an_index_in_a_few_lines(index, capsys):
    lines = said(capsys, index).splitlines()
    assert lines[:4] == [
        f"{index}: index, finished",
        "photographs: 6 indexed, 2 failed (2 corrupt), 1 without a label, paths are their ids",
        "landmarks: 3 (3 Rome, 2 Eiffel Tower, 1 Louvre); 1 with one photograph only",
        f"calibrated: no; `landmarks calibrate --index {index}` does it",
    ]
    assert lines[4].startswith("model: delg (ffffffffffff), ") and "max_local_features 1000" in lines[4]
    assert lines[5] == "beside the photographs: 3 .mov"
    assert lines[6].startswith("disk: ") and len(lines) == 7


def test_an_index_as_json(index, capsys):
    found = json.loads(said(capsys, index, "--json"))
    assert found["kind"] == "index" and found["finished"] is True and found["stale"] == []
    assert found["landmarks"] == {"Rome": 3, "Eiffel Tower": 2, "Louvre": 1}
    assert found["photographs"]["indexed"] == 6 and found["failures"] == {"corrupt": 2}
    assert found["image_ids"] == "path" and found["passed_over"] == {".mov": 3}
    assert found["calibration"] is None and found["database_augmentation"] is False
    manifest = outputs.read_manifest(index, IndexManifest)
    augmented_shards(index).write_list(manifest.derived_list, {})
    assert json.loads(said(capsys, index, "--json"))["database_augmentation"] is True


def test_the_disk_counts_what_the_command_wrote_and_nothing_else(index):
    before = info.facts(index)["disk"]
    own = ("settings.json", "manifest.json", "plan/000000.parquet")
    assert before["files"] == len(own)  # the units of tests are called otherwise than those of jobs
    assert before["bytes"] == sum(os.path.getsize(f"{index}/{name}") for name in own)
    files.write_bytes(f"{index}/notes.txt", b"x" * 1000)
    assert info.facts(index)["disk"]["files"] == before["files"]


def test_photographs_that_went_or_were_changed_make_an_index_stale(index):
    os.remove(f"{index}/photographs/a.png")
    with open(f"{index}/photographs/b.png", "ab") as f:
        f.write(b"more")
    assert info.facts(index)["stale"] == [
        "1 of 6 photographs looked at are not where they were, the first is 'a'",
        "1 of 6 photographs looked at were changed since, the first is 'b'",
    ]


def test_a_calibration_is_shown_and_stale_when_the_index_was_changed(index, capsys):
    settings = {**vars(run_manifest().verification), **vars(run_manifest().scoring)}
    value = {
        "index": outputs.read_manifest(index, IndexManifest).digest(index),
        "settings": {"num_to_rerank": 20, **settings},
        "coefficients": None,
        "gap": 0.98765,
    }
    files.write_json(f"{index}/calibration.json", value)
    assert "calibrated: yes; gap 0.9877" in said(capsys, index)
    assert info.facts(index)["stale"] == []
    replaced(index, IndexManifest, failures={"corrupt": 1, "too_large": 1})
    (line,) = info.facts(index)["stale"]
    assert "calibration.json is of before the index was changed" in line


def test_a_run_in_a_few_lines_and_as_json(run, index, capsys):
    files.write_json(f"{run}/metrics.json", {"all": {"gap": 0.5, "top1": 0.25, "top5": 0.75, "counts": {}}})
    lines = said(capsys, run).splitlines()
    assert lines[:4] == [
        f"{run}: run, finished",
        "queries: 3, 1 predicted, 1 verified, 1 failed",
        "landmarks: 1 (1 Eiffel Tower); 1 with one query only",
        f"index: {index}",
    ]
    assert lines[4].startswith("predictions: without probabilities, num_to_rerank 3, top_k 3")
    assert lines[5] == "metrics: gap 0.5, top1 0.25, top5 0.75"
    found = json.loads(said(capsys, run, "--json"))
    assert found["landmarks"] == {"Eiffel Tower": 1} and found["calibrated"] is False and found["stale"] == []


def test_a_run_is_stale_when_its_index_was_changed_or_is_gone(run, index):
    replaced(index, IndexManifest, failures={})
    assert info.facts(run)["stale"] == [f"its index, {index}, was changed since"]
    os.rename(index, index + "2")
    assert info.facts(run)["stale"] == [f"its index, {index}, is not there"]


def test_what_is_not_finished_says_how_far_it_is(index, capsys):
    os.remove(f"{index}/manifest.json")
    assert "index, not finished: 2 of 2 units are extracted; the same command goes on from here" in said(
        capsys, index
    )
    assert json.loads(said(capsys, index, "--json"))["extracted"] == {"units": 2, "of": 2}


def test_what_is_no_output_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("x")
    assert main(["info", str(tmp_path)]) == 2
    assert "is no output of landmarks: it has no settings.json" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "none")]) == 2
    assert "none is no output of landmarks: there is no such folder" in capsys.readouterr().err
    files.write_json(f"{tmp_path}/settings.json", {"command": "overwrite", "of": "index"})
    with pytest.raises(ConfigError, match="is being deleted by --overwrite"):
        info.facts(str(tmp_path))


def test_an_output_elsewhere_is_told_alike(index, tmp_path, monkeypatch):
    FolderFileSystem.use(tmp_path, monkeypatch)
    assert info.facts("folder://index/") == {**info.facts(index), "root": "folder://index/"}
