"""`landmarks audit` finds copies and wrong labels in an index, and `landmarks discover` groups of queries
without a landmark, which get names and join it.
"""

import collections
import csv
import dataclasses
import json
import shutil
import time

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beam_pipeline import audit, runner, self_search
from tests import tiny_models
from tests.clocks import FakeClock
from tests.command_line import run_in as run
from tests.survival import kill
from transforms import retrieval, verification
from transforms.arrays import label_audit
from transforms.storage import run_store
from transforms.storage.feature_store import FeatureStore

PLACES, EACH = 4, 5
SIDE = 240


def view(place, number):
    """A photograph of a place, from the side: uint8 [H, W, 3]."""
    rng = np.random.default_rng([place, number])
    corners = np.float32([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]])
    seen = corners + rng.uniform(-0.22, 0.22, (4, 2)).astype(np.float32) * SIDE
    whole = tiny_models.textured(SIDE, SIDE, place)
    return cv2.warpPerspective(
        whole, cv2.getPerspectiveTransform(seen, corners), (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT
    )


def save(folder, name, pixels, **options):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def index(labels="labels.csv", *more):
    given = ("--images", "p", "--labels", labels, "--output", "index", "--model", "rootsift-vlad")
    given += ("--max_local_features", "250")
    return ("index", *given, *more)


AUDIT = ("audit", "--index", "index", "--output", "audit")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Five views of four places, of which one has the label of another, an exact copy, and three others."""
    folder = tmp_path_factory.mktemp("made")
    labels = {}
    for place in range(PLACES):
        for number in range(EACH):
            name = f"p{place}{number}"
            save(folder, f"p/{name}.png", view(place, number))
            labels[name] = f"place {place}" if name != "p20" else "place 0"
    shutil.copy(folder / "p/p11.png", folder / "p/copy.png")
    save(folder, "p/coded.jpg", view(3, 1), quality=60)
    save(folder, "p/cropped.jpg", view(3, 2)[20:210, 30:220], quality=90)
    save(folder, "p/scaled.png", cv2.resize(view(3, 3), (150, 150), interpolation=cv2.INTER_AREA))
    labels |= {"copy": "place 1", "coded": "place 3", "cropped": "place 3", "scaled": "place 3"}
    labels["alone"] = "place 1"
    save(folder, "p/alone.png", view(9, 0))
    text = "".join(f"{name},{label.replace(' ', '')}\n" for name, label in labels.items())
    (folder / "labels.csv").write_text("id,landmark_id\n" + text)
    assert run(folder, *index()) == 0 and run(folder, *AUDIT) == 0
    return folder


def table(folder, name, output="audit"):
    return pq.read_table(folder / output / f"{name}.parquet").to_pylist()


def test_copies_of_bytes_are_found_by_their_content(made):
    assert [
        (row["kept_image_id"], row["image_id"], row["proof"], row["removable"])
        for row in table(made, "exact_duplicates")
    ] == [("copy", "p11", "bytes", True)]


def test_of_copies_that_bear_different_labels_the_wrong_one_leaves(made, tmp_path, capsys):
    shutil.copytree(made / "p", tmp_path / "p")
    for name in ("p30", "alone"):  # of a place that others show, and of one that none does
        shutil.copy(tmp_path / "p" / f"{name}.png", tmp_path / "p" / f"a copy of {name}.png")
    more = "a copy of p30,place0\na copy of alone,place2\n"
    (tmp_path / "labels.csv").write_text((made / "labels.csv").read_text() + more)
    assert run(tmp_path, *index()) == 0 and run(tmp_path, *AUDIT) == 0
    assert "1 copies bear another label than the one that would be kept" in capsys.readouterr().out
    rows = {row["image_id"]: row for row in table(tmp_path, "exact_duplicates")}
    wrong = rows.pop("a copy of p30")
    assert (wrong["kept_image_id"], wrong["kept_landmark_id"]) == ("p30", "place3")
    assert wrong["landmark_id"] == "place0" and wrong["removable"]
    assert wrong["kept_votes"] - wrong["votes"] >= label_audit.CONFIRMED
    untold = {name for name, row in rows.items() if not row["removable"]}
    assert len(untold) == 1 and untold < {"alone", "a copy of alone"} and {*rows} == {"p11", *untold}
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "place3 and place0, same bytes<" in page and "which label is right the votes do not tell" in page
    remove = ("--remove", "audit/exact_duplicates.csv")
    assert run(tmp_path, "index", "--output", "index", *remove, "--relabel", "audit/mislabelled.csv") == 0
    store = FeatureStore(str(tmp_path / "index"))
    rows = [row for unit, _ in store.current() for row in store.read_images(unit).to_pylist()]
    left = {row["image_id"]: row["landmark_id"] for row in rows}
    assert left["p30"] == "place3" and not {"a copy of p30", "p11"} & {*left}
    assert {"alone", "a copy of alone"} < {*left}


def test_coded_cropped_and_scaled_copies_are_one_view_and_views_from_the_side_are_not(made):
    found = {frozenset((row["image_id"], row["other_image_id"])) for row in table(made, "near_duplicates")}
    assert found == {frozenset(pair) for pair in (("coded", "p31"), ("cropped", "p32"), ("scaled", "p33"))}


def test_a_wrong_label_is_found_with_the_right_one(made):
    (row,) = table(made, "mislabelled")
    assert (row["image_id"], row["landmark_id"], row["suggested_landmark_id"]) == ("p20", "place0", "place2")
    assert row["like_image_id"].startswith("p2") and row["next_votes"] <= row["suggested_votes"]
    assert row["suggested_votes"] - row["votes"] - row["next_votes"] / 3 >= label_audit.MARGIN


def test_what_too_few_of_its_label_confirm_is_said(made):
    rows = table(made, "unconfirmed")
    assert {row["image_id"] for row in rows if row["confirmed_by"] == 0} == {"alone", "p20"}
    assert all(row["confirmed_by"] < row["needed"] for row in rows)


@pytest.mark.parametrize("unconfirmed", [5, 6])
def test_a_model_too_weak_for_an_index_is_said(unconfirmed, capsys):
    audit._print_summary("audit", 10, dict.fromkeys(audit.TABLES, 0) | {"unconfirmed": unconfirmed}, 0, 0)
    assert ("the model is too weak for this index" in capsys.readouterr().out) == (unconfirmed == 6)


def test_the_page_shows_what_was_found_and_nothing_was_changed(made):
    page = (made / "audit" / "index.html").read_text()
    assert "place0: rather place2" in page and "1 photographs that probably bear a wrong label" in page
    assert (made / "audit" / "photographs" / "00000.webp").exists()
    manifest = json.loads((made / "audit" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["counts"]["images"] == 25
    assert not list((made / "audit" / "search").glob("candidates/*"))


def test_the_index_takes_the_tables_as_they_are(made, tmp_path):
    shutil.copytree(made / "index", tmp_path / "index")
    cleaned = ("index", "--output", "index", "--relabel", made / "audit" / "mislabelled.csv")
    assert run(tmp_path, *cleaned, "--remove", made / "audit" / "exact_duplicates.csv") == 0
    assert run(tmp_path, *AUDIT) == 0
    assert table(tmp_path, "mislabelled") == [] and table(tmp_path, "exact_duplicates") == []
    assert (
        json.loads((tmp_path / "audit" / "manifest.json").read_text())["counts"]["images"] == 24
    )  # one copy
    assert "p20" not in {row["image_id"] for row in table(tmp_path, "unconfirmed")}


def test_an_audit_goes_on_and_a_finished_one_is_left_alone(made, tmp_path, monkeypatch, capsys):
    output = (*AUDIT[:-1], tmp_path / "audit")
    with monkeypatch.context() as killed:
        killed.setattr("beam_pipeline.self_search.read_pairs", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(made, *output)
    assert list((tmp_path / "audit" / "search" / "candidates").iterdir())
    assert not (tmp_path / "audit" / "manifest.json").exists()
    monkeypatch.setattr(runner, "run_pipeline", runner.run_pipeline)
    assert run(made, *output) == 0
    names = ("mislabelled.csv", "near_duplicates.parquet", "unconfirmed.csv", "label_pairs.csv")
    for name in names:
        assert (tmp_path / "audit" / name).read_bytes() == (made / "audit" / name).read_bytes()
    before = kill.contents(tmp_path / "audit")
    capsys.readouterr()
    assert run(made, *output) == 0 and "nothing to do" in capsys.readouterr().out
    assert kill.contents(tmp_path / "audit") == before
    assert run(made, *output, "--neighbors", "3") == 2
    assert "neighbors: 20 there, 3 wanted" in capsys.readouterr().err


def out_of_time(folder, *command, searched=frozenset()):
    """Runs a command whose deadline has passed when it begins to search, however fast the machine is, but for
    the units that hold some of `searched`.
    """
    whole = verification._Verify._verify_unit

    def verify_unit(self, unit):
        if searched.isdisjoint(query.image_id for query in unit.queries):
            return dataclasses.replace(unit, final=False)
        return whole(self, unit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification._Verify, "_verify_unit", verify_unit)
        FakeClock(patch, self_search, start=time.time() + 7200)  # where what is late is counted
        return run(folder, *command, "--time_budget", "1h")


def searched_in(folder):
    """The photographs that were searched for, of a command that ran out of time."""
    shards = run_store.final_shards(str(folder / "search"))
    return {name for uri in shards for name in pq.read_table(uri)["image_id"].to_pylist()}


def test_an_audit_that_runs_out_of_time_says_what_it_has_and_goes_on(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retrieval, "UNIT_QUERIES", 8)
    output = (*AUDIT[:-1], tmp_path / "audit")
    assert out_of_time(made, *output) == 1
    assert "nothing could be searched for in time: the same command goes on" in capsys.readouterr().err
    assert not [*(tmp_path / "audit").glob("*.csv")] and not (tmp_path / "audit" / "manifest.json").exists()
    assert out_of_time(made, *output, searched={"alone", "p20"}) == 0
    searched, said = searched_in(tmp_path / "audit"), capsys.readouterr().out
    assert len(searched) == 16 and "16 of 25 photographs searched among themselves" in said
    assert "9 photographs were not searched for in time" in said
    manifest = json.loads((tmp_path / "audit" / "manifest.json").read_text())
    assert not manifest["complete"] and manifest["counts"]["out_of_time"] == 9
    unconfirmed = {row["image_id"] for row in table(tmp_path, "unconfirmed")}
    assert {"alone", "p20"} <= unconfirmed <= searched
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "<p>16 photographs of" in page and "9 photographs were not searched for in time" in page
    assert run(made, *output) == 0
    for name in ("mislabelled.csv", "near_duplicates.parquet", "exact_duplicates.csv"):
        assert (tmp_path / "audit" / name).read_bytes() == (made / "audit" / name).read_bytes()
    assert "place0: rather place2" in (tmp_path / "audit" / "index.html").read_text()


def test_photographs_that_are_gone_are_compared_by_their_features(made, tmp_path):
    shutil.copytree(made / "p", tmp_path / "p"), shutil.copy(made / "labels.csv", tmp_path)
    assert run(tmp_path, *index()) == 0
    shutil.rmtree(tmp_path / "p")
    assert run(tmp_path, *AUDIT) == 0
    assert {row["proof"] for row in table(tmp_path, "exact_duplicates")} == {"features"}


# Discovering


@pytest.fixture(scope="module")
def with_run(made, tmp_path_factory):
    """An index of two of the places, and a run over views of all, and of five others that are alone."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "p").symlink_to(made / "p")
    rows = (made / "labels.csv").read_text().splitlines()
    kept = [row for row in rows if row.endswith(("landmark_id", "place0", "place1")) and "p20" not in row]
    (folder / "labels.csv").write_text("\n".join(kept) + "\n")
    for place in range(PLACES):
        for number in range(10, 10 + EACH):
            save(folder, f"q/q{place}{number}.png", view(place, number))
    for place in range(20, 25):
        save(folder, f"q/q{place}.png", view(place, 0))
    assert run(folder, *index()) == 0 and run(folder, "calibrate", "--index", "index") == 0
    assert run(folder, *RECOGNIZE, "run") == 0
    return folder


RECOGNIZE = ("recognize", "--images", "q", "--index", "index", "--preset", "accurate", "--output")
DISCOVER = ("discover", "--run", "run", "--min_score", "99", "--output", "found")  # which no query has


def named(folder, names, output="found"):
    """Fills in groups.csv: the name of each group in `names`, without the rows of others."""
    rows = list(csv.DictReader((folder / output / "groups.csv").open(newline="")))
    lines = [f"{row['id']},{names[row['group']]}" for row in rows if row["group"] in names]
    (folder / "named.csv").write_text("\n".join(["id,landmark_id", *lines]) + "\n")


def test_queries_without_a_landmark_form_groups_that_get_names_and_join_the_index(with_run, capsys):
    folder = with_run
    assert run(folder, *DISCOVER) == 0
    assert "see it: found/index.html" in capsys.readouterr().out
    groups = {}
    for row in table(folder, "groups", "found"):
        groups.setdefault(row["group"], []).append(row)
    places = {number: {row["image_id"][:2] for row in rows} for number, rows in groups.items()}
    assert all(len(of_group) == 1 for of_group in places.values())
    assert {"q2", "q3"} <= {place for of_group in places.values() for place in of_group}
    sizes = [len(rows) for rows in groups.values()]
    assert (
        min(sizes) >= 3 and sizes == sorted(sizes, reverse=True) and [*groups] == [*range(1, len(sizes) + 1)]
    )
    links = collections.Counter()
    for pair in table(folder, "pairs", "found"):
        assert pair["probability"] >= label_audit.ONE_PLACE
        links.update((pair["image_id"], pair["other_image_id"]))
    assert links == {row["image_id"]: row["links"] for rows in groups.values() for row in rows}
    before = kill.contents(folder / "found")
    assert run(folder, *DISCOVER) == 0 and "finished; nothing to do" in capsys.readouterr().out
    assert kill.contents(folder / "found") == before
    number = next(number for number, of_group in places.items() if of_group == {"q3"})
    named(folder, {str(number): "gate"})
    shutil.copytree(folder / "index", folder / "more")
    given = ("--images", "found/groups.parquet", "--labels", "named.csv")
    assert run(folder, "index", "--append", *given, "--output", "more") == 0
    again = ("recognize", "--images", "q", "--index", "more", "--preset", "accurate", "--output", "again")
    assert run(folder, *again) == 0
    rows = (folder / "again" / "submission.csv").read_text().splitlines()
    assert len([row for row in rows if row.startswith("q3") and ",gate " in row]) >= len(groups[number])


def test_names_that_the_index_has_already_are_said(with_run, tmp_path, capsys):
    for name in ("p", "labels.csv", "index"):
        (tmp_path / name).symlink_to(with_run / name)
    (tmp_path / "q").mkdir()
    for at, path in enumerate(sorted((with_run / "q").glob("q3*.png"))):
        (tmp_path / "q" / f"p1{at}.png").symlink_to(path)
    assert run(tmp_path, *RECOGNIZE, "run") == 0 and run(tmp_path, *DISCOVER) == 0
    count = len(table(tmp_path, "groups", "found"))
    assert count >= 3
    said = capsys.readouterr().err
    assert f"{count} of these have names that photographs of " in said and "index have, such as 'p1" in said
    assert run(tmp_path, *RECOGNIZE, "paths", "--image_ids", "path") == 0
    assert run(tmp_path, "discover", "--run", "paths", "--min_score", "99", "--output", "again") == 0
    assert "have names that" not in capsys.readouterr().err
    named(tmp_path, {"1": "gate"}, "again")
    (tmp_path / "index").unlink()
    shutil.copytree(with_run / "index", tmp_path / "index")
    given = ("--images", "again/groups.parquet", "--labels", "named.csv")
    assert run(tmp_path, "index", "--append", *given, "--output", "index") == 0
    landmarks = pq.read_table(tmp_path / "index" / "images")["landmark_id"].to_pylist()
    assert landmarks.count("gate") == count


def test_groups_join_an_index_whose_ids_are_paths(with_run, tmp_path):
    for name in ("p", "q", "labels.csv"):
        (tmp_path / name).symlink_to(with_run / name)
    assert run(tmp_path, *index("labels.csv", "--image_ids", "path")) == 2  # the table names no paths
    lines = (with_run / "labels.csv").read_text().splitlines()[1:]
    (tmp_path / "paths.csv").write_text("path,landmark_id\n" + "\n".join(lines).replace(",", ".png,") + "\n")
    assert run(tmp_path, *index("paths.csv", "--image_ids", "path")) == 0
    assert run(tmp_path, *RECOGNIZE, "run", "--image_ids", "path") == 0
    assert run(tmp_path, *DISCOVER) == 0
    named(tmp_path, {"1": "gate"})
    given = ("--images", "found/groups.parquet", "--labels", "named.csv")
    assert run(tmp_path, "index", "--append", *given, "--output", "index") == 0
    counts = collections.Counter(pq.read_table(tmp_path / "index" / "images")["landmark_id"].to_pylist())
    first = [row for row in table(tmp_path, "groups", "found") if row["group"] == 1]
    assert counts["gate"] == len(first) >= 3 and first[0]["image_id"].endswith(".png")


def test_a_search_that_ran_out_of_time_goes_on_and_its_page_is_made_anew(with_run, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "UNIT_QUERIES", 8)
    output = (*DISCOVER[:-1], tmp_path / "found")
    assert out_of_time(with_run, *output) == 1 and not (tmp_path / "found" / "groups.csv").exists()
    assert out_of_time(with_run, *output, searched={"q20"}) == 0
    page = (tmp_path / "found" / "index.html").read_text()
    assert len(searched_in(tmp_path / "found")) == 8 and "17 queries were not searched for in time" in page
    assert run(with_run, *output) == 0
    page = (tmp_path / "found" / "index.html").read_text()
    assert "in time" not in page and "Group 1<" in page


def test_a_query_that_gave_no_features_is_not_searched_for(with_run, tmp_path, capsys):
    for name in ("p", "labels.csv", "index"):
        (tmp_path / name).symlink_to(with_run / name)
    (tmp_path / "q").mkdir()
    for path in (with_run / "q").glob("q3*.png"):
        (tmp_path / "q" / path.name).symlink_to(path)
    (tmp_path / "q" / "broken.png").write_text("no picture")
    assert run(tmp_path, *RECOGNIZE, "run", "--max_failure_rate", "1") == 0 and run(tmp_path, *DISCOVER) == 0
    assert "of 5 queries without a landmark" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "run" / "predictions").num_rows == 6
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "index").symlink_to(with_run / "index")
    save(alone, "q/q.png", view(0, 20))
    (alone / "q" / "broken.png").write_text("no picture")
    assert run(alone, *RECOGNIZE, "run", "--max_failure_rate", "1") == 0
    assert run(alone, "discover", "--run", "run", "--output", "found") == 2
    assert "no query of run without a landmark has features to search with" in capsys.readouterr().err


