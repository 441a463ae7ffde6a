"""Seconds, memory and size of `landmarks report` on a run of the size of a competition's, with a truth and
against another run.

The runs are synthetic: queries, candidates and landmarks are drawn, a tenth of the landmarks draw half of the
queries. Their photographs are those of a folder, over and over, and so is a block of random local features.
"""

import argparse
import csv
import dataclasses
import pathlib
import sys
import tempfile

import numpy as np
import pyarrow as pa

from beam_pipeline import outputs
from beam_pipeline.manifest import IndexCounts, IndexManifest, RunCounts, RunManifest
from beam_pipeline.recipe import Recipe
from benchmarks import commands
from benchmarks.goals import Goals
from transforms.models import catalog
from transforms.storage import files
from transforms.storage.feature_store import FeatureStore, ShardSummary, encode_local_features, image_schema
from transforms.storage.run_store import PREDICTION_SCHEMA
from transforms.types import LocalFeatures, ReadingConfig, VerificationSettings

DIMENSIONS, FEATURES, WIDTH = 8, 400, 64  # of the synthetic stores
UNIT_QUERIES, UNIT_IMAGES = 32, 4096
RIGHT, NO_LANDMARK = 0.7, 0.3  # of the answers, of the queries


def write_store(root: str, ids: list[str], landmarks: list[str | None], photographs: list[str]) -> tuple:
    """Writes a feature store whose images share photographs and local features; returns its summaries."""
    rng, summaries = np.random.default_rng(0), []
    points = rng.uniform(0, 400, (FEATURES, 2)).astype(np.float32)
    block = encode_local_features(
        LocalFeatures(points, rng.standard_normal((FEATURES, WIDTH)).astype(np.float32))
    )
    for at in range(0, len(ids), UNIT_IMAGES):
        unit, n = f"{at:016x}", len(ids[at : at + UNIT_IMAGES])
        uris = [photographs[i % len(photographs)] for i in range(at, at + n)]
        vectors = pa.array(np.zeros(n * DIMENSIONS, np.float32))
        same = [(640, pa.int32()), (480, pa.int32()), (1.0, pa.float32()), (FEATURES, pa.int32())]
        schema = image_schema(DIMENSIONS)
        table = pa.Table.from_arrays(
            [
                pa.array(ids[at : at + n], pa.string()),
                pa.array(landmarks[at : at + n], pa.string()),
                pa.array(uris, pa.string()),
                *(pa.array([value] * n, kind) for value, kind in same),
                pa.array([0] * n, pa.int64()),
                pa.array([len(block)] * n, pa.int32()),
                pa.nulls(n, pa.string()),
                pa.FixedSizeListArray.from_arrays(vectors, type=schema.field("global_descriptor").type),
            ],
            schema=schema,
        )
        files.write_bytes(files.join(root, "local_features", unit + ".bin"), block)
        files.write_parquet(files.join(root, "images", unit + ".parquet"), table)
        summaries.append(ShardSummary(unit, n, {}))
    return tuple(summaries)


