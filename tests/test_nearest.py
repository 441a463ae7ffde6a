"""Exact nearest neighbours against float64 brute force."""

import dataclasses
import itertools
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.descriptors import brute_force, ids, index_of, near_ties, queries_of, unit_rows
from transforms.arrays import dot_products, integer_product
from transforms.arrays import nearest as nearest_module
from transforms.arrays.dot_products import (
    EightBitProduct,
    NumpyProduct,
    Operand,
    Product,
    error_bounds,
    exact_scores,
    in_eight_bits,
)
from transforms.arrays.nearest import (
    DescriptorBlock,
    IndexBlock,
    Searcher,
    merge,
    nearest,
    ranked,
    sample_rank,
)
from transforms.retrieval import MergeNeighbors
from transforms.types import Neighbors

PRODUCTS: dict[str, Product] = {"numpy": NumpyProduct(), "8 bits": EightBitProduct()}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_module, "TILE_ROWS", 64)
    monkeypatch.setattr(nearest_module, "TILE_QUERIES", 8)


@pytest.fixture(params=list(PRODUCTS))
def product(request: pytest.FixtureRequest) -> Product:
    return PRODUCTS[request.param]


def check(queries: DescriptorBlock, index: IndexBlock, k: int, product: Product) -> Neighbors:
    found = nearest(queries, index, k, product)
    want_ids, want_scores = brute_force(queries, index, k)
    assert found.image_id.tolist() == want_ids
    np.testing.assert_array_equal(
        found.similarity, np.array(want_scores, np.float32).reshape(found.similarity.shape)
    )
    return found


def assert_same(a: Neighbors, b: Neighbors) -> None:
    for field in dataclasses.fields(Neighbors):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3, 3e-2, 1.0], ids=lambda s: f"spread {s:g}")
@pytest.mark.parametrize("k", [1, 3, 50])
def test_near_ties_are_ordered_as_in_float64(product: Product, spread: float, k: int) -> None:
    rng = np.random.default_rng(0)
    index = index_of(near_ties(rng, 200, 96, spread), [str(i) for i in rng.permutation(200)])
    check(queries_of(near_ties(np.random.default_rng(0), 20, 96, spread)), index, k, product)


@pytest.mark.parametrize("width", [1, 2, 3, 17])
@pytest.mark.parametrize("count, k", [(1, 1), (1, 5), (63, 64), (64, 64), (65, 64), (130, 3)])
def test_small_widths_and_counts(product: Product, width: int, count: int, k: int) -> None:
    rng = np.random.default_rng(width)
    check(
        queries_of(unit_rows(rng.standard_normal((9, width)))),
        index_of(unit_rows(rng.standard_normal((count, width)))),
        k,
        product,
    )


def test_all_rows_equal_are_ordered_by_id(product: Product) -> None:
    row = unit_rows(np.random.default_rng(0).standard_normal((1, 40)))
    found = check(
        queries_of(row), index_of(row.repeat(150, 0), [f"{149 - i:03d}" for i in range(150)]), 5, product
    )
    assert found.image_id[0].tolist() == [b"000", b"001", b"002", b"003", b"004"]
    assert len(set(found.similarity[0])) == 1


def test_all_similarities_negative(product: Product) -> None:
    rng = np.random.default_rng(1)
    centre = rng.standard_normal((1, 32))
    found = check(
        queries_of(unit_rows(-centre)),
        index_of(unit_rows(centre + 0.3 * rng.standard_normal((150, 32)))),
        4,
        product,
    )
    assert np.all(found.similarity < 0)


def test_similarities_around_zero(product: Product) -> None:
    signs = np.eye(16)[np.arange(160) % 16] * np.where(np.arange(160) % 3, 1, -1)[:, None]
    check(queries_of(unit_rows(np.eye(16))), index_of(unit_rows(signs)), 40, product)


def test_operands_that_round_as_badly_as_they_can(product: Product) -> None:
    # One large component makes a coarse scale, and the others lie about halfway between two of its steps:
    # half of them round up, half down, against the true order. 129 components are not mixed.
    rng = np.random.default_rng(2)
    rows = (rng.integers(0, 2, (200, 129)) + 0.5 + rng.choice([-0.01, 0.01], (200, 129))) / 127
    rows[:, 0] = 1 + 1e-4 * rng.random(200)
    check(queries_of(unit_rows(rows[:10])), index_of(unit_rows(rows)), 7, product)


def test_equal_ids_of_query_and_index_are_two_photographs(product: Product) -> None:
    rows, names = near_ties(np.random.default_rng(3), 100, 24, 0.1), ids("x", 100)
    found = check(queries_of(rows[::3], names[::3]), index_of(rows, names), 3, product)
    assert np.all(found.image_id[:, 0] == np.array(names[::3], "S"))


