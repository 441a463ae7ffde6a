"""The report: what it says, reads and refuses. Its pages are looked at in test_report_pages.py."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from beam_pipeline.config import ConfigError, ReportConfig
from beam_pipeline.main import main
from beam_pipeline.report import answers as columns
from beam_pipeline.report import pictures
from beam_pipeline.report.answers import Answers, Comparison, JudgedAnswers, Landmarks, Pick
from beam_pipeline.report.pages import write_report
from tests.file_systems import FolderFileSystem
from tests.finished_runs import candidate, make_index, make_run, write_truth
from transforms import images
from transforms.storage import files, tables
from transforms.storage.feature_store import failure_table
from transforms.types import Failure, Prediction

INDEX = {"a1": "tower", "a2": "tower", "b1": "bridge", "c1": "castle"}
PREDICTIONS = [
    Prediction("q1", "tower", 1.8, (candidate("a1", "tower", 1.8), candidate("b1", "bridge", 0.5)), True),
    Prediction("q2", "tower", 1.5, (candidate("a1", "tower", 1.5), candidate("b1", "bridge", 0.9)), True),
    Prediction("q3", "tower", 1.2, (candidate("a2", "tower", 1.2),), True),
    Prediction("q4", "castle", 0.4, (candidate("c1", "castle", 0.4, None),)),
    Prediction("q5", None, None),
    Prediction("q6", "bridge", 0.9, (candidate("b1", "bridge", 0.9),), True),
    Prediction("q7", "castle", 0.3, (candidate("c1", "castle", 0.3),), True),
]
TRUTH = {
    "q1": "tower",
    "q2": "bridge",
    "q3": "",
    "q4": "tower",
    "q5": "castle",
    "q6": "bridge",
    "q7": "palace",
}
OUTCOMES = ["right", "lost", "other", "missed", "unanswered", "right", "unindexed"]

PAGES = ("index.html", "queries.html", "landmarks.html")
ASSETS = ("queries.js", "landmarks.js", "ids.js", "report.js", "style.css")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index, a run and its truth."""
    root = tmp_path_factory.mktemp("run")
    index = make_index(root / "index", INDEX)
    run = make_run(root / "run", index, PREDICTIONS, without_features=["q5"])
    return index, run, write_truth(root / "truth.csv", TRUTH)


def records(report, name):
    text = pathlib.Path(report, f"{name}.js").read_text()
    return json.loads(text.removeprefix("window.RECORDS = ").removesuffix(";\n"))


def judge(run, truth, indexed=("tower", "bridge", "castle")):
    answers = Answers.read(run)
    return answers, JudgedAnswers.of(run, answers, tables.read_truth(truth), pa.array(indexed), 3)


def test_every_query_has_its_outcome_and_the_costs_are_what_the_gap_lacks(made):
    _, run, truth = made
    answers, judged = judge(run, truth)
    assert answers.ids.to_pylist() == [f"q{n}" for n in range(1, 8)]
    assert judged.outcome.tolist() == OUTCOMES
    assert judged.cost.sum() == pytest.approx(1 - judged.metrics["all"]["gap"])
    assert judged.truth.to_pylist()[1] == ["bridge"]
    assert judged.confused(answers, 9) == [
        ("castle", "palace", 1),
        ("castle", "tower", 1),
        ("tower", "bridge", 1),
    ]
    causes = judged.causes()
    assert {name for name, _, _ in causes} == {"lost", "other", "missed", "unanswered", "unindexed"}
    assert [cost for _, _, cost in causes] == sorted((cost for _, _, cost in causes), reverse=True)
    assert judged.precision().tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 2, 2 / 5, 2 / 6])


def test_queries_that_the_truth_leaves_out_are_not_judged(made, tmp_path):
    _, run, _ = made
    rows = [f"q{n},{TRUTH[f'q{n}']},{'Ignored' if n == 2 else 'Public'}" for n in (1, 2, 3, 4, 6, 7)]
    (tmp_path / "truth.csv").write_text("id,landmarks,Usage\n" + "\n".join(rows) + "\n")
    _, judged = judge(run, str(tmp_path / "truth.csv"))
    assert judged.outcome.tolist() == [
        "right", "unjudged", "other", "missed", "unjudged", "right", "unindexed",
    ]  # fmt: skip
    assert judged.cost[1] == 0


