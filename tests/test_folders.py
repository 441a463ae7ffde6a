"""Folders as people have them: their names as labels, paths as ids, what is left out, odd names."""

import csv
import io
import json
import os
import pathlib
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipeline import config, flags, index, main
from tests import gldv2_layout, tiny_models
from tests.command_line import run_in as run
from tests.file_systems import FolderFileSystem, write
from tests.pictures import encoded
from transforms import file_formats, patterns
from transforms.storage import tables


@pytest.fixture(params=["local", "remote"])
def root(request, tmp_path, monkeypatch):
    """Where photographs lie, as patterns name it, on this machine and elsewhere."""
    if request.param == "local":
        return str(tmp_path)
    FolderFileSystem.use(tmp_path, monkeypatch)
    return "folder:/"


def labels_of(*given, levels=1, **options):
    found = patterns.match_images(list(map(str, given)), label_levels=levels, **options)
    return {ref.image_id: ref.landmark_id for ref in found.images}


def ids(*given, **options):
    found = patterns.match_images(list(map(str, given)), image_ids="path", **options)
    return [ref.image_id for ref in found.images]


@pytest.fixture
def tree(root, tmp_path):
    write(tmp_path / "p" / "Eiffel Tower" / "1.jpg")
    write(tmp_path / "p" / "France" / "Louvre" / "2.png")
    write(tmp_path / "p" / "0.jpg")
    write(tmp_path / "p" / "Rome.tar", gldv2_layout.tar_of([("3.jpg", b"x"), ("Forum/old/4.jpg", b"x")]))
    return f"{root}/p"


def test_the_nearest_folder_is_the_landmark(tree):
    assert labels_of(tree) == {"0": None, "1": "Eiffel Tower", "2": "Louvre", "3": "Rome", "4": "old"}
    assert labels_of(tree, levels=2) == {
        "0": None,
        "1": "Eiffel Tower",
        "2": "France/Louvre",
        "3": "Rome",
        "4": "Forum/old",
    }
    assert labels_of(tree, levels=0) == dict.fromkeys("01234")
    assert labels_of(f"{tree}/Rome.tar") == {
        "3": None,
        "4": "old",
    }  # what is named is where the search begins
    assert labels_of(f"{tree}/*/*.jpg") == {"1": "Eiffel Tower"}
    assert labels_of(f"{tree}/**/*.{{jpg,png}}", levels=9)["2"] == "France/Louvre"
    assert labels_of(f"{tree}/France/") == {"2": "Louvre"} and labels_of(f"{tree}/0.jpg") == {"0": None}


def test_the_path_below_the_pattern_is_the_id(tree):
    below = [
        "0.jpg",
        "Eiffel Tower/1.jpg",
        "France/Louvre/2.png",
        "Rome.tar/3.jpg",
        "Rome.tar/Forum/old/4.jpg",
    ]
    assert ids(tree) == ids(f"{tree}/") == below
    assert ids(f"{tree}/Rome.tar") == ["3.jpg", "Forum/old/4.jpg"]
    assert ids(f"{tree}/*.tar") == below[3:] and ids(f"{tree}/0.jpg") == below[:1]
    assert ids(f"{tree}/*/*.jpg") == below[1:2] and ids(f"{tree}/France/**") == ["Louvre/2.png"]


def test_a_list_tells_paths_from_its_folder_on(tree, tmp_path):
    write(tmp_path / "p" / "list.txt", f"France/Louvre/2.png\n{tree}/0.jpg\n".encode())
    assert ids(f"@{tree}/list.txt") == ["0.jpg", "France/Louvre/2.png"]
    assert labels_of(f"@{tree}/list.txt") == {"0": None, "2": "Louvre"}
    write(tmp_path / "elsewhere" / "list.txt", f"{tree}/Eiffel Tower/1.jpg\n".encode())
    (one,) = ids(f"@{tree}/../elsewhere/list.txt" if "://" not in tree else "@folder://elsewhere/list.txt")
    assert one.endswith("p/Eiffel Tower/1.jpg") and not one.startswith("/")


def test_a_photograph_that_two_patterns_reach_is_told_from_the_outer_one(tree):
    for given in (
        [tree, f"{tree}/France/"],
        [f"{tree}/France/", tree],
        [f"{tree}/**/*.png", f"{tree}/France/**"],
    ):
        assert "France/Louvre/2.png" in ids(*given) and "Louvre/2.png" not in ids(*given)
        assert labels_of(*given, levels=2)["2"] == "France/Louvre"


