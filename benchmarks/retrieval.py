"""Exact retrieval against what a user would take instead: FAISS's flat index, NumPy's blocked product,
SciPy's cdist per query.

All in one process, on the same threads and the same clustered descriptors. Every answer is compared with
float64 brute force.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.goals import Goals
from transforms.arrays.dot_products import TensorFlowProduct, fastest_product
from transforms.arrays.nearest import DescriptorBlock, IndexBlock, nearest

# Google Landmarks v2 clean: images, landmarks, images of the largest landmark; of the smallest, 2.
GLDV2_IMAGES, GLDV2_LANDMARKS, GLDV2_LARGEST = 1_580_470, 81_313, 6_272


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
    """Seconds of the notebook's search of these queries: for each a cdist with all float64 embeddings and a
    partition.
    """
    from scipy.spatial import distance

    queries, rows = queries.astype(np.float64), rows.astype(np.float64)
    start = time.perf_counter()
    for query in queries:
        distances = distance.cdist(rows, query[None], "euclidean")[:, 0]
        np.argpartition(distances, 3)[:3]
    return time.perf_counter() - start


def best_of(runs: int, ways: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Fewest seconds of each way, and its last answer; the ways take turns, so that a slow moment meets them
    all.
    """
    seconds: dict[str, float] = {}
    answers: dict[str, Any] = {}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.perf_counter()
            answers[name] = way()
            seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - start)
    return seconds, answers


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py retrieval", description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=int, default=200_000, help="index images")
    parser.add_argument("--queries", type=int, default=1_024)
    parser.add_argument("--width", type=int, default=2_048, help="of the descriptors")
    parser.add_argument("--k", type=int, nargs="+", default=[3, 100])
    parser.add_argument("--runs", type=int, default=3, help="of which the fastest counts")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    import faiss

    threads = len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(threads)
    sizes = cluster_sizes(options.index)
    landmarks = np.random.default_rng(2).permutation(np.repeat(np.arange(len(sizes)), sizes))
    descriptors = Descriptors(options.width)
    rows = np.concatenate([descriptors.rows(landmarks[t], 10 + t.start) for t in tiles(options.index, 8192)])
    queries = descriptors.rows(mixed_queries(len(sizes), options.queries), 1)
    index, asked = index_block(landmarks, rows), query_block(queries)
    flat = faiss.IndexFlatIP(options.width)
    flat.add(rows)
    float32 = TensorFlowProduct()  # from here on TensorFlow is there for the fastest product to be
    fastest = fastest_product()
    flop = 2 * options.index * options.queries * options.width

    print(
        f"{options.index:,} x {options.width} index in {len(sizes):,} clusters, {options.queries:,} queries, "
        f"{threads} threads, "
        f"{platform.machine()}, fast pass {fastest.name}, faiss {faiss.__version__}, numpy {np.__version__}"
    )
    part = queries[: min(8, len(queries))], rows[:20_000]
    cdist = cdist_seconds(*part) * len(queries) / len(part[0]) * len(rows) / len(part[1])
    goals, all_truth = Goals(), brute_force(queries, rows, max(options.k))
    for k in options.k:
        truth = all_truth[:, :k]
        seconds, answers = best_of(
            options.runs,
            {
                "faiss": lambda: flat.search(queries, k)[1],
                fastest.name: lambda: nearest(asked, index, k, fastest),
                "float32": lambda: nearest(asked, index, k, float32),
                "numpy": lambda: numpy_blocked(queries, rows, k),
            },
        )
        print(f"\nk={k:<18} {'seconds':>10} {'GFLOP/s':>10} {'vs faiss':>10} {'ids as float64':>16}")
        for name, label in {
            fastest.name: f"nearest, {fastest.name}",
            "float32": "nearest, float32",
            "faiss": "faiss IndexFlatIP",
            "numpy": "numpy, blocked",
        }.items():
            answer = answers[name]
            found = answer if isinstance(answer, np.ndarray) else _row_numbers(answer.image_id)
            print(
                f"{label:<20} {seconds[name]:>10.3f} {flop / seconds[name] / 1e9:>10.0f} "
                f"{seconds['faiss'] / seconds[name]:>10.2f} "
                f"{np.mean(found == truth):>16.4%}"
            )
        print(
            f"{'scipy cdist, scaled':<20} {cdist:>10.1f} {flop / cdist / 1e9:>10.1f} "
            f"{seconds['faiss'] / cdist:>10.4f}"
        )
        if fastest.name != "float32":
            goals.at_least(f"retrieval vs faiss, k={k}", seconds["faiss"] / seconds[fastest.name], 2.5)
        goals.at_least(f"retrieval in float32 vs faiss, k={k}", seconds["faiss"] / seconds["float32"], 0.95)
        for name in {fastest.name, "float32"}:
            goals.agree(
                f"ids of {name} and float64 brute force, k={k}",
                np.array_equal(_row_numbers(answers[name].image_id), truth),
            )
    return goals.exit_code


def _row_numbers(image_ids: np.ndarray) -> np.ndarray:
    return np.array([int(i[1:], 16) for i in image_ids.reshape(-1)]).reshape(image_ids.shape)
