"""`landmarks gldv2 subset`: a part of the data set that a laptop can try.

    OUTPUT/index.txt, labels.csv     photographs to index, and their landmarks
    OUTPUT/queries.txt, truth.csv    queries, where they were downloaded, and what they show
    OUTPUT/chosen.csv                the landmarks: photographs there, published, queries

What is chosen depends on the seed and on what was downloaded: landmarks and photographs are taken in the
order of a hash of their ids. A folder with other tables than these is left alone.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from beam_pipeline import outputs
from beam_pipeline.config import ConfigError
from beam_pipeline.extraction import match
from beam_pipeline.gldv2 import published
from beam_pipeline.gldv2.config import SubsetConfig
from transforms.storage import files, spelling, tables
from transforms.types import ImageRef

_LEAST = 2  # photographs of a landmark: one to be found by another


def run(config: SubsetConfig) -> int:
    """Chooses landmarks, distractors and queries, and writes lists and tables of them.

    Raises:
      ConfigError: there are fewer landmarks than asked for, nothing was downloaded, or the output holds
        anything but this subset.
      TableError, OSError: a table cannot be read, or the output not be written.
    """
    labels = _labels(files.join(config.data, os.path.basename(published.CLEAN_LABELS)))
    index = match([files.join(config.data, "train_clean")]).images
    there = Counter(labels[ref.image_id] for ref in index if ref.image_id in labels)
    known = _first((name for name, count in there.items() if count >= _LEAST), config.landmarks, config.seed)
    if len(known) < config.landmarks:
        raise ConfigError(
            f"{config.data} has {_LEAST} photographs or more of {len(known):,} landmarks, not of "
            f"{config.landmarks:,}; download more archives, or name fewer --landmarks"
        )
    chosen = {*known}
    photographs = {ref.image_id for ref in index if labels.get(ref.image_id) in chosen}
    others = (ref.image_id for ref in index if ref.image_id in labels and labels[ref.image_id] not in chosen)
    indexed = photographs | {*_first(others, len(photographs), config.seed)}
    rows = [(ref.image_id, labels[ref.image_id]) for ref in index if ref.image_id in indexed]
    asked, queries, truth = _choose_queries(config, chosen)
    of = Counter(labels.values())
    table = [(name, there[name], of[name], asked[name]) for name in sorted(known)]
    written = {  # in this order, on which _check_output relies
        "index.txt": _list(index, indexed),
        "labels.csv": _csv(("id", "landmark_id"), rows),
        "chosen.csv": _csv(("landmark_id", "photographs", "published", "queries"), table),
        "truth.csv": truth,
        "queries.txt": queries,
    }
    _check_output(config.output, written)
    for name, data in written.items():
        if data is not None:
            files.write_bytes(files.join(config.output, name), data)
    print(
        f"{config.output}: {len(known):,} landmarks with {len(photographs):,} of their "
        f"{sum(of[name] for name in known):,} photographs, {len(rows) - len(photographs):,} distractors, "
        f"{len(asked):,} of the landmarks in queries; see {files.join(config.output, 'chosen.csv')}"
    )
    return 0


def _check_output(output: str, written: dict[str, bytes | None]) -> None:
    """Checks that what is in a folder already is this subset, whole or the beginning of it; without queries
    as yet, which are counted in chosen.csv.

    Raises:
      ConfigError: it is something else.
    """
    if outputs.is_empty(output):
        return
    there = {name for name in written if files.exists(files.join(output, name))}
    if "index.txt" not in there:
        raise ConfigError(
            f"{output} is not empty and was not made by `landmarks gldv2 subset`; name another folder"
        )
    for name, data in written.items():
        final = name != "chosen.csv" or "queries.txt" in there
        if name in there and final and files.read_bytes(files.join(output, name)) != data:
            raise ConfigError(
                f"{output} is not empty, and its {name} is not of this subset, but of another --landmarks, "
                "--seed or download; name another folder"
            )


def _choose_queries(
    config: SubsetConfig, chosen: set[str]
) -> tuple[Counter[str], bytes | None, bytes | None]:
    """How many queries show each landmark; the list of these and as many that show nothing, and their truth,
    or None for both where no queries were downloaded.
    """
    truth = files.join(config.data, os.path.basename(published.TRUTH))
    folder = files.join(config.data, "test")
    if not files.exists(truth) or (files.is_local(folder) and not os.path.isdir(folder)):
        print(f"no queries: {folder} and {truth} come with `landmarks gldv2 download --part test`")
        return Counter(), None, None
    queries = match([folder]).images
    here = {ref.image_id for ref in queries}
    rows = [row for row in tables.read_truth(truth).to_pylist() if row["image_id"] in here]
    showing = [row for row in rows if not chosen.isdisjoint(row["landmark_ids"])]
    plain = _first(
        (row["image_id"] for row in rows if not row["landmark_ids"]), max(1, len(showing)), config.seed
    )
    ids = {row["image_id"] for row in showing} | {*plain}
    lines = [
        (row["image_id"], " ".join(map(spelling.word_of, row["landmark_ids"])), row["usage"])
        for row in rows
        if row["image_id"] in ids
    ]
    asked = Counter(name for row in showing for name in row["landmark_ids"] if name in chosen)
    return asked, _list(queries, ids), _csv(("id", "landmarks", "Usage"), sorted(lines))


def _labels(uri: str) -> dict[str, str]:
    table = tables.read_labels(uri)
    return dict(zip(table["image_id"].to_pylist(), table["landmark_id"].to_pylist()))


def _first(names: Iterable[str], count: int, seed: int) -> list[str]:
    """The first `count` of `names` in the order of a hash."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed} {name}".encode()).digest(), name))[:count]


def _list(refs: Sequence[ImageRef], ids: set[str]) -> bytes:
    return "".join(f"{ref.uri}\n" for ref in refs if ref.image_id in ids).encode()


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
