"""The code that trains the embedded model: its split, its views, its losses, and that it goes on where it
stopped.
"""

import csv
import pathlib

import numpy as np
import pytest

from tests.pictures import textured
from training import judge, rounding, split
from training.batches import Batches
from training.correspondences import Correspondences
from transforms.arrays.whitening import Whitening
from transforms.processes.onnx_runtime import one_thread_session

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
    descriptors = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    return Batches(photographs, pixels, found, descriptors, seed=1)


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


class TestLosses:
    def test_supervised_contrastive_equals_its_definition(self):
        torch = pytest.importorskip("torch")
        from training import losses

        rng = np.random.default_rng(0)
        rows = rng.standard_normal((8, 5))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        classes, places = np.array([0, 1, 2, 3] * 2), np.array([0, 0, 1, 2] * 2)
        total = 0.0
        for i in range(8):
            others = [j for j in range(8) if j != i and (classes[j] == classes[i] or places[j] != places[i])]
            logits = {j: rows[i] @ rows[j] / losses.TEMPERATURE for j in others}
            positives = [j for j in others if classes[j] == classes[i]]
            total += np.log(sum(np.exp(v) for v in logits.values())) - np.mean([logits[j] for j in positives])
        found = losses.supervised_contrastive(*(torch.from_numpy(array) for array in (rows, classes, places)))
        np.testing.assert_allclose(float(found), total / 8, rtol=1e-6)


class TestReport:
    def test_a_perfect_model_has_a_gap_of_1_and_a_distractor_on_top_lowers_it(self):
        from training import compare
        from training.features import Features
        from transforms.arrays.quantization import quantized
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
        perfect = compare.measure(index, queries, 1, True, VerificationSettings(), {})
        assert (perfect.gap, perfect.top1, perfect.true_inliers) == (1, 1, 40)
        worse = compare.measure(
            index, [*queries, features("e", "", [2, 0, 0])], 1, False, VerificationSettings(), {}
        )
        assert worse.gap == pytest.approx((1 / 2 + 2 / 3) / 2) and worse.gap_landmarks == worse.top1 == 1


class TestJudge:
    TAKES = {"index": 100, "calibrate": 10, "recognize": 3, "rescore": 1}  # seconds

    @pytest.fixture
    def commands(self, monkeypatch):
        """The commands that were run, each of which makes its output in its time."""
        made, now = [], [0.0]

        def run(words, check, stdout):
            arguments = words[3:]
            made.append(arguments)
            output = pathlib.Path(arguments[arguments.index("--output") + 1])
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("") if output.suffix else output.mkdir()
            now[0] += self.TAKES[arguments[0]]

        monkeypatch.setattr(judge.subprocess, "run", run)
        monkeypatch.setattr(judge.time, "monotonic", lambda: now[0])
        return made

    def test_a_row_has_the_figures_of_its_run_and_the_seconds_of_all_that_it_takes(
        self, commands, tmp_path, monkeypatch
    ):
        asked = []

        def evaluate(config):
            asked.append((config.predictions, config.truth, config.non_landmark_share))
            thresholds = [{"threshold": t, "precision": t, "recall": t / 2} for t in (0.5, 0.8, 0.9)]
            judgement = {"gap": 0.7, "calibration_error": 0.02, "thresholds": thresholds}
            return {"all": {"gap": 0.8, "top1": 0.85, "top5": 0.95, "judgement": judgement}}

        monkeypatch.setattr(judge.jobs, "evaluate", evaluate)
        report = judge.Report(str(tmp_path))
        lines = {kind: [report.line(row, kind) for row in report.rows(kind)] for kind in judge.KINDS}
        figures = "0.800 | 0.850 | 0.950 | 0.700 | 0.020 | 0.500 | 0.250 | 0.900 | 0.450"
        assert lines["queries"] == lines["hard"]
        assert lines["hard"] == [
            f"| {name} | {figures} | {seconds} |"
            for name, seconds in (("defaults", 3), ("accurate", 3), ("tuned", 1 + 3 + 10), ("ensemble", 37))
        ]
        assert len(figures.split("|")) == len(judge.COLUMNS) - 1
        assert asked[-1] == (str(tmp_path / "ensemble-hard"), str(tmp_path / "hard.csv"), 0.98)
        [hard] = [words for words in commands if words[-1] == str(tmp_path / "ensemble-hard")]
        runs = [words for words in hard if words.endswith("-accurate-hard")]
        assert len(runs) == 2 and hard[-3] == str(tmp_path / "both.json")

    def test_what_was_cut_off_begins_anew_and_what_was_done_is_kept(self, commands, tmp_path, monkeypatch):
        report = judge.Report(str(tmp_path))
        report.index("embedded")
        found = tmp_path / "embedded" / "calibration" / "found"
        found.parent.mkdir(), found.write_text("")

        def stopped(*arguments, **options):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(judge.subprocess, "run", stopped)
            report.recognize("embedded", "hard", "entry")
        (tmp_path / "embedded-entry-hard").mkdir()
        (tmp_path / "embedded-entry-hard" / "half").write_text("")
        again = judge.Report(str(tmp_path))
        assert again.seconds == report.seconds == {"embedded": 100, "embedded/calibration.json": 10}
        again.index("embedded"), again.recognize("embedded", "hard", "entry")
        assert [words[0] for words in commands] == ["index", "calibrate", "recognize"]
        assert found.exists() and not (tmp_path / "embedded-entry-hard" / "half").exists()
        again.seconds.pop("embedded/calibration.json")
        again.index("embedded")
        assert not found.exists() and len(commands) == 4


