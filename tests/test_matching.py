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
from transforms.arrays.matching import putative_matches
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


@pytest.mark.parametrize("width", [1, 128, 131, 1041, 2048])
def test_integer_product_is_exact(product, width):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 127, (count, width), dtype=np.int8, endpoint=True) for count in (33, 65))
    a[0], a[1], b[0], b[1] = 127, -128, 127, -128
    found = integer_product.integer_product(a, b)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.T.astype(np.int64))


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