def test_what_changed_between_two_runs(made, tmp_path):
    index, run, _ = made
    others = [
        Prediction("q1", "castle", 1.0, (candidate("c1", "castle", 1.0),)),
        Prediction("q2", "bridge", 1.0, (candidate("b1", "bridge", 1.0),)),
        Prediction("q3", "tower", 1.0, (candidate("a1", "tower", 1.0),)),
        Prediction("q4", "bridge", 1.0, (candidate("b1", "bridge", 1.0),)),
        Prediction("q6", "bridge", 1.0, (candidate("b1", "bridge", 1.0),)),
        Prediction("q9", "bridge", 1.0, (candidate("b1", "bridge", 1.0),)),
    ]
    other = make_run(tmp_path / "other", index, others)
    truth_of_both = write_truth(tmp_path / "truth.csv", {**TRUTH, "q9": "bridge"})
    (answers, judged), (other_answers, other_judged) = judge(run, truth_of_both), judge(other, truth_of_both)

    compared = Comparison.of(answers, judged, other_answers, other_judged)
    assert compared.change.tolist() == ["gained", "lost", "same", "another", "new", "same", "new"]
    assert compared.landmark.to_pylist() == ["castle", "bridge", "tower", "bridge", None, "bridge", None]
    assert compared.missing == 1
    assert compared.gain[0] > 0 > compared.gain[1]

    without = Comparison.of(answers, None, other_answers, None)
    assert without.change.tolist() == ["another", "another", "same", "another", "new", "same", "new"]
    assert without.gain is None and without.gap is None

    same = Comparison.of(answers, judged, answers, judged)
    assert {*same.change.tolist()} == {"same"} and not same.gain.any()


def test_the_gains_of_queries_add_up_to_that_of_the_gap(made, tmp_path):
    index, run, truth = made
    other = make_run(
        tmp_path / "other", index, [*PREDICTIONS[1:3], Prediction("q1", None, None), *PREDICTIONS[3:]]
    )
    (answers, judged), (other_answers, other_judged) = judge(run, truth), judge(other, truth)
    compared = Comparison.of(answers, judged, other_answers, other_judged)
    assert compared.gain.sum() == pytest.approx(judged.metrics["all"]["gap"] - compared.gap)


def _answers(landmarks, scores):
    table = pa.table(
        {
            "image_id": [f"q{n:04d}" for n in range(len(scores))],
            "landmark_id": pa.array(landmarks, pa.string()),
            "score": pa.array(scores, pa.float64()),
            "verified": [True] * len(scores),
        }
    )
    return Answers(table, "score", np.array(scores, np.float64))


def test_a_magnet_is_what_draws_far_more_queries_than_its_share():
    answers = _answers(["tree"] * 30 + ["tower"] * 30 + ["bridge"] * 2 + [None], [1.0] * 62 + [np.nan])
    landmarks = Landmarks.of(answers, {"tree": 1, "tower": 50, "bridge": 1, "castle": 48})
    assert landmarks.ids == ["tree", "tower", "bridge"]
    assert landmarks.magnet.tolist() == [True, False, False]
    assert landmarks.expected.tolist() == pytest.approx([0.62, 31, 0.62])