def test_ids_are_ordered_by_code_point(product: Product) -> None:
    names = ["é", "z", "Z", "日本", "a" * 40, "𝄞", "", "ﬁ"]
    found = check(
        queries_of(np.ones((1, 1), np.float32)), index_of(np.ones((8, 1), np.float32), names), 8, product
    )
    assert [i.decode() for i in found.image_id[0]] == sorted(names)


def test_the_neighbours_records(product: Product) -> None:
    index = index_of(unit_rows(np.random.default_rng(4).standard_normal((150, 8))))
    found = nearest(queries_of(index.descriptors[[120]]), index, 1, product)
    values = {f.name: getattr(found, f.name)[0, 0] for f in dataclasses.fields(Neighbors)}
    assert values.pop("similarity") == pytest.approx(1, abs=1e-6)
    assert values == {
        "image_id": b"x00120",
        "landmark_id": b"label-1",
        "unit": b"u2",
        "local_offset": 120_000,
        "local_size": 120,
    }
    assert {n: getattr(found, n).dtype for n in ("similarity", "local_offset", "local_size")} == {
        "similarity": np.float32,
        "local_offset": np.int64,
        "local_size": np.int32,
    }


@pytest.mark.parametrize("queries, rows", [(0, 5), (4, 0), (0, 0)])
def test_nothing_to_search(queries: int, rows: int) -> None:
    found = nearest(
        queries_of(np.ones((queries, 1), np.float32)), index_of(np.ones((rows, 1), np.float32)), 3
    )
    assert found.image_id.shape == found.local_size.shape == (queries, 3)
    assert np.all(found.similarity == -np.inf) and np.all(found.unit == b"")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 20),
    rows=st.integers(1, 150),
    width=st.integers(1, 70),
    k=st.integers(1, 12),
    levels=st.sampled_from([1, 2, 5, 1000]),
    product=st.sampled_from(list(PRODUCTS)),
)
def test_any_block_agrees_with_brute_force(
    seed: int, queries: int, rows: int, width: int, k: int, levels: int, product: str
) -> None:
    rng = np.random.default_rng(seed)
    # Few levels make many equal rows and exact ties, also of rows that differ.
    values = [unit_rows(rng.integers(-levels, levels + 1, (n, width)) + 0.5) for n in (queries, rows)]
    names = [f"x{i:05d}" for i in rng.permutation(rows + queries)]
    check(queries_of(values[0], names[:queries]), index_of(values[1], names[-rows:]), k, PRODUCTS[product])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 300), scale=st.sampled_from([0.0, 0.01, 1.0]))
def test_scores_keep_their_bounds(seed: int, width: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(width) ** 3  # some components are far larger than others
    queries, rows = (unit_rows(centre + scale * rng.standard_normal((20, width))) for _ in range(2))
    exact = queries.astype(np.float64) @ rows.T.astype(np.float64)
    for product in PRODUCTS.values():
        asked, index = product.of_queries(queries), product.of_index(rows)
        scores = product.scores(asked, index) * asked.scale[:, None]
        of_query, of_row = error_bounds(product, width, asked, index)
        assert np.all(np.abs(scores - exact) <= of_query[:, None] + of_row)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 17, 48, 128, 300])
@pytest.mark.parametrize("pairs", [False, True])
def test_rows_in_eight_bits_are_as_near_as_they_say(width: int, pairs: bool) -> None:
    rng = np.random.default_rng(width)
    rows = unit_rows(rng.standard_normal((300, width)) ** 3)
    codes, scale, error = in_eight_bits(rows, pairs)
    sizes = np.abs(codes.astype(np.int32))
    assert sizes.max() <= 127 and (width > 1 or sizes.min() == 127)
    if pairs:
        assert (sizes[:, : width - 1 : 2] + sizes[:, 1::2]).max(initial=0) <= 128
    order = next(order for order in (64, 16, 4, 1) if width % order == 0)
    signs = [[(-1) ** (i & j).bit_count() for j in range(order)] for i in range(order)]  # Hadamard's
    mixed = np.einsum("ij,njc->nic", signs, rows.astype(np.float64).reshape(300, order, -1)) / order**0.5
    distance = np.linalg.norm(mixed.reshape(300, width) - codes * scale[:, None].astype(np.float64), axis=1)
    assert np.all(distance <= error) and np.all(error <= distance * 1.001 + 1e-4)