def write_predictions(run: str, seed: int, queries: int, index_landmarks: list[str], candidates: int) -> None:
    """Writes the predictions of a synthetic run, a shard for UNIT_QUERIES of them."""
    rng = np.random.default_rng(seed)
    images = len(index_landmarks)
    for at in range(0, queries, UNIT_QUERIES):
        rows = []
        for q in range(at, min(at + UNIT_QUERIES, queries)):
            hub = rng.random() < 0.5
            first = int(rng.integers(images // 10 if hub else images))
            scores = np.sort(rng.random(candidates))[::-1]
            places = [first, *rng.integers(images, size=candidates - 1).tolist()]
            found = [
                {
                    "image_id": f"{p:016x}",
                    "landmark_id": index_landmarks[p],
                    "similarity": float(s),
                    "inliers": int(50 * s),
                    "score": float(s),
                }
                for p, s in zip(places, scores)
            ]
            row = dict.fromkeys(PREDICTION_SCHEMA.names)
            row |= {
                "image_id": f"q{q:015x}",
                "landmark_id": index_landmarks[first],
                "score": float(scores[0]),
            }
            rows.append(row | {"candidates": found, "verified": True})
        table = pa.Table.from_pylist(rows, PREDICTION_SCHEMA)
        files.write_parquet(files.join(run, "predictions", f"00000-{at:06d}.parquet"), table)


def write_truth(path: pathlib.Path, run: str, queries: int, index_landmarks: list[str]) -> None:
    """Writes a truth by which RIGHT of the answers of a run are right, and NO_LANDMARK of the queries show
    none.
    """
    rng = np.random.default_rng(7)
    answers = {}
    for uri in files.list_files(files.join(run, "predictions"), ".parquet"):
        table = files.read_parquet(uri, ["image_id", "landmark_id"])
        answers.update(zip(table["image_id"].to_pylist(), table["landmark_id"].to_pylist()))
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("id", "landmarks", "Usage"))
        for image_id, landmark in answers.items():
            other = index_landmarks[int(rng.integers(len(index_landmarks)))]
            shown = "" if rng.random() < NO_LANDMARK else landmark if rng.random() < RIGHT else other
            writer.writerow((image_id, shown, "Private"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands.add_photos_flag(parser)
    parser.add_argument("--queries", type=int, default=118_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--index", type=int, default=1_580_470, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--landmarks", type=int, default=81_313, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=20, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    photographs = [row.path for row in commands.photographs(args.photos)]
    with tempfile.TemporaryDirectory(prefix="landmarks-report-") as temporary:
        folder = pathlib.Path(temporary)
        index, runs = str(folder / "index"), [str(folder / name) for name in ("run", "other")]
        landmarks = [str(i % args.landmarks) for i in range(args.index)]
        ids = [f"{i:016x}" for i in range(args.index)]
        shards = write_store(index, ids, landmarks, photographs)
        recipe = Recipe("embedded", "synthetic", "0" * 64, catalog.settings("embedded"), ReadingConfig())
        common = dict(recipe=recipe, seconds={"total": 0.0})
        counts = IndexCounts(args.index, args.index, 0, 0, 0)
        made = dict(global_dimensions=DIMENSIONS, has_local_features=True, counts=counts, failures={})
        outputs.finish(index, IndexManifest(shards=shards, **made, **common))
        store = FeatureStore(str(folder / "queries"))
        queries = [f"q{i:015x}" for i in range(args.queries)]
        of_queries = write_store(store.root, queries, [None] * args.queries, photographs[::-1])
        for seed, run in enumerate(runs):
            write_predictions(run, seed, args.queries, landmarks, args.candidates)
            manifest = RunManifest(
                shards=of_queries,
                index=index,
                query_store=store.root,
                hyperparameters={
                    "num_to_rerank": args.candidates,
                    "top_k": 3,
                    **dataclasses.asdict(VerificationSettings()),
                },
                reranked=True,
                counts=RunCounts(args.queries, args.queries, args.queries, 0, 0),
                files={},
                **common,
            )
            outputs.finish(run, manifest)
        write_truth(folder / "truth.csv", runs[0], args.queries, landmarks)
        print(commands.machine(f"{args.queries:,} queries, {args.index:,} index photographs"), flush=True)
        report = folder / "report"
        given = {"truth": folder / "truth.csv", "against": runs[1], "output": report}
        made = commands.landmarks("report", run=runs[0], **given)
        size = sum(path.stat().st_size for path in report.rglob("*") if path.is_file())
        print(f"{made.seconds:.0f} s, {made.cpu:.0f} s of CPU", flush=True)
    goals = Goals()
    goals.at_most("peak memory, GB", made.peak_bytes / 1e9, 1)
    goals.at_most("size on disk, MB", size / 1e6, 300)
    return goals.exit_code


if __name__ == "__main__":
    sys.exit(main())
