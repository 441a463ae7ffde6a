"""Gives `landmarks recognize` three time budgets: ample, half of what it took with that, and hopeless.

    python tests/survival/budget.py [--photos DIR] [--index_images 200] [--queries 60] [--num_to_rerank 200]

Each must be kept, with a submission that has a row for every query; and started again without a budget, each
must end with the files of a run that never had one. Prints a line per budget and ends with 1 on any
violation.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.survival.kill import find_photographs  # noqa: E402  (a script as well as a module)

_AMPLE = 1800
_HOPELESS_PART, _HOPELESS_LEAST = 1 / 8, 10


def landmarks(folder: pathlib.Path, *arguments: str) -> float:
    """Runs a command in `folder`; returns the seconds it took, as one who waits for it sees them.

    Raises:
      CalledProcessError: it failed.
    """
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "beam_pipeline", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        done.check_returncode()
    return time.monotonic() - begun


def results(run: pathlib.Path) -> dict[str, bytes]:
    """What a run answers: the submission and the prediction shards, by name."""
    return {
        path.name: path.read_bytes()
        for path in [run / "submission.csv", *sorted((run / "predictions").iterdir())]
    }


def violations(run: pathlib.Path, queries: Sequence[str], seconds: float, used: float) -> list[str]:
    """What is wrong with a run that had `seconds` and used `used` of them."""
    found = []
    if used > seconds:
        found.append(f"the budget of {seconds} s was exceeded")
    with open(run / "submission.csv", newline="") as f:
        ids = [row["id"] for row in csv.DictReader(f)]
    if ids != sorted(queries):
        found.append(f"{len(ids)} rows for {len(queries)} queries")
    return found


def try_budgets(
    folder: pathlib.Path, photographs: Sequence[pathlib.Path], index_images: int, num_to_rerank: int
) -> int:
    """Makes an index of the first photographs, recognizes the others under each budget, prints what came of
    it; returns violations.
    """
    indexed, queries = photographs[:index_images], photographs[index_images:]
    (folder / "index.txt").write_text("".join(f"{path}\n" for path in indexed))
    (folder / "queries.txt").write_text("".join(f"{path}\n" for path in queries))
    (folder / "labels.csv").write_text(
        "id,landmark_id\n" + "".join(f"{path.stem},{i // 4}\n" for i, path in enumerate(indexed))
    )
    given = ("--images=@index.txt", "--labels=labels.csv", "--output=index")
    landmarks(folder, "index", *given, "--runner=FnApiRunner")
    given = ("--images=@queries.txt", "--index=index", f"--num_to_rerank={num_to_rerank}")
    command = ["recognize", *given, "--runner=FnApiRunner"]
    landmarks(folder, *command, "--output", "undisturbed")
    expected = results(folder / "undisturbed")
    wrong, seconds, needed = 0, _AMPLE, 0.0
    for name in ("ample", "half", "hopeless"):
        if name != "ample":
            seconds = (
                round(needed / 2) if name == "half" else max(_HOPELESS_LEAST, round(needed * _HOPELESS_PART))
            )
        used = landmarks(folder, *command, "--output", name, f"--time_budget={seconds}s")
        needed = needed or used
        counts = json.loads((folder / name / "manifest.json").read_text())["counts"]
        found = violations(folder / name, [path.stem for path in queries], seconds, used)
        if name == "ample" and counts["verified"] != counts["queries"]:
            found.append("not everything was verified")
        landmarks(folder, *command, "--output", name)
        if results(folder / name) != expected:
            found.append("started again, it ends otherwise than a run without a budget")
        print(
            f"{name:<9} budget {seconds} s, used {used:.0f} s: {counts['queries']} rows, "
            f"{counts['predicted']} predicted, "
            f"{counts['verified']} verified, {counts['out_of_time']} not extracted; "
            f"{'; '.join(found) or 'kept, and the same in the end'}",
            flush=True,
        )
        wrong += len(found)
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Parses and tries; returns 1 on any violation."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--photos",
        metavar="DIR",
        default=os.environ.get("LANDMARKS_PHOTOS"),
        help="photographs, read where they lie (default: $LANDMARKS_PHOTOS, else the demo set)",
    )
    parser.add_argument("--index_images", type=int, default=200, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--queries", type=int, default=60, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--num_to_rerank",
        type=int,
        default=200,
        metavar="N",
        help="more make verification longer (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="landmarks-budget-") as scratch:
        folder = pathlib.Path(scratch)
        photographs = find_photographs(args.photos, folder / "demo")[: args.index_images + args.queries]
        wrong = try_budgets(folder, photographs, args.index_images, args.num_to_rerank)
    print(f"{wrong} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
