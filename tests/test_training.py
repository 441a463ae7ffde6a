"""The code that trains the embedded model: its split, its views, its losses, and that it goes on where it
stopped.
"""

import csv

import numpy as np
import pytest

from tests.builtin_models import textured
from training import augment, split
from training.batches import Batches
from training.correspondences import Correspondences
from transforms.tensorflow_runtime import import_tensorflow

ROWS = [
    ("0a", "in_qutub_minar", "landmark"),
    ("0b", "in_alai_minar", "landmark"),
    ("0c", "gr_white_tower", "landmark"),
    ("0d", "gr_white_tower", "landmark"),
    ("0e", "pt_porto_clerigos", "landmark"),
    ("0f", "vn_hoian_town", "area"),
    ("10", "vn_hoian_town", "area"),
    ("11", "", "unlabelled"),
    *((f"{number:02x}", "", "distractor") for number in range(32, 64)),
]


@pytest.fixture
def folder(tmp_path):
    with open(tmp_path / "photos.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "kind"])
        writer.writerows([photo_id, f"{photo_id}.jpg", label, kind] for photo_id, label, kind in ROWS)
    return str(tmp_path)


class TestSplit:
    def test_places_stay_in_one_part(self, folder):
        parts = {}
        for photograph in split.read_photographs(folder):
            parts.setdefault(photograph.place, set()).add(photograph.part)
        assert all(len(found) == 1 for found in parts.values())
        assert "delhi" in parts  # two labels

    def test_places_are_in_no_two_lists(self):
        assert not split.CHOOSE & split.REPORT

    def test_distractors_are_in_every_part(self, folder):
        dealt = {
            photograph.part
            for photograph in split.read_photographs(folder)
            if photograph.kind == "distractor"
        }
        assert dealt == set(split.PARTS)

    def test_index_and_queries_share_nothing_and_have_as_many_distractors(self, folder):
        index, queries = split.index_and_queries(split.read_photographs(folder), "report")
        assert {p.id for p in index} & {p.id for p in queries} == set()
        assert all(p.label for p in index)
        labelled = sum(bool(p.label) for p in queries)
        assert labelled and labelled == sum(p.kind == "distractor" for p in queries)


def photograph(photo_id, label="", kind="landmark", place=None):
    return split.Photograph(photo_id, f"{photo_id}.jpg", label, kind, place or label or photo_id, "train")


@pytest.fixture
def batches():
    photographs = [
        photograph("a", "x"),
        photograph("b", "x"),
        photograph("c", "town", "area"),
        photograph("d", "town", "area"),
        photograph("e"),
        photograph("f", "y", place="x"),
    ]
    pixels = [textured(200, 240, seed) for seed in range(len(photographs))]
    points = np.random.default_rng(0).uniform(0.3, 0.7, (40, 4)).astype(np.float32)
    found = [Correspondences(0, 1, points), Correspondences(2, 3, points)]
    return Batches(photographs, pixels, found, seed=1)


class TestBatches:
    def test_a_batch_depends_on_its_number_alone(self, batches):
        again = list(batches.stream(2, 5, pairs=4, side=64))[1]
        for name, value in vars(batches.make(3, 4, 64)).items():
            np.testing.assert_array_equal(getattr(again, name), value)
        assert (batches.make(4, 4, 64).views != again.views).any()

    def test_every_view_has_a_partner_of_its_class(self, batches):
        for number in range(8):
            batch = batches.make(number, 6, 64)
            np.testing.assert_array_equal(*np.split(batch.classes, 2))
            np.testing.assert_array_equal(*np.split(batch.places, 2))

    def test_all_photographs_come_before_any_comes_again(self, batches):
        drawn = [batches._photograph(number) for number in range(12)]
        assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))

    def test_shared_points_show_the_same_pixels(self):
        rng = np.random.default_rng(4)
        ramp = np.stack(np.broadcast_arrays(np.arange(200)[:, None], np.arange(240)[None], 0), -1).astype(
            np.float32
        )
        import cv2

        compared = 0
        for _ in range(20):
            centre = augment.centre_of((200, 240), rng)
            first, second = (augment.warp((200, 240), 96, centre, rng) for _ in range(2))
            views = [
                cv2.warpPerspective(ramp, warp, (96, 96), borderValue=(-1, -1, -1))
                for warp in (first, second)
            ]
            for y1, x1, y2, x2 in augment.shared_points(first, second, 96, rng):
                one, two = (
                    view[round(y), round(x)] for view, y, x in ((views[0], y1, x1), (views[1], y2, x2))
                )
                if one[2] == two[2] == 0:  # neither lies outside the photograph
                    compared += 1
                    np.testing.assert_allclose(
                        one[:2], two[:2], atol=8
                    )  # a px of a view is up to 4 of the photograph, and rounded
        assert compared > 100


