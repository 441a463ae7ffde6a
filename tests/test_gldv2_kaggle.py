"""Folders of the Kaggle editions as they are, and the bundle for a notebook without a network."""

import csv
import pathlib
import zipfile

import pandas as pd
import pytest
from PIL import Image

from beam_pipeline import bundle
from beam_pipeline.config import ConfigError
from beam_pipeline.main import main
from tests import gldv2_layout, pictures

TRAIN = {gldv2_layout.image_id(f"t{n}"): str(10 + n // 2) for n in range(6)}
TEST = sorted(gldv2_layout.image_id(f"q{n}") for n in range(4))
ABSENT = gldv2_layout.image_id("absent")


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures.textured(120, 160, seed)).save(path, quality=90)


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    """train.csv, sample_submission.csv, train/a/b/c/<id>.jpg, test/a/b/c/<id>.jpg"""
    root = tmp_path_factory.mktemp("kaggle")
    for n, name in enumerate(TRAIN):
        save(root / "train" / gldv2_layout.member_name(name), n // 2)
    for n, name in enumerate(TEST):
        save(root / "test" / gldv2_layout.member_name(name), n)
    (root / "train.csv").write_text(
        "id,landmark_id\n" + "".join(f"{name},{landmark}\n" for name, landmark in TRAIN.items())
    )
    wanted = [TEST[2], ABSENT, TEST[0], TEST[1]]
    (root / "sample_submission.csv").write_text(
        "id,landmarks\n" + "".join(f"{name},8815 0.03\n" for name in wanted)
    )
    return root


@pytest.fixture(scope="module")
def index(edition, tmp_path_factory):
    output = tmp_path_factory.mktemp("kaggle") / "index"
    flags = ["--model", "rootsift-vlad", "--direct_num_workers", "1"]
    assert main(["index", "--images", str(edition), "--output", str(output), *flags]) == 0
    return output


def recognize(index, images, output, *flags):
    command = ["recognize", "--images", str(images), "--index", str(index), "--output", str(output)]
    return main([*command, "--direct_num_workers", "1", *flags])


def rows(run):
    with open(run / "submission.csv", newline="") as f:
        return [(row["id"], row["landmarks"]) for row in csv.DictReader(f)]


def test_the_folder_has_photographs_and_labels_of_the_index(index):
    images = pd.read_parquet(index / "images").set_index("image_id").landmark_id
    assert images.to_dict() == TRAIN


def test_the_submission_has_the_rows_of_the_sample_in_its_order(index, edition, tmp_path, capsys):
    assert recognize(index, edition, tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "1 of 4 ids in" in said and f"their rows stay empty; the first is {ABSENT!r}" in said
    assert "1 of 4 images are not in" in said
    found = rows(tmp_path / "run")
    assert [name for name, _ in found] == [TEST[2], ABSENT, TEST[0], TEST[1]]
    predictions = pd.read_parquet(tmp_path / "run" / "predictions").set_index("image_id")
    assert sorted(predictions.index) == TEST
    for name, text in found:
        row = predictions.loc[name] if name != ABSENT else None
        assert text == ("" if row is None else f"{row.landmark_id} {float(row.score)!r}")
    assert dict(found)[TEST[0]].startswith("10 ") and dict(found)[TEST[1]].startswith("11 ")


def test_with_a_budget_too_short_for_anything_the_sample_s_rows_are_there(index, edition, tmp_path):
    assert recognize(index, edition, tmp_path / "run", "--time_budget", "1s") == 0
    assert rows(tmp_path / "run") == [(name, "") for name in (TEST[2], ABSENT, TEST[0], TEST[1])]


def test_another_sample_is_another_run(index, edition, tmp_path, capsys):
    sample = tmp_path / "sample.csv"
    sample.write_text(f"id,landmarks\n{TEST[1]},\n{TEST[0]},\n")
    flags = ["--sample_submission", str(sample)]
    assert recognize(index, edition / "test", tmp_path / "run", *flags) == 0
    assert [name for name, _ in rows(tmp_path / "run")] == [TEST[1], TEST[0]]
    assert recognize(index, edition / "test", tmp_path / "run", *flags) == 0
    assert recognize(index, edition / "test", tmp_path / "run") == 2
    assert "made with other settings (sample_submission" in capsys.readouterr().err
    assert recognize(index, edition / "test", tmp_path / "run", "--overwrite") == 0
    assert [name for name, _ in rows(tmp_path / "run")] == TEST


def test_a_sample_of_other_photographs_is_refused(index, edition, tmp_path, capsys):
    sample = tmp_path / "sample.csv"
    sample.write_text("id,landmarks\nnone,\n")
    assert recognize(index, edition, tmp_path / "run", "--sample_submission", str(sample)) == 2
    assert "none of the 1 ids in" in capsys.readouterr().err
    sample.write_text(f"id,landmarks\n{TEST[1]},\n{TEST[1]},\n")
    assert recognize(index, edition, tmp_path / "run", "--sample_submission", str(sample)) == 1
    assert "stands in line 2 already" in capsys.readouterr().err


def test_without_the_layout_labels_are_asked_for(edition, tmp_path, capsys):
    assert main(["index", "--images", str(edition / "train"), "--output", str(tmp_path / "index")]) == 2
    assert "--labels is missing" in capsys.readouterr().err


def test_an_edition_of_which_a_part_is_missing_is_refused(index, edition, tmp_path, capsys):
    def refused(command, *flags):
        assert main([command, "--images", str(tmp_path), "--output", str(tmp_path / "out"), *flags]) == 2
        return capsys.readouterr().err

    (tmp_path / "train").symlink_to(edition / "train")
    (tmp_path / "sample_submission.csv").symlink_to(edition / "sample_submission.csv")
    assert "has no folder test of photographs" in refused("recognize", "--index", str(index))
    assert f"has no train.csv: name {tmp_path / 'train'} itself" in refused("index")
    (tmp_path / "train").unlink()
    (tmp_path / "sample_submission.csv").unlink()
    (tmp_path / "train.csv").symlink_to(edition / "train.csv")
    (tmp_path / "test").symlink_to(edition / "test")
    assert "has no folder train of photographs" in refused("index")
    assert "has no sample_submission.csv" in refused("recognize", "--index", str(index))


class Pip:
    """Stands for pip: makes wheels, of what the package needs as much as it is asked for."""

    def __init__(self):
        self.asked = []
        self.version = "2.0"

    def __call__(self, arguments):
        self.asked.append(arguments)
        assert arguments[:1] == ["wheel"]
        folder = pathlib.Path(arguments[arguments.index("--wheel-dir") + 1])
        folder.mkdir(exist_ok=True)
        if "--no-deps" not in arguments:
            for requirement in arguments[3:]:
                name = requirement.split(">")[0].split("<")[0]
                (folder / f"{name}-{self.version}-cp311-cp311-linux_x86_64.whl").write_text("")
            return
        assert (pathlib.Path(arguments[-1]) / "beam_pipeline" / "main.py").is_file()
        with zipfile.ZipFile(folder / "landmarks-1.0-py3-none-any.whl", "w") as wheel:
            needs = ("numpy>=2", "tensorflow<3,>=2", "duckdb; extra == 'test'")
            told = "".join(f"Requires-Dist: {requirement}\n" for requirement in needs)
            wheel.writestr("landmarks-1.0.dist-info/METADATA", f"Name: landmarks\n{told}\n")


def bundled(folder):
    return sorted(path.name.split("-cp311")[0].split("-py3")[0] for path in folder.iterdir())


def test_a_bundle_has_the_package_and_what_it_needs(tmp_path, capsys):
    pip, output = Pip(), tmp_path / "wheels"
    assert bundle.run(str(output), ["tensorflow"], pip) == 0
    assert pip.asked[1][3:] == ["numpy>=2"]
    assert bundled(output) == ["landmarks-1.0", "numpy-2.0"]
    assert f"pip install --no-index --no-deps {output}/*.whl" in capsys.readouterr().out


def test_a_bundle_takes_the_place_of_an_earlier_one(tmp_path, capsys):
    pip = Pip()
    assert bundle.run(str(tmp_path), [], pip) == 0
    assert bundled(tmp_path) == ["landmarks-1.0", "numpy-2.0", "tensorflow-2.0"]
    assert "deleted" not in capsys.readouterr().out
    pip.version = "2.1"
    assert bundle.run(str(tmp_path), ["tensorflow"], pip) == 0
    assert bundled(tmp_path) == ["landmarks-1.0", "numpy-2.1"]
    said = capsys.readouterr().out
    assert "deleted of the earlier bundle: numpy-2.0-" in said and "2 wheels" in said

    def fails(arguments):
        pip(arguments)
        if "--no-deps" not in arguments:
            raise OSError("pip wheel failed")

    pip.version = "2.2"
    with pytest.raises(OSError, match="pip wheel failed"):
        bundle.run(str(tmp_path), [], fails)
    assert bundled(tmp_path) == ["landmarks-1.0", "numpy-2.1"]


def test_a_requirement_that_there_is_not_leaves_nothing_behind(tmp_path):
    with pytest.raises(ConfigError, match="--without torch: the package needs numpy, tensorflow"):
        bundle.run(str(tmp_path / "wheels"), ["torch"], Pip())
    assert not (tmp_path / "wheels").exists()


def test_a_bundle_goes_into_no_folder_of_anything_else(tmp_path):
    pip = Pip()
    (tmp_path / ".DS_Store").write_text("")  # hidden files are nobody's
    assert bundle.run(str(tmp_path), ["tensorflow"], pip) == 0
    assert bundle.run(str(tmp_path), ["tensorflow"], pip) == 0
    asked = len(pip.asked)
    for name in ("notes.txt", "x.whl", "landmarks-notes.whl"):
        (tmp_path / name).write_text("")
        with pytest.raises(ConfigError, match=rf"not made by `landmarks bundle` \(it holds {name}\)"):
            bundle.run(str(tmp_path), [], pip)
        with pytest.raises(ConfigError, match=f"{name} is a file; name a folder"):
            bundle.run(str(tmp_path / name), [], pip)
        (tmp_path / name).unlink()
    (tmp_path / "landmarks-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConfigError, match=r"\(it has no wheel of landmarks\); name another folder"):
        bundle.run(str(tmp_path), [], pip)
    assert len(pip.asked) == asked