class TestRounding:
    def test_inputs_without_correlation_leave_nothing_to_make_up_for(self):
        rng = np.random.default_rng(0)
        weights, scales = rng.normal(size=(3, 4, 9)), rng.uniform(0.01, 0.02, (3, 4))
        spread = np.stack([np.diag(rng.uniform(0, 3, 9)) for _ in range(3)])
        expected = np.clip(np.round(weights / scales[:, :, None]), -64, 64)
        assert (rounding.rounded(weights, scales, spread) == expected).all() and (expected == 64).any()

    def test_sums_of_inputs_that_go_together_are_kept_better_than_by_the_nearest(self):
        rng = np.random.default_rng(0)
        weights, seen = (
            rng.normal(size=(2, 5, 30)),
            rng.normal(size=(2, 500, 6)) @ rng.normal(size=(2, 6, 30)),
        )
        seen += 0.1 * rng.normal(size=seen.shape)
        scales = np.abs(weights).max(2) / 64
        codes = rounding.rounded(weights, scales, seen.swapaxes(1, 2) @ seen / 500)
        nearest = np.round(weights / scales[:, :, None])
        assert np.abs(codes - weights / scales[:, :, None]).max() < 9  # no weight is another one
        lost, before = (
            np.square(seen @ (weights - made * scales[:, :, None]).swapaxes(1, 2)).mean()
            for made in (codes, nearest)
        )
        assert lost < before / 4

    @pytest.mark.parametrize("groups, stride", [(1, 2), (6, 1)], ids=["dense", "depthwise"])
    def test_a_convolution_gives_less_else_and_nothing_on_average(self, tmp_path, groups, stride):
        onnx = pytest.importorskip("onnx")
        from onnx import TensorProto, helper, numpy_helper
        from onnxruntime import quantization

        rng = np.random.default_rng(0)
        kernel = rng.normal(size=(6, 6 // groups, 3, 3)).astype(np.float32)
        node = helper.make_node(
            "Conv", ["x", "kernel", "bias"], ["y"], group=groups, pads=[0, 0, 1, 1], strides=[stride, stride]
        )
        constants = {"kernel": kernel, "bias": np.ones(6, np.float32)}
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 6, None, None]) for n in "xy")
        tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(
            helper.make_graph([node], "one", [x], [y], tensors), opset_imports=opset, ir_version=9
        )
        mixed = rng.normal(size=(6, 2))
        fed = [
            {"x": np.float32(np.einsum("ck,kyx->cyx", mixed, textured_planes(rng)))[None]} for _ in range(4)
        ]

        class Reader(quantization.CalibrationDataReader):
            rest = iter(fed)

            def get_next(self):
                return next(self.rest, None)

        paths = str(tmp_path / "whole.onnx"), str(tmp_path / "small.onnx")
        onnx.save(model, paths[0])
        quantization.quantize_static(*paths, Reader(), per_channel=True, reduce_range=True)
        small = onnx.load(paths[1])

        def outputs(made):
            """Of the graph in float32, with what the weights of `made` stand for."""
            values = {i.name: numpy_helper.to_array(i).astype(np.float64) for i in made.graph.initializer}
            weights = values["kernel_quantized"] * values["kernel_scale"].reshape(6, 1, 1, 1)
            biases = values["bias_quantized"] * values["bias_quantized_scale"]
            return run(np.float32(weights), np.float32(biases))

        def run(weights, biases):
            given = onnx.ModelProto()
            given.CopyFrom(model)
            for constant, value in zip(given.graph.initializer, (weights, biases)):
                constant.CopyFrom(numpy_helper.from_array(value, constant.name))
            session = one_thread_session(given.SerializeToString())
            return np.concatenate([session.run(None, one)[0][0].reshape(6, -1) for one in fed], axis=1)

        wanted, before = run(*constants.values()), outputs(small)
        rounding.round_weights(small, model, fed)
        after = outputs(small)
        assert np.square(after - wanted).mean() < 0.3 * np.square(before - wanted).mean()
        assert np.abs((after - wanted).mean(1)).max() < 0.2 * np.abs((before - wanted).mean(1)).max()