def test_what_cameras_call_alike_is_refused_with_the_remedy_and_taken_by_path(tree, tmp_path):
    for folder in ("100CANON", "101CANON"):
        write(tmp_path / "p" / "DCIM" / folder / "IMG_0001.JPG")
    with pytest.raises(
        patterns.MatchError, match=r"'IMG_0001': .*100CANON.*101CANON.*; --image_ids path makes"
    ):
        patterns.match_images([tree])
    assert {"DCIM/100CANON/IMG_0001.JPG", "DCIM/101CANON/IMG_0001.JPG"} < {*ids(tree)}
    with pytest.raises(patterns.MatchError, match=r"id 'IMG_0001.JPG': .*; name one folder that holds both"):
        ids(f"{tree}/DCIM/100CANON/", f"{tree}/DCIM/101CANON/")


def test_a_file_is_labelled_where_it_lies_and_not_by_the_album_that_links_to_it(tmp_path):
    photo = write(tmp_path / "p" / "Eiffel" / "1.jpg")
    for album, name in (("best", "1.jpg"), ("a", "of paris.jpg")):
        (tmp_path / "p" / album).mkdir()
        (tmp_path / "p" / album / name).symlink_to(photo)
    (tmp_path / "p" / "all").symlink_to(tmp_path / "p" / "Eiffel")
    (tmp_path / "p" / "Rome").symlink_to(write(tmp_path / "q" / "2.jpg").rpartition("/")[0])
    assert labels_of(tmp_path / "p") == {"1": "Eiffel", "2": "Rome"}
    assert labels_of(tmp_path / "p", image_ids="path") == {"Eiffel/1.jpg": "Eiffel", "Rome/2.jpg": "Rome"}
    assert labels_of(f"{tmp_path}/p/**/*.jpg") == {"1": "Eiffel", "2": "Rome"}


def test_one_file_in_the_folders_of_two_landmarks_is_refused(tmp_path):
    photo = write(tmp_path / "p" / "Eiffel" / "1.jpg")
    (tmp_path / "p" / "best").mkdir()
    os.link(photo, tmp_path / "p" / "best" / "1.jpg")
    with pytest.raises(
        patterns.MatchError, match=r"are one file, .* 'Eiffel' and 'best'; --exclude leaves out"
    ):
        labels_of(tmp_path / "p")
    assert labels_of(tmp_path / "p", exclude=["best"]) == {"1": "Eiffel"}


@pytest.mark.parametrize(
    "glob, left",
    [
        ("Eiffel*", ["0.jpg", "France/Louvre/2.png"]),
        ("France", ["0.jpg", "Eiffel Tower/1.jpg"]),
        ("France/", ["0.jpg", "Eiffel Tower/1.jpg"]),
        ("*.jpg", ["France/Louvre/2.png"]),
        ("/*.jpg", ["Eiffel Tower/1.jpg", "France/Louvre/2.png"]),
        ("France/*", ["0.jpg", "Eiffel Tower/1.jpg"]),
        ("**/2.png", ["0.jpg", "Eiffel Tower/1.jpg"]),
        ("{0,1}.jpg", ["France/Louvre/2.png"]),
        ("ROOT/France", ["0.jpg", "Eiffel Tower/1.jpg"]),
    ],
)
def test_what_is_excluded_is_left_out_and_counted(tree, glob, left):
    said = []
    options = {"exclude": ["Rome.tar", glob.replace("ROOT", tree)], "image_ids": "path"}
    found = patterns.match_images([tree], said.append, **options)
    assert [ref.image_id for ref in found.images] == left and said == []
    assert found.passed_over == {patterns.EXCLUDED: 4 - len(left)}  # one is the archive, which is not opened
    assert patterns.described(found.passed_over) == f"{4 - len(left)} excluded"


def test_members_of_archives_are_excluded_and_a_glob_that_excludes_nothing_is_said(tree):
    said = []
    found = patterns.match_images([tree], said.append, exclude=["Forum", "Rom"])
    assert [ref.image_id for ref in found.images] == ["0", "1", "2", "3"]
    assert said == ["--exclude 'Rom' leaves out nothing"]


