"""What scores and probabilities are worth on one part of the split, by the jobs themselves:
`python -m training.judge --photographs FOLDER --output DIR`.

60 % of every label are the index. The queries are the rest and as many photographs without a landmark; and,
as hard ones, the rest and photographs of the landmarks of another part. Started again, it goes on.
"""

import argparse
import csv
import os
from collections.abc import Sequence

from beam_pipeline import jobs
from beam_pipeline.config import (
    PRESETS,
    CalibrateConfig,
    EvaluateConfig,
    IndexConfig,
    RecognizeConfig,
    RescoreConfig,
)
from beam_pipeline.prediction_rule import CALIBRATION
from training import split
from transforms.models import catalog

RARE = 0.98  # part of the queries of Google Landmarks v2 that shows no landmark
KINDS = ("queries", "hard")
MODELS = (catalog.EMBEDDED, catalog.ROOTSIFT_VLAD)  # of the ensemble; the first alone in the other rows


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


class Report:
    """The jobs over the lists in a folder.

    Attributes:
      folder: of the lists, and of all that is made.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def path(self, *names: str) -> str:
        """A place in the folder."""
        return os.path.join(self.folder, *names)

    def recognize(self, index: str, kind: str, preset: str) -> str:
        """The run of queries of a kind in an index."""
        config = RecognizeConfig(
            images=("@" + self.path(kind + ".txt"),),
            index=self.path(index),
            output=self.path(f"{index}-{preset}-{kind}"),
            query_store=self.path(f"{index}-{kind}"),
            **vars(PRESETS[preset]),
        )
        jobs.recognize(config)
        return config.output

    def rescored(self, name: str, kind: str, runs: Sequence[str], calibration: str) -> str:
        """A run of these, scored as a calibration says."""
        output = self.path(f"{name}-{kind}")
        first, *others = runs
        jobs.rescore(RescoreConfig(first, output, tuple(others), calibration=calibration, overwrite=True))
        return output

    def row(self, name: str, kind: str, run: str) -> str:
        """A row of the table on a run's predictions."""
        found = {}
        for share in (None, RARE):
            output = self.path(f"metrics-{name}-{kind}-{share}.json")
            config = EvaluateConfig(run, self.path(kind + ".csv"), output, share)
            found[share] = jobs.evaluate(config)["all"]
        judged = found[None]["judgement"]
        cells = [found[None]["gap"], found[None]["top1"], found[RARE]["judgement"]["gap"]]
        cells.append(judged.get("calibration_error"))
        rows = {row["threshold"]: row for row in judged.get("thresholds", ())}
        for threshold in (0.5, 0.9):
            cells += [rows[threshold][k] if rows else None for k in ("precision", "recall")]
        text = ["-" if value is None else f"{value:.3f}" for value in cells]
        return f"| {name} | {' | '.join(text)} |"


def main() -> None:
    """Prints a table for each kind of queries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", required=True, help="folder with photos.csv")
    parser.add_argument("--output", required=True, help="folder for indexes and runs")
    parser.add_argument("--part", choices=split.PARTS, default="report")
    parser.add_argument("--hard_part", choices=split.PARTS, default="choose", help="of the hard queries")
    args = parser.parse_args()
    report = Report(args.output)
    write_inputs(args.output, args.photographs, args.part, args.hard_part)
    images, labels = ("@" + report.path("index.txt"),), report.path("index.csv")
    for model in MODELS:
        jobs.index(IndexConfig(images, labels, report.path(model), model))
        jobs.calibrate(CalibrateConfig(report.path(model)))
    tables = {}
    for kind in KINDS:
        runs = {preset: report.recognize(MODELS[0], kind, preset) for preset in ("entry", "accurate")}
        both = [runs["accurate"], report.recognize(MODELS[1], kind, "accurate")]
        together = report.path("both.json")
        if kind == KINDS[0]:
            jobs.calibrate(CalibrateConfig(runs=tuple(both), output=together))
        own = report.path(MODELS[0], CALIBRATION)
        runs["tuned"] = report.rescored("tuned", kind, both[:1], own)
        runs["ensemble"] = report.rescored("ensemble", kind, both, together)
        tables[kind] = [report.row(name, kind, run) for name, run in runs.items()]
    for kind, rows in tables.items():
        print(
            f"\n{kind}\n\n| | GAP | top-1 | GAP, 98 % | calibration error | precision at 0.5 | recall | "
            "precision at 0.9 | recall |\n|---|---|---|---|---|---|---|---|---|"
        )
        print("\n".join(rows))


if __name__ == "__main__":
    main()
