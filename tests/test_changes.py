"""What people do between two commands: they move outputs, and change and mend photographs."""

import json
import os
import pathlib
import shutil

import pyarrow.parquet as pq
import pytest
from PIL import Image

from beam_pipeline import index as index_job
from beam_pipeline.changes import Changes
from tests import tiny_models
from tests.command_line import run_in as run
from tests.survival import kill
from transforms.storage import worklist
from transforms.types import ImageRef

INDEX = ("index", "--images", "p", "--labels", "labels.csv", "--output", "index", "--model", "rootsift-vlad")
RECOGNIZE = ("recognize", "--images", "q", "--index", "index", "--output", "run")


def write_inputs(folder, photographs=9, queries=2):
    """p/p0.png ... with a label each, and queries q/q0.png ... that show the same as the first of them."""
    for name, count in (("p", photographs), ("q", queries)):
        (folder / name).mkdir()
        for n in range(count):
            Image.fromarray(tiny_models.textured(96, 96, n)).save(
                folder / name / f"{name}{n}.png", compress_level=0
            )
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


# Overwriting


def test_overwriting_says_how_much_it_deletes(copied, capsys):
    assert run(copied, *INDEX, "--overwrite") == 0
    assert "index: --overwrite deletes the index of 9 photographs there\n" in capsys.readouterr().err
    assert run(copied, *RECOGNIZE, "--overwrite") == 0
    assert "run: --overwrite deletes the run of 2 photographs there\n" in capsys.readouterr().err


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


def test_what_lies_outside_an_output_is_found_from_every_folder(made, tmp_path):
    arguments = ("matches", "--run", made / "run", "--image_id", "q0", "--output", tmp_path / "q0.png")
    assert run(tmp_path, *arguments) == 0 and (tmp_path / "q0.png").exists()


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


# Mending


def photograph(folder, name, seed):
    """Writes a photograph; all of them have one size in bytes."""
    path = folder / name[0] / f"{name}.png"
    Image.fromarray(tiny_models.textured(96, 96, seed)).save(path, compress_level=0)
    return path


def failure_rows(root):
    rows = [pq.read_table(path).to_pylist() for path in (root / "failures").glob("*.parquet")]
    return sorted(row["image_id"] for table in rows for row in table)


@pytest.fixture
def broken(tmp_path):
    """Photographs of which the second, and the last query, are cut short."""
    write_inputs(tmp_path)
    for name in ("p1", "q1"):
        path = tmp_path / name[0] / f"{name}.png"
        path.write_bytes(path.read_bytes()[:-5000])
    return tmp_path


LENIENT = ("--max_failure_rate", "1")


