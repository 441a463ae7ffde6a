"""Putative matches of local features in 8 bits, and the product that finds them."""

import dataclasses

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests import oracle
from tests.local_features import features
from transforms.arrays import integer_product
from transforms.arrays.matching import MIN_NEAR, MIN_STRONGEST, putative_matches
from transforms.arrays.quantization import dequantized, quantized, with_lengths
from transforms.types import QuantizedFeatures, VerificationSettings

DEFAULT = VerificationSettings()


def at_angles(*degrees) -> QuantizedFeatures:
    radians = np.radians(degrees)
    return quantized(features(np.stack([np.cos(radians), np.sin(radians)], axis=1)))


def none() -> QuantizedFeatures:
    return with_lengths(np.zeros((0, 2), np.float32), np.zeros((0, 0), np.int8))


@pytest.fixture(params=["fastest", "unsigned_by_unsigned", "numpy"])
def product(request: pytest.FixtureRequest, monkeypatch) -> str:
    """Each of the products of integers: the one that this machine chooses, and those that any machine has."""
    if request.param != "fastest":
        name = None if request.param == "numpy" else request.param
        monkeypatch.setattr(integer_product, "_exact_model", lambda: name)
    return request.param


@pytest.mark.parametrize(
    "query, candidate, changes, expected",
    [
        pytest.param(at_angles(0, 90), at_angles(80, 10), {}, [(0, 1), (1, 0)], id="nearest"),
        pytest.param(at_angles(0, 90), at_angles(60, 140), {}, [(1, 0)], id="too far"),
        pytest.param(at_angles(0), at_angles(10, 90, 10), {}, [(0, 0)], id="of equally near ones the first"),
        pytest.param(
            at_angles(0, 4), at_angles(5), {}, [(0, 0), (1, 0)], id="one candidate feature may match twice"
        ),
        pytest.param(at_angles(0, 4), at_angles(5), {"mutual_check": True}, [(1, 0)], id="mutual check"),
        pytest.param(
            at_angles(4, 4),
            at_angles(5),
            {"mutual_check": True},
            [(0, 0)],
            id="mutual check, equal query features",
        ),
        pytest.param(
            at_angles(0, 50), at_angles(10, -11, 52), {"ratio_test": 0.8}, [(1, 2)], id="ratio test"
        ),
        pytest.param(
            at_angles(0),
            at_angles(10),
            {"ratio_test": 0.8},
            [(0, 0)],
            id="ratio test without a second neighbour",
        ),
        pytest.param(
            at_angles(0),
            at_angles(30, 70),
            {"max_distance": 0.6, "ratio_test": 0.5},
            [(0, 0)],
            id="ratio test, the second too far to match",
        ),
        pytest.param(
            at_angles(0, 30), at_angles(90, 95), {"max_distance": 2.0}, [(0, 0), (1, 0)], id="any distance"
        ),
        pytest.param(
            at_angles(0), at_angles(100, 179), {"max_distance": 2.0}, [(0, 0)], id="negative cosines"
        ),
        pytest.param(at_angles(0), at_angles(170, 179), {}, [], id="nothing near"),
        pytest.param(at_angles(0), none(), {}, [], id="candidate without features"),
        pytest.param(none(), at_angles(0), {}, [], id="query without features"),
    ],
)
def test_putative_matches(query, candidate, changes, expected, product):
    matches = putative_matches(query, candidate, dataclasses.replace(DEFAULT, **changes))
    assert matches.dtype == np.int32 and matches.shape == (len(expected), 2)
    assert [tuple(map(int, match)) for match in matches] == expected


def test_descriptors_of_two_models_are_refused():
    with pytest.raises(ValueError, match="width 2 and 3 cannot be matched"):
        putative_matches(at_angles(0), quantized(features(np.eye(3))), DEFAULT)


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**31),
    st.booleans(),
    st.sampled_from([None, 0.7, 0.9, 1.0]),
    st.sampled_from([0.5, 0.9, 1.6]),
    st.sampled_from([1.0, 0.3]),
)
def test_putative_matches_agree_with_the_oracle(n, m, seed, mutual_check, ratio_test, max_distance, spread):
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=6)
    query, candidate = (
        quantized(features(centre * (spread < 1) + spread * rng.normal(size=(count, 6)))) for count in (n, m)
    )
    settings = VerificationSettings(
        mutual_check=mutual_check, ratio_test=ratio_test, max_distance=max_distance
    )
    expected = oracle.putative_matches(
        oracle.OracleImage("q", None, np.ones(1), *dataclasses.astuple(dequantized(query))),
        oracle.OracleImage("c", "1", np.ones(1), *dataclasses.astuple(dequantized(candidate))),
        oracle.OracleParameters(mutual_check=mutual_check, ratio_test=ratio_test, max_distance=max_distance),
    )
    assert [tuple(match) for match in putative_matches(query, candidate, settings).tolist()] == expected


