"""Whitening: what it does to descriptors, and to an index, its queries, and what is added to it."""

import json

import cv2
import numpy as np
import pytest

from beam_pipeline import outputs
from beam_pipeline.config import PipelineError
from beam_pipeline.manifest import IndexManifest
from tests import tiny_onnx
from tests.command_line import run
from tests.pictures import textured
from transforms import whitening
from transforms.arrays.whitening import Whitening
from transforms.database_augmentation import augmented_shards
from transforms.models import catalog
from transforms.models.model import ModelError
from transforms.storage.feature_store import FeatureStore, descriptors_of


def in_a_cone(rng, landmarks=60, each=6, width=32):
    """Descriptors float32 [landmarks, each, width] of unit length: what all share is ten times what tells
    landmarks apart, and each axis weighs less than the one before.
    """
    weights = 0.8 ** np.arange(width)
    shared, own = 10 * rng.normal(size=width), rng.normal(size=(landmarks, 1, width)) * weights
    rows = shared + own + 0.5 * rng.normal(size=(landmarks, each, width)) * weights[::-1].max() * weights
    return (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)


class TestArrays:
    def test_all_axes_have_the_same_variance_and_none_is_longer_than_one(self):
        rng = np.random.default_rng(0)
        rows = (
            rng.standard_normal((4000, 6)) * [9, 5, 3, 2, 1, 0.5] @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
        )
        learned = Whitening.learn(rows + 7, 4, shrinkage=0.0)
        white = (rows + 7 - learned.mean) @ learned.projection
        np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=1e-3)
        np.testing.assert_allclose(np.linalg.norm(learned(rows), axis=1), 1, rtol=1e-5)

    def test_shrinkage_leaves_weak_axes_weak(self):
        rows = np.random.default_rng(0).standard_normal((4000, 3)) * [10, 1, 0.1]
        learned = Whitening.learn(rows, 3, shrinkage=0.1)
        spread = np.sqrt(np.diag(np.cov(((rows - learned.mean) @ learned.projection).T)))
        assert (np.diff(spread) < 0).all() and spread[0] == pytest.approx(1 / np.sqrt(1.1), rel=1e-3)

    def test_blocks_are_as_good_as_all(self):
        rows = np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32) + 100
        one = Whitening.learn(rows, 12, 0.1)
        other = Whitening.of_blocks([rows[:7], rows[:0], rows[7:]], 12, 0.1)
        np.testing.assert_allclose(one.projection, other.projection, rtol=1e-4)
        np.testing.assert_allclose(one(rows), other(rows), atol=1e-4)

    def test_a_row_has_the_same_bits_alone_and_among_others(self):
        rows = np.random.default_rng(0).normal(size=(200, 384)).astype(np.float32)
        learned = Whitening.learn(rows, 100, 0.1)
        together = learned(rows)
        for number in (0, 7, 199):
            np.testing.assert_array_equal(learned(rows[number : number + 1])[0], together[number])

    def test_descriptors_in_a_cone_find_their_landmark(self):
        rows = in_a_cone(np.random.default_rng(1))
        index, queries = rows[:, 1:].reshape(-1, rows.shape[2]), rows[:, 0]

        def right(project):
            found = (project(queries) @ project(index).T).argmax(1) // (rows.shape[1] - 1)
            return (found == np.arange(len(queries))).mean()

        learned = Whitening.learn(index, 32, 0.01)
        assert (index @ index.T).min() > 0.9 and np.abs((learned(index) @ learned(index).T).mean()) < 0.05
        assert right(learned) > right(lambda part: part) + 0.05

    def test_fewer_axes_where_rows_span_fewer(self):
        rows = np.random.default_rng(0).normal(size=(5, 12))
        assert Whitening.learn(rows, 12, 0.1).projection.shape == (12, 4)
        with pytest.raises(ValueError, match="3 descriptors do not differ"):
            Whitening.learn(np.ones((3, 12)), 12, 0.1)

    def test_the_mean_itself_has_a_direction(self):
        learned = Whitening(np.ones(3, np.float32), np.eye(3, dtype=np.float32))
        np.testing.assert_array_equal(learned(np.ones((1, 3), np.float32)), [[1, 0, 0]])

    def test_survives_bytes(self):
        learned = Whitening.learn(np.random.default_rng(0).normal(size=(50, 8)), 4, 0.1)
        again = Whitening.from_bytes(learned.to_bytes())
        np.testing.assert_array_equal(again.projection, learned.projection)
        assert again.to_bytes() == learned.to_bytes()