def test_what_failed_and_was_mended_is_taken_up_by_the_same_command(broken, monkeypatch, capsys):
    assert run(broken, *INDEX, *LENIENT) == 0 and run(broken, *RECOGNIZE, *LENIENT) == 0
    assert failure_rows(broken / "index") == ["p1"] and failure_rows(broken / "run") == ["q1"]
    assert run(broken, *INDEX, *LENIENT) == 0 and "nothing to do" in capsys.readouterr().out
    photograph(broken, "p1", 1), photograph(broken, "q1", 1)
    with monkeypatch.context() as killed:
        killed.setattr(index_job.runner, "run_pipeline", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(broken, *INDEX)
    assert run(broken, *RECOGNIZE) == 2
    assert "(the index is another, or was changed since), and was made of" in capsys.readouterr().err
    assert run(broken, *INDEX) == 0
    counts = {"matched": 9, "indexed": 9, "failed": 0, "out_of_time": 0, "without_label": 0}
    assert manifest(broken / "index")["counts"].items() >= counts.items()
    assert run(broken, *RECOGNIZE, "--overwrite") == 0
    assert run(broken, *INDEX, "--output", "again") == 0
    assert kill.contents(broken / "index") == kill.contents(broken / "again")
    assert not (broken / "index" / "failures").exists()


def test_a_mended_query_is_taken_up_by_the_same_command(broken, capsys):
    photograph(broken, "p1", 1)
    assert run(broken, *INDEX) == 0 and run(broken, *RECOGNIZE, *LENIENT) == 0
    photograph(broken, "q1", 1)
    assert run(broken, *RECOGNIZE) == 0
    assert "1 photograph was changed (q1); what failed is tried again" in capsys.readouterr().out
    assert failure_rows(broken / "run") == []
    assert not [*broken.glob("run/**/failures")]
    assert manifest(broken / "run")["counts"]["predicted"] == 2
    assert (broken / "run" / "submission.csv").read_text().splitlines()[2].startswith("q1,landmark1 ")
    assert run(broken, *RECOGNIZE) == 0 and "nothing to do" in capsys.readouterr().out
    assert run(broken, *RECOGNIZE, "--output", "again") == 0
    assert kill.contents(broken / "run") == kill.contents(broken / "again")
    assert run(broken, "verify", "run") == 0


@pytest.mark.parametrize("of_added", [False, True], ids=["first part", "added part"])
def test_what_failed_and_was_mended_is_taken_up_by_adding_it(broken, of_added, capsys):
    (broken / "first").mkdir()
    moved = ("p1", "p2", "p3") if not of_added else ("p7", "p8")
    for name in moved:
        (broken / "p" / f"{name}.png").rename(broken / "first" / f"{name}.png")
    first = (*INDEX[:2], "first", *INDEX[3:])
    append = ("index", "--images", "p", "--labels", "labels.csv", "--output", "index", "--append")
    assert run(broken, *first, *LENIENT) == 0 and run(broken, *append, *LENIENT) == 0
    assert manifest(broken / "index")["counts"]["failed"] == 1 and failure_rows(broken / "index") == ["p1"]
    place = broken / ("p" if of_added else "first")
    Image.fromarray(tiny_models.textured(96, 96, 1)).save(place / "p1.png", compress_level=0)
    assert run(broken, "index", "--images", place / "p1.png", *append[3:]) == 0
    assert failure_rows(broken / "index") == [] and not (broken / "index" / "failures").exists()
    counts = {"matched": 9, "indexed": 9, "failed": 0, "out_of_time": 0, "without_label": 0}
    assert manifest(broken / "index")["counts"].items() >= counts.items()
    assert run(broken, "verify", "index") == 0
    capsys.readouterr()
    for command in (first, append, ("index", "--images", place / "p1.png", *append[3:])):
        assert run(broken, *command) == 0 and "nothing to do" in capsys.readouterr().out
    assert run(broken, *RECOGNIZE, *LENIENT) == 0


def test_an_addition_is_judged_by_what_it_takes_up_and_tells_of_what_failed_before(broken, capsys):
    path = broken / "p" / "p2.png"
    path.write_bytes(path.read_bytes()[:-5000])
    (broken / "p" / "p8.png").rename(broken / "p8.png")
    assert run(broken, *INDEX) == run(broken, *INDEX) == 1  # an index stays judged by all of its photographs
    capsys.readouterr()
    append = (*INDEX, "--append")
    assert run(broken, *append) == 0
    said = "index has these images and labels already; nothing to do; 2 of them failed earlier, see "
    assert f"{said}index/failures\n" in capsys.readouterr().out
    photograph(broken, "p1", 1)
    assert run(broken, *append) == 0 and failure_rows(broken / "index") == ["p2"]
    path.write_bytes(path.read_bytes()[:-100])  # another, which is no better
    (broken / "p8.png").rename(broken / "p" / "p8.png")
    capsys.readouterr()
    assert run(broken, *append) == 1
    assert "1 of 2 images failed (50.0%)" in capsys.readouterr().err
    assert run(broken, *append) == 0 and manifest(broken / "index")["counts"]["indexed"] == 8


# Limits

FEW = ("--max_image_pixels", "10000")


@pytest.fixture
def with_large(tmp_path):
    """Photographs of which the second, and the last query, are larger than FEW."""
    write_inputs(tmp_path)
    for name in ("p1", "q1"):
        large = Image.fromarray(tiny_models.textured(96, 96, 1)).resize((120, 120))
        large.save(tmp_path / name[0] / f"{name}.png", compress_level=0)
    return tmp_path


def test_what_failed_for_a_limit_is_taken_up_by_the_same_command_with_a_higher_one(
    with_large, monkeypatch, capsys
):
    folder = with_large
    assert run(folder, *INDEX, *LENIENT, *FEW) == 0
    (row,) = pq.read_table(next((folder / "index" / "failures").glob("*.parquet"))).to_pylist()
    assert (row["limit"], row["needed"]) == ("max_image_pixels", 14400) and "--max_image" in row["message"]
    for limit in ("10000", "14399"):
        assert run(folder, *INDEX, *LENIENT, "--max_image_pixels", limit) == 0
        assert "nothing to do" in capsys.readouterr().out
    with monkeypatch.context() as killed:
        killed.setattr(index_job.runner, "run_pipeline", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(folder, *INDEX)
    assert "the limits let in 1 more (p1); what failed is tried again" in capsys.readouterr().out
    assert run(folder, *INDEX) == 0
    assert failure_rows(folder / "index") == [] and manifest(folder / "index")["counts"]["indexed"] == 9
    assert run(folder, *INDEX) == 0 and "nothing to do" in capsys.readouterr().out
    assert run(folder, *INDEX, "--output", "again") == 0
    assert kill.contents(folder / "index") == kill.contents(folder / "again")

    assert run(folder, *RECOGNIZE, *LENIENT, *FEW) == 0 and failure_rows(folder / "run") == ["q1"]
    assert run(folder, *RECOGNIZE, *LENIENT, *FEW) == 0 and "nothing to do" in capsys.readouterr().out
    assert run(folder, *RECOGNIZE) == 0 and failure_rows(folder / "run") == []
    assert run(folder, *RECOGNIZE, "--output", "run2") == 0
    assert kill.contents(folder / "run") == kill.contents(folder / "run2")
    assert run(folder, "verify", "run") == 0 and run(folder, "verify", "index") == 0


def test_what_failed_for_a_limit_in_a_shared_store_is_taken_up_by_another_run_and_by_the_first(with_large):
    folder = with_large
    assert run(folder, *INDEX) == 0
    shared = (*RECOGNIZE[:-1], "one", "--query_store", "store")
    assert run(folder, *shared, *LENIENT, *FEW) == 0
    assert run(folder, *RECOGNIZE[:-1], "two", "--query_store", "store") == 0
    for name in ("one", "two"):
        assert run(folder, *RECOGNIZE[:-1], name, "--query_store", "store") == 0
        assert failure_rows(folder / name) == [] and manifest(folder / name)["counts"]["predicted"] == 2
        assert run(folder, "verify", name) == 0
    assert kill.contents(folder / "one") == kill.contents(folder / "two")


@pytest.mark.parametrize("of_added", [False, True], ids=["first part", "added part"])
@pytest.mark.parametrize("killed", [False, True], ids=["", "killed once"])
def test_what_failed_for_a_limit_is_taken_up_by_adding_it(with_large, of_added, killed, monkeypatch, capsys):
    folder = with_large
    (folder / "first").mkdir()
    for name in ("p7", "p8") if of_added else ("p1", "p2", "p3"):
        (folder / "p" / f"{name}.png").rename(folder / "first" / f"{name}.png")
    first = (*INDEX[:2], "first", *INDEX[3:])
    append = ("index", "--images", "p", "--labels", "labels.csv", "--output", "index", "--append")
    assert run(folder, *first, *LENIENT, *FEW) == 0 and run(folder, *append, *LENIENT, *FEW) == 0
    assert failure_rows(folder / "index") == ["p1"]
    one = ("index", "--images", f"{'p' if of_added else 'first'}/p1.png", *append[3:])
    capsys.readouterr()
    assert run(folder, *one, *LENIENT, *FEW) == 0 and "nothing to do" in capsys.readouterr().out
    if killed:
        with monkeypatch.context() as patched:
            patched.setattr(index_job.runner, "run_pipeline", lambda *arguments: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(folder, *one)
    assert run(folder, *(append if of_added else one)) == 0
    assert failure_rows(folder / "index") == [] and run(folder, "verify", "index") == 0
    counts = {"matched": 9, "indexed": 9, "failed": 0, "out_of_time": 0, "without_label": 0}
    assert manifest(folder / "index")["counts"].items() >= counts.items()
    assert manifest(folder / "index")["reading"]["max_image_pixels"] > 14400
    capsys.readouterr()
    for command in (first, append, one):
        assert run(folder, *command) == 0 and "nothing to do" in capsys.readouterr().out
    assert run(folder, *RECOGNIZE) == 0


def test_labels_without_a_photograph_are_counted_again_where_photographs_are_added(tmp_path, capsys):
    write_inputs(tmp_path)
    (tmp_path / "first").mkdir()
    for name in ("p1", "p2", "p3"):
        (tmp_path / "p" / f"{name}.png").rename(tmp_path / "first" / f"{name}.png")
    with (tmp_path / "labels.csv").open("a") as labels:
        labels.write("none,1\n")
    assert run(tmp_path, *INDEX[:2], "first", *INDEX[3:]) == 0
    assert manifest(tmp_path / "index")["counts"]["labels_without_image"] == 7
    append = ("index", "--images", "p", "--labels", "labels.csv", "--output", "index", "--append")
    capsys.readouterr()
    assert run(tmp_path, *append) == 0
    assert (
        "1 of 10 labels in labels.csv have no photograph here, the first is 'none'" in capsys.readouterr().err
    )
    assert manifest(tmp_path / "index")["counts"]["labels_without_image"] == 1


def test_a_photograph_that_gets_its_label_later_is_counted_once(tmp_path, monkeypatch):
    write_inputs(tmp_path, 7)
    rows = (tmp_path / "labels.csv").read_text().splitlines(keepends=True)
    (tmp_path / "labels.csv").write_text("".join(rows[:4]))  # p0, p1 and p2
    (tmp_path / "p" / "p6.png").rename(tmp_path / "p6.png")
    assert run(tmp_path, *INDEX) == 0
    shutil.copytree(tmp_path / "index", tmp_path / "made")

    def known(root="index"):
        counts = manifest(tmp_path / root)["counts"]
        rows = pq.read_table(tmp_path / root / "failures")["image_id"].to_pylist()
        return counts["matched"], counts["indexed"], counts["without_label"], sorted(rows)

    assert known() == (6, 3, 3, ["p3", "p4", "p5"])
    (tmp_path / "p6.png").rename(tmp_path / "p" / "p6.png")
    (tmp_path / "more.csv").write_text(rows[0] + "".join(rows[4:6]))  # p3 and p4, of p0 to p6
    append = ("index", "--images", "p", "--labels", "more.csv", "--output", "index", "--append")
    assert run(tmp_path, *append) == 0
    assert known() == (7, 5, 2, ["p5", "p6"])
    whole = kill.contents(tmp_path / "index")
    assert run(tmp_path, *append) == 0 and kill.contents(tmp_path / "index") == whole
    # As much when the command is stopped before its manifest is written, and after that.
    for stopped in ("count_labelled", "prune_labelled"):
        shutil.rmtree(tmp_path / "index")
        shutil.copytree(tmp_path / "made", tmp_path / "index")
        with monkeypatch.context() as patched:
            patched.setattr(index_job.index_parts, stopped, lambda *arguments: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(tmp_path, *append)
        assert run(tmp_path, *append) == 0 and kill.contents(tmp_path / "index") == whole
    (tmp_path / "last.csv").write_text(rows[0] + "".join(rows[6:]))  # p5 and p6, of either part one
    append = ("index", "--images", "p", "--labels", "last.csv", "--output", "index", "--append")
    assert run(tmp_path, *append) == 0
    assert manifest(tmp_path / "index")["counts"]["matched"] == 7
    assert manifest(tmp_path / "index")["counts"]["without_label"] == 0
    assert not (tmp_path / "index" / "failures").exists()


def test_a_photograph_that_was_changed_since_is_said_beside_its_matches(made, tmp_path, capsys):
    write_inputs(tmp_path)
    assert run(tmp_path, *INDEX) == 0 and run(tmp_path, *RECOGNIZE) == 0
    capsys.readouterr()
    picture = ("matches", "--run", "run", "--image_id", "q0", "--output")
    assert run(tmp_path, *picture, "as_it_was.png") == 0 and capsys.readouterr().err == ""
    photograph(tmp_path, "q0", 5)
    assert run(tmp_path, *picture, "changed.png") == 0
    said = capsys.readouterr().err
    assert f"changed since its features were found: {tmp_path}/q/q0.png" in said and "p0" not in said
    heights = [Image.open(tmp_path / name).height for name in ("as_it_was.png", "changed.png")]
    assert heights[1] > heights[0]  # by the line that says it
    photograph(tmp_path, "p0", 7)
    assert run(tmp_path, *picture, "changed.png") == 0
    assert f"{tmp_path}/q/q0.png, {tmp_path}/p/p0.png" in capsys.readouterr().err
    assert run(tmp_path, "report", "--run", "run", "--output", "report") == 0
    said = capsys.readouterr().err
    assert "1 of 2 photographs of run were changed since" in said and "/index were changed since" in said
    (tmp_path / "q" / "q1.png").unlink()  # that is no change
    assert run(tmp_path, "report", "--run", "run", "--output", "report") == 0
    assert "1 of 2 photographs of run were changed since" in capsys.readouterr().err
    cards = (tmp_path / "report" / "queries.js").read_text().splitlines()
    of_queries = [line.split("<figure")[0] for line in cards if '"id":"q' in line]
    assert ["changed since" in text for text in of_queries] == [True, False]
    assert "changed since" in (tmp_path / "report" / "landmarks.js").read_text()


# Overwriting


def test_overwriting_leaves_what_is_not_the_outputs_own(tmp_path, capsys):
    write_inputs(tmp_path)
    inside = ("index", "--images", "index/p", "--labels", "index/labels.csv", *INDEX[5:])
    assert run(tmp_path, *INDEX) == 0
    for name in ("p", "labels.csv"):
        (tmp_path / name).rename(tmp_path / "index" / name)
    (tmp_path / "index" / "notes.txt").write_text("mine")
    run_inside = (*RECOGNIZE[:-1], "index/run")
    assert run(tmp_path, *run_inside) == 0
    before = {k: v for k, v in kill.contents(tmp_path / "index").items() if k.split("/")[0] in KEPT}
    assert run(tmp_path, *inside, "--overwrite") == 0
    after = kill.contents(tmp_path / "index")
    assert {k: v for k, v in after.items() if k.split("/")[0] in KEPT} == before and len(before) > 15
    assert len([k for k in after if k.startswith("images/")]) == 2
    capsys.readouterr()
    assert run(tmp_path, *RECOGNIZE[:-1], "index", "--overwrite") == 2
    assert run(tmp_path, "recognize", "--images", "q", "--index", "none", "--output", "index") == 2
    assert run(tmp_path, *INDEX[:3], "--labels", "index/labels.csv", "--output", "q", "--overwrite") == 2
    assert "--overwrite" not in capsys.readouterr().err
    assert kill.contents(tmp_path / "index") == after


KEPT = ("p", "labels.csv", "notes.txt", "run")


# Changing


def test_a_photograph_that_was_changed_in_place_is_noticed_and_said(made, tmp_path, capsys):
    write_inputs(tmp_path)
    assert run(tmp_path, *INDEX) == 0 and run(tmp_path, *RECOGNIZE, "--query_store", "store") == 0
    for name in ("p3", "q0"):
        path = tmp_path / name[0] / f"{name}.png"
        before = path.stat()
        photograph(tmp_path, name, 5)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as tools do that mend tags
        assert path.stat().st_size == before.st_size
    (tmp_path / "labels.csv").write_text((tmp_path / "labels.csv").read_text().replace("mark4", "mark44"))
    capsys.readouterr()
    assert run(tmp_path, *INDEX) == 2
    assert (
        "index was made of other photographs: 1 photograph was changed (p3), 1 label changed (p4); "
        "`landmarks index --relabel` takes new labels; `landmarks index --append --update` takes what was "
        "changed or moved; "
        "--overwrite starts anew" in capsys.readouterr().err
    )
    assert run(tmp_path, *RECOGNIZE, "--query_store", "store") == 2
    assert "run was made of other photographs: 1 photograph was changed (q0);" in capsys.readouterr().err
    assert run(tmp_path, *RECOGNIZE[:-1], "new", "--query_store", "store") == 0
    assert (tmp_path / "new" / "submission.csv").read_text().splitlines()[1].startswith("q0,landmark5 ")
    photograph(tmp_path, "p9", 9)
    (tmp_path / "labels.csv").write_text((tmp_path / "labels.csv").read_text() + "p9,landmark9\n")
    assert run(tmp_path, *INDEX) == 2
    assert "--append` with those that are more adds them; " in capsys.readouterr().err
    assert run(tmp_path, *INDEX, "--append") == 2
    said = capsys.readouterr().err
    assert (
        "`--append --update` puts these in" in said
        and "`landmarks index --output index --relabel CSV`" in said
    )
    assert run(tmp_path, *INDEX, "--append", "--update") == 0 and capsys.readouterr()
    assert run(tmp_path, *INDEX) == 0  # of what it was made of, and what was added since
    assert capsys.readouterr().out == "index is finished; nothing to do\n"
    (tmp_path / "labels.csv").write_text((tmp_path / "labels.csv").read_text().replace("9\n", "10\n"))
    assert run(tmp_path, *INDEX, "--append") == 2
    said = capsys.readouterr().err
    assert "1 label changed (p9): `landmarks index --output index --relabel CSV` takes new labels\n" in said
    (tmp_path / "p").rename(tmp_path / "moved")
    moved = ("index", "--images", "moved", *INDEX[3:])
    assert run(tmp_path, *moved, "--append") == 2
    assert f"expected where they lay, at {tmp_path}/p/p0.png; `--append --update`" in capsys.readouterr().err


def test_changes_are_counted_and_named():
    def refs(**changed):
        return [
            ImageRef(
                n, f"/p/{n}.jpg", **{"size_bytes": 9, "landmark_id": "1", "version": 5, **changed.get(n, {})}
            )
            for n in ("a", "b", "c", "d", "e")
            if changed.get(n, {}) is not None
        ]

    before = refs()
    assert not Changes.between(before, refs())
    assert not Changes.between(refs(a={"version": worklist.NO_VERSION}), before)
    found = Changes.between(
        before, refs(a={"size_bytes": 8}, b={"version": 6}, c={"landmark_id": "2"}, d=None)
    )
    assert str(found) == ("1 photograph less (d), 2 photographs were changed (a, b), 1 label changed (c)")
    assert not found.only_of(["a", "b", "c", "d"])
    assert Changes.between(before, refs(a={"size_bytes": 8}, c={"landmark_id": "2"})).only_of(["a", "c"])
    assert str(Changes.between([], before)) == "5 photographs more (a, b, c, …)"
