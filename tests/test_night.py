"""The night in small, tests/survival/night.py: its data set, and its kills."""

import csv
import io
import tarfile

import pytest
from PIL import Image

from tests import pictures
from tests.survival import night

LANDMARKS = {"a": "tower", "b": "tower", "c": "bridge", "d": "gate", "e": ""}


@pytest.fixture
def photos(tmp_path):
    with open(tmp_path / "photos.csv", "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["id", "path", "label", "kind"])
        for number, (name, label) in enumerate(LANDMARKS.items()):
            Image.fromarray(pictures.textured(90, 120, number)).save(tmp_path / f"{name}.png")
            rows.writerow([name, f"{name}.png", label, "landmark"])
    return tmp_path


def members(folder):
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {name: tar.extractfile(name).read() for name in tar.getnames()}
    return found


def test_views_have_the_published_layout_and_come_again_the_same(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(night, "_PER_ARCHIVE", 4)
    made = []
    for name in ("once", "again"):
        night.write_data(tmp_path / name, photos, 10, 6, seed=3)
        made.append([members(tmp_path / name / part) for part in ("train_clean", "test")])
    assert made[0] == made[1]
    index, queries = made[0]
    assert sorted(p.name for p in (tmp_path / "once" / "train_clean").iterdir()) == [
        f"images_00{n}.tar" for n in range(3)
    ]
    with open(tmp_path / "once" / "train_clean.csv", newline="") as f:
        listed = {row["landmark_id"]: row["images"].split() for row in csv.DictReader(f)}
    ids = [image_id for some in listed.values() for image_id in some]
    assert sorted(index) == sorted("/".join([*i[:3], f"{i}.jpg"]) for i in ids) and len(ids) == 10
    with open(tmp_path / "once" / "recognition_solution_v2.1.csv", newline="") as f:
        truth = {row["id"]: row["landmarks"] for row in csv.DictReader(f)}
    assert sorted(queries) == sorted("/".join([*i[:3], f"{i}.jpg"]) for i in truth)
    assert {*truth.values()} <= {"", *listed} and "" in truth.values()
    for content in [*index.values(), *queries.values()]:
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "JPEG" and 559 <= max(image.size) <= 801


def test_a_killed_command_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(night, "_memory", lambda pid: 0)  # by psutil, of the extra bench
    one = night.Night(tmp_path, 1000.0, [0.05])
    with pytest.raises(SystemExit, match="info ended with 2; see .*info.log"):
        one.command("info", "info", "nothing")
    assert [line.split()[0] for line in one.killed] == ["info"] and not one.kills
    assert (tmp_path / "info.log").read_text().count("landmarks info nothing") == 2
