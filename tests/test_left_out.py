"""What photographs, tables and an index do not share is counted and said, both sides beside each other."""

import dataclasses
import unicodedata

import pyarrow as pa
import pytest

from beam_pipeline import config, flags, index, left_out, main, recognize
from beam_pipeline.manifest import IndexCounts
from tests.file_systems import write
from tests.manifests import index_manifest
from transforms import gap
from transforms.storage import files, spelling, tables
from transforms.storage.feature_store import FeatureStore, failure_table
from transforms.types import Failure


def text(*values):
    return pa.array(values, pa.string())


@pytest.mark.parametrize(
    "mine, theirs",
    [
        ("a1.jpg", "a1"),
        ("a1", "photos/a1.JPEG"),
        ("3348.0", "3348"),
        ("7", "0007"),
        ("IMG_1", "img_1"),
        (" a", "a"),
        ("p\\b.png", "b"),
    ],
)
def test_what_nearly_fits_is_shown_beside_it(mine, theirs):
    assert spelling.near(text("other", mine), text("more", theirs)) == (mine, theirs)
    assert spelling.near(text(theirs), text(mine)) == (theirs, mine)
    assert spelling.near(text("a"), text("b", "a")) is None


def test_composed_and_decomposed_letters_are_the_same_and_stay_as_written():
    composed, decomposed = (unicodedata.normalize(form, "Zürich") for form in ("NFC", "NFD"))
    assert spelling.index_in(text(composed, "x"), text("y", decomposed)).to_pylist() == [1, None]
    assert spelling.index_in(text(decomposed), text(composed, decomposed)).to_pylist() == [1]
    predictions = pa.table({"image_id": [composed], "landmark_id": [decomposed], "score": [1.0]})
    truth = pa.Table.from_arrays(
        [text(decomposed), pa.array([[composed]]), text("Public")], schema=tables.TRUTH_SCHEMA
    )
    assert gap.evaluate_predictions(predictions, truth)["all"]["top1"] == 1.0


def indexed(tmp_path, labels):
    options = ["--images", f"{tmp_path}/p", "--labels", write(tmp_path / "labels.csv", labels)]
    options += ["--model", "rootsift-vlad", "--output", f"{tmp_path}/out"]
    return index.prepare(flags.index_config(main.build_parser().parse_args(["index", *options])))


def test_an_index_says_what_it_leaves_out(tmp_path, capsys):
    for name in ("a.jpg", "b.jpg", "c.mov", "d.mov", "e.txt"):
        write(tmp_path / "p" / name)
    prepared = indexed(tmp_path, "id,landmark_id\na,1\nB,1\nc,2\nd,2\n")
    assert [ref.image_id for ref in prepared.unlabelled] == ["b"]
    assert prepared.labels_without_image == 3 and prepared.passed_over == {".mov": 2, ".txt": 1}
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "2 photographs; passed over: 2 .mov, 1 .txt"
    assert said[1].startswith("1 of 2 images have no label") and "'b' is 'B' in" in said[1]
    assert said[2].startswith("3 of 4 labels") and "the first is 'B'" in said[2] and len(said) == 3


def test_a_photograph_is_not_taken_for_another_that_is_there(tmp_path, capsys):
    for name in ("a.jpg", "A.jpg"):
        write(tmp_path / "p" / name)
    indexed(tmp_path, "id,landmark_id\na,1\n")
    said = capsys.readouterr().err
    assert "1 of 2 images have no label" in said and "'A' is 'a' in" not in said


def test_an_umlaut_finds_its_label_however_it_is_written(tmp_path, capsys):
    write(tmp_path / "p" / (unicodedata.normalize("NFD", "ü") + ".jpg"))
    prepared = indexed(tmp_path, "id,landmark_id\n" + unicodedata.normalize("NFC", "ü") + ",1\n")
    assert prepared.task.units[0].images[0].image_id == "u\u0308" and not prepared.unlabelled
    assert capsys.readouterr().err == ""


def test_labels_of_other_photographs_show_both_sides(tmp_path):
    write(tmp_path / "p" / "a1.jpg")
    with pytest.raises(
        config.ConfigError, match="labels name 'a1.jpg', photographs are 'a1'; 'a1' is 'a1.jpg' in"
    ):
        indexed(tmp_path, "id,landmark_id\na1.jpg,1\n")


def test_a_truth_of_other_queries_shows_both_sides(tmp_path):
    images = index.match([write(tmp_path / "p" / "3348.jpg")]).images
    with pytest.raises(config.ConfigError, match=r"'3348', its rows name '3348.0'; '3348' is '3348.0' in"):
        recognize._checked_truth(write(tmp_path / "truth.csv", "id,landmarks\n3348.0,1\n"), images)


@dataclasses.dataclass
class Shards:
    shards: tuple


@dataclasses.dataclass
class Shard:
    unit: str


def test_queries_of_landmarks_that_the_index_lacks_are_counted(tmp_path, capsys, monkeypatch):
    landmarks = {"u0": ["1", "3348"], "u1": ["Zürich"]}
    monkeypatch.setattr(
        FeatureStore, "read_images", lambda self, unit, columns: pa.table({"landmark_id": landmarks[unit]})
    )
    rows = "a,1,Public\nb,3348.0 1,Public\nc,3348.0,Private\nd,,Public\n"
    rows += "e,9,Ignored\nf,9,Public\ng,Zu\u0308rich,Public\n"
    truth = tables.read_truth(write(tmp_path / "truth.csv", "id,landmarks,Usage\n" + rows))
    manifest = Shards((Shard("u0"), Shard("u1")))
    assert left_out.landmarks_not_indexed(truth, text(*"abcdeg"), "out/index", manifest) == 1
    assert "1 of 5 queries" in (said := capsys.readouterr().err) and "'3348.0' is '3348' in the index" in said
    assert left_out.landmarks_not_indexed(truth, text("a", "d"), "out/index", manifest) == 0
    assert capsys.readouterr().err == ""


def test_an_index_of_nothing_is_an_error_and_is_not_finished(tmp_path):
    write(tmp_path / "p" / "a.jpg"), write(tmp_path / "p" / "b.jpg")
    prepared = indexed(tmp_path, "id,landmark_id\na,1\nb,1\n")
    nothing = index_manifest(
        counts=IndexCounts(matched=2, indexed=0, failed=2, out_of_time=0, without_label=0)
    )
    failures = [
        Failure("decode", "a", "a.jpg", "too_large", "", "max_image_pixels", 212_000),
        Failure("read", "b", "b.jpg", "corrupt", ""),
    ]

    def failed(prepared):
        files.write_parquet(f"{tmp_path}/out/failures/u.parquet", failure_table(failures))
        return nothing

    why = "all of 2 images failed, .*: 1 corrupt; 1 too_large: --max_image_pixels 212000 lets it in"
    with pytest.raises(config.PipelineError, match=f"there is no index: {why}"):
        index._make(prepared, failed)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_nothing_is_recognized_by_an_index_without_images(tmp_path, monkeypatch):
    monkeypatch.setattr(recognize.outputs, "read_manifest", lambda *given: index_manifest(shards=()))
    asked = ["recognize", "--images", "p", "--index", f"{tmp_path}/index", "--output", f"{tmp_path}/run"]
    with pytest.raises(config.ConfigError, match="index holds no images"):
        recognize.prepare(flags.recognize_config(main.build_parser().parse_args(asked)))