def test_a_sample_holds_mistakes_changes_and_the_whole_range_and_says_so():
    rng = np.random.default_rng(0)
    answers = _answers(["tree"] * 400 + ["tower"] * 600, rng.permutation(1000) / 1000)
    landmarks = Landmarks.of(answers, {"tree": 1, "tower": 99})
    cost = np.zeros(1000)
    cost[:20] = np.arange(20)
    judged = JudgedAnswers(np.full(1000, "right"), cost, pa.nulls(1000), {}, np.arange(0), np.zeros(0, bool))
    changed = np.full(1000, "same")
    changed[500:600] = "gained"
    compared = Comparison(answers.landmarks, answers.confidence, changed, None, None, 0)

    pick = Pick.of(answers, judged, compared, landmarks, 200)

    assert len(pick.positions) == 200 == len({*pick.positions.tolist()})
    assert {*range(1, 20)} <= {*pick.positions.tolist()}
    assert [re.sub(r"^[\d,]+ ", "", text) for text in pick.how] == [
        "that cost the most GAP",
        "whose answer changed, those of the greatest gain or loss first",
        "of the 1 strongest magnets",
        "evenly spread over the order by confidence",
    ]
    assert len(pick.positions[(pick.positions >= 500) & (pick.positions < 600)]) >= 50
    spread = np.sort(answers.confidence[pick.positions])
    assert spread[0] < 0.05 and spread[-1] > 0.95
    assert Pick.of(answers, judged, compared, landmarks, 200).positions.tolist() == pick.positions.tolist()
    assert Pick.of(answers, None, None, landmarks, 1000).how == []


def test_reliability_is_the_share_that_is_right_by_bin():
    confidence = np.array([0.05, 0.07, 0.55, 0.95, 1.0])
    correct = np.array([False, False, True, True, True])
    assert columns.reliability(confidence, correct, "probability") == [
        (pytest.approx(0.06), 0.0, 2),
        (pytest.approx(0.55), 1.0, 1),
        (pytest.approx(0.975), 1.0, 2),
    ]
    assert [n for _, _, n in columns.reliability(np.arange(25.0), np.ones(25, bool), "score")] == [3] * 5 + [
        2
    ] * 5
    assert columns.reliability(np.zeros(0), np.zeros(0, bool), "score") == []


def test_probabilities_are_taken_for_the_confidence(made, tmp_path):
    index, _, truth = made
    sure = [dataclasses.replace(p, probability=(n + 1) / 10) for n, p in enumerate(PREDICTIONS)]
    run = make_run(tmp_path / "run", index, sure)
    answers = Answers.read(run)
    assert answers.measure == "probability"
    assert answers.confidence.tolist() == pytest.approx([0.1 * (n + 1) for n in range(7)])
    assert columns.threshold_of({}, answers, None) == (0.5, "more likely right than wrong")
    assert columns.threshold_of({"min_probability": 0.8}, answers, None)[0] == 0.8
    indexed = pa.array(["tower", "bridge", "castle"])
    judged = JudgedAnswers.of(run, answers, tables.read_truth(truth), indexed, 3)
    assert answers.ids.take(pa.array(judged.ranked)).to_pylist() == ["q7", "q6", "q4", "q3", "q2", "q1"]
    write_report(ReportConfig(run, str(tmp_path / "report"), truth=truth))
    page = " ".join((tmp_path / "report" / "index.html").read_text().split())
    assert "<dt>right, by their probabilities</dt><dd>2</dd>" in page
    assert "probability, highest first" in (tmp_path / "report" / "queries.html").read_text()
    assert "What the probabilities are worth" in (tmp_path / "report" / "mistakes.html").read_text()


def test_a_score_has_a_threshold_only_where_the_truth_gives_one(made):
    _, run, truth = made
    answers, judged = judge(run, truth)
    assert columns.threshold_of({}, answers, None) == (None, "")
    assert columns.threshold_of({}, answers, judged)[0] == pytest.approx(1.8)