class TestLosses:
    def test_supervised_contrastive_equals_its_definition(self):
        tf = import_tensorflow()

        from training import losses

        rng = np.random.default_rng(0)
        rows = rng.standard_normal((8, 5))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        classes, places = np.array([0, 1, 2, 3] * 2), np.array([0, 0, 1, 2] * 2)
        total = 0.0
        for i in range(8):
            others = [j for j in range(8) if j != i and (classes[j] == classes[i] or places[j] != places[i])]
            logits = {j: rows[i] @ rows[j] / losses.GLOBAL_TEMPERATURE for j in others}
            positives = [j for j in others if classes[j] == classes[i]]
            total += np.log(sum(np.exp(v) for v in logits.values())) - np.mean([logits[j] for j in positives])
        found = losses.supervised_contrastive(
            tf.constant(rows, tf.float32), tf.constant(classes), tf.constant(places)
        )
        np.testing.assert_allclose(float(found), total / 8, rtol=1e-4)

    def test_sampling_reads_the_middle_of_a_cell(self):
        tf = import_tensorflow()

        from transforms.models import small_delg

        maps = np.arange(2 * 4 * 5, dtype=np.float32).reshape(2, 4, 5, 1)
        points = np.array([[[7.5, 7.5], [15.5, 31.5]], [[11.5, 7.5], [31.5, 7.5]]], np.float32)
        found = small_delg.sample(tf, tf.constant(maps), tf.constant(points))[..., 0]
        np.testing.assert_allclose(found, [[0, 8], [22.5, 35]], atol=0.05)

    def test_matching_knows_right_from_wrong(self):
        tf = import_tensorflow()

        from training import losses

        rng = np.random.default_rng(0)
        first = rng.standard_normal((2, 8, 16)).astype(np.float32)
        first /= np.linalg.norm(first, axis=2, keepdims=True)
        second = first.copy()
        second[0, [0, 1]] = first[0, [1, 0]]  # two answers are swapped
        points = np.tile(np.arange(8, dtype=np.float32)[None, :, None] * 20, (2, 1, 4))
        valid = np.ones((2, 8), bool)
        valid[1, 7] = False
        _, right = losses.matching(
            *(tf.constant(v) for v in (first, second, points, valid)), tf.constant([0, 1])
        )
        expected = valid.copy()
        expected[0, :2] = False
        np.testing.assert_array_equal(right, expected)


class TestReport:
    def test_a_perfect_model_has_a_gap_of_1_and_a_distractor_on_top_lowers_it(self):
        from training import report
        from training.features import Features
        from transforms.quantization import quantized
        from transforms.types import LocalFeatures, VerificationSettings

        def features(photo_id, label, descriptor):
            rng = np.random.default_rng(len(label))
            points = rng.uniform(0, 300, (40, 2)).astype(np.float32)
            rows = rng.standard_normal((40, 16)).astype(np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            return Features(
                photo_id, label, np.array(descriptor, np.float32), quantized(LocalFeatures(points, rows))
            )

        index = [features("a", "x", [1, 0, 0]), features("b", "yy", [0, 1, 0])]
        queries = [features("c", "x", [0.9, 0.1, 0]), features("d", "yy", [0.1, 0.9, 0])]
        perfect = report.measure(index, queries, 1, True, VerificationSettings())
        assert (perfect.gap, perfect.top1, perfect.true_inliers) == (1, 1, 40)
        worse = report.measure(
            index, [*queries, features("e", "", [2, 0, 0])], 1, False, VerificationSettings()
        )
        assert worse.gap == pytest.approx((1 / 2 + 2 / 3) / 2) and worse.gap_landmarks == worse.top1 == 1


@pytest.mark.extra
def test_training_goes_on_where_it_stopped(batches, tmp_path, monkeypatch):
    from training import train

    def steps(trainer, start, stop):
        for number, batch in enumerate(batches.stream(start, stop, pairs=4, side=64), start):
            watched = trainer.train(batch, number, 4)
        return watched

    whole = train.Trainer(0)
    steps(whole, 0, 4)
    first = train.Trainer(0)
    steps(first, 0, 2)
    first.save(str(tmp_path / "checkpoint.npz"), 2)
    second = train.Trainer(7)
    assert second.restore(str(tmp_path / "checkpoint.npz")) == 2
    assert all(np.isfinite(value) for value in steps(second, 2, 4).values())
    for name, value in whole.state().items():
        np.testing.assert_allclose(second.state()[name], value, rtol=2e-2, atol=2e-3, err_msg=name)


def test_folded_weights_give_what_normalisation_gives():
    tf = import_tensorflow()

    from training import network
    from transforms.models import small_delg

    net = network.Network(0)
    rng = np.random.default_rng(1)
    for name, variable in {**net.weights, **net.moments}.items():
        if name.endswith(("/scale", "/variance")):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif name.endswith(("/offset", "/mean")):
            variable.assign(rng.normal(0, 0.2, variable.shape))
    plain = network.folded(
        *(
            {name: variable.numpy() for name, variable in group.items()}
            for group in (net.weights, net.moments)
        )
    )

    def normalised(x, layer):
        y = tf.nn.conv2d(x, net.weights[layer.name], layer.stride, "SAME")
        if not layer.normalised:
            return y + net.weights[f"{layer.name}/bias"]
        return tf.nn.batch_normalization(
            y,
            *(net.moments[f"{layer.name}/{key}"] for key in ("mean", "variance")),
            net.weights[f"{layer.name}/offset"],
            net.weights[f"{layer.name}/scale"],
            network.BATCH_NORM_EPSILON,
        )

    image = rng.uniform(-1, 1, (1, 64, 96, 3)).astype(np.float32)
    for expected, found in zip(
        small_delg.forward(tf, image, normalised),
        small_delg.forward(tf, image, small_delg.convolution(tf, plain)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())
