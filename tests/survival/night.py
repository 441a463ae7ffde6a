"""The night of Google Landmarks v2 in small: an index, its calibration and a submission from views of a
folder's photographs, in twelve hours scaled alike, with kills on the way. Linux, with the extra `bench`.

    python tests/survival/night.py --folder NIGHT [--photos DIR] [--photographs 100000] [--kills 6] [--seed N]

Views are parts of the photographs, of sizes and qualities as in the data set, in archives of the published
layout. First a tenth of them goes through without kills, then all do: index and recognize have what is left
of the night as their time budget, each command is killed with its whole process group by SIGKILL at moments
drawn over the night, and is started again. Prints rates, memory and forecasts of both; ends with 1 where the
night was too short, a query lacks its row, or a photograph takes more memory or time as the index grows.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from beam_pipeline.gldv2 import published  # noqa: E402
from benchmarks.commands import Photograph, photographs  # noqa: E402
from benchmarks.goals import Goals, processor  # noqa: E402
from tests.survival.kill import Command, kill_group, start  # noqa: E402

INDEX_IMAGES, QUERIES = published.PARTS["train_clean"].kept, published.PARTS["test"].images
_PER_ARCHIVE = 1000
_SIDES, _QUALITIES, _PARTS = (560, 800), (80, 95), (0.6, 1.0)
_INDEXED, _CALIBRATED = 0.75, 0.87  # of the night is over then; what a command leaves of it goes to the next
_SAMPLE_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class View:
    """A part of a photograph that goes for a photograph of its own; `image_id` decides which part."""

    image_id: str
    photograph: str
    label: str


def views(photos: Sequence[Photograph], part: str, count: int, seed: int) -> list[View]:
    """`count` views of all `photos`, one after the other."""
    return [
        View(hashlib.md5(f"{seed} {part} {n}".encode()).hexdigest()[:16], photo.path, photo.label)
        for n, photo in enumerate(itertools.islice(itertools.cycle(photos), count))
    ]


def jpeg(view: View) -> bytes:
    """The view as a JPEG file."""
    rng = random.Random(view.image_id)
    with Image.open(view.photograph) as image:
        photograph = image.convert("RGB")
    width, height = (side * rng.uniform(*_PARTS) for side in photograph.size)
    left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
    scale = rng.uniform(*_SIDES) / max(width, height)
    size = round(width * scale), round(height * scale)
    content = io.BytesIO()
    photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height)).save(
        content, "JPEG", quality=rng.randint(*_QUALITIES)
    )
    return content.getvalue()


def write_archive(path: pathlib.Path, members: Sequence[View]) -> None:
    """Writes an archive of the published layout; nothing lies at `path` until it is whole."""
    part = path.with_suffix(".part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for view in members:
            content = jpeg(view)
            info = tarfile.TarInfo("/".join([*view.image_id[:3], f"{view.image_id}.jpg"]))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    part.rename(path)


def write_data(data: pathlib.Path, photos: pathlib.Path, images: int, queries: int, seed: int) -> None:
    """Writes DATA as `landmarks gldv2 download` leaves it, but for archives that are there already: views of
    three quarters of the photographs with a label, and as queries of the others and of those without.
    """
    found = photographs(photos)
    labelled = [photo for photo in found if photo.label]
    kept = len(labelled) * 3 // 4
    index = views(labelled[:kept], "index", images, seed)
    asked = views([*labelled[kept:], *(photo for photo in found if not photo.label)], "test", queries, seed)
    landmarks: dict[str, list[str]] = {}
    for view in index:
        landmarks.setdefault(view.label, []).append(view.image_id)
    for name, members in (("train_clean", index), ("test", asked)):
        (data / name).mkdir(parents=True, exist_ok=True)
        archives = {
            data / name / published.archive_name(at // _PER_ARCHIVE): members[at : at + _PER_ARCHIVE]
            for at in range(0, len(members), _PER_ARCHIVE)
        }
        missing = {path: some for path, some in archives.items() if not path.exists()}
        with concurrent.futures.ProcessPoolExecutor() as pool:
            list(pool.map(write_archive, missing.keys(), missing.values()))
    with open(data / "train_clean.csv", "w", newline="") as f:
        csv.writer(f).writerows(
            [("landmark_id", "images"), *((label, " ".join(ids)) for label, ids in landmarks.items())]
        )
    with open(data / "recognition_solution_v2.1.csv", "w", newline="") as f:
        rows = ((view.image_id, view.label if view.label in landmarks else "", "Private") for view in asked)
        csv.writer(f).writerows([("id", "landmarks", "Usage"), *rows])


@dataclasses.dataclass
class Night:
    """Commands that are started one after the other, and killed at some moments.

    Attributes:
      folder: they run in it, and write to it.
      seconds: of the night.
      kills: moments of it, in seconds from its start, in their order.
      memory: bytes of all processes of a command, what they share counted once (PSS), every few seconds.
      took: seconds of each command, all its starts together.
    """

    folder: pathlib.Path
    seconds: float
    kills: list[float]
    begun: float = dataclasses.field(default_factory=time.monotonic)
    memory: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    took: dict[str, float] = dataclasses.field(default_factory=dict)
    killed: list[str] = dataclasses.field(default_factory=list)

    @property
    def gone(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.begun

    def command(self, name: str, *arguments: str, until: float | None = None) -> None:
        """Runs a command to its end, however often it is killed.

        Args:
          until: part of the night that is over when its time budget ends; None: it has none.

        Raises:
          SystemExit: it failed.
        """
        begun = self.gone
        while True:
            budget = (
                [] if until is None else [f"--time_budget={max(1.0, until * self.seconds - self.gone):.0f}s"]
            )
            code = self._start(name, *arguments, *budget)
            if code is not None:
                break
        self.took[name] = self.gone - begun
        if code:
            raise SystemExit(f"{name} ended with {code}; see {self.folder / name}.log")

    def _start(self, name: str, *arguments: str) -> int | None:
        """Starts a command once; returns its exit code, None where it was killed."""
        log_name = f"{name}.log"
        with open(self.folder / log_name, "a") as log:
            print("landmarks", *arguments, file=log)
        process = start(Command(name, "", arguments), self.folder, (), log_name)
        try:
            while True:
                kill_in = self.kills[0] - self.gone if self.kills else _SAMPLE_SECONDS
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(max(0.0, min(kill_in, _SAMPLE_SECONDS)))
                self.memory.setdefault(name, []).append(_memory(process.pid))
                if self.kills and self.kills[0] <= self.gone:
                    self.killed.append(f"{name} at {self.kills.pop(0):.0f} s")
                    return None
        finally:
            kill_group(process)


def _memory(pid: int) -> int:
    import psutil

    held = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [parent := psutil.Process(pid), *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                held += process.memory_full_info().pss
    return held


def run_night(folder: pathlib.Path, data: pathlib.Path, seconds: float, kills: Sequence[float]) -> Night:
    """Runs the three commands in `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    night = Night(folder, seconds, sorted(kills))
    index = ("--images", f"{data}/train_clean", "--labels", f"{data}/train_clean.csv", "--output", "index")
    night.command("index", "index", *index, until=_INDEXED)
    night.command(
        "calibrate", "calibrate", "--index", "index", "--non_landmark_share", "0.98", until=_CALIBRATED
    )
    asked = ("--images", f"{data}/test", "--truth", f"{data}/recognition_solution_v2.1.csv")
    night.command(
        "recognize",
        *("recognize", *asked, "--index", "index", "--preset", "tuned", "--output", "run"),
        until=1.0,
    )
    return night


def extraction_rates(images: pathlib.Path, parts: int) -> list[float]:
    """Photographs per second of so many equal parts of an index, as the times of its shards tell."""
    shards = sorted(
        (path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in images.glob("*.parquet")
    )
    edges, rates = [round(n * (len(shards) - 1) / parts) for n in range(parts + 1)], []
    for first, last in itertools.pairwise(sorted({*edges})):
        rates.append(
            sum(rows for _, rows in shards[first + 1 : last + 1]) / (shards[last][0] - shards[first][0])
        )
    return rates


def show(night: Night, data: pathlib.Path) -> dict[str, Any]:
    """Prints what came of a night; returns its manifests by command and its rates."""
    manifests = {
        name: json.loads((night.folder / output / "manifest.json").read_text())
        for name, output in (("index", "index"), ("recognize", "run"))
    }
    rates = extraction_rates(night.folder / "index" / "images", 10)
    print(f"{night.gone:.0f} of {night.seconds:.0f} s; killed: {', '.join(night.killed) or 'nothing'}")
    for name, seconds in night.took.items():
        memory = night.memory[name]
        print(
            f"  {name:<10}{seconds:8.0f} s, memory of all its processes {max(memory) / 1e6:,.0f} MB at most"
        )
        for stage, values in (manifests.get(name, {}).get("time_budget") or {}).get("stages", {}).items():
            each = (
                f", {1000 * values['happened'] / values['number']:.3g} ms each"
                if values.get("number")
                else ""
            )
            print(
                f"    {stage:<10}{values.get('number', 0):>9,}: forecast {values['forecast']:,.1f} s, "
                f"was {values['happened']:,.1f} s{each}"
            )
        if name in manifests:
            print(f"    {json.dumps(manifests[name]['counts'])}")
    print("  extraction, photographs a second by tenths: " + " ".join(f"{rate:.1f}" for rate in rates))
    metrics = json.loads((night.folder / "run" / "metrics.json").read_text())["all"]
    print("  " + ", ".join(f"{name} {metrics[name]:.4f}" for name in ("gap", "gap_landmark_queries", "top1")))
    for name, files in (("index", "index"), ("data", data)):
        size = sum(path.stat().st_size for path in (night.folder / files).rglob("*") if path.is_file())
        print(f"  {name}: {size / 1e9:.2f} GB", flush=True)
    return {"manifests": manifests, "rates": rates}


def plans(folder: pathlib.Path, data: pathlib.Path, images: int, queries: int) -> Iterator[str]:
    """What `landmarks plan` says of the whole night, from a tenth."""
    common = (
        "index",
        "--images",
        f"{data}/train_clean",
        "--labels",
        f"{data}/train_clean.csv",
        "--output",
        "plan",
    )
    asked = (
        "recognize",
        "--images",
        f"{data}/test",
        "--index",
        "index",
        "--preset",
        "tuned",
        "--output",
        "plan",
    )
    for arguments in (
        (*common, "--photographs", str(images)),
        (*asked, "--photographs", str(queries), "--index_photographs", str(images)),
    ):
        yield subprocess.run(
            [sys.executable, "-m", "beam_pipeline", "plan", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            text=True,
            stdout=subprocess.PIPE,
        ).stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the views, runs both nights; returns 1 on any violation."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--folder", type=pathlib.Path, required=True, help="views and results; 150 kB a photograph"
    )
    parser.add_argument(
        "--photos", type=pathlib.Path, default=os.environ.get("LANDMARKS_PHOTOS"), metavar="DIR"
    )
    parser.add_argument(
        "--photographs", type=int, default=100_000, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=6, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--hours", type=float, default=12, help="for all of the data set (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only_data", action="store_true", help="make the views and stop")
    args = parser.parse_args(argv)
    if args.photos is None:
        parser.error("--photos, or LANDMARKS_PHOTOS, is required")
    folder, goals, rng = args.folder.resolve(), Goals(), random.Random(args.seed)
    counts = {}
    for name, photographs_ in (("tenth", args.photographs // 10), ("whole", args.photographs)):
        queries = round(photographs_ * QUERIES / (INDEX_IMAGES + QUERIES))
        counts[name] = photographs_ - queries, queries
        write_data(folder / name / "data", args.photos, *counts[name], args.seed)
    if args.only_data:
        return 0
    print(f"{processor()[0]}: {', '.join(processor()[1])}; {len(os.sched_getaffinity(0))} cores")
    whole = args.hours * 3600 * args.photographs / (INDEX_IMAGES + QUERIES)
    found = {}
    for name, seconds, kills in (
        ("tenth", args.hours * 3600, []),
        ("whole", whole, [rng.uniform(0.02, 0.95) * whole for _ in range(args.kills)]),
    ):
        images, queries = counts[name]
        print(f"\n{name}: {images:,} index photographs, {queries:,} queries", flush=True)
        night = run_night(folder / name / "night", folder / name / "data", seconds, kills)
        found[name] = show(night, folder / name / "data")
        if name == "tenth":
            for text in plans(night.folder, folder / name / "data", *counts["whole"]):
                print(text, flush=True)
    with open(night.folder / "run" / "submission.csv", newline="") as f:
        rows = {row["id"]: row["landmarks"] for row in csv.DictReader(f)}
    goals.at_most("seconds of the night", night.gone, night.seconds)
    goals.at_least("part of the queries that have their row", len(rows) / counts["whole"][1], 1.0)
    rates = {name: statistics.median(result["rates"]) for name, result in found.items()}
    goals.at_least("extraction, photographs a second, whole / tenth", rates["whole"] / rates["tenth"], 0.9)
    goals.at_least(
        "the same, second half of the whole / first half",
        statistics.median(found["whole"]["rates"][5:]) / statistics.median(found["whole"]["rates"][:5]),
        0.9,
    )
    memory = night.memory["index"]
    half = len(memory) // 2
    goals.at_most("memory of index, second half / first half", max(memory[half:]) / max(memory[:half]), 1.1)
    goals.at_most("memory of any command, GB", max(map(max, night.memory.values())) / 1e9, 2.0)
    return 1 if goals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