def test_a_report_is_written_and_tells_what_costs_most(made, tmp_path, capsys):
    _, run, truth = made
    report = tmp_path / "report"
    first = write_report(ReportConfig(run, str(report), truth=truth))
    assert first == str(report / "index.html")
    names = {p.name for p in report.iterdir()}
    assert names == {"photographs", "report.json", *PAGES, "mistakes.html", *ASSETS}
    queries = {r["id"]: r for r in records(report, "queries")}
    assert [queries[f"q{n}"]["outcome"] for n in range(1, 8)] == OUTCOMES
    assert queries["q2"]["truth"] == ["bridge"] and queries["q2"]["landmark"] == "tower"
    assert queries["q4"]["verified"] == "no" and queries["q5"]["confidence"] is None
    assert queries["q1"]["html"].count("<image ") == 4  # two pairs
    assert re.search(r'<path d="M\d+ -?\d+l\d+ -?\d+', queries["q1"]["html"])
    assert [r["id"] for r in records(report, "landmarks")] == ["tower", "castle", "bridge"]
    for html in (*report.glob("*.html"), *report.glob("*.js")):
        for name in re.findall(r"photographs/\d+\.webp", html.read_text()):
            with PIL.Image.open(report / name) as image:
                assert max(image.size) == pictures.SIDE
    told = capsys.readouterr().out
    assert "index.html: 7 of 7 queries" in told
    assert "the right landmark was among the candidates and lost the vote" in told


def test_photographs_are_read_once_each(made, tmp_path, monkeypatch):
    _, run, truth = made
    read, real = [], images.read_image
    monkeypatch.setattr(images, "read_image", lambda ref, *rest: read.append(ref.uri) or real(ref, *rest))
    write_report(ReportConfig(run, str(tmp_path / "report"), truth=truth))
    assert len(read) == len({*read}) == 6 + len(INDEX)


def test_a_report_is_of_and_in_another_file_system(tmp_path, monkeypatch):
    FolderFileSystem.use(tmp_path, monkeypatch)
    index = make_index("folder://index", INDEX)
    run = make_run("folder://run", index, PREDICTIONS, without_features=["q5"])
    for _ in range(2):
        FolderFileSystem.opened.clear()
        write_report(ReportConfig(run, "folder://report"))
        opened = [uri for uri in FolderFileSystem.opened if uri.endswith(".png")]
        assert len(opened) == len({*opened}) == 6 + len(INDEX)
    assert len(records(tmp_path / "report", "queries")) == len(PREDICTIONS)
    assert len([*(tmp_path / "report" / "photographs").iterdir()]) == 6 + len(INDEX)
    assert "file:" not in (tmp_path / "report" / "queries.js").read_text()
    with pytest.raises(ConfigError, match="was not made by `landmarks report`"):
        write_report(ReportConfig(run, run))


def test_a_report_goes_on_without_photographs_and_features_that_are_gone(tmp_path, capsys):
    index = make_index(tmp_path / "index", INDEX)
    run = make_run(tmp_path / "run", index, PREDICTIONS)
    (tmp_path / "run" / "photographs" / "q1.png").unlink()
    (tmp_path / "index" / "photographs" / "b1.png").write_bytes(b"no picture")
    for path in (tmp_path / "index" / "local_features").iterdir():
        path.unlink()

    write_report(ReportConfig(run, str(tmp_path / "report")))

    queries = {r["id"]: r["html"] for r in records(tmp_path / "report", "queries")}
    assert "not readable now" in queries["q1"] and "<path" not in queries["q1"]
    said = capsys.readouterr().out
    assert f"1 not_found, 1 not_an_image, such as {tmp_path}/run/photographs/q1.png; photographs that" in said
    assert "1 not_found, 1 not_an_image" in " ".join((tmp_path / "report" / "index.html").read_text().split())


def test_an_index_that_was_moved_is_missed_with_what_to_do(tmp_path):
    index = make_index(tmp_path / "index", INDEX)
    run = make_run(tmp_path / "run", index, PREDICTIONS)
    (tmp_path / "index").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="made with is missing: .*/index is no output .* put it back"):
        write_report(ReportConfig(run, str(tmp_path / "report")))


def test_at_most_so_many_queries_are_shown_whole(made, tmp_path):
    _, run, truth = made
    write_report(ReportConfig(run, str(tmp_path / "report"), truth=truth, max_queries=4))
    assert len(records(tmp_path / "report", "queries")) == 4
    page = " ".join((tmp_path / "report" / "index.html").read_text().split())
    assert "4 of the 7 queries are shown whole: 1 that cost the most GAP; 3 evenly spread" in page
    assert json.loads((tmp_path / "report" / "ids.js").read_text()[len("window.IDS = ") : -2]) == [*TRUTH]


