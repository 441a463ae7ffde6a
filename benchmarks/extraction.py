"""Extraction: the index job against the bare model, which is its limit, and against the baseline's two passes
with decoding in each.

For the embedded model and for a ResNet-50 with DELG's heads and random weights. Every way runs in a process
of its own.

(a) bare model   the model called in a loop on photographs that lie decoded in memory, TensorFlow's own choice
of threads, a few warm-up calls; of the embedded model decoding and extraction, by a thread on each core
(b) baseline     per photograph: decode, global pass, decode, local pass; no files written; only the ResNet-50
(c) index job    `landmarks index`: read, decode, extract, write. Net of start-up: (N - n) / (seconds of N
photographs - seconds of n)
(d) bfloat16     the same with --precision bfloat16
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks import commands, resnet_delg
from benchmarks.goals import Goals
from transforms.arrays.quantization import dequantized
from transforms.processes.settings import one_thread
from transforms.storage.feature_store import (
    FeatureStore,
    decode_local_features,
    descriptors_of,
    encode_local_features,
)
from transforms.types import FeatureLocation, LocalFeatures

FEW = 8  # photographs of the job whose time is the start-up
COMPARED = 50  # photographs whose answers are compared
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Features:
    """What one way gave for one photograph: global descriptor [D], unit length; keypoints [N, 2], (y, x);
    descriptors [N, D'].
    """

    descriptor: np.ndarray
    keypoints: np.ndarray
    descriptors: np.ndarray


def bare_model(model: str, paths: list[str], settings) -> tuple[float, list[Features]]:
    """Seconds of way (a) over all photographs; features of the first."""
    from transforms.images import decode_image
    from transforms.models import catalog

    loaded = catalog.load(model, settings)
    if model in catalog.BUILT_IN:

        def extract(path: str):
            return loaded.extract(decode_image(pathlib.Path(path).read_bytes(), settings.max_image_side)[0])

        with one_thread, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(extract, paths[:WARM_UP]))
            started = time.perf_counter()
            extracted = list(pool.map(extract, paths))
            seconds = time.perf_counter() - started
        return seconds, [as_stored(e) for e in extracted[:COMPARED]]
    decoded = [decode_image(pathlib.Path(path).read_bytes(), settings.max_image_side)[0] for path in paths]
    for pixels in decoded[:WARM_UP]:
        loaded.outputs(pixels)
    started = time.perf_counter()
    for pixels in decoded:
        loaded.outputs(pixels)
    seconds = time.perf_counter() - started
    extracted = (loaded.extract(pixels) for pixels in decoded[:COMPARED])
    return seconds, [as_stored(e) for e in extracted]


def as_stored(extracted) -> Features:
    """Features with what storing local ones does to them."""
    local = LocalFeatures(extracted.keypoints, extracted.descriptors)
    local = dequantized(decode_local_features(encode_local_features(local)))
    return Features(extracted.global_descriptor, local.keypoints, local.descriptors)


def baseline_passes(model: str, paths: list[str], settings) -> tuple[float, list[Features]]:
    """Seconds of way (b) over all photographs; features of the first."""
    from benchmarks.competition_baseline import Extractor

    extractor = Extractor(model, settings)
    for path in paths[:WARM_UP]:
        extractor.global_descriptor(path), extractor.local_features(path)
    features = []
    started = time.perf_counter()
    for path in paths:
        found = Features(extractor.global_descriptor(path), *extractor.local_features(path))
        if len(features) < COMPARED:
            features.append(found)
    return time.perf_counter() - started, features


def stored(root: pathlib.Path, ids: list[str]) -> list[Features]:
    """Features of some photographs in an index."""
    store, found = FeatureStore(str(root)), {}
    for unit in store.units():
        table = store.read_images(unit)
        columns = (table.column(name).to_pylist() for name in ("image_id", "local_offset", "local_size"))
        for image_id, offset, size, descriptor in zip(*columns, descriptors_of(table)):
            local = dequantized(store.read_local(FeatureLocation(unit, offset, size)))
            found[image_id] = Features(descriptor, local.keypoints, local.descriptors)
    return [found[i] for i in ids]


def compare(one: list[Features], other: list[Features]) -> tuple[float, float, float]:
    """Least cosine of global descriptors; share of `one`'s keypoints that `other` has too; median cosine of
    the descriptors there.
    """
    cosine = min(float(a.descriptor @ b.descriptor) for a, b in zip(one, other))
    kept, total, local = 0, 0, []
    for a, b in zip(one, other):
        # Scales share some positions, so a keypoint's descriptor tells which it is.
        places: dict[tuple[float, ...], list[np.ndarray]] = {}
        for keypoint, descriptor in zip(b.keypoints.round(1), b.descriptors):
            places.setdefault(tuple(keypoint), []).append(descriptor)
        for keypoint, descriptor in zip(a.keypoints.round(1), a.descriptors):
            here = places.get(tuple(keypoint))
            if here:
                kept += 1
                local.append(max(float(descriptor @ there) for there in here))
        total += len(a.keypoints)
    return cosine, kept / max(1, total), float(np.median(local)) if local else 1.0


def job_seconds(model: str, folder: pathlib.Path, name: str, flags: list[str]) -> tuple[float, float]:
    """Seconds of `landmarks index` over few and over all photographs; the second index stays at `folder /
    name`.
    """
    given = {"labels": folder / "labels.csv", "model": model}
    few, full = (
        commands.landmarks(
            "index", *flags, images=f"@{folder}/{images}.txt", output=folder / f"{name}-{images}", **given
        ).seconds
        for images in ("few", "all")
    )
    return few, full


def in_a_process(
    way: str, model: str, side: int | None, folder: pathlib.Path
) -> tuple[float, list[Features]]:
    """Seconds and features of `way`, one of WAYS, run by a fresh interpreter."""
    output = folder / f"{way}.npz"
    side_flag = {"max_image_side": side} if side else {}
    commands.run("benchmarks.extraction", way=way, model=model, folder=folder, output=output, **side_flag)
    with np.load(output) as data:
        seconds, count = float(data["seconds"]), int(data["count"])
        return seconds, [Features(*(data[f"{i}_{part}"] for part in range(3))) for i in range(count)]


WAYS = {"bare": bare_model, "baseline": baseline_passes}


def _way_process(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--way", choices=WAYS)
    for name in ("--model", "--folder", "--output"):
        parser.add_argument(name)
    parser.add_argument("--max_image_side", type=int)
    args = parser.parse_args(argv)
    from transforms.models import catalog

    settings = catalog.settings(args.model)
    settings = dataclasses.replace(settings, max_image_side=args.max_image_side or settings.max_image_side)
    paths = (pathlib.Path(args.folder) / "all.txt").read_text().splitlines()
    seconds, features = WAYS[args.way](args.model, paths, settings)
    arrays = {
        f"{i}_{part}": value
        for i, f in enumerate(features)
        for part, value in enumerate((f.descriptor, f.keypoints, f.descriptors))
    }
    np.savez(args.output, seconds=seconds, count=len(features), **arrays)


def measure(name: str, model: str, side: int | None, rows: list[commands.Photograph], goals: Goals) -> None:
    """Prints the table and the goals of one model."""
    number, built_in = len(rows), model == name
    with tempfile.TemporaryDirectory(prefix="landmarks-extraction-") as temporary:
        folder = pathlib.Path(temporary)
        for listed, chosen in (("few", rows[:FEW]), ("all", rows)):
            commands.write_list(folder / f"{listed}.txt", (row.path for row in chosen))
        commands.write_labels(folder / "labels.csv", ((row.id, row.label or "none") for row in rows))
        flags = ["--max_image_side", str(side)] if side else []
        ways = {"bare model": "bare", **({} if built_in else {"baseline": "baseline"})}
        seconds, given = {}, {}
        for way, argument in ways.items():
            seconds[way], given[way] = in_a_process(argument, model, side, folder)
        rates = {f"({letter}) {way}": number / seconds[way] for letter, way in zip("ab", ways)}
        features = {}
        for label, precision in [
            ("(c) index job", "float32"),
            *([] if built_in else [("(d) index job, bfloat16", "bfloat16")]),
        ]:
            few, full = job_seconds(model, folder, precision, [*flags, "--precision", precision])
            rates[label] = (number - FEW) / (full - few)
            rates[f"    from start to exit ({full:.1f} s, {FEW} photographs {few:.1f} s)"] = number / full
            features[precision] = stored(folder / f"{precision}-all", [row.id for row in rows[:COMPARED]])
    print(f"\n{name}, longest side {side or 'of the card'}, {number} photographs")
    print(f"{'':<60}{'images/s':>10}" + "".join(f"{f'of ({letter})':>8}" for letter, _ in zip("ab", ways)))
    for label, rate in rates.items():
        print(f"{label:<60}{rate:>10.2f}" + "".join(f"{rate * seconds[way] / number:>8.2f}" for way in ways))
    least = {"bare model": 0.85 if built_in else 0.9, "baseline": 1.8}
    for other in ways:
        ratio = rates["(c) index job"] * seconds[other] / number
        goals.at_least(f"{name}: index job / {other}", ratio, least[other])
        cosine, kept, local = compare(given[other], features["float32"])
        goals.agree(
            f"{name}: features of the {other} and the job (least cosine {cosine:.5f}, {kept:.2%} of "
            f"keypoints, local cosine {local:.4f})",
            cosine > 0.9999 and kept > 0.99 and local > 0.999,
        )
    if not built_in:
        cosine, kept, local = compare(features["float32"], features["bfloat16"])
        print(
            f"{name}: bfloat16 moves descriptors to a least cosine of {cosine:.5f}, keeps {kept:.1%} of "
            f"keypoints, local cosine {local:.4f}"
        )
        ratio = rates["(d) index job, bfloat16"] * seconds["baseline"] / number
        goals.at_least(f"{name}: index job in bfloat16 / baseline", ratio, {"bfloat16": 2.8})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py extraction", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands.add_photos_flag(parser)
    parser.add_argument(
        "--number", type=int, default=300, metavar="N", help="photographs (default: %(default)s)"
    )
    parser.add_argument(
        "--models", nargs="+", choices=["embedded", "resnet50"], default=["embedded", "resnet50"]
    )
    parser.add_argument(
        "--max_image_side",
        type=int,
        default=480,
        metavar="PX",
        help="for the ResNet-50; the embedded model's is its card's (default: %(default)s)",
    )
    parser.add_argument(
        "--image_scales",
        type=lambda text: tuple(map(float, text.split(","))),
        default=(0.7071, 1.0, 1.4142),
        metavar="S,S",
        help="of the ResNet-50 (default: 0.7071,1,1.4142)",
    )
    parser.add_argument(
        "--model_cache",
        default=tempfile.gettempdir() + "/landmarks-benchmarks",
        metavar="DIR",
        help="where the ResNet-50 is built once (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.number <= FEW:
        parser.error(f"--number must be more than {FEW}")
    rows = commands.photographs(args.photos)[: args.number]
    print(commands.machine())
    goals = Goals()
    if "embedded" in args.models:
        measure("embedded", "embedded", None, rows, goals)
    if "resnet50" in args.models:
        model = resnet_delg.ensure(args.model_cache, args.max_image_side, args.image_scales)
        measure("resnet50", model, args.max_image_side, rows, goals)
    return goals.exit_code


if __name__ == "__main__":
    _way_process(sys.argv[1:])
