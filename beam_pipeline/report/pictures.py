"""Photographs as a report shows them: thumbnails, and lines between the points of a pair that agree."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image

from beam_pipeline.manifest import RunManifest
from beam_pipeline.matches import StoredImage, agreeing_points, choose_lines, colours, unlimited
from transforms import images
from transforms.processes.settings import one_thread
from transforms.processes.threads import map_ahead
from transforms.storage import files
from transforms.storage.feature_store import FeatureStore
from transforms.storage.machine import MachineError
from transforms.storage.object_stores import READS_IN_FLIGHT
from transforms.storage.uris import held_in
from transforms.types import DecodedImage, Failure, QuantizedFeatures, ReadingConfig, VerificationSettings

SIDE = 320  # the longest of a thumbnail, pixels
GUTTER = 10  # between the two photographs of a pair
_QUALITY = dict(quality=65, method=2)  # a slower method saves next to nothing
_SHADES = 4  # between green and orange: lines of one colour are one element


def href(number: int) -> str:
    """The thumbnail of a photograph, by its place among those of a page, from the page's folder on."""
    return f"photographs/{number:05d}.webp"


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph to show.

    Attributes:
      image_id: its id.
      uri: where it lies.
      href: the thumbnail, as a page names it; "" where the photograph could not be read.
      width, height: of the thumbnail, pixels.
      changed: whether it is another than when its features were found.
    """

    image_id: str
    uri: str
    href: str
    width: int
    height: int
    changed: bool = False

    @property
    def link(self) -> str:
        """What a browser can open; "" for places that none can."""
        if files.is_local(self.uri):
            alone = os.path.isabs(self.uri) and held_in(self.uri) is None
            return pathlib.Path(self.uri).as_uri() if alone else ""
        return self.uri if self.uri.startswith(("https://", "http://")) else ""


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines of one colour between the photographs of a pair.

    Attributes:
      colour: "#rrggbb".
      path: of SVG, "M x y l dx dy" for each; x from the query's left edge on, y from its middle.
    """

    colour: str
    path: str


def thumbnail_size(image: StoredImage) -> tuple[int, int]:
    """Width and height of the thumbnail, as `images.decode_image` shrinks."""
    scale = min(1.0, SIDE / max(image.width, image.height))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def thumbnails(
    wanted: Sequence[StoredImage], reading: ReadingConfig, write: Callable[[int, bytes], None]
) -> Iterator[str]:
    """Reads photographs, once each, and hands `write` their thumbnails by their places in `wanted`.

    Yields:
      in their order what is wrong with each, the kind of its failure; "" for nothing.
    """

    def write_one(number: int, content: DecodedImage | Failure) -> str:
        if isinstance(content, Failure):
            return content.kind
        encoded = io.BytesIO()
        PIL.Image.fromarray(content.pixels).save(encoded, "WEBP", **_QUALITY)
        write(number, encoded.getvalue())
        return ""

    def read(image: StoredImage) -> DecodedImage | Failure:
        try:
            return images.read_image(image.ref, SIDE, unlimited(reading))
        except MachineError as e:  # a disk that is gone takes no picture of another with it
            return Failure("read", image.ref.image_id, image.ref.uri, "unreachable", str(e))

    remote = not all(files.is_local(image.ref.uri) for image in wanted)
    with ThreadPoolExecutor(READS_IN_FLIGHT if remote else len(os.sched_getaffinity(0))) as pool:
        yield from map_ahead(pool, lambda item: write_one(item[0], read(item[1])), enumerate(wanted), 64)


class Pairs:
    """Verifies pairs of images of two stores again, or of one, for the points that agree.

    Where the features that they were found by are gone, a pair has no lines.
    """

    def __init__(self, queries: str, index: str, settings: VerificationSettings) -> None:
        self._queries, self._index, self._settings = FeatureStore(queries), FeatureStore(index), settings

    @classmethod
    def of(cls, manifest: RunManifest) -> "Pairs":
        """Those of a run."""
        return cls(manifest.query_store, manifest.index, manifest.verification)

    def lines(self, query: StoredImage, candidates: Sequence[StoredImage | None]) -> list[list[Lines]]:
        """The lines of a query and each of its candidates; none for a candidate that is None."""
        with one_thread:
            try:
                local = self._queries.read_local(query.location)
                return [self._of_pair(query, local, c) if c else [] for c in candidates]
            except (OSError, ValueError, EOFError):
                return [[] for _ in candidates]

    def _of_pair(self, query: StoredImage, local: QuantizedFeatures, candidate: StoredImage) -> list[Lines]:
        other = self._index.read_local(candidate.location)
        points = agreeing_points(query.ref.image_id, local, candidate.ref.image_id, other, self._settings)
        fed = candidate.image_scale * max(candidate.width, candidate.height)
        chosen, looseness = choose_lines(*points, round(fed))
        starts, ends = (_on_thumbnail(p[chosen], i) for p, i in zip(points, (query, candidate)))
        ends[:, 1] += thumbnail_size(query)[0] + GUTTER
        starts, ends = np.rint(starts).astype(int), np.rint(ends).astype(int)
        shades = np.rint(looseness * _SHADES).astype(int)
        return [
            Lines(
                "#{:02x}{:02x}{:02x}".format(*colours(np.array([shade / _SHADES]))[0]),
                "".join(
                    f"M{x} {y}l{to_x - x} {to_y - y}"
                    for (y, x), (to_y, to_x) in zip(
                        starts[shades == shade].tolist(), ends[shades == shade].tolist()
                    )
                ),
            )
            for shade in np.unique(shades).tolist()
        ]


def _on_thumbnail(points: np.ndarray, image: StoredImage) -> np.ndarray:
    """(y, x) in pixels of the image fed to (y, x) of the thumbnail, y from its middle; float64 [L, 2]."""
    width, height = thumbnail_size(image)
    size = np.array([height, width])
    fed = np.array([image.height, image.width]) * image.image_scale
    inside = np.clip((points + 0.5) / fed * size, 0, size)
    return inside - [height / 2, 0]


def in_threads(
    pairs: Pairs, items: Sequence[tuple[StoredImage, Sequence[StoredImage | None]]]
) -> Iterator[list[list[Lines]]]:
    """`Pairs.lines` of many queries, in their order, on all cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from map_ahead(pool, lambda item: pairs.lines(*item), items, 16)
