"""What people do between two commands: they move outputs, and change and mend photographs."""

import contextlib
import json
import pathlib
import shutil

import pytest
from PIL import Image

from beam_pipeline.main import main
from tests import tiny_models

INDEX = ("index", "--images", "p", "--labels", "labels.csv", "--output", "index", "--model", "rootsift-vlad")
RECOGNIZE = ("recognize", "--images", "q", "--index", "index", "--output", "run")


def run(folder, *arguments):
    with contextlib.chdir(folder):
        return main([str(argument) for argument in arguments])


def write_inputs(folder, photographs=9, queries=2):
    """p/p0.png ... with a label each, and queries q/q0.png ... that show the same as the first of them."""
    for name, count in (("p", photographs), ("q", queries)):
        (folder / name).mkdir()
        for n in range(count):
            Image.fromarray(tiny_models.textured(96, 96, n)).save(folder / name / f"{name}{n}.png")
    rows = "".join(f"p{n},landmark{n}\n" for n in range(photographs))
    (folder / "labels.csv").write_text("id,landmark_id\n" + rows)


def manifest(root):
    return json.loads((root / "manifest.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index and a run, made from relative paths."""
    folder = tmp_path_factory.mktemp("made")
    write_inputs(folder)
    assert run(folder, *INDEX) == 0 and run(folder, *RECOGNIZE) == 0
    return folder


@pytest.fixture
def copied(made, tmp_path):
    shutil.copytree(made, tmp_path / "all")
    return tmp_path / "all"


# Moving


def test_an_output_is_whole_from_every_folder_and_wherever_it_was_moved(copied, tmp_path, capsys):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (copied / "run").rename(tmp_path / "elsewhere" / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "moved")
    for folder, root in (
        (tmp_path, "elsewhere/moved"),
        (tmp_path / "elsewhere" / "deep", "../moved/"),
        (tmp_path, tmp_path / "elsewhere" / "moved"),
        (tmp_path, "link"),
    ):
        assert run(folder, "verify", root) == 0
        assert "files, all as they were written" in capsys.readouterr().out


def test_what_is_gone_is_called_missing(copied, made, tmp_path, capsys):
    assert pathlib.Path(manifest(copied / "run")["index"]).is_absolute()
    text = (copied / "run" / "manifest.json").read_text().replace(str(made), str(copied))
    (copied / "run" / "manifest.json").write_text(text)
    (copied / "index").rename(tmp_path / "index")
    assert run(tmp_path, "matches", "--run", copied / "run", "--image_id", "q0", "--output", "q0.png") == 2
    assert (
        f"index that {copied / 'run'} was made with is missing: {copied / 'index'}" in capsys.readouterr().err
    )
    shutil.rmtree(copied / "run" / "queries")
    assert run(tmp_path, "verify", copied / "run") == 1
    assert "2 of 4 files are missing" in capsys.readouterr().err


def test_a_query_store_is_found_inside_and_outside_of_its_run(made, tmp_path):
    for store, place in (("run/store", "store"), ("store", str(tmp_path / "store"))):
        output = ("--output", tmp_path / "run", "--overwrite", "--query_store", tmp_path / store)
        assert run(made, *RECOGNIZE, *output) == 0
        assert manifest(tmp_path / "run")["query_store"] == place
        assert run("/", "verify", tmp_path / "run") == 0


# Names


def test_equal_names_of_query_and_index_are_two_photographs(made, tmp_path):
    (tmp_path / "q").mkdir()
    for shown, name in (("p5", "p5"), ("p3", "p4")):
        shutil.copy(made / "p" / f"{shown}.png", tmp_path / "q" / f"{name}.png")
    output = tmp_path / "run"
    assert run(made, "recognize", "--images", tmp_path / "q", "--index", "index", "--output", output) == 0
    rows = (output / "submission.csv").read_text().splitlines()[1:]
    assert [row.split(" ")[0] for row in rows] == ["p4,landmark3", "p5,landmark5"]
