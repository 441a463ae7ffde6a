"""Tests of the demo set."""

import collections
import csv
import json
import pathlib
import re

import numpy as np
import PIL.Image
import pytest

from beam_pipeline import demo


def _files(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(pathlib.Path(root).rglob("*"))
        if path.is_file()
    }


def _rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def made(demo_set):
    return demo_set


def _one_view_of_each(patch):
    for name in ("INDEX_VIEWS", "QUERY_VIEWS", "DISTRACTOR_VIEWS"):
        patch.setattr(demo, name, 1)


@pytest.fixture(name="few_views")
def _few_views(monkeypatch):
    _one_view_of_each(monkeypatch)


@pytest.fixture(name="of_few_views", scope="module")
def _of_few_views(tmp_path_factory):
    """The files of a set with one view of each object."""
    root = tmp_path_factory.mktemp("few") / "set"
    with pytest.MonkeyPatch.context() as patch:
        _one_view_of_each(patch)
        demo.make_demo(str(root))
    return _files(root)


def test_the_same_seed_gives_the_same_bytes(few_views, of_few_views, tmp_path):
    demo.make_demo(str(tmp_path / "set"))

    assert _files(tmp_path / "set") == of_few_views


def test_an_image_does_not_depend_on_the_others(made, of_few_views):
    images = {name: data for name, data in of_few_views.items() if name.endswith("jpg")}
    assert len(images) == 50 and images.items() <= _files(made[0]).items()


def test_another_seed_gives_other_images_and_ids(made, few_views, tmp_path):
    demo.make_demo(str(tmp_path / "set"), seed=1)

    names, other_names = (
        {pathlib.Path(name).name for name in _files(root) if name.endswith("jpg")}
        for root in (made[0], tmp_path / "set")
    )
    assert other_names and not names & other_names


def test_every_image_decodes_and_has_the_promised_size(made):
    images = list(made[0].rglob("*.jpg"))

    assert 200 <= len(images) <= 500
    for path in images:
        assert re.fullmatch("[0-9a-f]{16}", path.stem)
        with PIL.Image.open(path) as image:
            pixels = np.asarray(image)
        assert pixels.ndim == 3 and 320 <= max(pixels.shape) <= 480
        assert pixels.std() > 3, f"{path} is nearly one colour"


def test_labels_and_truth_cover_the_images(made):
    _, paths = made
    labels, truth = _rows(paths.labels), _rows(paths.truth)

    assert list(labels[0]) == ["id", "landmark_id"] and list(truth[0]) == ["id", "landmarks", "Usage"]
    assert {(row["landmark_id"], row["id"]) for row in labels} == {
        (path.parent.name, path.stem) for path in pathlib.Path(paths.index).glob("*/*.jpg")
    }
    assert {row["id"] for row in truth} == {path.stem for path in pathlib.Path(paths.queries).glob("*.jpg")}
    ids = [row["id"] for row in labels + truth]
    assert len(set(ids)) == len(ids)
    indexed = collections.Counter(row["landmark_id"] for row in labels)
    asked = collections.Counter(row["landmarks"] for row in truth)
    assert min(indexed.values()) >= 2 and set(indexed) == set(asked) - {""}
    assert asked[""] >= 30
    for usage in ("Public", "Private"):
        assert {bool(row["landmarks"]) for row in truth if row["Usage"] == usage} == {False, True}


def test_regions_of_one_photograph_do_not_overlap():
    boxes = collections.defaultdict(list)
    for region in demo._LANDMARKS + demo._DISTRACTORS:
        for photograph in region.photographs:
            boxes[photograph].append(region.box)
    for photograph, several in boxes.items():
        for first, box in enumerate(several):
            for other in several[:first]:
                assert box and other, f"{photograph} is used whole and in part"
                overlap = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
                assert (overlap <= 0).any(), f"{box} and {other} of {photograph} overlap"


def test_nothing_but_the_landmark_itself_shows_a_landmark():
    shown = {photograph for region in demo._LANDMARKS for photograph in region.photographs}

    assert not shown & {*demo._BACKGROUNDS, *demo._OCCLUDERS}


def test_a_set_that_is_there_is_left_alone(made):
    root, paths = made
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    again = demo.make_demo(str(root))

    assert again.already_there
    assert (again.index, again.queries, again.labels, again.truth) == (
        paths.index,
        paths.queries,
        paths.labels,
        paths.truth,
    )
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def test_an_empty_folder_is_filled(few_views, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "_LANDMARKS", demo._LANDMARKS[:1])
    (tmp_path / "set").mkdir()

    paths = demo.make_demo(str(tmp_path / "set"))

    assert pathlib.Path(paths.labels).is_file() and not paths.already_there
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_set_of_another_seed_is_not_touched(made):
    before = _files(made[0])

    with pytest.raises(FileExistsError, match="'seed': 0.*not the demo set.*'seed': 7"):
        demo.make_demo(str(made[0]), seed=7)
    assert _files(made[0]) == before


@pytest.mark.parametrize(
    "marker", [None, "[1, 2", json.dumps({"made_by": "someone"})], ids=["none", "broken", "foreign"]
)
def test_a_folder_with_other_things_is_refused(tmp_path, marker):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    if marker is not None:
        (tmp_path / "demo.json").write_text(marker)
    before = _files(tmp_path)

    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path))):
        demo.make_demo(str(tmp_path))
    assert _files(tmp_path) == before


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "set").write_bytes(b"mine")

    with pytest.raises(FileExistsError, match="something else"):
        demo.make_demo(str(tmp_path / "set"))


def test_a_failure_leaves_nothing_behind(few_views, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(demo, "_write_csv", fail)
    monkeypatch.setattr(demo, "_LANDMARKS", demo._LANDMARKS[:1])
    with pytest.raises(OSError, match="disk full"):
        demo.make_demo(str(tmp_path / "set"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_photograph_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "_BACKGROUNDS", ("brick.png", "eiffel.png"))

    with pytest.raises(FileNotFoundError, match="lacks eiffel.png; reinstall"):
        demo.make_demo(str(tmp_path / "set"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(FileNotFoundError, match="pip install scikit-image"):
        demo.make_demo(str(tmp_path / "set"))


@pytest.mark.parametrize(
    "output, seed, message", [("gs://bucket/demo", 0, "'gs://bucket/demo'"), ("x", -1, "got -1")]
)
def test_bad_arguments_are_refused(output, seed, message):
    with pytest.raises(ValueError, match=message):
        demo.make_demo(output, seed)
