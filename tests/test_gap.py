"""GAP@1: the official example, ties, odd truths, and agreement with a slow and obvious oracle."""

import fractions
import random

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from transforms import gap
from transforms.storage import tables

# The example of the official metric's own tests, see google_landmarks_dataset/metrics_test.py.
TRUTH = [
    ("0123456789abcdef", ["0", "12"], "Public"),
    ("0223456789abcdef", ["100", "200", "300"], "Public"),
    ("0323456789abcdef", ["1"], "Public"),
    ("0423456789abcdef", [], "Public"),
    ("0523456789abcdef", [], "Public"),
]
PREDICTIONS = [
    ("0223456789abcdef", "0", 0.01),
    ("0323456789abcdef", "1", 10.0),
    ("0423456789abcdef", "150", 15.0),
]


def table(rows, schema):
    columns = list(zip(*rows)) or [[] for _ in schema]
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema)], schema=schema)


def evaluate(predictions, truth, best=None):
    answers = table(predictions, tables.ANSWER_SCHEMA)
    if best is not None:
        answers = answers.append_column("best_landmarks", pa.array(best, pa.list_(pa.string())))
    return gap.evaluate_predictions(answers, table(truth, tables.TRUTH_SCHEMA))


def test_official_example():
    metrics = evaluate(PREDICTIONS, TRUTH)["all"]
    assert metrics.pop("judgement") == {"gap": metrics["gap"]} and set(metrics.pop("landmarks")) >= {
        "1",
        "150",
    }
    assert metrics == {
        "gap": pytest.approx(0.166667, abs=1e-6),
        "gap_landmark_queries": pytest.approx(0.333333, abs=1e-6),
        "top1": pytest.approx(0.333333, abs=1e-6),
        "top5": None,
        "counts": {
            "queries": 5,
            "landmark_queries": 3,
            "predicted": 3,
            "predicted_landmark_queries": 2,
            "correct": 1,
            "empty": 0,
            "missing": 2,
            "ignored": 0,
            "unknown": 0,
        },
    }


def test_any_of_several_classes_is_correct():
    for landmark_id in ("100", "200", "300"):
        assert evaluate([("0223456789abcdef", landmark_id, 1.0)], TRUTH)["all"]["gap"] == pytest.approx(1 / 3)


def test_class_of_another_query_is_wrong():
    assert evaluate([("0323456789abcdef", "100", 1.0)], TRUTH)["all"]["gap"] == 0.0


def test_classes_compare_as_text():
    assert evaluate([("0323456789abcdef", "01", 1.0)], TRUTH)["all"]["top1"] == 0.0


@pytest.mark.parametrize("wrong, expected", [("a", (1 / 2) / 2), ("c", (1 / 1) / 2)])
def test_equal_scores_are_ordered_by_image_id(wrong, expected):
    truth = [("a", ["1"], "Public"), ("b", ["1"], "Public"), ("c", [], "Public")]
    truth = [(i, [] if i == wrong else ["1"], u) for i, _, u in truth if i in ("b", wrong)] + [
        ("z", ["1"], "Public")
    ]
    assert evaluate([("b", "1", 0.5), (wrong, "1", 0.5)], truth)["all"]["gap"] == pytest.approx(expected)


