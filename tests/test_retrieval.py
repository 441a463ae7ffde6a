"""The retrieval step on small feature stores."""

import math
import time

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that

from tests.descriptors import brute_force, ids, index_of, near_ties, queries_of, unit_rows
from tests.feature_stores import write_store
from transforms.retrieval import QueryBlock, RetrieveNearest, plan_groups, read_index_block
from transforms.storage.feature_store import FeatureStore
from transforms.storage.run_store import PROVISIONAL
from transforms.types import CandidateUnit


@pytest.mark.parametrize(
    "counts, rows, want",
    [
        ([], 10, []),
        ([3, 3, 3], 10, [3]),
        ([5, 5, 1], 10, [2, 1]),
        ([20, 1, 20], 10, [1, 1, 1]),
        ([0, 0, 10, 0], 10, [4]),
    ],
)
def test_groups_are_runs_of_shards(counts: list[int], rows: int, want: list[int]) -> None:
    units = [(f"u{i}", count) for i, count in enumerate(counts)]
    groups = plan_groups(units, rows)
    assert [len(g.units) for g in groups] == want
    assert [u for g in groups for u in g.units] == [u for u, _ in units]
    assert len({g.name for g in groups}) == len(groups) and groups == plan_groups(iter(units), rows)


def test_groups_need_rows() -> None:
    with pytest.raises(ValueError, match="rows must be at least 1, not 0"):
        plan_groups([], 0)


@pytest.mark.parametrize(
    "group_rows, k, element, workers",
    [(1000, 3, 50_000, 1), (40, 3, 50_000, 2), (40, 200, 50_000, 1), (90, 4, 70, 1)],
)
def test_retrieval_over_stores(
    tmp_path, monkeypatch, group_rows: int, k: int, element: int, workers: int
) -> None:
    monkeypatch.setattr("transforms.retrieval.ELEMENT_NEIGHBORS", element)
    monkeypatch.setattr("transforms.retrieval.BLOCKS_PER_TASK", 2)
    rng = np.random.default_rng(8)
    rows, asked = near_ties(rng, 150, 16, 0.4), near_ties(rng, 100, 16, 0.4)
    index_root, query_root = str(tmp_path / "index"), str(tmp_path / "queries")
    groups = plan_groups(write_store(index_root, rows, "x", 25), group_rows)
    units = [u for u, _ in write_store(query_root, asked, "q", 20, labelled=False)]
    blocks = [
        QueryBlock("first", tuple(units[:3])),
        QueryBlock("second", tuple(units[3:4])),
        QueryBlock("third", tuple(units[4:])),
    ]
    want = brute_force(queries_of(asked), index_of(rows), k)

    def verify(units: list[CandidateUnit]) -> None:
        found = sorted((query for unit in units for query in unit.queries), key=lambda q: q.image_id)
        assert [q.image_id for q in found] == ids("q", 100)
        assert len({unit.name for unit in units}) == len(units)
        for n, query in enumerate(found):
            candidates = [c.image_id for c in query.candidates]
            assert candidates == [i.decode() for i in want[0][n] if i]
            assert [c.similarity for c in query.candidates] == [s for s in want[1][n] if s > -np.inf]
            assert len(FeatureStore(query_root).read_local(query.location)) == n % 3
            for candidate in query.candidates[:3]:
                number = int(candidate.image_id[1:])
                assert candidate.landmark_id == f"label {number % 7}" and candidate.inliers is None
                assert len(FeatureStore(index_root).read_local(candidate.location)) == number % 3

    options = beam.options.pipeline_options.PipelineOptions(
        direct_num_workers=workers, direct_running_mode="multi_threading"
    )
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        assert_that(
            pipeline | beam.Create(blocks) | RetrieveNearest(index_root, query_root, k, groups), verify
        )


def test_retrieval_from_an_empty_index_keeps_the_queries(tmp_path) -> None:
    units = write_store(str(tmp_path / "queries"), unit_rows(np.ones((5, 4))), "q", 3)

    def verify(units: list[CandidateUnit]) -> None:
        assert sorted((q.image_id, q.candidates) for unit in units for q in unit.queries) == [
            (i, ()) for i in ids("q", 5)
        ]

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        blocks = pipeline | beam.Create([QueryBlock("only", tuple(u for u, _ in units))])
        assert_that(
            blocks | RetrieveNearest(str(tmp_path / "index"), str(tmp_path / "queries"), 3, []), verify
        )


