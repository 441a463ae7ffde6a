"""Folders as people have them go through every command, with the fewest options."""

import csv
import json
import pathlib
import unicodedata

import pyarrow.parquet as pq
from PIL import Image

from tests import photo_folders, tiny_models
from tests.command_line import ALL_CORES, run_in
from transforms.file_formats import READS_HEIF

# As docs/folders.md has them.
INDEX = "index --images photos --labels folders --image_ids path --output index"
RECOGNIZE = "recognize --images new --image_ids path --index index --output run --truth truth.csv"
REPORT = "report --run run --truth truth.csv --output report"


def run(folder, command):
    return run_in(folder, *command.split(), ALL_CORES)


def read(path):
    return json.loads(pathlib.Path(path).read_text())


def labels_in(index):
    table = pq.read_table(f"{index}/images", columns=["image_id", "landmark_id"])
    return dict(zip(table["image_id"].to_pylist(), table["landmark_id"].to_pylist()))


def check(folder, known, asked, capsys, model=""):
    """Runs the commands on photographs that are arranged in a folder; returns the metrics of all queries."""
    photo_folders.arrange(folder, known, asked)
    assert run(folder, INDEX + model) == 0
    said = capsys.readouterr().err
    count = sum(map(len, known.values()))
    beside = "3 hidden, 1 .db, 1 .ini, 1 .mov, 1 .txt"
    assert f"{count:,} photographs; passed over: {beside}\n" in said
    labels = labels_in(folder / "index")
    assert len(labels) == count
    for number, (landmark, images) in enumerate(known.items()):
        place = f"{landmark}.tar" if number % 4 == 3 else landmark if number % 2 else f"holidays/{landmark}"
        for name in photo_folders.names(len(images)):
            assert labels[f"{place}/{name}"] == unicodedata.normalize("NFC", landmark)
    assert read(folder / "index" / "manifest.json")["passed_over"]["hidden"] == 3
    assert run(folder, RECOGNIZE) == 0 and run(folder, REPORT) == 0
    assert (folder / "report" / "index.html").exists()
    with open(folder / "truth.csv", newline="") as f:
        truth = {row["id"]: row["landmark_id"] for row in csv.DictReader(f)}
    with open(folder / "run" / "submission.csv", newline="") as f:
        assert [row["id"] for row in csv.DictReader(f)] == sorted(truth)
    assert any(name.endswith("HEIC") for name in truth) is READS_HEIF
    capsys.readouterr()
    assert run(folder, INDEX + model + " --append") == 0 and "nothing to do" in capsys.readouterr().out
    assert run(folder, "info index") == 0
    assert f"photographs: {count:,} indexed, 0 failed, paths are their ids" in capsys.readouterr().out
    return read(folder / "run" / "metrics.json")["all"]


NAMES = (
    "Eiffel Tower, Paris",
    "Ponte Vecchio",
    unicodedata.normalize("NFD", "Zürich HB"),
    "-the 50% bridge 🌉",
)


def test_folders_of_pictures(tmp_path, capsys):
    def pictures(number, seeds):
        texture = Image.fromarray(tiny_models.textured(120, 120, number))
        return [texture.crop((seed, seed // 2, seed + 96, seed // 2 + 96)) for seed in seeds]

    known = {name: pictures(number, range(0, 24, 2)) for number, name in enumerate(NAMES)}
    asked = {name: pictures(number, (1, 5, 9)) for number, name in enumerate(NAMES)}
    metrics = check(tmp_path, known, asked, capsys, " --model rootsift-vlad")
    assert metrics["top1"] == 1.0 and metrics["counts"]["queries"] == 12


def test_folders_of_photographs(photos, tmp_path, capsys):
    known, asked = photo_folders.of_photos(str(photos), 5, 9)
    metrics = check(tmp_path, known, asked, capsys)
    assert metrics["top1"] > 0.8 and metrics["counts"]["queries"] == 15
