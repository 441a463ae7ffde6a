"""The whole: index and recognize against the baseline's procedure on the same ResNet-50 model and
photographs.

First run: `landmarks index` and `landmarks recognize`, from start to exit, against its script.
Second run: recognize with other verification parameters and the first one's --query_store, where nothing is
extracted again, against the same script, which has to do everything again. Then Beam's own overhead
(recognize against its stages' pure functions in threads, both whole processes on the same photographs), and
all cores against one, each net of start-up: extraction is the index of a part of the photographs less one of
8, verification a run with many candidates less one with few.

Predictions are compared where the baseline's are clear, the best landmark ahead of the next by at least half
of what one candidate's geometry can give, since RANSAC differs; 97 % of those have to be the same landmark.
Among random features many are not clear.
"""

import argparse
import csv
import json
import pathlib
import tempfile
from typing import Any

from benchmarks import commands, resnet_delg
from benchmarks.competition_baseline import inlier_counter
from benchmarks.goals import Goals

FEW = 8  # photographs of the index whose time is the start-up
# of the confidence, between the best and the next landmark: half of what one candidate's geometry can give
CLEAR = 0.5
SCALES = (0.7071, 1.0, 1.4142)


def write_lists(rows: list[commands.Photograph], index: int, part: int, folder: pathlib.Path) -> None:
    """Writes what the jobs and the baseline read: the first `index` photographs are the index, the others the
    queries.
    """
    for name, chosen in (
        ("index", rows[:index]),
        ("part", rows[:part]),
        ("few", rows[:FEW]),
        ("queries", rows[index:]),
    ):
        commands.write_list(folder / f"{name}.txt", (row.path for row in chosen))
    commands.write_labels(folder / "labels.csv", ((row.id, row.label) for row in rows[:index]))
    with open(folder / "baseline.csv", "w", newline="") as f:
        csv.writer(f).writerows((row.path, row.label) for row in rows[:index])


def submission(run: pathlib.Path) -> dict[str, str]:
    """Predicted landmark by image id; "" for none."""
    with open(run / "submission.csv", newline="") as f:
        return {row["id"]: row["landmarks"].rsplit(" ", 1)[0] for row in csv.DictReader(f)}