def test_excludes_are_read_from_the_working_folder_on_too(tmp_path, monkeypatch):
    write(tmp_path / "p" / "a" / "1.jpg"), write(tmp_path / "p" / "b" / "2.jpg")
    monkeypatch.chdir(tmp_path)
    assert ids("p", exclude=["p/a"]) == ids("p", exclude=["./p/a/"]) == ["b/2.jpg"]


def prepared(tmp_path, *more):
    options = ["--images", f"{tmp_path}/p", "--model", "rootsift-vlad", "--output", f"{tmp_path}/out", *more]
    return index.prepare(flags.index_config(main.build_parser().parse_args(["index", *options])))


def test_an_index_is_labelled_by_folders_and_says_what_lies_in_none(tmp_path, capsys):
    write(tmp_path / "p" / "x y" / "1.jpg"), write(tmp_path / "p" / "2.jpg")
    made = prepared(tmp_path, "--labels", "folders")
    assert [(ref.image_id, ref.landmark_id) for ref in made.task.refs] == [("1", "x y")]
    assert [ref.image_id for ref in made.unlabelled] == ["2"] and made.labels_without_image == 0
    assert capsys.readouterr().err == (
        "landmarks by their folders: 1, most photographs in: 1 x y\n"
        "1 of 2 images lie in no folder below the pattern, which would be their label, and are left out, see "
        f"{tmp_path}/out/failures\n"
    )
    (tmp_path / "p" / "x y" / "1.jpg").unlink()
    with pytest.raises(
        config.ConfigError, match=r"none of the 1 images matched lies in a folder below .*/p: name"
    ):
        prepared(tmp_path, "--labels", "folders")


def test_a_table_called_folders_is_named_by_its_path(tmp_path, monkeypatch):
    write(tmp_path / "folders", b"id,landmark_id\n1,7\n"), write(tmp_path / "p" / "x" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    assert prepared(tmp_path, "--labels", "./folders").task.refs[0].landmark_id == "7"
    assert prepared(tmp_path, "--labels", "folders").task.refs[0].landmark_id == "x"


@pytest.mark.parametrize("labels", ["folder", "folders:0", "folders:two"])
def test_a_word_that_is_nearly_folders_is_told_so(tmp_path, labels):
    write(tmp_path / "p" / "x" / "1.jpg")
    with pytest.raises(config.ConfigError, match=f"^--labels {labels}: .*the word is folders, or folders:2"):
        prepared(tmp_path, "--labels", labels)


def test_settings_remember_paths_as_ids_and_are_as_before_without(tmp_path):
    write(tmp_path / "p" / "x" / "1.jpg")
    assert "image_ids" not in prepared(tmp_path, "--labels", "folders").settings
    made = prepared(tmp_path, "--labels", "folders", "--image_ids", "path")
    assert made.settings["image_ids"] == "path" and made.task.refs[0].image_id == "x/1.jpg"


def test_what_lies_beside_photographs_is_counted_and_said(tmp_path, capsys, monkeypatch):
    suffixes = ("JPG", "jpe", "jfif", "mpo", "png", "webp", "avif", "tif", "TIFF", "bmp", "gif")
    for n, suffix in enumerate(suffixes):
        write(tmp_path / "p" / "a" / f"{n}.{suffix}")
    junk = ("1.mov", "2.MOV", "Thumbs.db", "note.txt", "desktop.ini", "._1.jpg", "@eaDir/1.jpg", "x")
    for name in junk:
        write(tmp_path / "p" / name)
    made = prepared(tmp_path, "--labels", "folders")
    assert len(made.task.refs) == len(suffixes)
    counts = {".mov": 2, "hidden": 2, "": 1, ".db": 1, ".ini": 1, ".txt": 1}
    assert made.passed_over == counts
    assert capsys.readouterr().err == (
        "11 photographs; passed over: 2 .mov, 2 hidden, 1 without a suffix, 1 .db, 1 .ini, 1 .txt\n"
        "landmarks by their folders: 1, most photographs in: 11 a\n"
    )
    monkeypatch.setattr(patterns, "READS_HEIF", False)
    remedy = patterns.described({".heic": 31, ".mov": 12})
    assert remedy == "31 .heic (pip install 'landmarks[heic]'), 12 .mov"


def test_heic_is_a_photograph_where_it_can_be_read(tmp_path):
    for name in ("a.HEIC", "b.heif", "c.hif", "d.jpg"):
        write(tmp_path / name)
    found = patterns.match_images([str(tmp_path)])
    with_heif = file_formats.READS_HEIF
    assert len(found.images) == (4 if with_heif else 1) and bool(found.passed_over) is not with_heif


ODD_NAMES = {
    "spaces": "my photo  of 2.jpg",
    "composed": "gr\u00f6\u00dfe.jpg",
    "decomposed": "gro\u0308\u00dfe.jpg",
    "emoji": "\U0001f3f0 castle \U0001f468\u200d\U0001f469\u200d\U0001f467.jpg",
    "dash": "-rf.jpg",
    "dashes": "--help.jpg",
    "quotes": 'a, "b"; it\'s.jpg',
    "hash": "#1 of 2.jpg",
    "percent": "100%20.jpg",
    "brackets": "[1] {a,b} *?.jpg",
    "dots": "v1.0.final..jpg",
    "bytes": "\u00fc" * 125 + "x.jpg",
    "right_to_left": "\u0628\u0631\u062c.jpg",
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
def test_odd_names_of_files_and_folders_are_taken_as_they_are(tmp_path, name):
    assert len(os.fsencode(name)) <= 255
    stem = name.removesuffix(".jpg")
    path = write(tmp_path / "p" / stem / name)
    (ref,) = patterns.match_images([f"{tmp_path}/p"], image_ids="path", label_levels=1).images
    assert (ref.uri, ref.image_id) == (path, f"{stem}/{name}")
    assert ref.landmark_id == unicodedata.normalize("NFC", stem)
    (ref,) = patterns.match_images([f"{tmp_path}/p"]).images
    assert ref.image_id == stem
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("path", "label"), (f"{stem}/{name}", stem)])
    labels = tables.read_labels(write(tmp_path / "labels.csv", table.getvalue().encode()), "path")
    assert labels.to_pylist() == [{"image_id": f"{stem}/{name}", "landmark_id": stem}]


