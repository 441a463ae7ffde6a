"""Photographs of other places: those that come with the embedded model, and those that a command extracts."""

import json
import os
import shutil

import pytest

from beam_pipeline import calibrate, outputs
from beam_pipeline.config import CalibrateConfig
from beam_pipeline.main import main
from beam_pipeline.manifest import CohortManifest
from tests.command_line import ONE_WORKER
from transforms.models import catalog
from transforms.storage.feature_store import FeatureStore
from transforms.types import Candidate, FeatureLocation, QueryCandidates

SHIPPED = catalog.cohort(catalog.EMBEDDED)


def test_the_cohort_of_the_embedded_model_is_of_this_model_and_small():
    found = outputs.read_manifest(SHIPPED, CohortManifest)
    assert found.recipe.fingerprint == catalog.fingerprint(catalog.EMBEDDED)
    assert found.recipe.settings == catalog.settings(catalog.EMBEDDED)
    assert found.counts.photographs == sum(shard.images for shard in found.shards) > 50
    sizes = [
        os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(SHIPPED) for name in names
    ]
    assert sum(sizes) < 6e6
    assert main(["verify", SHIPPED]) == 0


def test_the_cohort_of_the_embedded_model_is_numbers_alone():
    store = FeatureStore(SHIPPED)
    rows = [row for unit in store.units() for row in store.read_images(unit).to_pylist()]
    assert sorted(row["image_id"] for row in rows) == [f"{at:04d}" for at in range(len(rows))]
    assert {(row["uri"], row["landmark_id"], row["warning"]) for row in rows} == {("", None, None)}


def test_a_model_without_a_cohort_has_none():
    assert catalog.cohort(catalog.ROOTSIFT_VLAD) is None and catalog.cohort("some/model.onnx") is None


FEW_FEATURES = ["--max_local_features", "200"]


@pytest.fixture(scope="module")
def made(demo_set, tmp_path_factory):
    """A few photographs of the demo set, an index of them, and a cohort of others."""
    root, (data, _) = tmp_path_factory.mktemp("cohort"), demo_set
    found = sorted((data / "index").rglob("*.jpg"))[:10]
    (root / "labels.csv").write_text(
        "id,landmark_id\n" + "".join(f"{path.stem},{path.parent.name}\n" for path in found)
    )
    for folder, paths in (("index", found), ("other", sorted((data / "queries").rglob("*.jpg"))[:6])):
        (root / folder).mkdir()
        for path in paths:
            shutil.copy(path, root / folder)
    images, labels = str(root / "index"), str(root / "labels.csv")
    for model, flags in ((catalog.EMBEDDED, []), (catalog.ROOTSIFT_VLAD, FEW_FEATURES)):
        command = ["index", "--images", images, "--labels", labels, "--output", str(root / model), ONE_WORKER]
        assert main([*command, "--model", model, *flags]) == 0
    return root


def cohort(root, output, *flags):
    return main(["cohort", "--images", str(root / "other"), "--output", str(output), ONE_WORKER, *flags])


def shipped():
    return outputs.read_manifest(SHIPPED, CohortManifest).counts.photographs


def calibration(index, *flags):
    assert main(["calibrate", "--index", str(index), ONE_WORKER, *flags]) == 0
    return json.loads((index / "calibration.json").read_text())


def test_a_cohort_is_made_once_and_joins_the_one_of_the_model(made, tmp_path, capsys):
    assert cohort(made, tmp_path / "more", "--direct_num_workers=2") == 0
    assert "6 photographs, 0 failed" in capsys.readouterr().out
    assert cohort(made, tmp_path / "more") == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "more")]) == 0
    assert main(["info", str(tmp_path / "more")]) == 0
    assert "photographs: 6, 0 failed" in capsys.readouterr().out
    found = calibration(made / catalog.EMBEDDED, "--negatives", str(tmp_path / "more"))
    assert found["queries"]["negatives"] == shipped() + 6


def test_another_model_takes_a_cohort_of_its_own(made, tmp_path, capsys):
    assert calibration(made / catalog.ROOTSIFT_VLAD)["queries"]["negatives"] == 0
    assert cohort(made, tmp_path / "more", "--model", catalog.ROOTSIFT_VLAD, *FEW_FEATURES) == 0
    found = calibration(made / catalog.ROOTSIFT_VLAD, "--negatives", str(tmp_path / "more"))
    assert found["queries"]["negatives"] == 6
    command = ["calibrate", "--index", str(made / catalog.EMBEDDED), "--negatives", str(tmp_path / "more")]
    assert main(command) == 2
    assert "was made with another model or other settings than" in capsys.readouterr().err


def test_an_index_of_other_settings_is_calibrated_without_and_that_is_said(made, tmp_path, capsys):
    images, labels = str(made / "index"), str(made / "labels.csv")
    command = ["index", "--images", images, "--labels", labels, "--output", str(tmp_path / "index")]
    assert main([*command, "--max_local_features", "100", ONE_WORKER]) == 0
    capsys.readouterr()
    assert calibration(tmp_path / "index")["queries"]["negatives"] == 0
    assert "the cohort of landmarks-lite0 is not used" in capsys.readouterr().err


def test_places_of_the_cohort_that_the_index_holds_are_left_out(made, tmp_path, capsys, monkeypatch):
    shutil.copytree(made / "embedded", tmp_path / "index")
    same = ["cohort", "--images", str(made / "index"), "--output", str(tmp_path / "same"), ONE_WORKER]
    assert main(same) == 0
    monkeypatch.setattr(catalog, "cohort", lambda model: str(tmp_path / "same"))
    assert calibration(tmp_path / "index")["queries"]["negatives"] == 0
    assert (
        f"10 of the model's cohort show places of {tmp_path / 'index'} and are left"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("similarity", "inliers", "known"),
    [(0.44, 41, False), (0.5, 0, True), (0.2, 60, True), (0.2, None, False)],
)
def test_a_known_place_is_told_by_cosine_or_inliers(similarity, inliers, known):
    far = Candidate("far", "x", 0.1, FeatureLocation("", 0, 0), inliers=3)
    near = Candidate("near", "y", similarity, FeatureLocation("", 0, 0), inliers=inliers)
    assert calibrate.shows_known_place(QueryCandidates("q", FeatureLocation("", 0, 0), (far, near))) is known


def test_a_cohort_is_no_index(made, tmp_path, capsys):
    assert cohort(made, tmp_path / "more") == 0
    command = ["recognize", "--images", str(made / "other"), "--index", str(tmp_path / "more")]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    assert "command 'cohort', expected 'index'" in capsys.readouterr().err
    command = ["index", "--images", str(made / "index"), "--labels", str(made / "labels.csv")]
    assert main([*command, "--output", str(tmp_path / "more"), "--overwrite"]) == 2
    assert "is an output of `landmarks cohort`" in capsys.readouterr().err


def test_the_copy_of_the_cohort_belongs_to_the_index(made):
    assert calibration(made / catalog.EMBEDDED)["queries"]["negatives"] == shipped()
    [prepared] = calibrate.prepare(CalibrateConfig(str(made / catalog.EMBEDDED)))
    copy = FeatureStore(os.path.join(prepared.evidence, calibrate.COHORT))
    assert copy.units() == FeatureStore(SHIPPED).units()
    images, labels = str(made / "index"), str(made / "labels.csv")
    command = ["index", "--images", images, "--labels", labels, "--output", str(made / catalog.EMBEDDED)]
    assert main([*command, "--overwrite", ONE_WORKER]) == 0
    assert not (made / catalog.EMBEDDED / "calibration").exists()