def test_without_groups_there_is_nothing_to_name(with_run, tmp_path, monkeypatch, capsys):
    scores = pq.read_table(with_run / "run" / "predictions").column("score").to_pylist()
    median = sorted(scores)[len(scores) // 2]
    output = ("discover", "--run", "run", "--min_score", median, "--output", tmp_path / "found")
    pipeline, done = runner.run_pipeline, {}

    def counted(build, options, phases, engine):
        metrics = pipeline(build, options, phases, engine)
        done.update((phase.label, (phase.done(), phase.total)) for phase in phases)
        return metrics

    monkeypatch.setattr(runner, "run_pipeline", counted)
    monkeypatch.setattr("transforms.arrays.label_audit.MIN_GROUP", 99)
    assert run(with_run, *output) == 0
    said = capsys.readouterr().out
    assert "0 groups with 0 of" in said
    assert "<article" not in (tmp_path / "found" / "index.html").read_text()
    assert done["retrieve"] == (len(scores), len(scores)) and done["verify"][0] == done["verify"][1] < len(
        scores
    )


def test_a_run_without_such_queries_is_an_error(with_run, tmp_path, capsys):
    assert run(with_run, "discover", "--run", "run", "--output", tmp_path / "none") == 2
    assert "every query of run has a landmark" in capsys.readouterr().err