def test_one_landmark_in_two_normal_forms_is_one(tmp_path):
    for n, form in enumerate(("NFC", "NFD")):
        write(tmp_path / "p" / unicodedata.normalize(form, "Zürich") / f"{n}.jpg")
    assert labels_of(tmp_path / "p") == {"0": "Z\u00fcrich", "1": "Z\u00fcrich"}
    for form in ("NFC", "NFD"):
        with pytest.raises(patterns.MatchError, match="passed over 2 excluded"):
            labels_of(tmp_path / "p", exclude=[unicodedata.normalize(form, "Zürich")])


def test_what_begins_with_a_dash_can_be_named(tmp_path, monkeypatch):
    write(tmp_path / "-new" / "-rf.jpg")
    monkeypatch.chdir(tmp_path)
    parser = main.build_parser()
    for word in (["--images", "./-new"], ["--images=-new"]):
        asked = parser.parse_args(["index", *word, "--labels", "folders", "--output", "out"])
        assert ids(*asked.images) == ["-rf.jpg"]
    asked = parser.parse_args(["matches", "--run", "run", "--image_id=-rf", "--output", "m.png"])
    assert asked.image_id == "-rf"


def test_empty_folders_and_links_to_nothing(tmp_path):
    (tmp_path / "p" / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(patterns.MatchError, match="no image matches"):
        ids(tmp_path / "p")
    write(tmp_path / "p" / "a" / "1.jpg")
    (tmp_path / "p" / "a" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "p" / "loop").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "b").symlink_to(tmp_path / "gone")
    assert ids(tmp_path / "p") == ["a/1.jpg", "a/2.jpg"]  # what leads to nothing becomes a failure row


# From end to end


def photograph(path, seed, format="PNG"):
    return write(path, encoded(tiny_models.textured(96, 96, seed), format))


def ids_in(output):
    return sorted(pq.read_table(f"{output}/images", columns=["image_id"])["image_id"].to_pylist())


INDEX = ("index", "--images", "p", "--labels", "folders", "--output", "index", "--model", "rootsift-vlad")


