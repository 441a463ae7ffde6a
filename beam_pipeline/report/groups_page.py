"""The page of groups of queries without a landmark: their photographs, what says that they show one place,
and a place for a name.
"""

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from beam_pipeline import outputs
from beam_pipeline.discover import GROUPS, PAIRS
from beam_pipeline.manifest import MANIFEST, RunManifest
from beam_pipeline.matches import StoredImage, find_images
from beam_pipeline.report.pictures import Lines, Pairs, Photograph, in_threads
from beam_pipeline.report.single_page import PAGE, write, write_photographs
from transforms.storage import files
from transforms.storage.feature_store import FeatureStore
from transforms.types import VerificationSettings

_MAX_GROUPS = 200  # shown
_MAX_PHOTOGRAPHS = 12  # of each

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Link:
    """A pair of a group.

    Attributes:
      first, second: the photographs.
      similarity, inliers, probability: see `discover.grouped`.
      lines: between the points that agree.
    """

    first: Photograph
    second: Photograph
    similarity: float
    inliers: int
    probability: float
    lines: Sequence[Lines]


@dataclasses.dataclass(frozen=True)
class Group:
    """A group.

    Attributes:
      number: from 1 on.
      ids: of all its photographs, as labels name them.
      members: some of these, with their ids and numbers of links.
      links: that hold the members together, the least probable first.
    """

    number: int
    ids: Sequence[str]
    members: Sequence[tuple[Photograph, str, int]]
    links: Sequence[Link]


def write_page(output: str) -> str:
    """Writes the page of a finished search for groups, where there is none yet, with the photographs that it
    shows, which may be gone; returns its place.

    Raises:
      ConfigError: the run that was searched is not there any more.
    """
    page = files.join(output, PAGE)
    if files.exists(page):
        return page
    found = files.read_json(files.join(output, MANIFEST))
    root = files.place_of(output, found["run_uri"])
    run = outputs.read_manifest(root, RunManifest)
    rows: dict[int, list[Row]] = {}
    for row in files.read_parquet(files.join(output, GROUPS)).to_pylist():
        if row["group"] <= _MAX_GROUPS:
            rows.setdefault(row["group"], []).append(row)
    shown = {row["image_id"] for of_group in rows.values() for row in of_group[:_MAX_PHOTOGRAPHS]}
    stored = find_images(FeatureStore(run.query_store), run.shards, shown)
    photographs = write_photographs(output, list(stored.values()), run.recipe.reading, root)
    links = _links(output, photographs, stored, run, VerificationSettings(**found["verification"]))
    groups = [
        Group(
            number,
            [row["id"] for row in of_group],
            [
                (photographs[row["image_id"]], row["id"], row["links"])
                for row in of_group
                if row["image_id"] in photographs
            ],
            links.get(number, ()),
        )
        for number, of_group in rows.items()
    ]
    command = ["landmarks", "index", "--append", "--images", files.absolute(files.join(output, GROUPS))]
    return write(
        output,
        "groups.html",
        ["report.js"],
        run_key=f"{found['run']} groups",
        run=root,
        counts=found["counts"],
        groups=groups,
        append=shlex.join(command),
        index=shlex.quote(files.absolute(run.index)),
    )


def _links(
    output: str,
    photographs: Mapping[str, Photograph],
    stored: Mapping[str, StoredImage],
    run: RunManifest,
    settings: VerificationSettings,
) -> dict[int, list[Link]]:
    """The pairs that hold photographs together, by group, the least probable first."""
    pairs = files.read_parquet(files.join(output, PAIRS)).to_pylist()
    tree = list(spanning(p for p in pairs if {p["image_id"], p["other_image_id"]} <= stored.keys()))
    asked = [(stored[pair["image_id"]], [stored[pair["other_image_id"]]]) for pair in tree]
    drawn = in_threads(Pairs(run.query_store, run.query_store, settings), asked)
    links: dict[int, list[Link]] = {}
    for pair, [lines] in zip(tree, drawn):
        ends = photographs[pair["image_id"]], photographs[pair["other_image_id"]]
        link = Link(*ends, pair["similarity"], pair["inliers"], pair["probability"], lines)
        links.setdefault(pair["group"], []).insert(0, link)
    return links


def spanning(pairs: Iterable[Row]) -> Iterator[Row]:
    """Of pairs (image_id, other_image_id) those that join what none before them joined."""
    joined: dict[str, set[str]] = {}
    for pair in pairs:
        first, second = (joined.setdefault(pair[end], {pair[end]}) for end in ("image_id", "other_image_id"))
        if first is not second:
            first |= second
            joined.update(dict.fromkeys(second, first))
            yield pair