def test_positive_and_negative_zero_are_equal_scores():
    assert gap.prediction_order(["b", "a"], ["1", "1"], np.array([0.0, -0.0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    "classes, order",
    [
        (["10", "9", "8"], [2, 1, 0]),
        (["10", "9", "x"], [0, 1, 2]),
        (["7", "007", "6"], [2, 1, 0]),
        (["10", "9", "-1"], [2, 0, 1]),
    ],
    ids=["numbers", "a name among numbers", "one number in two ways", "negative is a name"],
)
def test_equal_scores_and_ids_are_ordered_by_class(classes, order):
    assert gap.prediction_order(["a"] * 3, classes, np.zeros(3)).tolist() == order


def test_ids_are_ordered_by_code_point():
    ids = ["é", "Z", "a", "\U0001f600", "\uffff"]
    order = gap.prediction_order(ids, ["1"] * 5, np.zeros(5))
    assert [ids[i] for i in order] == sorted(ids)


def test_splits_and_ignored():
    truth = [
        ("a", ["1"], "Public"),
        ("b", ["1"], "Private"),
        ("c", ["1"], "Ignored"),
        ("d", ["1"], "Ignored"),
        ("e", [], "Public"),
        ("f", ["2"], "Private"),
    ]
    metrics = evaluate(
        [
            ("c", "1", 9.0),
            ("e", "1", 8.0),
            ("b", "1", 7.0),
            ("a", "1", 6.0),
            ("f", None, None),
            ("d", None, None),
        ],
        truth,
    )
    assert metrics["Public"]["gap"] == pytest.approx(1 / 2)
    assert metrics["Public"]["gap_landmark_queries"] == 1.0
    assert metrics["Private"]["gap"] == pytest.approx(1 / 2)
    assert metrics["all"]["gap"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert metrics["all"]["counts"] == {
        "queries": 4,
        "landmark_queries": 3,
        "predicted": 3,
        "predicted_landmark_queries": 2,
        "correct": 2,
        "empty": 1,
        "missing": 0,
        "ignored": 2,
        "unknown": 0,
    }
    assert metrics["Private"]["counts"]["queries"] == 2
    assert "ignored" not in metrics["Private"]["counts"]


def test_shares_of_nothing_are_none():
    metrics = evaluate([("a", "1", 1.0)], [("a", [], "Public")])
    assert (metrics["all"]["gap"], metrics["all"]["gap_landmark_queries"], metrics["all"]["top1"]) == (
        None,
        None,
        None,
    )
    assert metrics["Private"]["counts"]["queries"] == 0
    assert gap.global_average_precision([], [], np.zeros(0), np.zeros(0, bool), 0) is None


def test_no_predictions():
    metrics = evaluate([], TRUTH)["all"]
    assert (metrics["gap"], metrics["top1"], metrics["counts"]["missing"]) == (0.0, 0.0, 5)


def test_unknown_images_are_refused_when_predicted():
    with pytest.raises(
        ValueError, match="1 of 2 predictions are for images that the truth does not list, such as x: "
    ):
        evaluate([("0323456789abcdef", "1", 1.0), ("x", "1", 1.0)], TRUTH)
    with pytest.raises(
        ValueError, match="none of the 2 predictions .* 'x', its rows name '0123456789abcdef'"
    ):
        evaluate([("w", None, None), ("x", "1", 1.0)], TRUTH)


def test_unknown_images_are_counted_when_not_predicted():
    metrics = evaluate([("0323456789abcdef", "1", 1.0), ("x", None, None)], TRUTH)["all"]
    assert (metrics["counts"]["unknown"], metrics["counts"]["empty"], metrics["gap"]) == (
        1,
        0,
        pytest.approx(1 / 3),
    )


@pytest.mark.parametrize(
    "predictions, text",
    [
        ([("a", "1", 1.0), ("b", "1", 1.0), ("a", None, None)], "image a is predicted twice"),
        ([("a", "1", float("nan"))], "score nan of image a is not finite"),
        ([("b", "1", None)], "score nan of image b is not finite"),
    ],
)
def test_wrong_predictions(predictions, text):
    with pytest.raises(ValueError, match=text):
        evaluate(predictions, [("a", ["1"], "Public"), ("b", ["1"], "Public")])


def oracle(predictions, truth, usages, landmark_queries_only):
    """GAP and top-1 by loops and fractions."""
    classes = {image_id: landmarks for image_id, landmarks, usage in truth if usage in usages}
    positives = sum(bool(landmarks) for landmarks in classes.values())
    if not positives:
        return None, None
    ranked = sorted(
        (p for p in predictions if p[0] in classes and p[1] is not None), key=lambda p: (-p[2], p[0])
    )
    if landmark_queries_only:
        ranked = [p for p in ranked if classes[p[0]]]
    total, hits = fractions.Fraction(0), 0
    for i, (image_id, landmark_id, _) in enumerate(ranked, 1):
        if landmark_id in classes[image_id]:
            hits += 1
            total += fractions.Fraction(hits, i)
    return float(total / positives), hits / positives


def close(expected):
    return expected if expected is None else pytest.approx(expected, rel=1e-12)


CLASSES = st.sampled_from(["1", "2", "10", "007", "x", "é"])
TRUTHS = st.dictionaries(
    st.text("abé1", min_size=1, max_size=3),
    st.tuples(st.lists(CLASSES, max_size=3), st.sampled_from(tables.USAGES)),
    max_size=12,
)
SCORES = st.sampled_from([0.0, -0.0, 0.5, -2.0, 1e-84]) | st.floats(allow_nan=False, allow_infinity=False)


@given(TRUTHS, st.data(), st.randoms(use_true_random=False))
def test_agrees_with_the_oracle_in_any_order(truth, data, shuffler):
    predicted = data.draw(st.lists(st.sampled_from(sorted(truth)), unique=True)) if truth else []
    answer = st.tuples(CLASSES, SCORES) | st.just((None, None))
    predictions = [(image_id, *data.draw(answer)) for image_id in predicted]
    truth = [(image_id, *row) for image_id, row in truth.items()]
    metrics = evaluate(predictions, truth)
    for split, usages in {
        "all": ("Public", "Private"),
        "Public": ("Public",),
        "Private": ("Private",),
    }.items():
        expected, top1 = oracle(predictions, truth, usages, landmark_queries_only=False)
        assert metrics[split]["gap"] == close(expected)
        assert metrics[split]["top1"] == top1
        expected, _ = oracle(predictions, truth, usages, landmark_queries_only=True)
        assert metrics[split]["gap_landmark_queries"] == close(expected)
        counts = metrics[split]["counts"]
        assert counts["queries"] == counts["predicted"] + counts["empty"] + counts["missing"]
    shuffler.shuffle(predictions)
    shuffler.shuffle(truth)
    assert evaluate(predictions, truth) == metrics


@given(TRUTHS, st.data())
def test_landmarks_among_the_five_best_agree_with_a_loop(truth, data):
    predicted = data.draw(st.lists(st.sampled_from(sorted(truth)), unique=True)) if truth else []
    predicted += data.draw(st.sampled_from([[], ["unknown"]]))
    best = {image_id: data.draw(st.lists(CLASSES, max_size=5, unique=True)) for image_id in predicted}
    predictions = [(image_id, None, None) for image_id in predicted]
    found = evaluate(predictions, [(i, *row) for i, row in truth.items()], list(best.values()))
    for split, usages in gap.SPLITS.items():
        queries = [i for i, (classes, usage) in truth.items() if classes and usage in usages]
        right = [any(name in truth[i][0] for name in best.get(i, ())) for i in queries]
        assert found[split]["top5"] == (sum(right) / len(right) if right else None)
    for name, counts in found["all"]["landmarks"].items():
        asked = [i for i, (classes, usage) in truth.items() if name in classes and usage != "Ignored"]
        assert counts["top5"] == sum(name in best.get(i, ()) for i in asked)


def truth_csv(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("id,landmarks,Usage\n" + "".join(f"{i},{' '.join(c)},{u}\n" for i, c, u in TRUTH))
    return str(path)


@pytest.mark.parametrize("pieces", [0, 1, 2, 3, 7])
def test_transform_gives_the_same_for_any_bundling(tmp_path, pieces):
    predictions = [*PREDICTIONS, ("0123456789abcdef", None, None)] if pieces else []
    shuffled = random.Random(pieces).sample(predictions, len(predictions))
    shards = [str(tmp_path / f"{i}.parquet") for i in range(pieces)]
    for i, shard in enumerate(shards):
        pq.write_table(table(shuffled[i::pieces], tables.ANSWER_SCHEMA), shard)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        metrics = (
            pipeline
            | beam.Create(shards).with_output_types(str)
            | beam.Reshuffle()
            | gap.EvaluatePredictions(truth_csv(tmp_path))
        )
        assert_that(metrics, equal_to([evaluate(predictions, TRUTH)]))


def test_transform_checks_its_parameters():
    with pytest.raises(ValueError, match="truth_uri is empty"):
        gap.EvaluatePredictions("")


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12).filter(
        lambda queries: any(landmark for landmark, _ in queries)
    ),
    st.integers(0, 12),
)
def test_costs_add_up_to_what_is_missing_from_the_gap(queries, answered):
    landmark = np.array([has_landmark for has_landmark, _ in queries])
    correct = np.array([has_landmark and right for has_landmark, right in queries[:answered]], bool)
    taken = gap.costs(correct, np.arange(len(correct)), landmark)
    assert taken.sum() == pytest.approx(1 - gap.average_precision(correct, int(landmark.sum())))
    assert (taken >= 0).all() and not taken[: len(correct)][correct].any()


def test_a_confident_mistake_costs_more_than_the_same_one_behind_the_right_answers():
    landmark = np.array([False, True, True, False])
    taken = gap.costs(np.array([False, True, True, False]), np.arange(4), landmark)
    assert taken.tolist() == [pytest.approx((1 / 2 + 1 / 3) / 2), 0, 0, 0]
    nobody = gap.costs(np.zeros(0, bool), np.zeros(0, int), landmark)
    assert nobody.tolist() == [0, 0.5, 0.5, 0]
