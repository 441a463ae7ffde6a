"""The command line from photographs to metrics, re-reading what it wrote."""

import csv
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from beam_pipeline import beam_import, calibrate
from beam_pipeline.extraction import ExtractMissing
from beam_pipeline.main import main
from tests import oracle, tiny_models
from tests.clocks import FakeClock
from tests.command_line import ALL_CORES, ONE_WORKER, run
from transforms import retrieval, verification
from transforms.arrays.quantization import dequantized
from transforms.models.embedded import EmbeddedModel
from transforms.storage.feature_store import FeatureStore
from transforms.types import FeatureLocation

RETRIEVING = tiny_models.RETRIEVAL_KINDS


@pytest.fixture(scope="session")
def data(tmp_path_factory, demo_set):
    """A part of the demo set: 6 landmarks' index photographs, 3 queries of each, and a few distractors."""
    return part_of(demo_set[0], tmp_path_factory.mktemp("data"), landmarks=6, distractors=4)


@pytest.fixture(scope="session")
def few(tmp_path_factory, demo_set):
    """As `data`, of 2 landmarks."""
    return part_of(demo_set[0], tmp_path_factory.mktemp("few"), landmarks=2, distractors=1)


def part_of(everything, root, landmarks, distractors):
    labels = pd.read_csv(everything / "labels.csv", dtype=str)
    chosen = sorted(labels.landmark_id.unique())[:landmarks]
    labels = labels[labels.landmark_id.isin(chosen)]
    truth = pd.read_csv(everything / "truth.csv", dtype=str, keep_default_na=False)
    shown = truth[truth.landmarks.isin(chosen)].groupby("landmarks").head(3)
    truth = pd.concat([shown, truth[truth.landmarks == ""].head(distractors)])
    labels.to_csv(root / "labels.csv", index=False)
    truth.to_csv(root / "truth.csv", index=False)
    for folder, ids in (("index", labels.id), ("queries", truth.id)):
        (root / folder).mkdir()
        found = {path.stem: path for path in (everything / folder).rglob("*.jpg")}
        for image_id in ids:
            shutil.copy(found[image_id], root / folder)
    return root


def index(data, output, *flags):
    given = ("--images", data / "index", "--labels", data / "labels.csv", "--output", output)
    return run("index", *given, *flags)


def recognize(data, index_folder, output, *flags, images="queries"):
    given = ("--images", data / images, "--index", index_folder, "--output", output)
    return run("recognize", *given, *flags)


@pytest.fixture(scope="module", autouse=True)
def few_others(demo_set, tmp_path_factory):
    """A cohort of twenty photographs of the demo set, in the place of the embedded model's hundred."""
    everything, root = demo_set[0], tmp_path_factory.mktemp("others")
    truth = pd.read_csv(everything / "truth.csv", dtype=str, keep_default_na=False)
    others = truth[truth.landmarks == ""].id[4:24]
    (root / "others.txt").write_text("".join(f"{everything / 'queries' / name}.jpg\n" for name in others))
    assert run("cohort", "--images", f"@{root / 'others.txt'}", "--output", root / "cohort") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedModel, "COHORT", str(root / "cohort"))
        yield


