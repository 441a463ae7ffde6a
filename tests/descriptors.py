"""Global descriptors for tests, and their neighbours in plain loops."""

import math

import numpy as np

from transforms.arrays.nearest import DescriptorBlock, IndexBlock


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """float32 rows of unit length in the directions of `rows`."""
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ids(prefix: str, count: int) -> list[str]:
    """Image ids in ascending order."""
    return [f"{prefix}{i:05d}" for i in range(count)]


def index_of(descriptors: np.ndarray, image_ids: list[str] | None = None) -> IndexBlock:
    """Index images; by default their ids begin with x."""
    count = len(descriptors)
    names = np.array([i.encode() for i in image_ids or ids("x", count)], "S")
    labels, units = (
        np.array([b"label-%d" % (i % 7) for i in range(count)], "S"),
        np.array([b"u%d" % (i // 50) for i in range(count)], "S"),
    )
    return IndexBlock(
        names, descriptors, labels, units, np.arange(count) * 1000, np.arange(count, dtype=np.int32)
    )


def queries_of(descriptors: np.ndarray, image_ids: list[str] | None = None) -> DescriptorBlock:
    """Query images; by default their ids begin with q."""
    return DescriptorBlock(
        np.array([i.encode() for i in image_ids or ids("q", len(descriptors))], "S"), descriptors
    )


def brute_force(
    queries: DescriptorBlock, index: IndexBlock, k: int
) -> tuple[list[list[bytes]], list[list[float]]]:
    """Ids and scores of the k best, in plain loops."""
    all_ids, all_scores = [], []
    for q in queries.descriptors:
        scored = []
        for j, x in enumerate(index.descriptors):
            cosine = math.fsum(q.astype(np.float64) * x)
            scored.append((-np.float32(cosine), bytes(index.image_ids[j])))
        scored = sorted(scored)[:k]
        all_ids.append([i for _, i in scored] + [b""] * (k - len(scored)))
        all_scores.append([-s for s, _ in scored] + [-np.inf] * (k - len(scored)))
    return all_ids, all_scores


def near_ties(rng: np.random.Generator, count: int, width: int, spread: float) -> np.ndarray:
    """Unit rows [count, width] about three centres, as far from them as `spread`."""
    centres = unit_rows(rng.standard_normal((3, width)))
    return unit_rows(
        centres[rng.integers(0, 3, count)] + spread * rng.standard_normal((count, width)) / np.sqrt(width)
    )