@pytest.mark.parametrize("seconds_left, candidates", [(-1, 0), (600, 3)])
def test_after_the_deadline_queries_keep_what_was_found(
    tmp_path, seconds_left: float, candidates: int
) -> None:
    rows = unit_rows(np.random.default_rng(12).standard_normal((10, 4)))
    groups = plan_groups(write_store(str(tmp_path / "index"), rows, "x", 5))
    units = write_store(str(tmp_path / "queries"), rows, "q", 5)

    def verify(units: list[CandidateUnit]) -> None:
        assert sorted((q.image_id, len(q.candidates)) for unit in units for q in unit.queries) == [
            (i, candidates) for i in ids("q", 10)
        ]

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        blocks = pipeline | beam.Create([QueryBlock("only", tuple(u for u, _ in units))])
        deadline = time.time() + seconds_left
        assert_that(
            blocks | RetrieveNearest(str(tmp_path / "index"), str(tmp_path / "queries"), 3, groups, deadline),
            verify,
        )


def test_kept_candidates_are_taken_instead_of_a_new_search(tmp_path) -> None:
    rows = unit_rows(np.random.default_rng(3).standard_normal((50, 16)))
    groups = plan_groups(write_store(str(tmp_path / "index"), rows, "x", 25))
    units = tuple(u for u, _ in write_store(str(tmp_path / "queries"), rows[:40], "q", 20, labelled=False))
    want = brute_force(queries_of(rows[:40]), index_of(rows), 3)

    def retrieve(block: str, deadline: float, found: bool) -> int:
        def verify(units: list[CandidateUnit]) -> None:
            queries = sorted((query for unit in units for query in unit.queries), key=lambda q: q.image_id)
            assert [q.image_id for q in queries] == ids("q", 40)
            for n, query in enumerate(queries):
                assert [c.image_id.encode() for c in query.candidates] == (list(want[0][n]) if found else [])

        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            blocks = pipeline | beam.Create([QueryBlock(block, units)])
            step = RetrieveNearest(
                str(tmp_path / "index"), str(tmp_path / "queries"), 3, groups, deadline, str(tmp_path / "run")
            )
            assert_that(blocks | step, verify)
        return len(list((tmp_path / "run" / "candidates").iterdir()))

    assert retrieve("block", math.inf, found=True) == 1
    assert retrieve("block", 0.0, found=True) == 1  # a search would find nothing after its deadline
    assert retrieve("other", 0.0, found=False) == 1  # only what is complete is kept
    assert retrieve("late" + PROVISIONAL, math.inf, found=True) == 1


def test_retrieval_counts(tmp_path) -> None:
    rows = unit_rows(np.random.default_rng(9).standard_normal((10, 4)))
    groups = plan_groups(write_store(str(tmp_path / "index"), rows, "x", 5), 5)
    units = write_store(str(tmp_path / "queries"), rows, "q", 4)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    blocks = pipeline | beam.Create([QueryBlock("only", tuple(u for u, _ in units))])
    blocks | RetrieveNearest(str(tmp_path / "index"), str(tmp_path / "queries"), 3, groups)
    metrics = pipeline.run().metrics().query(beam.metrics.MetricsFilter().with_namespace("landmarks"))
    counts = {c.key.metric.name: c.committed for c in metrics["counters"]}
    # The only block is read once, though two groups meet it.
    assert counts == {
        "retrieve_in": 10,
        "retrieve_out": 10,
        "retrieve_descriptor_bytes_read": 2 * rows.nbytes,
    }
    assert [d.key.metric.name for d in metrics["distributions"]] == ["retrieve_milliseconds"]


def test_retrieval_needs_a_k() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        RetrieveNearest("index", "queries", 0)


def test_shards_of_different_widths_are_named(tmp_path) -> None:
    root = str(tmp_path)
    write_store(root, unit_rows(np.ones((2, 4))), "a", 2)
    write_store(root, unit_rows(np.ones((2, 5))), "b", 2)
    with pytest.raises(ValueError, match="shard 000000-b holds descriptors of width 5, shard 000000-a of 4"):
        read_index_block(FeatureStore(root), ["000000-a", "000000-b"])
