"""What `landmarks audit` and `landmarks discover` find of what was hidden among real photographs.

The index holds the photographs of labels with at least 3. Of every part of the split (training/split.py) 5 %
are copied as they are, and 5 % encoded again, cropped or scaled; then, without the copies, 5 % get the label
of another place of their part. Which these are is drawn again and again: what the audit compares does not
depend on labels, and what it makes of that takes no time. The thresholds were chosen on the first part,
"train", those of wrong labels on the second, "choose", too: the goals are those of the second and third. For
the groups 20 labels of these are left out of an index, and are queries beside photographs without a landmark.
"""

import argparse
import collections
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from beam_pipeline import outputs, self_search
from beam_pipeline.audit import Audited
from beam_pipeline.manifest import IndexManifest
from benchmarks import commands
from benchmarks.goals import Goals
from training.split import PARTS, Photograph, order, read_photographs
from transforms.arrays import label_audit
from transforms.storage.feature_store import FeatureStore

SHARE = 0.05
LEFT_OUT, MIN_QUERIES = 20, 4
HOW = ("reencoded", "cropped", "scaled")


def altered(path: pathlib.Path, how: str, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """A photograph as people alter it, and the quality to save it with."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    if how == "reencoded":
        return image, int(rng.integers(30, 70))
    if how == "cropped":
        kept = rng.uniform(0.7, 0.9)
        left, top = rng.uniform(0, 1 - kept, 2) * (width, height)
        return image.crop((int(left), int(top), int(left + kept * width), int(top + kept * height))), 90
    scale = rng.uniform(0.4, 0.8)
    return image.resize((int(width * scale), int(height * scale)), Image.Resampling.LANCZOS), 90


def plant(
    photos: pathlib.Path, folder: pathlib.Path, photographs: list[Photograph]
) -> dict[str, tuple[str, str, str]]:
    """Writes copies below `folder`; returns what each is of, how it was made, and the part, by its id."""
    made: dict[str, tuple[str, str, str]] = {}
    folder.mkdir()
    for part in PARTS:
        members = sorted((p for p in photographs if p.part == part), key=lambda p: order("copies", p.id))
        count = round(SHARE * len(members))
        for number, photograph in enumerate(members[: 2 * count]):
            source = photos / photograph.path
            how = "exact" if number < count else HOW[number % len(HOW)]
            name = f"copy-{photograph.id}"
            if how == "exact":
                shutil.copy(source, folder / f"{name}{source.suffix}")
            else:
                seed = order("how", photograph.id) % 2**32
                image, quality = altered(source, how, np.random.default_rng(seed))
                image.save(folder / f"{name}.jpg", quality=quality)
            made[name] = photograph.id, how, part
    return made


def shuffled(photographs: list[Photograph], seed: int) -> dict[str, str]:
    """Wrong labels, by id, for a part of the photographs of each part."""
    rng, wrong = np.random.default_rng(seed), {}
    for part in PARTS:
        members = [p for p in photographs if p.part == part]
        labels = sorted({p.label for p in members})
        for at in rng.choice(len(members), round(SHARE * len(members)), replace=False).tolist():
            others = [label for label in labels if label != members[at].label]
            wrong[members[at].id] = others[int(rng.integers(len(others)))]
    return wrong


def write_inputs(folder: pathlib.Path, name: str, paths: list[str], labels: dict[str, str]) -> dict[str, Any]:
    """Writes a list and its labels; returns the flags that name them."""
    return {
        "images": commands.write_list(folder / f"{name}.txt", paths),
        "labels": commands.write_labels(folder / f"{name}.csv", labels.items()),
    }


def check_copies(audit: pathlib.Path, copies: dict[str, tuple[str, str, str]], goals: Goals) -> None:
    """Compares what the audit found twice with what was planted."""
    exact = pd.read_parquet(audit / "exact_duplicates.parquet")
    near = pd.read_parquet(audit / "near_duplicates.parquet")
    same = [{kept, *ids} for kept, ids in exact.groupby("kept_image_id").image_id]
    views = {frozenset(pair) for pair in zip(near.image_id, near.other_image_id)}
    ids = {*copies, *(of for of, _, _ in copies.values())}
    for part in PARTS:
        mine = {name: value for name, value in copies.items() if value[2] == part}
        whole = [n for n, (of, how, _) in mine.items() if how == "exact" and any({n, of} <= s for s in same)]
        exact_count = sum(how == "exact" for _, how, _ in mine.values())
        changed = [n for n, (of, how, _) in mine.items() if how != "exact" and frozenset((n, of)) in views]
        goal = part != PARTS[0]
        for text, value, least in (
            (f"exact copies found, {part}", len(whole) / exact_count, 1.0),
            (f"altered copies found, {part}", len(changed) / (len(mine) - exact_count), 0.95),
        ):
            goals.at_least(text, value, least if goal else 0)
    print(f"pairs of one view that were not planted: {sum(not pair & ids for pair in views)}")


def read_audited(index: pathlib.Path, audit: pathlib.Path) -> tuple[pa.Table, self_search.Pairs]:
    """The images of an index, and their pairs as a finished audit has them."""
    shards = outputs.read_manifest(str(index), IndexManifest).shards
    images = self_search.read_images(FeatureStore(str(index)), [s.unit for s in shards if s.images])
    search = self_search.SelfSearch(str(index), (), 0, None, str(audit))
    return images, self_search.read_pairs(search, images["image_id"].combine_chunks())


def mislabelled(images: pa.Table, pairs: self_search.Pairs, labels: dict[str, str]) -> set[str]:
    """Those images that the audit calls mislabelled where all have these labels."""
    given = pa.array([labels[name] for name in images["image_id"].to_pylist()])
    column = images.column_names.index("landmark_id")
    audited = Audited.of(images.set_column(column, "landmark_id", given), pairs)
    found = label_audit.label_votes(*audited.evidence).mislabelled
    return {*audited.column("image_id", found).to_pylist()}


def check_labels(draws: list[tuple[set[str], dict[str, str]]], part_of: dict[str, str], goals: Goals) -> None:
    """Compares the photographs that the audit calls mislabelled with those that are, of several draws."""
    for part in PARTS:
        ratios = []
        for found, wrong in draws:
            named, truth = ({name for name in names if part_of[name] == part} for names in (found, wrong))
            right = len(named & truth)
            ratios.append((right / max(1, len(named)), right / len(truth)))
        for what, values, goal in zip(("precision", "recall"), zip(*ratios), (0.9, 0.8)):
            extent = f"mean of {len(draws)} draws ({min(values):.3f} to {max(values):.3f})"
            least = goal if part != PARTS[0] else 0
            goals.at_least(f"{what} of mislabelled, {part}, {extent}", float(np.mean(values)), least)


def check_groups(found: pathlib.Path, label_of: dict[str, str], left_out: list[str], goals: Goals) -> None:
    """Compares groups of queries with the labels that were left out."""
    rows = pd.read_parquet(found / "groups.parquet")
    groups = [collections.Counter(label_of.get(i, "") for i in m.image_id) for _, m in rows.groupby("group")]
    good = [
        label
        for label in left_out
        if any(group[label] >= 3 and group[label] >= 0.9 * group.total() for group in groups)
    ]
    print(f"{len(groups)} groups; not found: {', '.join(sorted({*left_out} - {*good})) or 'none'}")
    goals.at_least("labels left out that come back as a group", len(good) / len(left_out), 0.8)


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="audit", description=__doc__)
    commands.add_photos_flag(parser)
    parser.add_argument("--draws", type=int, default=100, help="of the wrong labels (default: 100)")
    parser.add_argument("--folder", type=pathlib.Path, help="keep everything here")
    args = parser.parse_args(argv)
    goals = Goals()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        every = read_photographs(str(args.photos))
        size = collections.Counter(p.label for p in every if p.label)
        photographs = [p for p in every if p.label and size[p.label] >= 3]
        _audit(args, folder, photographs, goals)
        _discover(args, folder, every, photographs, goals)
    return goals.exit_code


def _audit(
    args: argparse.Namespace, folder: pathlib.Path, photographs: list[Photograph], goals: Goals
) -> None:
    copies = plant(args.photos, folder / "copies", photographs)
    labels = {p.id: p.label for p in photographs}
    part_of = {p.id: p.part for p in photographs}
    paths = [str((args.photos / p.path).resolve()) for p in photographs]
    paths += [str(path) for path in sorted((folder / "copies").iterdir())]
    given = write_inputs(
        folder, "all", paths, labels | {name: labels[of] for name, (of, _, _) in copies.items()}
    )
    index = folder / "index"
    commands.landmarks("index", output=index, **given)
    seconds = commands.landmarks("audit", index=index, output=folder / "twice").seconds
    print(f"audit of {len(paths):,} photographs: {seconds:,.0f} s")
    check_copies(folder / "twice", copies, goals)
    wrong = [shuffled(photographs, seed) for seed in range(args.draws)]
    relabel = commands.write_labels(folder / "wrong.csv", wrong[0].items())
    remove = commands.write_list(folder / "remove.txt", copies)
    commands.landmarks("index", output=index, remove=remove, relabel=relabel)
    commands.landmarks("audit", index=index, output=folder / "wrong")
    images, pairs = read_audited(index, folder / "wrong")
    found = [mislabelled(images, pairs, labels | drawn) for drawn in wrong]
    named = pd.read_parquet(folder / "wrong" / "mislabelled.parquet").image_id
    goals.agree(f"the {len(named)} called mislabelled of the first draw", found[0] == {*named})
    check_labels(list(zip(found, wrong)), part_of, goals)
    print(f"called mislabelled without wrong labels: {len(mislabelled(images, pairs, labels))}")


def _discover(
    args: argparse.Namespace,
    folder: pathlib.Path,
    every: list[Photograph],
    photographs: list[Photograph],
    goals: Goals,
) -> None:
    others = [p for p in photographs if p.part != PARTS[0] and p.kind == "landmark"]
    size = collections.Counter(p.label for p in others)
    labels = sorted((n for n in size if size[n] >= MIN_QUERIES), key=lambda n: order("left out", n))[
        :LEFT_OUT
    ]
    queries = [p for p in others if p.label in labels]
    queries += sorted((p for p in every if p.kind == "distractor"), key=lambda p: order("none", p.id))[:400]
    known = [p for p in others if p.label not in labels]
    paths = {
        name: [str((args.photos / p.path).resolve()) for p in members]
        for name, members in (("known", known), ("queries", queries))
    }
    given = write_inputs(folder, "known", paths["known"], {p.id: p.label for p in known})
    asked = commands.write_list(folder / "queries.txt", paths["queries"])
    index, run, found = (folder / name for name in ("known", "run", "found"))
    commands.landmarks("index", output=index, **given)
    commands.landmarks("calibrate", index=index)
    tuned = {"preset": "tuned", "min_probability": 0.5}
    commands.landmarks("recognize", images=asked, index=index, output=run, **tuned)
    commands.landmarks("discover", run=run, output=found)
    check_groups(found, {p.id: p.label for p in queries}, labels, goals)