def test_exact_scores_are_the_true_sum_rounded_whatever_its_order() -> None:
    # 1 + 2^-24 lies halfway between two float32; what is added decides, and float64 loses it in some orders.
    terms = np.array(
        [
            [1.0, 2**-24, 2**-60],
            [1.0, 2**-24, -(2**-60)],
            [1.0, 2**-24, 2**-50],
            [0.5, -0.5, 2**-80],
            [0.25, 0.5, 0],
        ]
    )
    expected = np.array([1, 1, 1 + 2**-23, 2**-80, 0.75], np.float32)
    for order in itertools.permutations(range(3)):
        np.testing.assert_array_equal(exact_scores(terms[:, order], np.ones((5, 3))), expected)


class Near(NumpyProduct):
    """Nearly right: off by more than its bounds say."""

    def scores(self, queries: Operand, index: Operand) -> np.ndarray:
        return super().scores(queries, index) * np.float32(1.001)


@pytest.mark.parametrize("seconds, fastest", [((1, 2), NumpyProduct), ((2, 1), EightBitProduct)])
def test_the_fastest_product_is_taken(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], fastest: type
) -> None:
    taken = {NumpyProduct: seconds[0], EightBitProduct: seconds[1]}
    monkeypatch.setattr(dot_products, "_seconds", lambda product, queries, index: taken[type(product)])
    choose = dot_products.fastest_product.__wrapped__  # not the one chosen before
    assert type(choose()) is fastest


def test_a_product_that_breaks_its_bounds_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dot_products, "EightBitProduct", Near)
    monkeypatch.setattr(
        dot_products, "_seconds", lambda product, queries, index: type(product) is NumpyProduct
    )
    assert type(dot_products.fastest_product.__wrapped__()) is NumpyProduct


def test_the_fastest_product_is_measured_once() -> None:
    assert dot_products.fastest_product() is dot_products.fastest_product()