@pytest.mark.parametrize("largest", [1, 5, 127])
@pytest.mark.parametrize("max_distance", [0.05, 0.9, 1.3, 1.5])
def test_every_near_pair_counts_whatever_the_lengths(product, largest, max_distance):
    """Small numbers, so that many are equally near, and lengths from 0 to the longest that 8 bits allow."""
    rng = np.random.default_rng(largest)
    rows = rng.integers(-largest, largest, (2, 60, 24), endpoint=True)
    rows[:, 20:40] = np.sign(rows[:, 20:40]) * 127
    rows[:, 40:, 1:] = 0
    query, candidate = (with_lengths(np.zeros((60, 2), np.float32), part.astype(np.int8)) for part in rows)
    dots = rows[0] @ rows[1].T
    cosine = dots / np.sqrt(np.maximum(np.outer((rows[0] ** 2).sum(1), (rows[1] ** 2).sum(1)), 1))
    near = np.sqrt(np.maximum(2 - 2 * cosine.max(axis=1), 0)) < max_distance
    expected = [(q, c) for q, c in enumerate(cosine.argmax(axis=1).tolist()) if near[q]]
    settings = VerificationSettings(max_distance=max_distance)
    assert [tuple(match) for match in putative_matches(query, candidate, settings).tolist()] == expected
    distance = np.sort(np.sqrt(np.maximum(2 - 2 * cosine, 0)), axis=1)
    apart = [(q, c) for q, c in expected if distance[q, 0] < distance[q, 1]]
    assert [
        tuple(m)
        for m in putative_matches(query, candidate, dataclasses.replace(settings, ratio_test=1.0)).tolist()
    ] == apart
    mutual = [(q, c) for q, c in expected if cosine[:, c].argmax() == q]
    assert [
        tuple(m)
        for m in putative_matches(query, candidate, dataclasses.replace(settings, mutual_check=True)).tolist()
    ] == mutual


@pytest.mark.parametrize("count, others", [(30, 800), (800, 30), (801, 701)])
@pytest.mark.parametrize("mutual_check, ratio_test", [(False, None), (True, None), (False, 0.95)])
@pytest.mark.parametrize("max_distance", [0.6, 1.6])  # few pairs are near, and most
def test_every_near_pair_of_many_counts(product, count, others, mutual_check, ratio_test, max_distance):
    rng = np.random.default_rng(count)
    query, candidate = (quantized(features(rng.normal(size=(number, 8)))) for number in (count, others))
    rows, columns = (image.descriptors.astype(np.int64) for image in (query, candidate))
    lengths = np.outer((rows**2).sum(1), (columns**2).sum(1))
    distance = np.sqrt(np.maximum(2 - 2 * (rows @ columns.T) / np.sqrt(np.maximum(lengths, 1)), 0))
    expected = []
    for q, c in enumerate(distance.argmin(axis=1).tolist()):
        second = np.delete(distance[q], c).min()
        near = distance[q, c] < max_distance and (ratio_test is None or distance[q, c] < ratio_test * second)
        if near and (not mutual_check or distance[:, c].argmin() == q):
            expected.append((q, c))
    settings = VerificationSettings(
        max_distance=max_distance, mutual_check=mutual_check, ratio_test=ratio_test
    )
    assert [tuple(match) for match in putative_matches(query, candidate, settings).tolist()] == expected
    assert len(expected) > 10


def strongest_alike(alike: int, count: int) -> tuple[QuantizedFeatures, QuantizedFeatures]:
    """Two images of `count` features: `alike` of the strongest have one descriptor in both, and each of the
    weakest; nothing else is near.
    """
    query, candidate = np.zeros((2, count, 6), np.float32)
    weak = max(MIN_STRONGEST, count // 2)
    query[:, 0], candidate[:, 1] = 1, 1
    query[:alike, 0], query[:alike, 2] = 0, 1
    candidate[0, 1], candidate[0, 2] = 0, 1
    query[weak:, 0], query[weak:, 3] = 0, 1
    candidate[weak:, 1], candidate[weak:, 3] = 0, 1
    return quantized(features(query)), quantized(features(candidate))


@pytest.mark.parametrize("count", [MIN_STRONGEST + 10, 3 * MIN_STRONGEST])
def test_images_whose_strongest_features_are_unlike_are_not_matched(count):
    weak = max(MIN_STRONGEST, count // 2)
    assert not len(putative_matches(*strongest_alike(MIN_NEAR - 1, count), DEFAULT))
    found = putative_matches(*strongest_alike(MIN_NEAR, count), DEFAULT)
    assert found.tolist() == [[q, 0] for q in range(MIN_NEAR)] + [[q, weak] for q in range(weak, count)]


def test_images_of_few_features_are_matched_whole():
    query, candidate = strongest_alike(1, MIN_STRONGEST)
    assert putative_matches(query, candidate, DEFAULT).tolist() == [[0, 0]]


@pytest.mark.parametrize("width", [1, 128, 131, 1041, 2048])
def test_integer_product_is_exact(product, width):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 127, (count, width), dtype=np.int8, endpoint=True) for count in (33, 65))
    a[0], a[1], b[0], b[1] = 127, -128, 127, -128
    found = integer_product.integer_product(a, b)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.T.astype(np.int64))