def test_a_table_of_images_makes_an_index_with_its_own_labels(tmp_path):
    photographs = [photograph(tmp_path / f"{n}.png", n) for n in range(4)]
    (tmp_path / "p").mkdir()
    rows = [
        {"bytes": pathlib.Path(path).read_bytes(), "path": f"in/{n}.png"}
        for n, path in enumerate(photographs)
    ]
    table = pa.table({"image": rows, "label": ["the tower", "the bridge", "c", "d"]})
    pq.write_table(table, tmp_path / "p" / "x.parquet", row_group_size=2)
    command = [{"p": "p/x.parquet", "folders": "p/x.parquet"}.get(word, word) for word in INDEX]
    assert run(tmp_path, *command) == 0 and ids_in(tmp_path / "index") == ["0", "1", "2", "3"]
    assert (
        run(tmp_path, "recognize", "--images", "0.png", "1.png", "--index", "index", "--output", "run") == 0
    )
    with open(tmp_path / "run" / "submission.csv", newline="") as f:
        found = [row["landmarks"].split(" ")[0] for row in csv.DictReader(f)]
    assert found == ["the%20tower", "the%20bridge"]
    assert run(tmp_path, "matches", "--run", "run", "--image_id", "0", "--output", "m.png") == 0


def test_photographs_of_one_name_go_through_every_command_by_their_paths(tmp_path, capsys):
    for seed, place in enumerate(("Eiffel", "Louvre", "Rome")):
        photograph(tmp_path / "p" / place / "IMG_1.png", seed)
        photograph(tmp_path / "q" / f"roll {place}" / "IMG_1.png", seed)
    rows = [(f"roll {place}/IMG_1.png", place) for place in ("Eiffel", "Louvre", "Rome")]
    truth = "".join(f"{query},{place},Public\n" for query, place in rows)
    write(tmp_path / "truth.csv", ("id,landmarks,Usage\n" + truth).encode())
    assert run(tmp_path, *INDEX) == 2 and "--image_ids path" in capsys.readouterr().err
    write(tmp_path / "p" / "notes.txt"), write(tmp_path / "q" / "1.mov")
    assert run(tmp_path, *INDEX, "--image_ids", "path") == 0
    assert ids_in(tmp_path / "index") == ["Eiffel/IMG_1.png", "Louvre/IMG_1.png", "Rome/IMG_1.png"]
    recognize = ("recognize", "--images", "q", "--image_ids", "path", "--index", "index", "--output", "run")
    assert run(tmp_path, *recognize, "--truth", "truth.csv") == 0
    assert run(tmp_path, "evaluate", "--predictions", "run/submission.csv", "--truth", "truth.csv") == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["all"]["top1"] == 1.0
    with open(tmp_path / "run" / "submission.csv", newline="") as f:
        assert [(row["id"], row["landmarks"].split()[0]) for row in csv.DictReader(f)] == rows
    beside = [json.loads((tmp_path / output / "manifest.json").read_text()) for output in ("index", "run")]
    assert [manifest["passed_over"] for manifest in beside] == [{".txt": 1}, {".mov": 1}]
    assert beside[0]["image_ids"] == "path"
    matches = ("matches", "--run", "run", "--image_id", rows[0][0], "--output", "m.png")
    assert run(tmp_path, *matches) == 0 and (tmp_path / "m.png").exists()
    assert run(tmp_path, "report", "--run", "run", "--output", "report", "--truth", "truth.csv") == 0

    photograph(tmp_path / "p" / "Zoo" / "IMG_1.png", 9)
    capsys.readouterr()
    assert run(tmp_path, *INDEX, "--append", "--image_ids", "name") == 2
    assert "--image_ids name differs from the index's path" in capsys.readouterr().err
    assert run(tmp_path, *INDEX, "--append") == 0  # as the index does
    assert "3 of 4 images are in index already; 1 are new" in capsys.readouterr().out
    assert "Zoo/IMG_1.png" in ids_in(tmp_path / "index")
    assert run(tmp_path, *INDEX, "--append") == 0 and "nothing to do" in capsys.readouterr().out
    photograph(tmp_path / "p" / "Zwinger" / "IMG_1.png", 10)
    assert run(tmp_path, *INDEX, "--append") == 0
    counts = json.loads((tmp_path / "index" / "manifest.json").read_text())["counts"]
    assert (counts["matched"], counts["indexed"], counts["passed_over"]) == (5, 5, 1)  # one file, seen thrice