@pytest.mark.parametrize("saturates", [False, True])
def test_eight_bits_are_scaled_for_the_processor(saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes for a processor without pairs in 16 bits are multiplied in NumPy, which any processor can."""
    monkeypatch.setattr(integer_product, "saturates", lambda: saturates)
    monkeypatch.setattr(
        integer_product,
        "scaled_product",
        lambda a, b, scale: (integer_product.numpy_product((a ^ 128).view(np.int8), b.T) * scale).astype(
            np.float32
        ),
    )
    rng = np.random.default_rng(5)
    index = index_of(near_ties(rng, 200, 64, 0.1))
    check(queries_of(near_ties(rng, 9, 64, 0.1)), index, 5, EightBitProduct())


def test_tiles_do_not_change_the_answer(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    queries, index = queries_of(near_ties(rng, 30, 50, 0.01)), index_of(near_ties(rng, 300, 50, 0.01))
    small = nearest(queries, index, 5, product)
    monkeypatch.setattr(nearest_module, "TILE_ROWS", 1000)
    monkeypatch.setattr(nearest_module, "TILE_QUERIES", 7)
    monkeypatch.setattr(nearest_module, "_STEP", 1)
    monkeypatch.setattr(nearest_module, "_cores", lambda: 3)
    assert_same(nearest(queries, index, 5, NumpyProduct()), small)
    monkeypatch.setattr(nearest_module, "TILE_ROWS", 256)
    assert_same(nearest(queries, index, 5, product), small)


@pytest.mark.parametrize("k", [1, 8, 30, 64, 65, 300])
def test_an_index_whose_first_tile_misleads(
    product: Product, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All that is near the queries lies in the first tile, which has every tenth image.
    rng = np.random.default_rng(13)
    centre, rows = rng.standard_normal(32), rng.standard_normal((640, 32))
    rows[::10] = centre + 0.1 * rng.standard_normal((64, 32))
    index = index_of(unit_rows(rows), [str(i) for i in rng.permutation(640)])
    searches: list[bool] = []
    search = Searcher._search

    def counted(self: Searcher, *arguments: Any, guess: bool) -> Any:
        searches.append(guess)
        return search(self, *arguments, guess=guess)

    monkeypatch.setattr(Searcher, "_search", counted)
    check(queries_of(unit_rows(centre + 0.1 * rng.standard_normal((20, 32)))), index, k, product)
    assert searches == ([True, False] if sample_rank(k, 10) < min(k, 65) else [True])


@pytest.mark.parametrize("k", [1, 3, 20, 100, 1000])
@pytest.mark.parametrize("samples", [2, 8, 25, 386])
def test_a_sample_rarely_holds_as_many_of_the_best_as_its_rank(k: int, samples: int) -> None:
    rank = sample_rank(k, samples)
    assert 1 <= rank <= k
    fewer = sum(math.comb(k, n) * (samples - 1) ** (k - n) for n in range(rank))
    assert rank == k or 1 - Fraction(fewer, samples**k) < Fraction(1, 10_000)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 300),
    rank=st.integers(1, 40),
    levels=st.sampled_from([1, 10, 2**24]),
)
def test_a_score_of_some_rank_is_reached_by_as_many(seed: int, width: int, rank: int, levels: int) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, (5, width)).astype(np.float32)
    found = ranked(scores, rank)
    if rank > width:
        assert np.all(found == -np.inf)
    else:
        assert np.all((scores >= found[:, None]).sum(axis=1) >= rank)
        place = min(width, 4 * rank)  # no far lower one
        assert np.all(found >= np.sort(scores, axis=1)[:, -place])


def test_a_searcher_may_keep_the_index_in_its_form(product: Product) -> None:
    rng = np.random.default_rng(11)
    index = index_of(near_ties(rng, 200, 30, 0.05))
    searcher = Searcher(index, keep=True)
    for count in (9, 20):
        queries = queries_of(near_ties(rng, count, 30, 0.05))
        for k in (1, 4):
            assert_same(searcher.nearest(queries, k, product), nearest(queries, index, k, NumpyProduct()))


@pytest.mark.parametrize(
    "length, text",
    [
        (0.5, "1 {} descriptors are not of unit length within 0.001; the first is that of b, of length 0.5"),
        (1.0011, "of length 1.0011"),
        (np.nan, "of length nan"),
    ],
    ids=["half", "a little long", "NaN"],
)
@pytest.mark.parametrize("side", ["query", "index"])
def test_descriptors_must_be_of_unit_length(side: str, length: float, text: str) -> None:
    good, bad = np.float32([[1, 0], [0, 1]]), np.float32([[1, 0], [length, 0]])
    queries, index = (
        queries_of(bad if side == "query" else good, ["a", "b"]),
        index_of(bad if side == "index" else good, ["a", "b"]),
    )
    with pytest.raises(ValueError, match=text.format(side)):
        nearest(queries, index, 1)


def test_wrong_arguments_are_named() -> None:
    two, three = unit_rows(np.ones((2, 2))), unit_rows(np.ones((2, 3)))
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        nearest(queries_of(two), index_of(two), 0)
    with pytest.raises(ValueError, match="width 2, the index of width 3"):
        nearest(queries_of(two), index_of(three), 1)
    with pytest.raises(
        ValueError, match=r"1 images need descriptors of float32 \[1, D\], not float64 \[2, 2\]"
    ):
        queries_of(two.astype(np.float64), ["a"])
    with pytest.raises(ValueError, match="neighbours of 2 queries cannot be merged with those of 1"):
        merge(nearest(queries_of(two), index_of(two), 1), nearest(queries_of(two[:1]), index_of(two), 1), 1)


def parts_of(index: IndexBlock, cuts: list[int]) -> list[IndexBlock]:
    edges = [0, *cuts, len(index)]
    return [
        IndexBlock(
            **{
                f.name: v if (v := getattr(index, f.name)) is None else v[a:b]
                for f in dataclasses.fields(IndexBlock)
            }
        )
        for a, b in itertools.pairwise(edges)
    ]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 9), cuts=st.lists(st.integers(0, 80), max_size=4))
def test_merged_parts_are_the_whole_in_any_order(seed: int, k: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    index = index_of(unit_rows(rng.integers(-1, 2, (80, 4)) + 0.5), [f"{i}" for i in rng.permutation(80)])
    queries = queries_of(unit_rows(rng.integers(-1, 2, (6, 4)) + 0.5))
    found = [nearest(queries, part, k) for part in parts_of(index, sorted(cuts))]
    rng.shuffle(found)
    combine = MergeNeighbors(k)
    half = len(found) // 2
    accumulators = [combine.create_accumulator() for _ in range(3)]
    for which, part in enumerate(found):
        side = 0 if which < half else 1
        accumulators[side] = combine.add_input(accumulators[side], pickle.loads(pickle.dumps(part)))
    merged, parts = combine.extract_output(combine.merge_accumulators(accumulators))
    assert parts == len(found)
    assert_same(merged, nearest(queries, index, k))


def test_merging_pads_to_k() -> None:
    row = np.ones((1, 1), np.float32)
    a, b = (nearest(queries_of(row), index_of(row, [name]), 1) for name in "ba")
    merged = merge(a, b, 4)
    assert merged.image_id.tolist() == [[b"a", b"b", b"", b""]] and merged.similarity.tolist() == [
        [1, 1, -np.inf, -np.inf]
    ]
    assert_same(merge(b, a, 4), merged)