@pytest.mark.parametrize("width", [2, 64, 130])
def test_integer_product_of_small_pairs_is_exact(product, width):
    rng = np.random.default_rng(0)
    a = rng.choice(np.array([127, -128], np.int8), (33, width))
    b = rng.integers(-64, 64, (65, width), dtype=np.int8, endpoint=True)
    b[0], b[1], b[2], b[2, ::2] = 64, -64, 0, -128
    assert with_lengths(np.zeros((65, 2), np.float32), b).has_small_pairs
    found = integer_product.integer_product(a, b, small_pairs=True)
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.T.astype(np.int64))


@pytest.mark.parametrize(
    "row, small",
    [
        pytest.param([64, -64, 1, 127], True, id="128 at most"),
        pytest.param([1, 2, -65, 64], False, id="129"),
        pytest.param([0, -128, 0, 0], True, id="one of -128"),
        pytest.param([-128, -128, 0, 0], False, id="256"),
        pytest.param([1, 100, 100, 1], True, id="large ones of two pairs"),
        pytest.param([1, 2, 3], False, id="one without a neighbour"),
    ],
)
def test_small_pairs_are_told(row, small):
    rows = np.array([[0] * len(row), row], np.int8)
    assert with_lengths(np.zeros((2, 2), np.float32), rows).has_small_pairs is small


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 2**31))
def test_quantized_descriptors_have_small_pairs(count, width, seed):
    rng = np.random.default_rng(seed)
    found = quantized(features(rng.normal(size=(count, width)) * rng.choice([0.01, 1], (count, width))))
    assert found.has_small_pairs or width % 2
    pairs = np.abs(np.pad(found.descriptors, ((0, 0), (0, width % 2))).astype(int)).reshape(count, -1, 2)
    assert 126 <= pairs.sum(axis=2).max() <= 128


@pytest.mark.parametrize("width", [1, 128, 131, 2048])
def test_a_scaled_product_is_exact_before_it_is_scaled(width):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-127, 127, (40, width), dtype=np.int8, endpoint=True) for _ in range(2))
    a[:2], b[:2] = [[127], [-127]], 0
    b[0, ::2], b[1, 1::2] = 127, -127
    b[2:, : width - 1 : 2] //= 2
    b[2:, 1::2] //= 2  # pairs of at most 128
    scale = rng.random(40).astype(np.float32)
    found = integer_product.scaled_product(integer_product.unsigned(a), integer_product.transposed(b), scale)
    expected = (a.astype(np.int64) @ b.T.astype(np.int64)).astype(np.float32) * scale
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", integer_product.MODEL_TEXTS)
def test_stored_models_are_their_texts(name):
    made = onnx.parser.parse_model(integer_product.MODEL_TEXTS[name])
    assert onnx.load_model_from_string((integer_product._MODELS / f"{name}.onnx").read_bytes()) == made


class Model:
    """Stands for ONNX Runtime's on a processor where some models saturate."""

    def __init__(self, saturating: bool) -> None:
        self._saturating = saturating

    def run(self, outputs, inputs):
        a, b = (np.asarray(inputs[name]) for name in "ab")
        products = integer_product.numpy_product(
            *((x ^ 128).view(np.int8) if x.dtype == np.uint8 else x for x in (a, b))
        )
        return [np.minimum(products, 2**15) if self._saturating else products]


@pytest.mark.parametrize(
    "saturating, chosen",
    [
        ((), "unsigned_by_signed"),
        (("unsigned_by_signed",), "unsigned_by_unsigned"),
        (("unsigned_by_signed", "unsigned_by_unsigned"), None),
    ],
)
def test_a_model_that_is_not_exact_is_not_used(monkeypatch, saturating, chosen):
    monkeypatch.setattr(integer_product, "_session", lambda name: Model(name in saturating))
    assert integer_product._exact_model.__wrapped__() == chosen
