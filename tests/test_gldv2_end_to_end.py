"""Google Landmarks v2 in three commands: a small data set in the published layout, from a server on this
machine to a submission and its score.
"""

import csv
import json
import threading
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from beam_pipeline.main import main
from tests import gldv2_layout, pictures
from tests.web_server import Fault, serving
from transforms.storage import files

LANDMARKS, VIEWS, ARCHIVES = 8, 3, 4


def view(seed, number):
    """A crop of a textured picture, in a light of its own."""
    draw = np.random.default_rng([seed, number])
    whole = Image.fromarray(pictures.textured(300, 400, seed))
    left, top = draw.integers(0, 40, 2)
    crop = np.asarray(whole.crop((left, top, left + 350, top + 250))).astype(np.float64)
    lit = np.clip(crop * draw.uniform(0.7, 1.3), 0, 255).astype(np.uint8)
    return pictures.encoded(lit, "JPEG", quality=88)


def textured():
    """Photographs by id with their landmarks, those of the train split and of the test split."""
    train, test = {}, {}
    for landmark in range(LANDMARKS):
        for number in range(VIEWS):
            train[gldv2_layout.image_id(f"t{landmark}-{number}")] = (
                view(landmark, number),
                str(100 + landmark),
            )
        test[gldv2_layout.image_id(f"q{landmark}")] = view(landmark, VIEWS), str(100 + landmark)
        train[gldv2_layout.image_id(f"u{landmark}")] = view(1000 + landmark, 0), None
        test[gldv2_layout.image_id(f"d{landmark}")] = view(2000 + landmark, 0), None
    return train, test


def photographed(folder):
    """The same of real photographs, in the size that they have there."""
    table = pd.read_csv(folder / "photos.csv", dtype=str)
    train, test = {}, {}
    landmarks = table[table.kind == "landmark"].groupby("label").path.apply(sorted)
    for label, paths in landmarks[landmarks.map(len) >= 4].head(20).items():
        for number, path in enumerate(paths[:6]):
            split = test if number == 0 else train
            split[gldv2_layout.image_id(path)] = (folder / path).read_bytes(), label
    others = sorted(table[table.kind == "distractor"].path)
    for number, path in enumerate(others[:60]):
        split = test if number % 3 == 0 else train
        split[gldv2_layout.image_id(path)] = (folder / path).read_bytes(), None
    return train, test


@pytest.fixture(params=["textured", "photographs"])
def data_set(request):
    return textured() if request.param == "textured" else photographed(request.getfixturevalue("photos"))


def rows(path):
    with open(path, newline="") as f:
        return {row["id"]: row["landmarks"] for row in csv.DictReader(f)}


def test_from_nothing_to_a_submission(data_set, tmp_path, capsys):
    train, test = data_set
    data, index, run = tmp_path / "data", str(tmp_path / "index"), tmp_path / "run"
    labels = ["--labels", str(data / "train_clean.csv"), "--images", str(data / "train_clean")]
    with serving(gldv2_layout.site(train, test, ARCHIVES, 2)) as server:
        last = f"/train/images_{ARCHIVES - 1:03d}.tar"
        gate = threading.Event()
        server.faults["/train/images_001.tar"] = [Fault(cut=5_000), Fault(503)]
        server.faults[last] = [Fault(cut=2_000, waits=gate)]
        download = ["gldv2", "download", "--output", str(data), "--base_url", server.url]
        codes = []
        fetching = threading.Thread(
            target=lambda: codes.append(
                main([*download, "--part", "train_clean", "--archives", f"0-{ARCHIVES - 1}"])
            )
        )
        fetching.start()
        while len(list((data / "train_clean").glob("*.tar"))) < ARCHIVES - 1:
            assert fetching.is_alive()
            time.sleep(0.05)
        assert main(["index", *labels, "--output", index]) == 0  # the last archive is still to come
        before = json.loads(files.read_bytes(f"{index}/manifest.json"))["counts"]
        gate.set()
        fetching.join()
        assert codes == [0]
        assert main([*download, "--part", "test", "--archives", "0-1"]) == 0
    assert main(["index", *labels, "--output", index, "--append"]) == 0
    listed = {name: landmark for name, (_, landmark) in train.items() if landmark}
    indexed = pd.read_parquet(f"{index}/images").set_index("image_id")
    assert indexed.landmark_id.to_dict() == listed and 0 < before["indexed"] < len(listed)
    for image_id, row in indexed.head(5).iterrows():
        assert files.read_bytes(row.uri) == train[image_id][0]
    truth = str(data / "recognition_solution_v2.1.csv")
    command = ["recognize", "--images", str(data / "test"), "--index", index, "--output", str(run)]
    assert main([*command, "--truth", truth, "--preset", "accurate"]) == 0
    assert list(rows(run / "submission.csv")) == sorted(test)
    metrics = json.loads((run / "metrics.json").read_text())
    assert main(["evaluate", "--predictions", str(run), "--truth", truth]) == 0
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert metrics["all"]["counts"]["queries"] == len(test)
    assert metrics["all"]["top1"] > 0.8 and metrics["all"]["gap"] > 0.7
    shown = sorted(test)[0]
    picture = str(tmp_path / "matches.png")
    assert main(["matches", "--run", str(run), "--image_id", shown, "--output", picture]) == 0


def test_unpacked_and_in_archives_photographs_give_the_same(tmp_path):
    train, test = textured()
    found = {}
    with serving(gldv2_layout.site(train, test, 2, 1)) as server:
        for keep in ("tar", "files"):
            data, index = tmp_path / keep, tmp_path / f"index-{keep}"
            download = ["gldv2", "download", "--part", "train_clean", "--output", str(data), "--keep", keep]
            assert main([*download, "--base_url", server.url, "--archives", "0-1"]) == 0
            labels = ["--labels", str(data / "train_clean.csv"), "--images", str(data / "train_clean")]
            assert main(["index", *labels, "--output", str(index), "--model", "rootsift-vlad"]) == 0
            found[keep] = pd.read_parquet(index / "images").drop(columns=["uri"])
    assert found["tar"].global_descriptor.map(bytes).equals(found["files"].global_descriptor.map(bytes))
    plain = [frame.drop(columns=["global_descriptor"]) for frame in found.values()]
    assert plain[0].equals(plain[1]) and len(plain[0]) == LANDMARKS * VIEWS
