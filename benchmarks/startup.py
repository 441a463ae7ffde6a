"""Start-up: `landmarks --help`, and a recognize run of a few photographs with the embedded model, from start
to exit.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from benchmarks import commands
from benchmarks.goals import Goals

INDEX = 64  # photographs of the index that is asked


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py startup", description=__doc__)
    commands.add_photos_flag(parser)
    parser.add_argument(
        "--queries", type=int, default=10, metavar="N", help="query photographs (default: %(default)s)"
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="of which the median counts (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    print(commands.machine())
    rows = [row for row in commands.photographs(args.photos) if row.label][: INDEX + args.queries]
    goals = Goals()
    with tempfile.TemporaryDirectory(prefix="landmarks-startup-") as temporary:
        folder = pathlib.Path(temporary)
        images = commands.write_list(folder / "index.txt", (row.path for row in rows[:INDEX]))
        queries = commands.write_list(folder / "queries.txt", (row.path for row in rows[INDEX:]))
        labels = commands.write_labels(folder / "labels.csv", ((row.id, row.label) for row in rows[:INDEX]))
        index = folder / "index"
        commands.landmarks("index", images=images, labels=labels, output=index)
        helping = [commands.landmarks("--help") for _ in range(args.runs)]
        recognizing = [
            commands.landmarks("recognize", images=queries, index=index, output=folder / f"run{i}")
            for i in range(args.runs)
        ]
    goals.at_most("landmarks --help, seconds", _median("landmarks --help", helping), 0.5)
    name = f"recognize of {args.queries} photographs"
    goals.at_most(f"{name}, seconds", _median(name, recognizing), 3)
    print(f"its peak memory: {max(run.peak_bytes for run in recognizing) / 1e9:.2f} GB")
    heavy = (
        "import sys, beam_pipeline.main as m; m.build_parser(); print(any(p in sys.modules for p in "
        "('tensorflow', 'apache_beam', 'cv2')))"
    )
    imported = subprocess.run(
        [sys.executable, "-c", heavy], cwd=commands.ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    goals.agree("modules of --help and of a program without TensorFlow, Beam and OpenCV", imported == "False")
    return goals.exit_code


def _median(name: str, runs: Sequence[commands.Run]) -> float:
    """Of the seconds from start to exit; tells all of them, and those of CPU, which other work on the machine
    changes less.
    """
    seconds = [run.seconds for run in runs]
    print(f"{name}: {', '.join(f'{s:.2f}' for s in seconds)} s")
    print(f"{name}: {', '.join(f'{run.cpu:.2f}' for run in runs)} s of CPU")
    return statistics.median(seconds)
