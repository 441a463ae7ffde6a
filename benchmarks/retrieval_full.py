"""Retrieval at the size of Google Landmarks v2 clean: a synthetic index in the product's own store, searched
by its own step.

Measures seconds, the share of the bare product, bytes read and peak memory at 1/16, 1/4 and
all of the index. The index takes 13 GB of disk; it is deleted at the end.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import os
import shutil
import tempfile
import time

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import runner
from benchmarks import commands
from benchmarks.goals import Goals
from benchmarks.retrieval import GLDV2_IMAGES, Descriptors, cluster_sizes, mixed_queries
from transforms.arrays.dot_products import Product, fastest_product
from transforms.processes.settings import one_thread
from transforms.retrieval import QueryBlock, RetrieveNearest, plan_groups, read_query_block
from transforms.storage.feature_store import FeatureStore
from transforms.types import CandidateUnit, ImageFeatures, ImageRef, LocalFeatures

_NO_LOCAL = LocalFeatures(np.zeros((0, 2), np.float32), np.zeros((0, 0), np.float32))
_BLOCK_QUERIES = 4096


def write_store(
    root: str, landmarks: np.ndarray, descriptors: Descriptors, prefix: str, per_unit: int, seed: int
) -> list[tuple[str, int]]:
    """Writes images of these landmarks (int [N]) as a feature store; returns its units with their numbers of
    images.
    """
    store = FeatureStore(root)

    def write(start: int) -> tuple[str, int]:
        rows = descriptors.rows(landmarks[start : start + per_unit], seed + start)
        features = [
            ImageFeatures(
                ImageRef(f"{prefix}{start + n:015x}", "", 0, str(landmark)), 800, 600, 1.0, row, _NO_LOCAL
            )
            for n, (landmark, row) in enumerate(zip(landmarks[start : start + per_unit], rows))
        ]
        store.write_unit(f"{start:08d}", features, [], rows.shape[1])
        return f"{start:08d}", len(rows)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # writers wait for the disk most of the time
        return list(pool.map(write, range(0, len(landmarks), per_unit)))


def bare_rate(product: Product, width: int) -> float:
    """FLOP/s of the product alone, a thread per core, on operands that lie ready: the best of some shapes."""
    rng, cores = np.random.default_rng(0), len(os.sched_getaffinity(0))

    def unit_rows(count: int) -> np.ndarray:
        rows = rng.standard_normal((count, width), np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    best = 0.0
    with one_thread, concurrent.futures.ThreadPoolExecutor(cores) as pool:
        for queries, rows in ((512, 4096), (1024, 8192), (4096, 4096)):
            a, b = product.of_queries(unit_rows(queries)), product.of_index(unit_rows(rows))
            for _ in range(5):
                start = time.perf_counter()
                list(pool.map(lambda _: product.scores(a, b), range(cores)))
                best = max(best, 2 * queries * rows * width * cores / (time.perf_counter() - start))
    return best


def memory_held() -> int:
    """Bytes that this process and its children hold together."""
    import psutil

    held, me = 0, psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            held += process.memory_info().rss
    return held


@dataclasses.dataclass(frozen=True)
class Run:
    """One search: its seconds, descriptor bytes read, peak memory in bytes, and the candidates' ids by query
    id.
    """

    seconds: float
    bytes_read: int
    peak_memory: int
    found: dict[str, list[str]]


def retrieve(
    index_root: str,
    units: list[tuple[str, int]],
    query_root: str,
    blocks: list[QueryBlock],
    k: int,
    options: PipelineOptions,
) -> Run:
    """The product's retrieval step over some units of the index, on the local runner as the product runs
    it.
    """
    answers = tempfile.mkdtemp(dir=os.path.dirname(index_root))

    def build(pipeline: beam.Pipeline) -> None:
        units_found = (
            pipeline | beam.Create(blocks) | RetrieveNearest(index_root, query_root, k, plan_groups(units))
        )
        (
            units_found
            | beam.FlatMap(_lines).with_output_types(str)
            | beam.io.WriteToText(os.path.join(answers, "found"))
        )

    with commands.measuring(memory_held) as memory:
        start = time.perf_counter()
        metrics = runner.run_pipeline(build, options, [])
        seconds = time.perf_counter() - start
    found = {}
    for name in os.listdir(answers):
        with open(os.path.join(answers, name)) as f:
            found.update((ids[0], ids[1:]) for ids in map(str.split, f))
    shutil.rmtree(answers)
    return Run(seconds, metrics["retrieve_descriptor_bytes_read"], max(memory), found)


def _lines(unit: CandidateUnit) -> list[str]:
    return [" ".join([query.image_id, *(c.image_id for c in query.candidates)]) for query in unit.queries]


def brute_force(
    index_root: str, units: list[tuple[str, int]], queries: np.ndarray, k: int
) -> list[list[str]]:
    """Ids of the k best index images, in float64 rounded to float32, ties by id; reads 64 units at a time."""
    store, queries = FeatureStore(index_root), queries.astype(np.float64)
    best: list[list[tuple[float, str]]] = [[] for _ in queries]
    for start in range(0, len(units), 64):
        block = read_query_block(store, QueryBlock("", tuple(unit for unit, _ in units[start : start + 64])))
        scores = (queries @ block.descriptors.T.astype(np.float64)).astype(np.float32)
        kth = (
            np.partition(scores, -k, axis=1)[:, -k] if scores.shape[1] > k else np.full(len(scores), -np.inf)
        )
        for q, limit in enumerate(kth):
            near = [
                (-float(scores[q, j]), block.image_ids[j].decode())
                for j in np.flatnonzero(scores[q] >= limit)
            ]
            best[q] = sorted(best[q] + near)[:k]
    return [[image_id for _, image_id in row] for row in best]


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="run.py retrieval-full", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", default=tempfile.gettempdir(), help="where the index is written, 13 GB [%(default)s]"
    )
    parser.add_argument("--keep", action="store_true", help="leave the index there and use it again")
    parser.add_argument("--index", type=int, default=GLDV2_IMAGES, help="index images")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=2_048, help="of the descriptors")
    parser.add_argument(
        "--per-unit", type=int, default=64, help="images per shard; the product's own number is 64"
    )
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument(
        "--fractions", type=int, nargs="+", default=[16, 4, 1], metavar="N", help="1/N of the index"
    )
    parser.add_argument("--check", type=int, default=64, help="queries compared with float64 brute force")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> int:
    options, beam_flags = parse(argv)
    name = f"landmarks-retrieval-{options.index}-{options.queries}-{options.width}-{options.per_unit}"
    folder = os.path.join(options.folder, name)
    index_root, query_root = os.path.join(folder, "index"), os.path.join(folder, "queries")
    try:
        start = time.perf_counter()
        if not os.path.exists(os.path.join(folder, "complete")):
            shutil.rmtree(folder, ignore_errors=True)
            sizes = cluster_sizes(options.index)
            landmarks = np.random.default_rng(2).permutation(np.repeat(np.arange(len(sizes)), sizes))
            descriptors = Descriptors(options.width)
            write_store(index_root, landmarks, descriptors, "i", options.per_unit, 10)
            write_store(
                query_root,
                mixed_queries(len(sizes), options.queries),
                descriptors,
                "q",
                options.per_unit,
                10 + options.index,
            )
            open(os.path.join(folder, "complete"), "w").close()
            seconds = time.perf_counter() - start
            print(
                f"{options.index:,} images of {len(sizes):,} landmarks ({sizes[-1]:,} to {sizes[0]:,} each) "
                f"written in {seconds:.0f} s"
            )
        return measure(options, index_root, query_root, PipelineOptions(beam_flags))
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def measure(
    options: argparse.Namespace, index_root: str, query_root: str, beam_options: PipelineOptions
) -> int:
    """Runs the searches, prints the table and the goals' lines, and returns the exit code."""
    starts = range(0, options.index, options.per_unit)
    units = [(f"{s:08d}", min(options.per_unit, options.index - s)) for s in starts]
    query_units = [f"{s:08d}" for s in range(0, options.queries, options.per_unit)]
    step = max(1, _BLOCK_QUERIES // options.per_unit)
    blocks = [
        QueryBlock(f"{s:05d}", tuple(query_units[s : s + step])) for s in range(0, len(query_units), step)
    ]
    few = QueryBlock("", tuple(query_units[: -(-options.check // options.per_unit)]))
    checked = read_query_block(FeatureStore(query_root), few)
    product = fastest_product()
    cores = len(os.sched_getaffinity(0))
    print(
        f"{options.queries:,} queries, width {options.width}, k={options.k}, fast pass {product.name}, "
        f"{cores} cores"
    )
    print(
        f"{'index':>10} {'images':>10} {'seconds':>9} {'GFLOP/s':>9} {'bare GFLOP/s':>13} {'share':>7} "
        f"{'GB read':>8} {'peak GB':>8} {'us/image':>9}"
    )
    goals, per_image = Goals(), []
    shares, peaks = [], []
    for fraction in options.fractions:
        part = units[: -(-len(units) // fraction)]
        images = sum(count for _, count in part)
        before = bare_rate(product, options.width)
        run = retrieve(index_root, part, query_root, blocks, options.k, beam_options)
        peak = max(before, bare_rate(product, options.width))
        rate = 2 * images * options.queries * options.width / run.seconds
        shares.append(rate / peak)
        peaks.append(run.peak_memory)
        per_image.append(run.seconds / images)
        print(
            f"{'1/' + str(fraction):>10} {images:>10,} {run.seconds:>9.1f} {rate / 1e9:>9.0f} "
            f"{peak / 1e9:>13.0f} {rate / peak:>7.0%} "
            f"{run.bytes_read / 1e9:>8.1f} {run.peak_memory / 1e9:>8.2f} {1e6 * run.seconds / images:>9.1f}",
            flush=True,
        )
        truth = brute_force(index_root, part, checked.descriptors[: options.check], options.k)
        same = [run.found[i.decode()] for i in checked.image_ids[: options.check]] == truth
        goals.agree(
            f"ids of {len(truth)} queries and float64 brute force, 1/{fraction}",
            same and len(run.found) == options.queries,
        )
    goals.at_least("share of the bare product, whole index", shares[-1], 0.6)
    goals.at_most("peak memory of all processes, GB", max(peaks) / 1e9, 4)
    goals.at_most(
        "seconds per index image, whole index against its first part", per_image[-1] / per_image[0], 1.15
    )
    return goals.exit_code
