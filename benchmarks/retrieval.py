"""Exact retrieval against what a user would take instead: FAISS's flat index, NumPy's blocked product,
SciPy's cdist per query; and against searches of all pairs in 8 bits, which are not exact: FAISS's scalar
quantizer and usearch.

All in one process, on the same threads and the same clustered descriptors. Every answer is compared with
float64 brute force. What each makes of the index beforehand is told apart from the search. CPU time of all
threads is compared, which other work on the machine changes less than seconds.
"""

import argparse
import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.goals import Goals
from transforms.arrays.dot_products import EightBitProduct, NumpyProduct, fastest_product
from transforms.arrays.nearest import DescriptorBlock, IndexBlock, Searcher
from transforms.processes.settings import one_thread

# Google Landmarks v2 clean: images, landmarks, images of the largest landmark; of the smallest, 2.
GLDV2_IMAGES, GLDV2_LANDMARKS, GLDV2_LARGEST = 1_580_470, 81_313, 6_272
# Goals against FAISS's flat index, below k = 100 and from there on.
EIGHT_BITS = ({"AMX": 4, "VNNI": 4, "AVX2": 1.5}, {"AMX": 3, "VNNI": 3, "AVX2": 1.3})


def cluster_sizes(images: int) -> np.ndarray:
    """Images per landmark, int64, largest first: a power law from 2 to 6,272 like Google Landmarks v2 clean,
    scaled to `images`.
    """
    landmarks = max(1, round(images * GLDV2_LANDMARKS / GLDV2_IMAGES))
    largest = max(2.0, GLDV2_LARGEST * images / GLDV2_IMAGES)
    rank = np.arange(1, landmarks + 1)
    low, high = 0.0, 3.0
    for _ in range(50):
        exponent = (low + high) / 2
        sizes = (2 + (largest - 2) * rank**-exponent * (1 - (rank - 1) / landmarks)).astype(np.int64)
        low, high = (exponent, high) if sizes.sum() > images else (low, exponent)
    short = images - sizes.sum()
    sizes[-min(landmarks, abs(short)) :] += np.sign(short)
    sizes[0] += images - sizes.sum()
    return sizes


class Descriptors:
    """Unit vectors that lie as an embedding's do: clusters of one landmark each, in a space of falling
    variance per axis.

    Two images of one landmark have cosines of 0.4 to 0.75, two landmarks 0.00 +- 0.06 (independent
    coordinates would give 0.02).
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        self._width, self._seed = width, seed
        self._spread = (np.arange(1, width + 1) ** -0.35).astype(np.float32)
        self._spread /= np.linalg.norm(self._spread)
        pool = np.random.default_rng(seed).standard_normal(max(4 * width, 2**22), np.float32)
        # Row i of the noise starts at a random place of one long array: cheap, and no two rows are alike.
        self._noise = np.lib.stride_tricks.sliding_window_view(pool, width)

    def rows(self, landmarks: np.ndarray, seed: int) -> np.ndarray:
        """float32 [N, D], an image of each landmark given (int [N]); a landmark is the same whatever the
        seed.
        """
        rng = np.random.default_rng((self._seed, seed))
        unique, which = np.unique(landmarks, return_inverse=True)
        centres = np.stack(
            [
                np.random.default_rng((self._seed, 1, int(u))).standard_normal(self._width, np.float32)
                for u in unique
            ]
        )
        centres *= self._spread
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        rows = self._noise[rng.integers(0, len(self._noise), len(landmarks))]
        rows *= (rng.uniform(0.6, 1.2, (len(landmarks), 1)) / np.sqrt(self._width)).astype(np.float32)
        rows += centres[which]
        rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        return rows


def index_block(landmarks: np.ndarray, descriptors: np.ndarray) -> IndexBlock:
    """An index whose image ids ascend with the rows."""
    count = len(landmarks)
    ids = np.array([b"i%015x" % i for i in range(count)])
    return IndexBlock(
        ids,
        descriptors,
        landmarks.astype("S"),
        np.full(count, b"0"),
        np.zeros(count, np.int64),
        np.zeros(count, np.int32),
    )


def query_block(descriptors: np.ndarray) -> DescriptorBlock:
    """Queries that are not in the index."""
    return DescriptorBlock(np.array([b"q%015x" % i for i in range(len(descriptors))]), descriptors)


def mixed_queries(clusters: int, count: int, seed: int = 1) -> np.ndarray:
    """Landmarks of `count` queries, int64: half of them in the index (0 to clusters - 1), half not."""
    chosen = np.random.default_rng(seed).integers(0, clusters, count)
    chosen[1::2] += clusters
    return chosen


def tiles(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `count`."""
    return (slice(low, min(low + size, count)) for low in range(0, count, size))


