"""Parts of Google Landmarks v2 for a trial."""

import csv

import pytest

from beam_pipeline.main import main
from tests import gldv2_layout

LANDMARKS = {str(100 + n): [gldv2_layout.image_id(f"{n}-{i}") for i in range(1 + n % 4)] for n in range(40)}
QUERIES = {gldv2_layout.image_id(f"q{n}"): [str(100 + n)] if n < 40 else [] for n in range(200)}


@pytest.fixture
def data(tmp_path):
    """All photographs in the layout of a download: two archives to index, one of queries."""
    ids = sorted(image_id for ids in LANDMARKS.values() for image_id in ids)
    for part, names, count in (("train_clean", ids, 2), ("test", sorted(QUERIES), 1)):
        (tmp_path / part).mkdir()
        for number in range(count):
            members = ((gldv2_layout.member_name(name), b"x") for name in names[number::count])
            (tmp_path / part / f"images_{number:03d}.tar").write_bytes(gldv2_layout.tar_of(members))
    (tmp_path / "train_clean.csv").write_text(
        "landmark_id,images\n" + "".join(f"{name},{' '.join(ids)}\n" for name, ids in LANDMARKS.items())
    )
    (tmp_path / "recognition_solution_v2.1.csv").write_text(
        "id,landmarks,Usage\n" + "".join(f"{name},{' '.join(of)},Public\n" for name, of in QUERIES.items())
    )
    return tmp_path


def subset(data, output, *flags):
    return main(["gldv2", "subset", "--data", str(data), "--output", str(output), *flags])


def rows(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def listed(path):
    return {line.rsplit("/", 1)[1].removesuffix(".jpg") for line in path.read_text().splitlines()}


def test_landmarks_come_with_all_their_photographs_and_as_many_distractors(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert subset(data, out, "--landmarks", "5", "--seed", "3") == 0
    chosen = {row["landmark_id"]: row for row in rows(out / "chosen.csv")}
    assert len(chosen) == 5 and all(len(LANDMARKS[name]) >= 2 for name in chosen)
    labels = {row["id"]: row["landmark_id"] for row in rows(out / "labels.csv")}
    theirs = {image_id for name in chosen for image_id in LANDMARKS[name]}
    assert theirs < labels.keys() and len(labels) == 2 * len(theirs)
    assert all(image_id in LANDMARKS[name] for image_id, name in labels.items())
    assert listed(out / "index.txt") == labels.keys()
    for name, row in chosen.items():
        assert row["photographs"] == row["published"] == str(len(LANDMARKS[name])) and row["queries"] == "1"
    truth = {row["id"]: row["landmarks"] for row in rows(out / "truth.csv")}
    assert sorted(truth.values()) == ["", "", "", "", "", *sorted(chosen)]
    assert listed(out / "queries.txt") == truth.keys()
    assert f"5 landmarks with {len(theirs)} of their {len(theirs)} photographs" in (
        said := capsys.readouterr().out
    )
    assert "5 of the landmarks in queries" in said


def test_the_seed_decides(data, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert subset(data, tmp_path / name, "--landmarks", "5", "--seed", seed) == 0
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b and a["chosen.csv"] != c["chosen.csv"]


def test_of_a_part_of_the_archives_what_is_there_is_chosen(data, tmp_path):
    (data / "train_clean" / "images_001.tar").unlink()
    assert subset(data, tmp_path / "out", "--landmarks", "4") == 0
    chosen = rows(tmp_path / "out" / "chosen.csv")
    assert all(2 <= int(row["photographs"]) <= int(row["published"]) for row in chosen)
    assert any(row["photographs"] < row["published"] for row in chosen)


def test_what_cannot_be_chosen_is_said(data, tmp_path, capsys):
    assert subset(data, tmp_path / "out", "--landmarks", "31") == 2
    assert "has 2 photographs or more of 30 landmarks, not of 31" in capsys.readouterr().err
    assert subset(data, data, "--landmarks", "3") == 2
    assert "name another folder" in capsys.readouterr().err
    (data / "test" / "images_000.tar").rename(data / "images_000.tar")
    (data / "test").rmdir()
    assert subset(data, tmp_path / "out", "--landmarks", "3") == 0
    assert "no queries" in capsys.readouterr().out and not (tmp_path / "out" / "truth.csv").exists()


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("names", [("notes.txt",), ("chosen.csv", "queries.txt"), ("index.txt",)])
def test_what_somebody_else_keeps_is_left_alone(data, tmp_path, capsys, names):
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text("mine")
    assert subset(data, out, "--landmarks", "5") == 2
    said = capsys.readouterr().err
    assert "out is not empty" in said and "name another folder" in said
    assert contents(out) == dict.fromkeys(names, b"mine")


def test_another_subset_is_left_alone(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert subset(data, out, "--landmarks", "5") == 0
    (out / "index").mkdir()  # made of it
    before = contents(out)
    for flags in (("--landmarks", "6"), ("--landmarks", "5", "--seed", "2")):
        assert subset(data, out, *flags) == 2
        assert "its index.txt is not of this subset" in capsys.readouterr().err
    assert subset(data, out, "--landmarks", "5") == 0
    (data / "test").rename(data / "elsewhere")
    assert subset(data, out, "--landmarks", "5") == 2
    assert "its chosen.csv is not of this subset" in capsys.readouterr().err
    assert contents(out) == before


def test_the_same_subset_goes_on_from_what_is_there(data, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    (data / "test").rename(data / "later")
    assert subset(data, out, "--landmarks", "5") == 0 and "queries.txt" not in contents(out)
    (data / "later").rename(data / "test")
    for output in (whole, out):
        assert subset(data, output, "--landmarks", "5") == 0
    assert contents(out) == contents(whole)
    for name in ("queries.txt", "truth.csv", "chosen.csv", "labels.csv"):  # killed before each
        (out / name).unlink()
        assert subset(data, out, "--landmarks", "5") == 0 and contents(out) == contents(whole)