def textured_planes(rng):
    """float64 [2, 24, 20], neighbours much alike, and not around zero."""
    return 3 + np.cumsum(np.cumsum(rng.normal(size=(2, 24, 20)), axis=1), axis=2) / 10


@pytest.fixture
def network():
    """The network with random weights that keep values about as large as they are."""
    torch = pytest.importorskip("torch")
    from training.network import Network

    torch.manual_seed(0)
    made = Network()
    for convolution in made.convolutions().values():
        torch.nn.init.kaiming_normal_(convolution.weight.data)
        torch.nn.init.uniform_(convolution.factor, 0.5, 1)
        torch.nn.init.normal_(convolution.bias.data, 0, 0.1)
    return made


def test_training_goes_on_where_it_stopped(batches, network, tmp_path):
    import copy

    from training import train

    rows = np.random.default_rng(0).standard_normal((60, 1280)).astype(np.float32)
    whitening = Whitening.learn(rows, 16, 0.1)

    def steps(trainer, start, stop):
        for number, batch in enumerate(batches.stream(start, stop, pairs=4, side=64), start):
            watched = trainer.train(batch, number, 3)
        return watched

    whole, first, second = (train.Trainer(copy.deepcopy(network), whitening) for _ in range(3))
    before = copy.deepcopy(network.state_dict())
    steps(whole, 0, 3)
    steps(first, 0, 2)
    first.save(str(tmp_path / "checkpoint.pt"), 2)
    assert second.restore(str(tmp_path / "checkpoint.pt")) == 2
    assert np.isfinite(steps(second, 2, 3))
    moved = {name for name, value in whole.network.state_dict().items() if (value != before[name]).any()}
    assert "head.weight" in moved and not any(name.startswith(("stem", "blocks.4.")) for name in moved)
    for name, value in whole.network.state_dict().items():
        np.testing.assert_allclose(second.network.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_the_graph_gives_what_the_network_gives(network):
    import onnxruntime
    import torch

    pytest.importorskip("onnx")
    from training import graph
    from training.network import folded
    from transforms.models.embedded import feeds, fitted

    seen = fitted(textured(210, 290))
    corners = np.array([[7, 7], [15, 31], [100, 200]])
    session = onnxruntime.InferenceSession(graph.build(folded(network)).SerializeToString())
    descriptor, local = session.run(None, feeds(seen, corners))
    with torch.no_grad():
        pooled = network(torch.from_numpy(seen[None]))[0].numpy()
        x = network.stem((torch.from_numpy(seen[None]).permute(0, 3, 1, 2).float() - 127) / 128)
        maps = {}
        for number, block in enumerate(network.blocks):
            maps[number] = x = block(x)
    np.testing.assert_allclose(descriptor[0], pooled / np.linalg.norm(pooled), atol=2e-3)
    fine = maps[graph.LOCAL_BLOCKS[0]][0].numpy()
    for row, (y, x) in list(zip(local, corners // 8))[:2]:  # in the middle of a cell of the map at stride 8
        expected = fine[:, y, x] / np.linalg.norm(fine[:, y, x]) * graph.LOCAL_WEIGHTS[0]
        np.testing.assert_allclose(row[: len(fine)], expected, atol=1e-4)