@pytest.fixture(scope="session")
def embedded_index(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("embedded") / "index"
    assert index(data, output, ALL_CORES) == 0
    return output


@pytest.fixture(scope="session")
def embedded_run(data, embedded_index, tmp_path_factory):
    output = tmp_path_factory.mktemp("embedded") / "run"
    assert recognize(data, embedded_index, output, "--truth", data / "truth.csv") == 0
    return output


def submission(run):
    with open(run / "submission.csv", newline="") as f:
        return {row["id"]: row["landmarks"] for row in csv.DictReader(f)}


def test_what_an_index_leaves(data, embedded_index):
    manifest = json.loads((embedded_index / "manifest.json").read_text())
    count = len(list((data / "index").iterdir()))
    assert manifest["counts"] == {
        "matched": count,
        "indexed": count,
        "failed": 0,
        "out_of_time": 0,
        "without_label": 0,
        "labels_without_image": 0,
        "passed_over": 0,
    }
    assert manifest["model"]["uri"] == "embedded" and manifest["global_dimensions"] == 512
    images = pd.read_parquet(embedded_index / "images")
    labels = pd.read_csv(data / "labels.csv", dtype=str).set_index("id").landmark_id
    assert (
        len(images) == count
        and (images.set_index("image_id").landmark_id.sort_index() == labels.sort_index()).all()
    )
    assert np.allclose([np.linalg.norm(d) for d in images.global_descriptor], 1, atol=1e-5)


def test_what_a_run_leaves(data, embedded_run):
    truth = pd.read_csv(data / "truth.csv", dtype=str, keep_default_na=False)
    rows = submission(embedded_run)
    assert list(rows) == sorted(truth.id)
    predictions = pd.read_parquet(embedded_run / "predictions").set_index("image_id")
    assert len(predictions) == len(truth)
    for image_id, text in rows.items():
        landmark, score = text.split(" ")
        row = predictions.loc[image_id]
        assert (landmark, float(score)) == (row.landmark_id, row.score)
        scores = [c["score"] for c in row.candidates]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
        assert row.score == pytest.approx(
            sum(c["score"] for c in row.candidates if c["landmark_id"] == landmark)
        )
    manifest = json.loads((embedded_run / "manifest.json").read_text())
    assert manifest["counts"] == {
        "queries": len(truth),
        "predicted": len(truth),
        "verified": len(truth),
        "failed": 0,
        "out_of_time": 0,
        "passed_over": 0,
        "landmark_not_indexed": 0,
    }
    metrics = json.loads((embedded_run / "metrics.json").read_text())
    assert metrics["all"]["gap"] > 0.3  # guessing gives less than 0.05


PROCESSES = "--direct_running_mode=multi_processing"


_TELL_MODULES = """
import atexit, sys

atexit.register(lambda: print(*sys.modules, sep="\\n", file=open("modules.txt", "a")))
"""


def test_recognize_imports_nothing_that_it_does_not_use(data, embedded_index, embedded_run, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(_TELL_MODULES)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", os.getcwd())]
    command = ["recognize", "--images", data / "queries", "--index", embedded_index, "--output", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "beam_pipeline", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    modules = {*(tmp_path / "modules.txt").read_text().splitlines()}  # of the job, and of its supervisor
    assert {"apache_beam", "onnxruntime", "transforms.verification"} <= modules
    unused = {*beam_import.LEFT_OUT, "pymongo", "tensorflow", "PIL.PdfImagePlugin"}
    assert not unused & modules
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["extract", "retrieve", "verify"]
    assert submission(tmp_path / "run") == submission(embedded_run)


def same_files(one, other, *parts):
    for part in parts:
        names = [sorted(p.name for p in (root / part).rglob("*")) for root in (one, other)]
        assert names[0] == names[1]
        for name in names[0]:
            assert (one / part / name).read_bytes() == (other / part / name).read_bytes(), f"{part}/{name}"


# The fixtures' own ways: an index with as many threads as cores, a run with one worker in memory.
@pytest.mark.parametrize(
    "flags",
    [["--direct_num_workers=4"], ["--direct_num_workers=2", PROCESSES]],
    ids=["4 threads", "2 processes"],
)
def test_workers_do_not_change_a_byte_of_a_run(data, embedded_index, embedded_run, tmp_path, flags):
    run = tmp_path / "run"
    assert recognize(data, embedded_index, run, *flags) == 0
    same_files(
        run, embedded_run, "predictions", "queries/images", "queries/local_features", "queries/summaries"
    )
    assert (run / "submission.csv").read_bytes() == (embedded_run / "submission.csv").read_bytes()


@pytest.mark.parametrize(
    "flags",
    [[ONE_WORKER], ["--direct_num_workers=4"], ["--direct_num_workers=2", PROCESSES]],
    ids=["in memory", "4 threads", "2 processes"],
)
def test_workers_and_the_order_of_units_do_not_change_a_byte_of_an_index(
    data, embedded_index, tmp_path, flags, monkeypatch
):
    expand = ExtractMissing.expand

    def in_random_order(self, begin):
        return expand(
            dataclasses.replace(self, listed=tuple(random.Random(1).sample(self.listed, len(self.listed)))),
            begin,
        )

    monkeypatch.setattr(ExtractMissing, "expand", in_random_order)
    assert index(data, tmp_path / "index", *flags) == 0
    same_files(
        tmp_path / "index", embedded_index, "images", "local_features", "summaries", "plan", "augmented"
    )
    manifests = [
        json.loads((root / "manifest.json").read_text()) for root in (tmp_path / "index", embedded_index)
    ]
    assert {**manifests[0], "seconds": 0} == {**manifests[1], "seconds": 0}


SCORES = ["--top_k=1", "--max_inlier_score=30", "--global_weight=0", "--augmented_weight=2"]


def test_rescoring_gives_the_bytes_of_a_run_with_these_scores(data, embedded_index, embedded_run, tmp_path):
    fresh, rescored = tmp_path / "fresh", tmp_path / "rescored"
    assert (
        recognize(data, embedded_index, fresh, "--query_store", str(embedded_run / "queries"), *SCORES) == 0
    )
    rescore = ["rescore", "--run", str(embedded_run), "--output", str(rescored), *SCORES, ONE_WORKER]
    assert main([*rescore, "--truth", str(data / "truth.csv")]) == 0
    same_files(fresh, rescored, "predictions", "plan")
    assert (fresh / "submission.csv").read_bytes() == (rescored / "submission.csv").read_bytes()
    assert (fresh / "submission.csv").read_bytes() != (embedded_run / "submission.csv").read_bytes()
    assert (fresh / "settings.json").read_bytes() == (rescored / "settings.json").read_bytes()
    assert json.loads((rescored / "metrics.json").read_text())["all"]["gap"] > 0
    assert main(["verify", str(rescored)]) == 0


@pytest.mark.parametrize(
    "flags, problem",
    [
        (["--num_to_rerank=4"], "has 3 candidates of each query, 4 are wanted"),
        (["--num_to_rerank=2", "--top_k=3"], "--top_k 3 is more than the 2 candidates"),
        (["--min_probability=0.5"], "--min_probability needs a calibration"),
        (["--calibration=nowhere.json"], "there is no nowhere.json: `landmarks calibrate` makes it"),
    ],
)
def test_what_a_run_does_not_have_cannot_be_scored(embedded_run, tmp_path, capsys, flags, problem):
    assert main(["rescore", "--run", str(embedded_run), "--output", str(tmp_path / "out"), *flags]) == 2
    assert problem in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def calibrated(data, embedded_index, tmp_path_factory):
    """A copy of the index with its calibration, and a tuned run."""
    root = tmp_path_factory.mktemp("tuned")
    shutil.copytree(embedded_index, root / "index")
    assert main(["calibrate", "--index", str(root / "index"), ONE_WORKER]) == 0
    assert recognize(data, root / "index", root / "run", "--preset=tuned") == 0
    return root


def test_a_calibration_says_what_it_is_made_of(calibrated):
    found = json.loads((calibrated / "index" / "calibration.json").read_text())
    images = json.loads((calibrated / "index" / "manifest.json").read_text())["counts"]["indexed"]
    assert found["queries"]["known"] == images and 20 < found["queries"]["left_out"] <= images
    assert found["coefficients"]["augmented"] > 0 and found["coefficients"]["geometry"] > 0
    assert set(found["cross_validated"]) == {"gap", "calibration_error", "precision", "recall"}
    chosen = {name: found["settings"][name] for name in found["tried"][0] if name != "gap"}
    enough = max(tried["gap"] for tried in found["tried"]) - 1 / images
    first = next(tried for tried in found["tried"] if tried["gap"] > enough)
    assert first == {**chosen, "gap": first["gap"]}


def test_the_five_best_landmarks_of_a_run(data, calibrated, tmp_path):
    output, truth = tmp_path / "m.json", data / "truth.csv"
    assert run("evaluate", "--predictions", calibrated / "run", "--truth", truth, "--output", output) == 0
    found = json.loads(output.read_text())["all"]
    shown = pd.read_csv(truth, dtype=str, keep_default_na=False).set_index("id").landmarks
    shown = shown[shown != ""]
    manifest = json.loads((calibrated / "run" / "manifest.json").read_text())
    candidates = pd.read_parquet(calibrated / "run" / "predictions").set_index("image_id").candidates
    best = {
        image_id: oracle.best_landmarks(
            [oracle.OracleCandidate(c["image_id"], c["landmark_id"], 0, 0, c["score"]) for c in rows],
            manifest["hyperparameters"]["top_k"],
            5,
        )
        for image_id, rows in candidates.items()
    }
    right = {image_id: landmark in best[image_id] for image_id, landmark in shown.items()}
    assert found["top5"] == sum(right.values()) / len(shown) >= found["top1"]
    for landmark, counts in found["landmarks"].items():
        assert counts["top5"] == sum(right[i] for i in shown[shown == landmark].index)


def test_tuned_predictions_are_ranked_by_probability(data, calibrated):
    predictions = pd.read_parquet(calibrated / "run" / "predictions").set_index("image_id")
    truth = pd.read_csv(data / "truth.csv", dtype=str, keep_default_na=False).set_index("id").landmarks
    assert predictions.probability.between(0, 1).all()
    for image_id, text in submission(calibrated / "run").items():
        row = predictions.loc[image_id]
        assert text.split(" ") == [row.landmark_id, repr(float(row.probability))]
    right = predictions.landmark_id == truth.reindex(predictions.index)
    assert predictions.probability[right].mean() > predictions.probability[~right].mean() + 0.2


def test_workers_do_not_change_a_calibration(data, calibrated, embedded_index, tmp_path):
    shutil.copytree(embedded_index, tmp_path / "index")
    assert main(["calibrate", "--index", str(tmp_path / "index"), "--direct_num_workers=2"]) == 0
    made = [json.loads((root / "index" / "calibration.json").read_text()) for root in (calibrated, tmp_path)]
    assert {**made[0], "seconds": 0} == {**made[1], "seconds": 0}
    [evidence] = (calibrated / "index" / "calibration").iterdir()
    same_files(tmp_path / "index", calibrated / "index", f"calibration/{evidence.name}/self/predictions")
    assert recognize(data, tmp_path / "index", tmp_path / "run", "--preset=tuned") == 0
    assert (tmp_path / "run/submission.csv").read_bytes() == (calibrated / "run/submission.csv").read_bytes()


def test_another_share_needs_no_second_search(calibrated, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "Searcher", None)
    monkeypatch.setattr(verification, "verify_pair", None)
    output = tmp_path / "rare.json"
    command = ["calibrate", "--index", str(calibrated / "index"), "--non_landmark_share=0.98", ONE_WORKER]
    assert main([*command, "--output", str(output)]) == 0
    rare, even = (
        json.loads(path.read_text()) for path in (output, calibrated / "index" / "calibration.json")
    )
    assert rare["coefficients"]["constant"] < even["coefficients"]["constant"]
    assert rare["queries"] == even["queries"]


def test_a_calibration_that_runs_out_of_time_learns_from_what_it_has_and_goes_on(
    calibrated, embedded_index, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(retrieval, "UNIT_QUERIES", 8)  # 3 units of the cohort, 5 of the index
    index_folder, left = tmp_path / "index", []
    shutil.copytree(embedded_index, index_folder)
    whole = verification._Verify._verify_unit

    def verify_unit(self, unit):
        return whole(self, unit) if left and left.pop() else dataclasses.replace(unit, final=False)

    monkeypatch.setattr(verification._Verify, "_verify_unit", verify_unit)
    FakeClock(monkeypatch, calibrate, start=time.time() + 7200)  # where what is late is counted
    command = ["calibrate", "--index", str(index_folder), ONE_WORKER, "--time_budget"]
    assert main([*command, "1s"]) == 1 and "goes on from here, given more" in capsys.readouterr().err
    assert not list(index_folder.glob("calibration/*/*/predictions/*"))
    left += [True] * 4  # with 8 photographs of the index, of 20 that are needed
    assert main([*command, "1h"]) == 1 and "the others are too few to learn from" in capsys.readouterr().err
    assert not (index_folder / "calibration.json").exists()
    monkeypatch.setattr(retrieval, "Searcher", None)  # what was found is kept
    left += [True] * 3
    assert main([*command, "1h"]) == 0
    found = json.loads((index_folder / "calibration.json").read_text())
    assert 4 <= found["out_of_time"] <= 8 and found["queries"]["known"] == 36 - found["out_of_time"]
    said = capsys.readouterr().out
    assert f"{found['out_of_time']} photographs were not searched for in time: the same command" in said
    left.append(True)
    assert main(command[:-1]) == 0
    again, wanted = (
        json.loads((root / "calibration.json").read_text()) for root in (index_folder, calibrated / "index")
    )
    assert {**again, "seconds": 0} == {**wanted, "seconds": 0} and not again["out_of_time"]
    assert not list(index_folder.glob("calibration/*/*/candidates/*")) and not left


def test_features_that_cannot_be_read_are_said_and_their_queries_left_out(embedded_index, tmp_path, capsys):
    shutil.copytree(embedded_index, tmp_path / "index")
    table = pd.read_parquet(tmp_path / "index" / "images")
    spoiled = next((tmp_path / "index" / "local_features").glob("*.bin"))
    content = bytearray(spoiled.read_bytes())
    content[:4] = b"\xff" * 4  # of the first photograph: a count that is too large
    spoiled.write_bytes(content)
    assert main(["calibrate", "--index", str(tmp_path / "index"), ONE_WORKER]) == 0
    assert "readings of local features failed and count for nothing" in capsys.readouterr().err
    found = json.loads((tmp_path / "index" / "calibration.json").read_text())
    assert found["queries"]["known"] == len(table) - 1 and found["out_of_time"] == 0


def test_what_is_less_probable_has_no_landmark_and_keeps_its_candidates(calibrated, tmp_path):
    whole = pd.read_parquet(calibrated / "run" / "predictions").set_index("image_id")
    least = float(whole.probability.median())
    command = ["rescore", "--run", str(calibrated / "run"), "--output", str(tmp_path / "run"), ONE_WORKER]
    assert main([*command, "--min_probability", repr(least)]) == 0
    part = pd.read_parquet(tmp_path / "run" / "predictions").set_index("image_id")
    assert (part.probability == whole.probability).all()
    assert (part.landmark_id.isna() == (whole.probability < least)).all() and part.landmark_id.isna().any()
    assert [len(c) for c in part.candidates] == [len(c) for c in whole.candidates]
    rows = submission(tmp_path / "run")
    assert {image_id for image_id, text in rows.items() if not text} == set(
        part.index[part.landmark_id.isna()]
    )


def test_a_calibration_scores_a_run_that_was_verified_alike(data, calibrated, tmp_path):
    index_folder, accurate = calibrated / "index", tmp_path / "accurate"
    store = ["--query_store", str(calibrated / "run" / "queries")]
    assert recognize(data, index_folder, accurate, "--preset=accurate", *store) == 0
    command = ["rescore", "--run", str(accurate), "--output", str(tmp_path / "tuned"), ONE_WORKER]
    assert main([*command, "--calibration", str(index_folder / "calibration.json")]) == 0
    same_files(tmp_path / "tuned", calibrated / "run", "predictions")


def test_an_index_that_is_not_calibrated_has_no_tuned_preset(data, embedded_index, tmp_path, capsys):
    assert recognize(data, embedded_index, tmp_path / "run", "--preset=tuned") == 2
    assert "is not calibrated" in capsys.readouterr().err


@pytest.fixture(scope="module")
def runs(data, calibrated, tmp_path_factory):
    """Runs of the same queries by two models, and the calibration of both indexes."""
    root = tmp_path_factory.mktemp("ensemble")
    assert index(data, root / "other", "--model", "rootsift-vlad", "--max_local_features=200") == 0
    store = ["--query_store", str(calibrated / "run" / "queries")]
    assert recognize(data, calibrated / "index", root / "run-a", "--preset", "accurate", *store) == 0
    assert recognize(data, root / "other", root / "run-b", "--preset", "accurate") == 0
    both = [f"--run={root / name}" for name in ("run-a", "run-b")]
    assert main(["calibrate", *both, "--output", str(root / "both.json"), ALL_CORES]) == 0
    return root


def both_of(root):
    return ["rescore", "--run", str(root / "run-a"), "--run", str(root / "run-b")]


def test_an_ensemble_is_calibrated_and_scored_the_same_with_any_workers(runs, tmp_path):
    found = json.loads((runs / "both.json").read_text())
    assert [one["model"] for one in found["ensemble"]] == ["landmarks-lite0", "rootsift-vlad"]
    assert sum(one["weight"] for one in found["ensemble"]) == 1
    command = [*both_of(runs), "--calibration", str(runs / "both.json")]
    for workers in ("1", "2"):
        flags = ["--output", str(tmp_path / workers), f"--direct_num_workers={workers}"]
        assert main([*command, *flags]) == 0
    same_files(tmp_path / "1", tmp_path / "2", "predictions")
    assert (tmp_path / "1/submission.csv").read_bytes() == (tmp_path / "2/submission.csv").read_bytes()
    assert main(["verify", str(tmp_path / "1")]) == 0
    calibration = [f"--run={runs / name}" for name in ("run-a", "run-b")]
    output = tmp_path / "again.json"
    assert main(["calibrate", *calibration, "--output", str(output), ONE_WORKER]) == 0
    assert {**json.loads(output.read_text()), "seconds": 0} == {**found, "seconds": 0}


def test_a_run_with_itself_is_itself(runs, tmp_path):
    command = ["rescore", "--run", str(runs / "run-a"), "--run", str(runs / "run-a")]
    assert main([*command, "--output", str(tmp_path / "twice"), ONE_WORKER]) == 0
    same_files(tmp_path / "twice", runs / "run-a", "predictions")


def test_runs_in_another_order_or_number_are_refused(runs, tmp_path, capsys):
    calibration = ["--calibration", str(runs / "both.json"), "--output", str(tmp_path / "out")]
    turned = ["rescore", "--run", str(runs / "run-b"), "--run", str(runs / "run-a")]
    assert main([*turned, *calibration]) == 2
    assert "has landmarks-lite0 in the place of" in capsys.readouterr().err
    assert main([*both_of(runs)[:3], *calibration]) == 2
    assert "is of 2 index(es), and --run names 1 run(s)" in capsys.readouterr().err


def test_real_queries_are_learned_from_too(runs, data, calibrated, capsys):
    output = runs / "real.json"
    command = ["calibrate", "--truth", str(data / "truth.csv"), "--output", str(output), ONE_WORKER]
    assert main([*command, "--run", str(runs / "run-a")]) == 0
    found = json.loads(output.read_text())["queries"]
    before = json.loads((calibrated / "index" / "calibration.json").read_text())["queries"]
    truth = (data / "truth.csv").read_text().splitlines()[1:]
    assert sum(found.values()) - sum(before.values()) == len(truth)
    assert found["negatives"] - before["negatives"] == 4 and found["left_out"] == before["left_out"]
    store = ["--query_store", str(calibrated / "run" / "queries")]
    assert recognize(data, calibrated / "index", runs / "entry", *store) == 0
    assert main([*command, "--run", str(runs / "entry")]) == 2
    assert "`landmarks recognize --preset accurate` makes one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "label_of", [lambda at: "one", lambda at: str(at), lambda at: str(at // 2)], ids=["one", "alone", "pairs"]
)
def test_an_index_too_small_to_learn_from_is_recognized_by_nevertheless(data, tmp_path, label_of, capsys):
    (tmp_path / "index").mkdir()
    rows = ["id,landmark_id"]
    for at, path in enumerate(sorted((data / "index").iterdir())[:10]):
        shutil.copy(path, tmp_path / "index")
        rows.append(f"{path.stem},{label_of(at)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "queries").mkdir()
    for path in sorted((data / "queries").iterdir())[:3]:
        shutil.copy(path, tmp_path / "queries")
    assert index(tmp_path, tmp_path / "small") == 0
    assert run("calibrate", "--index", tmp_path / "small") == 0
    out = capsys.readouterr().out
    assert "too little to learn from" in out and "scores that are good in general" in out
    assert recognize(tmp_path, tmp_path / "small", tmp_path / "run", "--preset", "tuned") == 0
    predictions = pd.read_parquet(tmp_path / "run" / "predictions")
    assert predictions.landmark_id.notna().all() and predictions.probability.isna().all()
    flags = ["--preset", "tuned", "--min_probability", "0.5"]
    assert recognize(tmp_path, tmp_path / "small", tmp_path / "strict", *flags) == 2
    assert "the index was too small to learn probabilities from" in capsys.readouterr().err


def test_a_finished_output_is_left_alone_and_other_settings_are_refused(
    data, embedded_index, embedded_run, capsys
):
    before = (embedded_run / "manifest.json").stat().st_mtime_ns
    assert recognize(data, embedded_index, embedded_run) == 0
    assert (
        "nothing to do" in capsys.readouterr().out
        and (embedded_run / "manifest.json").stat().st_mtime_ns == before
    )
    assert recognize(data, embedded_index, embedded_run, "--max_distance=0.7") == 2
    assert "hyperparameters.max_distance: 0.9 there, 0.7 wanted" in capsys.readouterr().err


def test_other_parameters_need_no_new_extraction(data, embedded_index, embedded_run, tmp_path, monkeypatch):
    from transforms import features

    def refuse(self):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(features.UnitModelHandler, "load_model", refuse)
    flags = ["--query_store", embedded_run / "queries", "--preset=accurate"]
    assert recognize(data, embedded_index, tmp_path / "run", *flags) == 0
    candidates = pd.read_parquet(tmp_path / "run" / "predictions").candidates
    assert max(len(c) for c in candidates) == 20


def test_an_unfinished_run_goes_on_and_ends_with_the_same_bytes(data, embedded_index, embedded_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(embedded_run, run)
    (run / "manifest.json").unlink()
    (run / "submission.csv").unlink()
    sorted((run / "predictions").iterdir())[0].unlink()
    unit = sorted((run / "queries" / "images").iterdir())[1]
    unit.unlink()
    settings = json.loads((run / "settings.json").read_text())
    assert recognize(data, embedded_index, run) == 0
    assert json.loads((run / "settings.json").read_text()) == settings
    for part in ("submission.csv", f"queries/images/{unit.name}"):
        assert (run / part).read_bytes() == (embedded_run / part).read_bytes()


@pytest.mark.parametrize("kind", RETRIEVING)
def test_every_contract_goes_through_index_and_recognize(few, tmp_path, kind, capsys):
    tiny_models.build(kind, tmp_path / "model")
    flags = [
        "--image_scales=0.7071,1",
        "--score_threshold=0",
        "--max_local_features=100",
        "--max_image_side=160",
    ]
    assert index(few, tmp_path / "index", "--model", str(tmp_path / "model"), *flags) == 0
    assert recognize(few, tmp_path / "index", tmp_path / "run") == 0
    candidates = pd.read_parquet(tmp_path / "run" / "predictions").candidates
    inliers = [c["inliers"] for row in candidates for c in row]
    if kind == "global_only":
        assert set(inliers) == {None} and "no re-ranking" in capsys.readouterr().out
    else:
        assert max(inliers) >= 5


def test_an_index_smaller_than_num_to_rerank_and_queries_that_are_in_it(data, tmp_path):
    labels = pd.read_csv(data / "labels.csv", dtype=str).head(2)
    small = tmp_path / "small"
    (small / "index").mkdir(parents=True)
    for image_id in labels.id:
        shutil.copy(data / "index" / f"{image_id}.jpg", small / "index")
    labels.to_csv(small / "labels.csv", index=False)
    assert index(small, tmp_path / "index") == 0
    assert recognize(small, tmp_path / "index", tmp_path / "run", "--num_to_rerank=100", images="index") == 0
    predictions = pd.read_parquet(tmp_path / "run" / "predictions").set_index("image_id")
    a, b = sorted(labels.id)
    assert [[c["image_id"] for c in predictions.loc[i].candidates] for i in (a, b)] == [[a, b], [b, a]]


def test_broken_photographs_are_failure_rows_and_change_nothing_else(
    data, embedded_index, embedded_run, tmp_path
):
    queries = tmp_path / "queries"
    shutil.copytree(data / "queries", queries)
    whole = next(queries.iterdir()).read_bytes()
    broken = {
        "zero.jpg": b"",
        "text.png": b"hello",
        "half.jpg": whole[: len(whole) // 2],
        "header.jpg": whole[:20],
        "head.webp": b"RIFF",
    }
    for name, content in broken.items():
        (queries / name).write_bytes(content)
    Image.new("RGB", (1, 50)).save(queries / "thin.png")
    assert recognize(tmp_path, embedded_index, tmp_path / "run", "--max_failure_rate=0.5") == 0
    failed = pd.read_parquet(tmp_path / "run" / "failures")
    assert set(failed.image_id) == {"zero", "text", "half", "header", "head", "thin"}
    rows = submission(tmp_path / "run")
    assert all(rows.pop(image_id) == "" for image_id in failed.image_id)
    assert rows == submission(embedded_run)


def test_a_truth_of_other_images_is_refused_before_the_work(data, embedded_index, tmp_path, capsys):
    (tmp_path / "truth.csv").write_text("id,landmarks,Usage\n0123,7,Public\n")
    assert recognize(data, embedded_index, tmp_path / "run", "--truth", str(tmp_path / "truth.csv")) == 2
    assert "query images are not in" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_images_without_a_label_are_left_out_and_said(data, tmp_path, capsys):
    labels = pd.read_csv(data / "labels.csv", dtype=str)
    labels.iloc[1:].to_csv(tmp_path / "labels.csv", index=False)
    given = ("--images", data / "index", "--labels", tmp_path / "labels.csv")
    assert run("index", *given, "--output", tmp_path / "index") == 0
    assert "1 of" in capsys.readouterr().err
    failures = pd.read_parquet(tmp_path / "index" / "failures")
    assert failures.kind.tolist() == ["no_label"] and failures.image_id.tolist() == [labels.id[0]]


def oracle_images(store, limit=None):
    """Images of a feature store, as the oracle takes them."""
    images = []
    for unit in store.units():
        for row in store.read_images(unit).to_pylist():
            local = dequantized(
                store.read_local(FeatureLocation(unit, row["local_offset"], row["local_size"]))
            )
            images.append(
                oracle.OracleImage(
                    row["image_id"],
                    row["landmark_id"],
                    np.array(row["global_descriptor"]),
                    local.keypoints,
                    local.descriptors,
                )
            )
    return sorted(images, key=lambda image: image.image_id)[:limit]


def agrees_with_the_oracle(index_folder, run, parameters, limit):
    """Compares the first `limit` queries of a run with what the oracle makes of the same features."""
    predictions = pd.read_parquet(run / "predictions").set_index("image_id")
    queries = oracle_images(FeatureStore(str(run / "queries")), limit)
    answers = oracle.recognize(oracle_images(FeatureStore(str(index_folder))), queries, parameters)
    same = 0
    for image_id, (candidates, landmark, _score) in answers.items():
        row = predictions.loc[image_id]
        ours = {c["image_id"]: c for c in row.candidates}
        assert ours.keys() == {c.image_id for c in candidates}
        for candidate in candidates:
            mine = ours[candidate.image_id]
            assert mine["similarity"] == pytest.approx(candidate.similarity, abs=1e-6)
            if (
                candidate.inliers >= 60
            ):  # a clear homography; scikit-image does not improve its own, so it may find fewer
                assert 0.85 * candidate.inliers <= mine["inliers"] <= 1.6 * candidate.inliers
        same += landmark == row.landmark_id
    # A query of nothing that is there may fall to one class or another by a chance inlier.
    assert same >= 0.9 * len(answers)


def test_the_pipeline_agrees_with_the_oracle(embedded_index, embedded_run):
    agrees_with_the_oracle(embedded_index, embedded_run, oracle.OracleParameters(), 4)


def test_the_pipeline_agrees_with_the_oracle_on_real_photographs(photos, tmp_path):
    table = pd.read_csv(photos / "photos.csv", dtype=str, keep_default_na=False)
    labels = table[table.kind == "landmark"].label.value_counts().index[:2]
    chosen = table[table.label.isin(labels)].sort_values("id").groupby("label").head(8)
    queries = chosen.groupby("label").head(2)
    chosen[["id", "label"]].rename(columns={"label": "landmark_id"}).to_csv(
        tmp_path / "labels.csv", index=False
    )
    for name, part in (("index", chosen[~chosen.id.isin(queries.id)]), ("queries", queries)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{photos.resolve() / path}\n" for path in part.path))
    flags = ["--mutual_check", "--num_to_rerank=5"]
    index_folder, output = tmp_path / "index", tmp_path / "run"
    given = ("--images", f"@{tmp_path}/index.txt", "--labels", tmp_path / "labels.csv")
    assert run("index", *given, "--output", index_folder) == 0
    given = ("--images", f"@{tmp_path}/queries.txt", "--index", index_folder)
    assert run("recognize", *given, "--output", output, *flags) == 0
    parameters = oracle.OracleParameters(num_to_rerank=5, mutual_check=True)
    agrees_with_the_oracle(index_folder, output, parameters, None)