@pytest.fixture
def photographs(tmp_path):
    """24 photographs, labels of those with an even number, and a model of global descriptors alone."""
    for number in range(24):
        noise = np.random.default_rng(number).normal(0, 4 * (number % 2), (128, 160, 3))
        image = (textured(128, 160, number // 2) + noise).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"p{number:02d}.png"), image)
    (tmp_path / "labels.csv").write_text(
        "id,landmark_id\n" + "".join(f"p{number:02d},l{number // 2}\n" for number in range(0, 24, 2))
    )
    (tmp_path / "m").mkdir()
    tiny_onnx.build(tmp_path / "m" / "tiny.onnx", "pooled")
    return tmp_path


def index(folder, images, *more):
    labels, model = str(folder / "labels.csv"), str(folder / "m" / "tiny.onnx")
    command = ["index", "--images", images, "--labels", labels, "--output", str(folder / "index")]
    return run(*command, *([] if "--append" in more else ["--model", model]), *more)


def manifest(folder):
    return outputs.read_manifest(str(folder / "index"), IndexManifest)


def stored(folder):
    """Global descriptors of the index by image id, and its bytes of local features."""
    store, found, local = FeatureStore(str(folder / "index")), {}, []
    for shard in manifest(folder).shards:
        table = store.read_images(shard.unit)
        found.update(zip(table.column("image_id").to_pylist(), descriptors_of(table)))
        local.append((folder / "index" / "local_features" / f"{shard.unit}.bin").read_bytes())
    return found, local


def whiten(folder, *more):
    return run("model", "whiten", "--index", folder / "index", *more)


def recognize(folder, output):
    queries = ["--images", str(folder / "p*[13579].png"), "--index", str(folder / "index")]
    assert run("recognize", *queries, "--output", folder / output) == 0
    return (folder / output / "submission.csv").read_text()


class TestIndex:
    def test_is_whitened_and_its_queries_are(self, photographs, capsys):
        assert index(photographs, str(photographs / "*.png"), "--local_model", "embedded") == 0
        before, local = stored(photographs)
        assert whiten(photographs, "--dimensions", "6", "--shrinkage", "0.05") == 0
        assert "12 descriptors whitened, from 16 to 6 dimensions" in capsys.readouterr().out
        made, (after, same) = manifest(photographs), stored(photographs)
        [path] = (photographs / "index" / "whitening").iterdir()
        learned = Whitening.from_bytes(path.read_bytes())
        assert same == local and made.global_dimensions == 6 and after.keys() == before.keys()
        for image_id, row in before.items():
            np.testing.assert_array_equal(after[image_id], learned(row[None])[0])
        names = {path.stem for path in (photographs / "index" / "images").iterdir()}
        assert names == {shard.unit for shard in made.shards}
        assert augmented_shards(str(photographs / "index")).complete(made.derived_list)
        written = json.loads((photographs / "index" / "manifest.json").read_text())
        assert written["model"]["uri"] == f"{photographs}/m/tiny.onnx + embedded + whitening/{path.name}"

        answers = recognize(photographs, "run")
        assert all(f"p{n + 1:02d},l{n // 2} " in answers for n in range(0, 24, 2))
        assert run("verify", photographs / "index") == 0
        query = FeatureStore(str(photographs / "run" / "queries"))
        table = query.read_images(query.units()[0])
        plain = catalog.load(f"{photographs}/m/tiny.onnx", catalog.settings(f"{photographs}/m/tiny.onnx"))
        number = table.column("image_id").to_pylist()[0]
        image = cv2.imread(str(photographs / f"{number}.png"))[..., ::-1].copy()
        expected = learned(plain.extract(image).global_descriptor[None])
        np.testing.assert_array_equal(descriptors_of(table)[:1], expected)

        assert whiten(photographs) == 0
        assert whiten(photographs, "--dimensions", "6", "--shrinkage", "0.05") == 0
        assert capsys.readouterr().out.count("is whitened already, to 6 dimensions; nothing to do") == 2
        for other in (["--dimensions", "4"], ["--shrinkage", "0.1"]):
            assert whiten(photographs, *other) == 2
            assert "to 6 dimensions with a shrinkage of 0.05, and cannot be" in capsys.readouterr().err

    def test_moves_with_its_whitening(self, photographs):
        assert index(photographs, str(photographs / "*.png")) == 0 and whiten(photographs) == 0
        first = recognize(photographs, "run")
        (photographs / "elsewhere").mkdir()
        (photographs / "index").rename(photographs / "elsewhere" / "index")
        (photographs / "index").symlink_to(photographs / "elsewhere" / "index")
        assert recognize(photographs, "again") == first

    def test_a_cohort_of_the_model_does_not_fit_and_a_run_does(self, photographs, capsys):
        assert index(photographs, str(photographs / "*.png")) == 0 and whiten(photographs) == 0
        others, model = str(photographs / "p*[13579].png"), str(photographs / "m" / "tiny.onnx")
        assert run("cohort", "--images", others, "--model", model, "--output", photographs / "others") == 0
        calibrate = ["calibrate", "--index", photographs / "index", "--negatives"]
        assert run(*calibrate, photographs / "others") == 2
        error = capsys.readouterr().err
        assert "the model is another. A run of such photographs, `landmarks recognize --index" in error
        recognize(photographs, "run")
        assert run(*calibrate, photographs / "run") == 0

    def test_where_its_model_was_moved(self, photographs, capsys):
        assert index(photographs, str(photographs / "*.png")) == 0
        (photographs / "m").rename(photographs / "n")
        assert whiten(photographs) == 1
        assert "name its new place by --model" in capsys.readouterr().err
        assert whiten(photographs, "--model", photographs / "n" / "tiny.onnx") == 0
        assert manifest(photographs).recipe.model.startswith(f"{photographs}/n/tiny.onnx + ")
        assert "p23,l11 " in recognize(photographs, "run")

    def test_goes_on_after_a_stop(self, photographs, monkeypatch):
        assert index(photographs, str(photographs / "*.png")) == 0
        raw, write, done = (photographs / "index" / "manifest.json").read_bytes(), FeatureStore._write, []

        def stopped(store, unit, *contents):
            if done:
                raise KeyError("stopped here")
            done.append(unit)
            write(store, unit, *contents)

        monkeypatch.setattr(FeatureStore, "_write", stopped)
        assert whiten(photographs, "--direct_num_workers=1") == 1
        assert (photographs / "index" / "manifest.json").read_bytes() == raw and len(done) == 1
        kept = (photographs / "index" / "images" / f"{done[0]}.parquet").stat().st_mtime_ns
        monkeypatch.setattr(FeatureStore, "_write", write)
        answers = recognize(photographs, "between")  # as it was
        assert whiten(photographs) == 0
        assert (photographs / "index" / "images" / f"{done[0]}.parquet").stat().st_mtime_ns == kept
        assert len(list((photographs / "index" / "whitening").iterdir())) == 1
        assert recognize(photographs, "after") != answers

    def test_takes_more_photographs(self, photographs):
        assert index(photographs, str(photographs / "p0*.png")) == 0
        assert index(photographs, str(photographs / "p1*.png"), "--append") == 0
        assert whiten(photographs) == 0
        made = manifest(photographs)
        assert len(stored(photographs)[0]) == 10 and len(made.appended) == 1
        [folder] = (photographs / "index" / "appended").iterdir()
        assert folder.name in made.appended
        assert index(photographs, str(photographs / "p2*.png"), "--append") == 0
        found = stored(photographs)[0]
        assert len(found) == 12 and {row.shape for row in found.values()} == {(made.global_dimensions,)}
        answers = recognize(photographs, "run")
        assert "p23,l11 " in answers and "p01,l0 " in answers

    def test_the_command_that_made_it_says_that_the_model_is_another(self, photographs, capsys):
        assert index(photographs, str(photographs / "*.png")) == 0 and whiten(photographs) == 0
        assert index(photographs, str(photographs / "*.png")) == 2
        assert "the model is another" in capsys.readouterr().err
        assert index(photographs, str(photographs / "*.png"), "--overwrite") == 0
        assert manifest(photographs).global_dimensions == tiny_onnx.WIDTH
        assert not (photographs / "index" / "whitening").exists()

    def test_what_cannot_be_whitened(self, photographs, capsys):
        assert whiten(photographs) == 2
        assert "there is no such folder" in capsys.readouterr().err
        assert index(photographs, str(photographs / "p00.png")) == 0
        assert whiten(photographs) == 2
        assert "has 1 photographs: too few" in capsys.readouterr().err
        (photographs / "m" / "landmarks_card.json").write_text('{"onnx": {"std": [1, 1, 1]}}')
        assert whiten(photographs) == 2
        assert "is not the one the index was made with" in capsys.readouterr().err
        assert index(photographs, str(photographs / "*.png"), "--model", "embedded", "--overwrite") == 0
        before = manifest(photographs)
        assert whiten(photographs) == 2 and manifest(photographs) == before
        assert "embedded model, whose descriptors are whitened already" in capsys.readouterr().err


def test_learning_uses_some_of_many_units(tmp_path, monkeypatch):
    monkeypatch.setattr(whitening, "MAX_ROWS", 10)
    read = []

    class Store:
        def read_images(self, unit, columns):
            read.append(unit)
            raise PipelineError("enough")

    units = [(f"u{number}", 5) for number in range(6)]
    with pytest.raises(PipelineError):
        whitening.learn(Store(), units, 4, 0.1)
    assert read == ["u0"] and units[:: -(-30 // 10)] == [("u0", 5), ("u3", 5)]


def test_a_whitening_that_does_not_fit(photographs):
    model, path = str(photographs / "m" / "tiny.onnx"), photographs / "w.npz"
    name = catalog.combined(model, None, str(path))
    with pytest.raises(ModelError, match="cannot be read"):
        catalog.fingerprint(name)
    path.write_bytes(Whitening(np.zeros(3, np.float32), np.eye(3, dtype=np.float32)).to_bytes())
    with pytest.raises(ModelError, match="whitens descriptors 3 wide, .* gives 16"):
        catalog.load(name, catalog.settings(name))
    path.write_bytes(b"no archive")
    with pytest.raises(ModelError, match="is no whitening"):
        catalog.load(name, catalog.settings(name))
