"""What grows with the data: bytes through each shuffle, the largest element, memory of a worker and of the
launcher.

Index and recognize run over 1, 4 and 16 times the photographs, each with two worker processes, and Beam's own
metrics tell the number and the size of the elements of every PCollection. The photographs are small ones cut
from the demo set, the model is the embedded one: neither is part of what travels. Then the launcher alone
matches, labels and plans up to a million names. Linux only.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from apache_beam.coders import registry
from PIL import Image

from beam_pipeline import demo
from benchmarks import commands
from benchmarks.goals import Goals
from benchmarks.retrieval import GLDV2_IMAGES
from transforms import retrieval
from transforms.storage import worklist
from transforms.types import (
    Candidate,
    CandidateUnit,
    FeatureLocation,
    ImageRef,
    ImageUnit,
    Neighbors,
    QueryCandidates,
)

_FEW_MB = 4.0
_SIDES = (192, 144)
_MANY_CANDIDATES = 100


def write_pictures(folder: pathlib.Path, index: int, queries: int) -> None:
    """Writes different small parts of the demo set's photographs: index/ and queries/, with index.csv (id,
    landmark_id).
    """
    paths = demo.make_demo(str(folder / "demo"))
    rng = np.random.default_rng(0)
    sources = {}
    for part, root in (("index", paths.index), ("queries", paths.queries)):
        sources[part] = [
            (path.parent.name, Image.open(path).convert("RGB"))
            for path in sorted(pathlib.Path(root).rglob("*.jpg"))
        ]
    labels: list[tuple[str, str]] = []
    for part, count in (("index", index), ("queries", queries)):
        (folder / part).mkdir()
        for n in range(count):
            label, picture = sources[part][n % len(sources[part])]
            sides = [int(side * rng.uniform(0.6, 1.0)) for side in picture.size]
            left, top = (int(rng.integers(whole - side + 1)) for whole, side in zip(picture.size, sides))
            cut = picture.crop((left, top, left + sides[0], top + sides[1])).resize(_SIDES)
            cut.save(folder / part / f"{part[0]}{n:015d}.jpg", quality=90)
            labels += [(f"{part[0]}{n:015d}", label)] if part == "index" else []
    commands.write_labels(folder / "index.csv", labels)


def write_names(folder: pathlib.Path, count: int) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes a list of file names as Google Landmarks v2 has them, and their labels; there are no such
    files.
    """
    names, labels = folder / f"{count}.txt", folder / f"{count}.csv"
    with open(names, "w") as listed, open(labels, "w") as table:
        table.write("id,landmark_id\n")
        for n in range(count):
            image_id = hashlib.sha256(str(n).encode()).hexdigest()[:16]
            listed.write(f"{'/'.join(image_id[:3])}/{image_id}.jpg\n")
            table.write(f"{image_id},{n % 81_313}\n")
    return names, labels


