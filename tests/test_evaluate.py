"""The evaluate job from files to metrics.json."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import evaluate, outputs
from beam_pipeline.config import ConfigError, EvaluateConfig
from tests.manifests import run_manifest
from transforms.storage import tables
from transforms.storage.tables import TableError

TRUTH = """id,landmarks,Usage
0123456789abcdef,0 12,Public
0223456789abcdef,100 200 300,Public
0323456789abcdef,1,Private
0423456789abcdef,,Private
0523456789abcdef,,Ignored
"""

SUBMISSION = """id,landmarks
0223456789abcdef,0 0.01
0323456789abcdef,1 10.0
0423456789abcdef,150 15.0
0523456789abcdef,7 99
"""


@pytest.fixture
def truth(tmp_path):
    (tmp_path / "truth.csv").write_text(TRUTH)
    return str(tmp_path / "truth.csv")


@pytest.fixture
def submission(tmp_path):
    (tmp_path / "submission.csv").write_text(SUBMISSION)
    return str(tmp_path / "submission.csv")


@pytest.fixture
def run_dir(tmp_path, submission):
    """A finished run in two shards, with the predictions of `submission`."""
    folder = tmp_path / "run"
    (folder / "predictions").mkdir(parents=True)
    table = tables.read_submission(submission)
    scored = pa.struct({"image_id": pa.string(), "landmark_id": pa.string(), "score": pa.float64()})
    votes = [
        [("0", 0.01), ("7", 0.0), ("7", 0.0), *((str(n), -n) for n in range(1, 4)), ("300", -4)],
        [("1", 10.0)],
        [("150", 15.0), ("1", 2.0)],
        [("7", 99.0)],
    ]
    candidates = [[{"landmark_id": name, "score": score} for name, score in row] for row in votes]
    table = table.append_column("candidates", pa.array(candidates, pa.list_(scored)))
    pq.write_table(table.slice(0, 1), folder / "predictions" / "a.parquet")
    pq.write_table(table.slice(1), folder / "predictions" / "b.parquet")
    outputs.finish(str(folder), run_manifest())
    return folder


def test_csv_prints_and_writes_nothing(submission, truth, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    metrics = evaluate.run(EvaluateConfig(submission, truth))
    assert sorted(tmp_path.iterdir()) == before
    assert metrics["all"]["gap"] == pytest.approx(1 / 6)
    assert metrics["Public"]["gap"] == 0.0
    assert metrics["Private"]["gap"] == pytest.approx(1 / 2)
    assert capsys.readouterr().out == (
        "            GAP  GAP, landmarks only   top-1  top-5  queries  with landmark  predicted  correct\n"
        "all      0.1667               0.3333  0.3333      -        4              3          3        1\n"
        "Public   0.0000               0.0000  0.0000      -        2              2          1        0\n"
        "Private  0.5000               1.0000  1.0000      -        2              1          2        1\n"
        "1 queries of the truth have no row\n"
        "1 rows are on queries with Usage Ignored\n"
        "top-5 is known of a run's folder alone: a submission has no candidates\n"
    )


def test_csv_with_output(submission, truth, tmp_path):
    output = tmp_path / "new" / "metrics.json"
    metrics = evaluate.run(EvaluateConfig(submission, truth, str(output)))
    assert json.loads(output.read_text()) == metrics


@pytest.mark.parametrize(
    "flags",
    [[], ["--runner=DirectRunner"], ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]],
    ids=["default", "direct", "two threads"],
)
def test_run_folder_gives_the_bytes_that_recognize_writes(run_dir, truth, submission, flags):
    assert evaluate.evaluate_run(str(run_dir), truth)["all"]["gap"] == pytest.approx(1 / 6)
    written = (run_dir / "metrics.json").read_bytes()
    (run_dir / "metrics.json").unlink()
    metrics = evaluate.run(EvaluateConfig(str(run_dir), truth), PipelineOptions(flags))
    assert (run_dir / "metrics.json").read_bytes() == written
    csv = evaluate.run(EvaluateConfig(submission, truth))
    without = {**metrics["all"], "top5": None}
    without["landmarks"] = {name: {**n, "top5": None} for name, n in metrics["all"]["landmarks"].items()}
    assert csv["all"] == without


def test_a_run_knows_whether_the_landmark_is_among_the_five_best(run_dir, truth, capsys):
    metrics = evaluate.run(EvaluateConfig(str(run_dir), truth))
    # 300, of the first query, is the sixth landmark there; the query 0123... has no row.
    assert [metrics[split]["top5"] for split in ("all", "Public", "Private")] == [1 / 3, 0, 1]
    assert metrics["all"]["landmarks"]["1"]["top5"] == 1 and metrics["all"]["landmarks"]["300"]["top5"] == 0
    said = capsys.readouterr().out.splitlines()
    assert "top-5" in said[0] and said[1].split()[4] == "0.3333" and "no candidates" not in "".join(said)
    shard = run_dir / "predictions" / "a.parquet"
    table = pq.read_table(shard)
    last = pa.array(
        [rows[:1] + rows[2:] for rows in table["candidates"].to_pylist()], table["candidates"].type
    )
    pq.write_table(table.set_column(3, "candidates", last), shard)
    assert evaluate.run(EvaluateConfig(str(run_dir), truth))["all"]["top5"] == 1 / 3
    # Without any candidate of 7, 300 is the fifth.
    last = pa.array(
        [rows[:1] + rows[3:] for rows in table["candidates"].to_pylist()], table["candidates"].type
    )
    pq.write_table(table.set_column(3, "candidates", last), shard)
    assert evaluate.run(EvaluateConfig(str(run_dir), truth))["all"]["top5"] == 2 / 3


def test_landmarks_and_images_that_the_truth_spells_otherwise_are_named(tmp_path, capsys):
    submission, truth = tmp_path / "s.csv", tmp_path / "t.csv"
    submission.write_text("id,landmarks\na1,3348 0.5\na2,3348 0.4\n")
    truth.write_text("id,landmark_id\na1,3348.0\na2,3348.0\n")
    evaluate.run(EvaluateConfig(str(submission), str(truth)))
    assert f"is one of {truth}" in (said := capsys.readouterr().err) and "'3348' is '3348.0' in" in said
    truth.write_text("id,landmark_id\na1.jpg,3348\na2.jpg,3348\n")
    with pytest.raises(ValueError, match=r"2 of 2 predictions .*; 'a1' is 'a1.jpg' in the truth"):
        evaluate.run(EvaluateConfig(str(submission), str(truth)))
    truth.write_text("id,landmark_id\na1,3348\na2,7\n")
    evaluate.run(EvaluateConfig(str(submission), str(truth)))
    assert capsys.readouterr().err == ""


def test_truth_in_the_form_of_labels(submission, tmp_path, capsys):
    path = tmp_path / "labels.csv"
    path.write_text(
        "id,landmark_id\n0223456789abcdef,0\n0323456789abcdef,1\n0423456789abcdef,\n0523456789abcdef,\n"
    )
    metrics = evaluate.run(EvaluateConfig(submission, str(path)))
    assert metrics["Public"]["gap"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert capsys.readouterr().out.count("\n") == 3


def test_undefined_metrics_are_null(tmp_path, submission):
    path = tmp_path / "none.csv"
    path.write_text("id,landmarks\n" + "".join(f"0{i}23456789abcdef,\n" for i in range(2, 6)))
    output = tmp_path / "metrics.json"
    metrics = evaluate.run(EvaluateConfig(submission, str(path), str(output)))
    assert json.loads(output.read_text())["all"]["gap"] is None
    assert evaluate.format_metrics(metrics).splitlines()[1].split()[:4] == ["all", "-", "-", "-"]


def test_unfinished_run_is_refused(run_dir, truth):
    (run_dir / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="run"):
        evaluate.run(EvaluateConfig(str(run_dir), truth))


def test_remote_runner_needs_an_output_for_a_csv(submission, truth):
    with pytest.raises(ConfigError, match="--output is needed"):
        evaluate.run(EvaluateConfig(submission, truth), PipelineOptions(["--runner=DataflowRunner"]))


def test_errors_arrive_as_they_are_and_leave_no_file(submission, truth, tmp_path):
    output = tmp_path / "metrics.json"
    with open(submission, "a") as f:
        f.write("0623456789abcdef,1 0.5\n")
    with pytest.raises(
        ValueError,
        match="1 of 5 predictions are for images that the truth does not list, such as 0623456789abcdef",
    ):
        evaluate.run(EvaluateConfig(submission, truth, str(output)))
    with open(submission, "a") as f:
        f.write("0623456789abcdef,1\n")
    with pytest.raises(
        TableError, match="submission.csv, line 7: id '0623456789abcdef' stands in line 6 already"
    ):
        evaluate.run(EvaluateConfig(submission, truth, str(output)))
    assert not output.exists()


def test_scores_that_may_be_probabilities_are_judged(truth, tmp_path, capsys):
    path = tmp_path / "probable.csv"
    path.write_text(
        "id,landmarks\n0123456789abcdef,12 0.95\n0223456789abcdef,0 0.85\n0323456789abcdef,1 0.6\n"
        "0423456789abcdef,150 0.55\n0523456789abcdef,7 0.99\n"
    )
    metrics = evaluate.run(EvaluateConfig(str(path), truth))["all"]
    rows = {row["threshold"]: row for row in metrics["judgement"]["thresholds"]}
    assert rows[0.5] == {"threshold": 0.5, "precision": 2 / 4, "recall": 2 / 3, "coverage": 1.0}
    assert rows[0.9] == {"threshold": 0.9, "precision": 1.0, "recall": 1 / 3, "coverage": 1 / 4}
    # Four bins: 0.95 and right, 0.85 and wrong, 0.6 and right, 0.55 and wrong.
    assert metrics["judgement"]["calibration_error"] == pytest.approx((0.05 + 0.85 + 0.4 + 0.55) / 4)
    assert [b["weight"] for b in metrics["judgement"]["reliability"]] == [1, 1, 1, 1]
    assert metrics["landmarks"]["1"] == {"queries": 1, "predicted": 1, "correct": 1, "top5": None}
    assert metrics["landmarks"]["150"] == {"queries": 0, "predicted": 1, "correct": 0, "top5": None}
    assert metrics["judgement"]["gap"] == metrics["gap"]
    assert ">= 0.90         1.0000  0.3333    0.2500" in capsys.readouterr().out


def test_gap_as_if_most_queries_showed_no_landmark(submission, truth, capsys):
    metrics = evaluate.run(EvaluateConfig(submission, truth, non_landmark_share=0.9))["all"]
    # 3 landmark queries, so one without weighs 27 and stands before the only right one.
    assert metrics["judgement"]["gap"] == pytest.approx((1 / 28) / 3)
    assert metrics["gap"] == pytest.approx(1 / 6) and "thresholds" not in metrics["judgement"]
    assert "GAP with this part of the queries without a landmark: 0.0119" in capsys.readouterr().out