def test_a_report_is_made_again_in_its_place_without_what_is_not_wanted_any_more(made, tmp_path):
    _, run, truth = made
    report = tmp_path / "report"
    write_report(ReportConfig(run, str(report), truth=truth))
    (report / "notes.txt").write_text("mine")
    (report / "photographs" / "99999.webp").write_bytes(b"old")
    write_report(ReportConfig(run, str(report)))
    assert (report / "notes.txt").exists()
    assert not (report / "mistakes.html").exists() and not (report / "photographs" / "99999.webp").exists()


@pytest.mark.parametrize("what", ["run", "something else"])
def test_another_folder_is_not_written_to(made, tmp_path, what):
    _, run, _ = made
    folder = tmp_path / "folder"
    if what == "run":
        folder = pathlib.Path(run)
    else:
        folder.mkdir()
        (folder / "index.html").write_text("mine")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="not empty and was not made by `landmarks report`"):
        write_report(ReportConfig(run, str(folder)))
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_names_stand_beside_the_ids_on_the_pages_and_on_the_terminal(tmp_path, capsys):
    index = make_index(tmp_path / "index", {**INDEX, **{f"d{n}": "castle" for n in range(60)}})
    many = [Prediction(f"q{n}", "tower", 1.0, (candidate("a1", "tower", 1.0),)) for n in range(40)]
    run = make_run(tmp_path / "run", index, many)
    (tmp_path / "names.csv").write_text("landmark_id,name\ntower,Tour Eiffel\n")
    arguments = ["--run", run, "--output", str(tmp_path / "report"), "--names", str(tmp_path / "names.csv")]
    assert main(["report", *arguments]) == 0
    assert "magnet: Tour Eiffel (tower), 40 queries where its share" in capsys.readouterr().out
    [landmark] = records(tmp_path / "report", "landmarks")
    assert "Tour Eiffel (tower)" in landmark["html"] and landmark["magnet"] == "yes"
    assert "tour eiffel" in records(tmp_path / "report", "queries")[0]["text"]


def test_a_run_of_nothing_but_failures_has_a_report(tmp_path):
    index = make_index(tmp_path / "index", INDEX)
    run = make_run(tmp_path / "run", index, [Prediction("q1", None, None)], without_features=["q1"])
    PIL.Image.new("RGB", (8, 6)).save(tmp_path / "small.png")
    failures = failure_table(
        [
            Failure("decode", "q1", "/q1.jpg", "corrupt", "<b>broken</b>"),
            Failure("extract", "q2", str(tmp_path / "small.png"), "too_small", "8 x 6"),
            Failure("extract", "q3", str(tmp_path / "small.png"), "crashed", "the process died"),
        ]
    )
    files.write_parquet(files.join(run, "failures", "extract.parquet"), failures)
    truth = write_truth(tmp_path / "truth.csv", {"q1": ""})
    write_report(ReportConfig(run, str(tmp_path / "report"), truth=truth, against=run))
    page = (tmp_path / "report" / "failures.html").read_text()
    assert "&lt;b&gt;broken&lt;/b&gt;" in page and "file:///q1.jpg" in page
    assert page.count("<img ") == 1 and len([*(tmp_path / "report" / "photographs").iterdir()]) == 1


def test_predictions_that_the_truth_does_not_know_are_an_error_before_anything_is_written(made, tmp_path):
    _, run, _ = made
    truth = write_truth(tmp_path / "truth.csv", {"q1": "tower"})
    with pytest.raises(ValueError, match="5 of 7 predictions are for images that the truth does not list"):
        write_report(ReportConfig(run, str(tmp_path / "report"), truth=truth))
    assert not (tmp_path / "report").exists()


def test_pairs_are_found_across_many_shards(made, monkeypatch):
    _, run, _ = made
    monkeypatch.setattr(columns, "_ROWS", 3)
    tables_read = list(columns.batches(run, ["image_id"]))
    assert sum(map(len, tables_read)) == len(PREDICTIONS)
