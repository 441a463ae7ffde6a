"""Accuracy, seconds and memory of the commands on a folder of real labelled photographs, and what
broken files do to them.

The folder holds photos.csv with the columns id, path, label and kind. 60 % of each label's photographs
(labels with at least 4) are the index; the rest, and all of kind "distractor", are the queries. Which is
which is decided by a hash of the id.
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np
import pandas as pd

from benchmarks import commands
from benchmarks.goals import Goals

INDEX_SHARE, MIN_PHOTOGRAPHS = 0.6, 4
BROKEN = 30
RUNS = {
    "defaults": [],
    "20 candidates, mutual check": ["--mutual_check", "--num_to_rerank", "20"],
    "--preset accurate": ["--preset", "accurate"],
    "--preset tuned": ["--preset", "tuned"],
}


def split(photos: pathlib.Path, folder: pathlib.Path) -> tuple[int, int]:
    """Writes index.txt, queries.txt, labels.csv and truth.csv below `folder`; returns the number of index and
    query images.
    """
    rows = commands.photographs(photos)
    by_label: dict[str, list[commands.Photograph]] = {}
    for row in rows:
        if row.label:
            by_label.setdefault(row.label, []).append(row)
    index, queries = [], [row for row in rows if row.kind == "distractor"]
    for members in by_label.values():
        if len(members) >= MIN_PHOTOGRAPHS:
            cut = round(INDEX_SHARE * len(members))
            index += members[:cut]
            queries += members[cut:]
    for name, chosen in (("index.txt", index), ("queries.txt", queries)):
        commands.write_list(folder / name, (row.path for row in chosen))
    commands.write_labels(folder / "labels.csv", ((row.id, row.label) for row in index))
    (folder / "truth.csv").write_text(
        "id,landmarks,Usage\n" + "".join(f"{row.id},{row.label},Private\n" for row in queries)
    )
    return len(index), len(queries)


def break_files(photos: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Makes BROKEN files that are no good photographs, in as many ways as there are; returns their paths."""
    sources = sorted((photos / "landmarks").glob("*.jpg"))
    folder.mkdir()
    paths = []
    for number in range(BROKEN):
        whole = sources[number * 37 % len(sources)].read_bytes()
        content = [b"", whole[: len(whole) // 2], whole[:20], b"no photograph", whole[2:], bytes(len(whole))][
            number % 6
        ]
        path = folder / f"broken{number:02d}.jpg"
        path.write_bytes(content)
        paths.append(str(path))
    return paths


def descriptors(store: pathlib.Path) -> dict[str, np.ndarray]:
    """Global descriptors by image id."""
    table = pd.read_parquet(store / "images", columns=["image_id", "global_descriptor"])
    return dict(zip(table.image_id, table.global_descriptor))


def check_broken(photos: pathlib.Path, folder: pathlib.Path, goals: Goals) -> None:
    """All photographs as queries, with and without broken files among them, against the index: nothing else
    may change.
    """
    every = [
        str(p.resolve()) for part in ("landmarks", "other") for p in sorted((photos / part).glob("*.jpg"))
    ]
    broken = break_files(photos, folder / "broken")
    submissions = []
    for name, paths in (("whole", every), ("with_broken", every + broken)):
        images = commands.write_list(folder / f"{name}.txt", paths)
        run = commands.landmarks("recognize", images=images, index=folder / "index", output=folder / name)
        print(f"{len(paths):,} photographs recognized in {run.seconds:,.0f} s")
        submissions.append(
            dict(
                line.split(",", 1) for line in (folder / name / "submission.csv").read_text().splitlines()[1:]
            )
        )
    failed = set(pd.read_parquet(folder / "with_broken" / "failures").image_id)
    goals.agree(
        f"the {len(broken)} broken files are the failure rows",
        failed == {pathlib.Path(p).stem for p in broken},
    )
    goals.agree(
        "their rows of the submission are empty",
        all(submissions[1].pop(image_id, None) == "" for image_id in failed),
    )
    goals.agree(f"the other {len(submissions[0]):,} rows", submissions[0] == submissions[1])
    one, other = descriptors(folder / "whole" / "queries"), descriptors(folder / "with_broken" / "queries")
    goals.agree(
        "their descriptors, bit by bit",
        one.keys() == other.keys() and all(np.array_equal(one[i], other[i]) for i in one),
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py photographs", description=__doc__)
    commands.add_photos_flag(parser)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--skip_broken", action="store_true", help="leave out the part with broken files")
    args = parser.parse_args(argv)
    goals = Goals()
    with tempfile.TemporaryDirectory(prefix="landmarks-photographs-") as temporary:
        folder = pathlib.Path(temporary)
        images, queries = split(args.photos, folder)
        print(f"{images:,} index and {queries:,} query photographs")
        print(f"{'':<30}{'GAP':>8}{'GAP, landmarks':>16}{'top-1':>8}{'seconds':>9}{'peak MB':>9}")
        listed, index = f"@{folder}/index.txt", folder / "index"
        made = commands.landmarks(
            "index", images=listed, labels=folder / "labels.csv", output=index, model=args.model
        )
        calibrated = commands.landmarks("calibrate", index=index)
        for name, done in (("index", made), ("calibrate", calibrated)):
            print(f"{name:<62}{done.seconds:>9.1f}{done.peak_bytes / 2**20:>9,.0f}", flush=True)
        asked = {"images": f"@{folder}/queries.txt", "index": index}
        shared = {**asked, "query_store": folder / "queries", "truth": folder / "truth.csv"}
        for number, (name, flags) in enumerate(RUNS.items()):
            output = folder / f"run{number}"
            run = commands.landmarks("recognize", *flags, output=output, **shared)
            metrics = json.loads((output / "metrics.json").read_text())["all"]
            print(
                f"{name:<30}{metrics['gap']:>8.4f}{metrics['gap_landmark_queries']:>16.4f}"
                f"{metrics['top1']:>8.4f}{run.seconds:>9.1f}{run.peak_bytes / 2**20:>9,.0f}",
                flush=True,
            )
        again = folder / "again"
        commands.landmarks("recognize", "--direct_num_workers=1", output=again, **asked)
        goals.agree(
            "submission.csv with 1 worker and with all cores",
            (again / "submission.csv").read_bytes() == (folder / "run0" / "submission.csv").read_bytes(),
        )
        if not args.skip_broken:
            check_broken(args.photos, folder, goals)
    return goals.exit_code