def brute_force(queries: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """Row numbers of the k best cosines, int64 [Q, k]: in float64, rounded to float32, ties by row number."""
    scores = np.empty((len(queries), len(rows)), np.float32)
    queries = queries.astype(np.float64)
    for tile in tiles(len(rows), 8192):
        scores[:, tile] = queries @ rows[tile].astype(np.float64).T
    kth = np.partition(scores, -k, axis=1)[:, -k]
    best = np.empty((len(queries), k), np.int64)
    for q, limit in enumerate(kth):
        found = np.flatnonzero(scores[q] >= limit)
        best[q] = found[np.argsort(-scores[q, found], kind="stable")[:k]]
    return best


def numpy_blocked(queries: np.ndarray, rows: np.ndarray, k: int, size: int = 16384) -> np.ndarray:
    """What one writes by hand: a float32 product per block, argpartition, and a merge with the best so
    far.
    """
    best_scores, best = np.full((len(queries), k), -np.inf, np.float32), np.zeros((len(queries), k), np.int64)
    for tile in tiles(len(rows), size):
        scores = queries @ rows[tile].T
        part = np.argpartition(scores, -min(k, scores.shape[1]), axis=1)[:, -k:]
        scores = np.concatenate([best_scores, np.take_along_axis(scores, part, 1)], axis=1)
        ids = np.concatenate([best, part + tile.start], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best_scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    return best


def cdist_seconds(queries: np.ndarray, rows: np.ndarray) -> float:
    """Seconds of the baseline's search of these queries: for each a cdist with all float64 embeddings and a
    partition.
    """
    from scipy.spatial import distance

    queries, rows = queries.astype(np.float64), rows.astype(np.float64)
    start = time.perf_counter()
    for query in queries:
        distances = distance.cdist(rows, query[None], "euclidean")[:, 0]
        np.argpartition(distances, 3)[:3]
    return time.perf_counter() - start


class Seconds(NamedTuple):
    """From start to end, and CPU time of all threads of the process."""

    wall: float
    cpu: float


def timed(way: Callable[[], Any]) -> tuple[Seconds, Any]:
    """The seconds of a call, and its answer."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = way()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu), answer


def best_of(runs: int, ways: dict[str, Callable[[], Any]]) -> tuple[dict[str, Seconds], dict[str, Any]]:
    """Fewest seconds of each way, and its last answer; the ways take turns, so that a slow moment meets them
    all.
    """
    seconds: dict[str, Seconds] = {}
    answers: dict[str, Any] = {}
    for _ in range(runs):
        for name, way in ways.items():
            taken, answers[name] = timed(way)
            least = seconds.get(name, taken)
            seconds[name] = Seconds(min(taken.wall, least.wall), min(taken.cpu, least.cpu))
    return seconds, answers


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py retrieval", description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=int, default=200_000, help="index images")
    parser.add_argument("--queries", type=int, default=1_024)
    parser.add_argument("--width", type=int, default=2_048, help="of the descriptors")
    parser.add_argument("--k", type=int, nargs="+", default=[3, 100])
    parser.add_argument("--runs", type=int, default=3, help="of which the fastest counts")
    parser.add_argument(
        "--slow-queries", type=int, default=64, help="of the searches in 8 bits by others, scaled to all"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    import faiss
    from usearch.index import MetricKind, search

    threads = len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(threads)
    sizes = cluster_sizes(options.index)
    landmarks = np.random.default_rng(2).permutation(np.repeat(np.arange(len(sizes)), sizes))
    descriptors = Descriptors(options.width)
    rows = np.empty((options.index, options.width), np.float32)
    for t in tiles(options.index, 8192):
        rows[t] = descriptors.rows(landmarks[t], 10 + t.start)
    queries = descriptors.rows(mixed_queries(len(sizes), options.queries), 1)
    index, asked = index_block(landmarks, rows), query_block(queries)
    flop = 2 * options.index * options.queries * options.width
    print(
        f"{options.index:,} x {options.width} index in {len(sizes):,} clusters, {options.queries:,} queries, "
        f"{threads} threads, {platform.machine()}, fast pass {fastest_product().name}, "
        f"faiss {faiss.__version__}, numpy {np.__version__}"
    )
    goals, all_truth = Goals(), brute_force(queries, rows, max(options.k))

    eight_bits, float32 = Searcher(index, keep=True), Searcher(index)
    few = queries[: min(options.slow_queries, len(queries))]  # for what takes minutes, scaled
    flat = faiss.IndexFlatIP(options.width)
    quantizer = faiss.IndexScalarQuantizer(
        options.width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )

    def in_bytes(values: np.ndarray) -> np.ndarray:
        scale = 127 / np.concatenate(
            [np.abs(values[t]).max(axis=1, keepdims=True) for t in tiles(len(values), 8192)]
        )
        return np.concatenate(
            [np.rint(values[t] * scale[t]).astype(np.int8) for t in tiles(len(values), 8192)]
        )

    def scalar_quantizer() -> None:
        quantizer.train(rows[:: max(1, len(rows) // 50_000)])
        quantizer.add(rows)

    prepared = {
        "nearest, 8 bits": timed(lambda: eight_bits.nearest(query_block(queries[:1]), 1, EightBitProduct()))[
            0
        ],
        "faiss IndexFlatIP": timed(lambda: flat.add(rows))[0],
        "faiss 8 bits": timed(scalar_quantizer)[0],
    }
    prepared["usearch i8"], codes = timed(lambda: in_bytes(rows))
    asked_codes = in_bytes(few)
    part = queries[: min(8, len(queries))], rows[:20_000]
    cdist = cdist_seconds(*part) * len(queries) / len(part[0]) * len(rows) / len(part[1])

    def blocked(k: int) -> np.ndarray:
        with one_thread if threads == 1 else contextlib.nullcontext():
            return numpy_blocked(queries, rows, k)

    for k in options.k:
        truth = all_truth[:, :k]
        seconds, answers = best_of(
            options.runs,
            {
                "faiss IndexFlatIP": lambda: flat.search(queries, k)[1],
                "nearest, 8 bits": lambda: eight_bits.nearest(asked, k, EightBitProduct()),
                "nearest, float32": lambda: float32.nearest(asked, k, NumpyProduct()),
                "numpy, blocked": lambda: blocked(k),
            },
        )
        slow, slow_answers = best_of(
            1,
            {
                "faiss 8 bits": lambda: quantizer.search(few, k)[1],
                "usearch i8": lambda: search(
                    codes, asked_codes, k, MetricKind.Cos, exact=True, threads=threads
                ).keys.astype(np.int64),
            },
        )
        for name, taken in slow.items():
            scale = len(queries) / len(few)
            seconds[name], answers[name] = Seconds(taken.wall * scale, taken.cpu * scale), slow_answers[name]
        print(
            f"\nk={k:<18} {'seconds':>9} {'CPU s':>9} {'GFLOP/s':>9} {'vs faiss':>9} {'CPU vs':>9} "
            f"{'ids as float64':>15} {'before, CPU s':>14}"
        )
        faiss_flat = seconds["faiss IndexFlatIP"]
        for name, taken in seconds.items():
            answer = answers[name]
            found = answer if isinstance(answer, np.ndarray) else _row_numbers(answer.image_id)
            before = f"{prepared[name].cpu:14.1f}" if name in prepared else ""
            print(
                f"{name:<20} {taken.wall:>9.2f} {taken.cpu:>9.2f} {flop / taken.wall / 1e9:>9.0f} "
                f"{faiss_flat.wall / taken.wall:>9.2f} {faiss_flat.cpu / taken.cpu:>9.2f} "
                f"{np.mean(found == truth[: len(found)]):>15.4%} {before}"
            )
        print(f"{'scipy cdist, scaled':<20} {cdist:>9.1f}")
        for name, goal in (("8 bits", EIGHT_BITS[k >= 100]), ("float32", 0.95)):
            goals.at_least(
                f"retrieval in {name} vs faiss, CPU time, k={k}",
                faiss_flat.cpu / seconds[f"nearest, {name}"].cpu,
                goal,
            )
            goals.agree(
                f"ids of {name} and float64 brute force, k={k}",
                np.array_equal(_row_numbers(answers[f"nearest, {name}"].image_id), truth),
            )
    return goals.exit_code


def _row_numbers(image_ids: np.ndarray) -> np.ndarray:
    return np.array([int(i[1:], 16) for i in image_ids.reshape(-1)]).reshape(image_ids.shape)