def full_size_elements() -> Iterator[tuple[str, int]]:
    """The elements of a job over Google Landmarks v2 as they come at most, with their encoded bytes."""
    per_unit = worklist.unit_size(GLDV2_IMAGES)
    names = (
        f"{n:06d}-{n:016x}" for n in itertools.count()
    )  # all different, as pickle writes what is equal only once

    def some(count: int) -> tuple[str, ...]:
        return tuple(itertools.islice(names, count))

    def place() -> FeatureLocation:
        return FeatureLocation(next(names), 10_000_000, 136_008)

    def candidate(n: int) -> Candidate:
        return Candidate(f"{n:016x}", f"{n:06d}", n / 1e6, place(), n, 1.0 + n / 1e6)

    refs = tuple(
        ImageRef(f"{n:016x}", f"gs://bucket/train/0/1/2/{n:016x}.jpg", 100_000 + n, f"{n:06d}")
        for n in range(per_unit)
    )
    blocks = tuple(
        retrieval.QueryBlock(f"{b:05d}", some(-(-retrieval.IMAGES_PER_BLOCK // per_unit)))
        for b in range(retrieval.BLOCKS_PER_TASK)
    )
    queries = tuple(
        QueryCandidates(
            f"{q:016x}", place(), tuple(candidate(1000 * q + n) for n in range(_MANY_CANDIDATES)), True
        )
        for q in range(retrieval.UNIT_QUERIES)
    )
    shape = (retrieval.ELEMENT_NEIGHBORS // _MANY_CANDIDATES, _MANY_CANDIDATES)
    neighbors = Neighbors(
        np.zeros(shape, np.float32),
        np.full(shape, 16 * b"f"),
        np.full(shape, 6 * b"9"),
        np.full(shape, next(names).encode()),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int32),
    )
    for name, element in (
        (f"unit of {per_unit} photographs", ImageUnit(next(names), refs)),
        (
            f"search of {len(blocks)} query blocks in {retrieval.GROUP_ROWS:,} images",
            (retrieval.IndexGroup(16 * "f", some(retrieval.GROUP_ROWS // per_unit)), blocks),
        ),
        (f"{retrieval.ELEMENT_NEIGHBORS:,} neighbours of queries", neighbors),
        (
            f"{retrieval.UNIT_QUERIES} queries with {_MANY_CANDIDATES} candidates",
            CandidateUnit(next(names), queries),
        ),
    ):
        yield name, len(registry.get_coder(type(element)).encode(element))


def shuffled(report: dict[str, Any]) -> dict[str, float]:
    """Bytes into each shuffle of a job, by the name of its step; before a combiner's lifting, where there is
    one.
    """
    sizes: dict[str, float] = {}
    for collection in report["collections"].values():
        for name in collection["shuffles"]:
            step = (
                name.split("/ReshufflePerKey")[0]
                .split("/CombineGlobally")[0]
                .split("/CoGroupByKey")[0]
                .removesuffix("/GroupByKey")
            )
            sizes[step] = sizes.get(step, 0.0) + collection["elements"] * collection["mean"]
    return sizes


def largest(report: dict[str, Any]) -> tuple[int, str]:
    """Bytes of the largest element of a job that was sampled, and what makes it."""
    return max((collection["largest"], name) for name, collection in report["collections"].items())


def measure_jobs(folder: pathlib.Path, args: argparse.Namespace, goals: Goals) -> None:
    """Runs both jobs over ever more photographs and prints what grows."""
    top = max(args.factors)
    write_pictures(folder, top * args.index, top * args.queries)
    reports: dict[str, list[dict[str, Any]]] = {"index": [], "recognize": []}
    for factor in args.factors:
        for part, count in (("index", factor * args.index), ("queries", factor * args.queries)):
            listed = sorted(path.name for path in (folder / part).iterdir())[:count]
            (folder / f"{part}.txt").write_text("".join(f"{part}/{name}\n" for name in listed))
        index, run = folder / f"index-{factor}", folder / f"run-{factor}"
        given = {"images": f"@{folder}/index.txt", "labels": folder / "index.csv", "output": index}
        reports["index"].append(_report(folder, "index", direct_num_workers=2, **given))
        given = {"images": f"@{folder}/queries.txt", "index": index, "output": run}
        reports["recognize"].append(_report(folder, "recognize", direct_num_workers=2, **given))
    for name, found in reports.items():
        images = [factor * (args.index if name == "index" else args.queries) for factor in args.factors]
        print(
            f"\n{name + ', photographs':<44}"
            + "".join(f"{count:>14,}" for count in images)
            + f"{'last / first':>14}"
        )
        for step in shuffled(found[0]):
            _row(f"shuffle {step}, bytes", [shuffled(report)[step] for report in found])
        _row(
            "all shuffles, bytes per photograph",
            [sum(shuffled(r).values()) / count for r, count in zip(found, images)],
        )
        _row("largest element, bytes", [largest(report)[0] for report in found])
        _row("graph, bytes", [report["graph"] for report in found])
        _row("worker, peak MB", [report["worker"] / 1e6 for report in found])
        _row("launcher with the runner, peak MB", [report["launcher"] / 1e6 for report in found])
        _row("seconds", [report["seconds"] for report in found])
        print(f"largest element: made by {largest(found[-1])[1]}")
        goals.at_most(
            f"{name}, worker's memory, {top} times the photographs / 1",
            found[-1]["worker"] / found[0]["worker"],
            1.15,
        )
        goals.at_most(
            f"{name}, shuffled kB per photograph", sum(shuffled(found[-1]).values()) / images[-1] / 1000, 10.0
        )
        goals.at_most(
            f"{name}, largest element, MB", max(largest(report)[0] for report in found) / 1e6, _FEW_MB
        )


def _report(folder: pathlib.Path, *arguments: Any, **flags: Any) -> dict[str, Any]:
    commands.run("benchmarks.scale_job", folder / "report.json", *arguments, **flags)
    return json.loads((folder / "report.json").read_text())


def _row(name: str, values: Sequence[float]) -> None:
    ratio = f"{values[-1] / values[0]:>14.2f}" if values[0] else ""
    print(f"{name:<44}" + "".join(f"{value:>14,.0f}" for value in values) + ratio)


def measure_launcher(folder: pathlib.Path, counts: Sequence[int], goals: Goals) -> None:
    """Matches, labels and plans ever more names, and prints what that takes."""
    print(
        f"\n{'launcher, names':<18}{'match s':>10}{'plan s':>10}{'graph s':>10}{'peak MB':>10}"
        f"{'beyond the model':>18}{'plan MB':>10}{'graph MB':>10}"
    )
    held = before = 0
    for count in counts:
        names, labels = write_names(folder, count)
        before = held
        report = _report(folder, "launch", names, labels, folder / f"plan-{count}")
        held = report["launcher"] - report["before"]
        seconds = "".join(f"{report['seconds'][step]:>10.1f}" for step in ("match", "plan", "graph"))
        print(
            f"{count:<18,}{seconds}{report['launcher'] / 1e6:>10,.0f}{held / 1e6:>18,.0f}"
            f"{report['plan'] / 1e6:>10.1f}{report['graph'] / 1e6:>10.2f}",
            flush=True,
        )
    each = (held - before) / (counts[-1] - counts[-2])
    print(f"{each:,.0f} bytes a name")
    goals.at_most(
        f"launcher at {GLDV2_IMAGES:,} names, GB beyond the model",
        (held + each * (GLDV2_IMAGES - counts[-1])) / 1e9,
        1.0,
    )
    goals.at_most(
        f"graph at {GLDV2_IMAGES:,} names, MB", report["graph"] / counts[-1] * GLDV2_IMAGES / 1e6, 10.0
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py scale", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--index", type=int, default=256, help="index photographs, the first time [%(default)s]"
    )
    parser.add_argument(
        "--queries", type=int, default=128, help="query photographs, the first time [%(default)s]"
    )
    parser.add_argument(
        "--factors",
        type=int,
        nargs="+",
        default=[1, 4, 16],
        metavar="N",
        help="times the photographs, ascending",
    )
    parser.add_argument(
        "--names",
        type=int,
        nargs="+",
        default=[10_000, 100_000, 1_000_000],
        metavar="N",
        help="file names for the launcher, ascending",
    )
    args = parser.parse_args(argv)
    goals = Goals()
    print(commands.machine())
    with tempfile.TemporaryDirectory(prefix="landmarks-scale-") as temporary:
        measure_jobs(pathlib.Path(temporary), args, goals)
        print(f"\n{'elements at the size of Google Landmarks v2':<54}{'bytes':>12}")
        for name, size in full_size_elements():
            print(f"{name:<54}{size:>12,}")
            goals.at_most(f"{name}, MB", size / 1e6, _FEW_MB)
        measure_launcher(pathlib.Path(temporary), args.names, goals)
    return goals.exit_code
