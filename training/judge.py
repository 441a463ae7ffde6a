"""What scores and probabilities are worth on one part of the split, and what they take, by the commands
themselves: `python -m training.judge --photographs FOLDER --output DIR`.

60 % of every label are the index. The queries are the rest and as many photographs without a landmark; and,
as hard ones, the rest and photographs of the landmarks of another part. Started again, it goes on: a command
that was cut off begins anew, so that its seconds are of all of it.
"""

import argparse
import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from beam_pipeline import jobs
from beam_pipeline.config import EvaluateConfig
from beam_pipeline.prediction_rule import CALIBRATION
from training import split
from transforms.models import catalog

RARE = 0.98  # part of the queries of Google Landmarks v2 that shows no landmark
KINDS = ("queries", "hard")
MODELS = (catalog.EMBEDDED, catalog.ROOTSIFT_VLAD)  # of the ensemble; the first alone in the other rows
BOTH = "both.json"
COLUMNS = (
    "GAP",
    "top-1",
    "top-5",
    "GAP, 98 %",
    "calibration error",
    *("precision at 0.5", "recall", "precision at 0.9", "recall"),
    "seconds",
)


def write_inputs(folder: str, root: str, part: str, hard_part: str) -> None:
    """Lists of photographs, and labels or truths, of the index and of each kind of queries."""
    everything = split.read_photographs(root)
    index, queries = split.index_and_queries(everything, part)
    hard = [one for one in queries if one.label]
    hard += [one for one in everything if one.part == hard_part and one.label]
    known = {one.label for one in index}
    os.makedirs(folder, exist_ok=True)
    for name, members in (("index", index), ("queries", queries), ("hard", hard)):
        with open(os.path.join(folder, name + ".txt"), "w", encoding="utf-8") as file:
            file.writelines(os.path.join(os.path.abspath(root), one.path) + "\n" for one in members)
        with open(os.path.join(folder, name + ".csv"), "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "landmark_id"])
            rows.writerows([one.id, one.label if one.label in known else ""] for one in members)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
      name: what it is of.
      run: whose predictions it is of, an output in the report's folder.
      others: outputs that it takes beside the run and the indexes.
    """

    name: str
    run: str
    others: tuple[str, ...] = ()


class Report:
    """The commands over the lists in a folder.

    Attributes:
      folder: of the lists, and of all that is made.
      seconds: that each output took, from the start of its command to its exit.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        if os.path.exists(self.path("seconds.json")):
            with open(self.path("seconds.json"), encoding="utf-8") as file:
                self.seconds = json.load(file)

    def path(self, name: str) -> str:
        """A place in the folder."""
        return os.path.join(self.folder, name)

    def make(self, output: str, *arguments: str, working: str | None = None) -> str:
        """Makes an output by a command of the product, unless it is there; returns its name.

        Args:
          output: its place in the folder.
          arguments: of the command, but for its output.
          working: a folder that the command keeps what it found in.

        Raises:
          CalledProcessError: the command failed.
        """
        if output not in self.seconds:
            for name in filter(None, (output, working)):
                if os.path.isdir(self.path(name)):
                    shutil.rmtree(self.path(name))
                elif os.path.exists(self.path(name)):
                    os.remove(self.path(name))
            began = time.monotonic()
            command = [sys.executable, "-m", "beam_pipeline", *arguments, "--output", self.path(output)]
            subprocess.run(command, check=True, stdout=sys.stderr)
            self.seconds[output] = time.monotonic() - began
            with open(self.path("seconds.json"), "w", encoding="utf-8") as file:
                json.dump(self.seconds, file, indent=2)
        return output

    def index(self, model: str) -> tuple[str, str]:
        """The index by a model and its calibration."""
        lists = "--images", "@" + self.path("index.txt"), "--labels", self.path("index.csv")
        index = self.make(model, "index", *lists, "--model", model)
        calibrate = "calibrate", "--index", self.path(index)
        return index, self.make(f"{index}/{CALIBRATION}", *calibrate, working=f"{index}/calibration")

    def recognize(self, index: str, kind: str, preset: str) -> str:
        """The run of queries of a kind in an index."""
        inputs = "--images", "@" + self.path(kind + ".txt"), "--index", self.path(index)
        return self.make(f"{index}-{preset}-{kind}", "recognize", *inputs, "--preset", preset)

    def rescore(self, name: str, kind: str, runs: Sequence[str], calibration: str) -> str:
        """A run of these, scored as a calibration says."""
        of_runs = [word for run in runs for word in ("--run", self.path(run))]
        return self.make(f"{name}-{kind}", "rescore", *of_runs, "--calibration", self.path(calibration))

    def rows(self, kind: str) -> list[Row]:
        """The rows of the table of a kind of queries, whose runs are made."""
        indexes, calibrations = zip(*(self.index(model) for model in MODELS))
        defaults = self.recognize(indexes[0], kind, "entry")
        accurate, other = (self.recognize(index, kind, "accurate") for index in indexes)
        runs = [self.recognize(index, KINDS[0], "accurate") for index in indexes]  # any of both do
        both = self.make(BOTH, "calibrate", *(word for run in runs for word in ("--run", self.path(run))))
        tuned = self.rescore("tuned", kind, [accurate], calibrations[0])
        together = self.rescore("ensemble", kind, [accurate, other], both)
        return [
            Row("defaults", defaults),
            Row("accurate", accurate),
            Row("tuned", tuned, (accurate, calibrations[0])),
            Row("ensemble", together, (accurate, other, *calibrations, both)),
        ]

    def line(self, row: Row, kind: str) -> str:
        """A row of the table as text, see COLUMNS."""
        found = {}
        for share in (None, RARE):
            output = self.path(f"metrics-{row.run}-{share}.json")
            config = EvaluateConfig(self.path(row.run), self.path(kind + ".csv"), output, share)
            found[share] = jobs.evaluate(config)["all"]
        judged = found[None]["judgement"]
        shares = [found[None][name] for name in ("gap", "top1", "top5")]
        shares += [found[RARE]["judgement"]["gap"], judged.get("calibration_error")]
        thresholds = {one["threshold"]: one for one in judged.get("thresholds", ())}
        for threshold in (0.5, 0.9):
            shares += [thresholds[threshold][k] if thresholds else None for k in ("precision", "recall")]
        text = ["-" if value is None else f"{value:.3f}" for value in shares]
        seconds = sum(self.seconds[name] for name in (row.run, *row.others))
        return f"| {row.name} | {' | '.join(text)} | {seconds:.0f} |"


def main() -> None:
    """Prints a table for each kind of queries, and the seconds of each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", required=True, help="folder with photos.csv")
    parser.add_argument("--output", required=True, help="folder for indexes and runs")
    parser.add_argument("--part", choices=split.PARTS, default="report")
    parser.add_argument("--hard_part", choices=split.PARTS, default="choose", help="of the hard queries")
    args = parser.parse_args()
    write_inputs(args.output, args.photographs, args.part, args.hard_part)
    report = Report(args.output)
    tables = {kind: [report.line(row, kind) for row in report.rows(kind)] for kind in KINDS}
    for kind, lines in tables.items():
        print(f"\n{kind}\n\n| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
        print("\n".join(lines))
    print("\nseconds of the command that made it:")
    for output, seconds in report.seconds.items():
        print(f"{seconds:8.1f}  {output}")


if __name__ == "__main__":
    main()