def agreement(predicted: dict[str, str], ids: list[str], answers: list[list]) -> tuple[float, float, int]:
    """Share of the baseline's answers that are predicted, of all and of the clear ones; and how many are
    clear.
    """
    same = [predicted[i] == landmark for i, (landmark, _, _) in zip(ids, answers)]
    clear = [s for s, (_, _, margin) in zip(same, answers) if margin >= CLEAR]
    return sum(same) / len(same), sum(clear) / max(1, len(clear)), len(clear)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py end-to-end", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands.add_photos_flag(parser)
    parser.add_argument(
        "--index", type=int, default=1000, metavar="N", help="labelled photographs (default: %(default)s)"
    )
    parser.add_argument(
        "--queries", type=int, default=300, metavar="N", help="query photographs (default: %(default)s)"
    )
    parser.add_argument(
        "--part",
        type=int,
        default=160,
        metavar="N",
        help="photographs for all cores against one (default: %(default)s)",
    )
    parser.add_argument(
        "--many",
        type=int,
        default=43,
        metavar="N",
        help="candidates per query for all cores against one (default: %(default)s)",
    )
    parser.add_argument(
        "--max_image_side", type=int, default=320, metavar="PX", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--model_cache",
        default=tempfile.gettempdir() + "/landmarks-benchmarks",
        metavar="DIR",
        help="where the ResNet-50 is built once (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    rows = [row for row in commands.photographs(args.photos) if row.label][: args.index + args.queries]
    part = min(args.part, args.index)
    if len(rows) < args.index + args.queries or part <= FEW:
        parser.error(
            f"{len(rows)} labelled photographs in {args.photos}, {args.index} + {args.queries} wanted, of "
            f"them {part} (more than {FEW}) as the part"
        )
    model = resnet_delg.ensure(args.model_cache, args.max_image_side, SCALES)
    print(commands.machine(f"homography of the baseline: {inlier_counter()[0]}"), flush=True)
    goals = Goals()
    with tempfile.TemporaryDirectory(prefix="landmarks-end-to-end-") as temporary:
        folder = pathlib.Path(temporary)
        write_lists(rows, args.index, part, folder)
        whole = _against_the_baseline(folder, model, [row.id for row in rows[args.index :]], goals)
        _beam_overhead(folder, whole, goals)
        _cores(folder, model, part, args.queries, min(args.many, args.index), goals)
    return goals.exit_code


def _index(folder: pathlib.Path, images: str, output: str, model: str, cores: int | None = None) -> float:
    given = {"images": f"@{folder}/{images}.txt", "labels": folder / "labels.csv", "model": model}
    return commands.landmarks("index", output=folder / output, cores=cores, **given).seconds


def _recognize(folder: pathlib.Path, output: str, cores: int | None = None, **flags: Any) -> float:
    given = {"images": f"@{folder}/queries.txt", "index": folder / "index", "output": folder / output}
    return commands.landmarks("recognize", cores=cores, **given, **flags).seconds


def _against_the_baseline(folder: pathlib.Path, model: str, ids: list[str], goals: Goals) -> float:
    """Seconds of the first recognize."""
    indexing = _index(folder, "index", "index", model)
    first = _recognize(folder, "first")
    other = {"max_reprojection_error": 12, "max_distance": 0.85}
    second = _recognize(folder, "second", query_store=folder / "first" / "queries", **other)
    baseline = commands.run(
        "benchmarks.competition_baseline",
        model=model,
        index=folder / "baseline.csv",
        queries=folder / "queries.txt",
        output=folder / "baseline.json",
    ).seconds
    result = json.loads((folder / "baseline.json").read_text())
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in result["seconds"].items())
    print(f"\n{'seconds':<44}{'baseline':>10}{'landmarks':>10}{'ratio':>8}")
    for what, ours in (
        (f"first run (index {indexing:.1f}, recognize {first:.1f})", indexing + first),
        ("second run, other verification parameters", second),
    ):
        print(f"{what:<44}{baseline:>10.1f}{ours:>10.1f}{baseline / ours:>8.1f}")
    print(f"of the baseline: {parts}")
    goals.at_least("first run / baseline", baseline / (indexing + first), 1.8)
    goals.at_least("second run / baseline", baseline / second, 20)
    every, clear, number = agreement(submission(folder / "first"), ids, result["answers"])
    goals.agree(
        f"predictions ({every:.1%} of {len(ids)} queries, {clear:.1%} of the {number} clear ones)",
        clear >= 0.97,
    )
    return first


def _beam_overhead(folder: pathlib.Path, recognize: float, goals: Goals) -> None:
    given = {"images": f"@{folder}/queries.txt", "index": folder / "index", "output": folder / "pure"}
    pure = commands.run("benchmarks.pure_stages", **given).seconds
    again = _recognize(folder, "again")
    print(f"\nrecognize {recognize:.1f} and {again:.1f} s, its stages' pure functions {pure:.1f} s")
    goals.at_most("recognize / pure functions", min(recognize, again) / pure, 1.15)
    goals.agree("submissions of the two", submission(folder / "pure") == submission(folder / "again"))


def _cores(folder: pathlib.Path, model: str, part: int, queries: int, many: int, goals: Goals) -> None:
    print(f"\n{'all cores against one, net of start-up':<44}{'one':>10}{'all':>10}{'ratio':>8}")
    extraction, verification = {}, {}
    for name, cores in (("one", 1), ("all", None)):
        seconds = [_index(folder, images, f"{images}-{name}", model, cores) for images in ("few", "part")]
        extraction[name] = (part - FEW) / (seconds[1] - seconds[0])
        store = folder / "first" / "queries"
        seconds = [
            _recognize(folder, f"{k}-{name}", cores, query_store=store, num_to_rerank=k) for k in (3, many)
        ]
        verification[name] = queries * (many - 3) / (seconds[1] - seconds[0])
    for label, rates in (("extraction, images/s", extraction), ("verification, pairs/s", verification)):
        print(f"{label:<44}{rates['one']:>10.2f}{rates['all']:>10.2f}{rates['all'] / rates['one']:>8.2f}")
        goals.at_least(f"all cores / one, {label.split(',')[0]}", rates["all"] / rates["one"], 1.8)
