"""A picture of a query beside its candidates, with lines between the features that agree with the
homography.
"""

import dataclasses
import io
import os
import sys
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline import index_parts, outputs
from beam_pipeline.changes import is_changed
from beam_pipeline.config import ConfigError
from beam_pipeline.manifest import IndexManifest, RunManifest
from beam_pipeline.recipe import Recipe
from transforms import images, verification
from transforms.patterns import current
from transforms.storage import files, run_store, spelling, tables, worklist
from transforms.storage.feature_store import FeatureStore, ShardSummary
from transforms.storage.overlays import shard_of
from transforms.types import (
    Failure,
    FeatureLocation,
    ImageRef,
    QuantizedFeatures,
    ReadingConfig,
    VerificationSettings,
)

MAX_LINES = 60  # more hide the photographs

# What to do for photographs that are gone.
MOVED = (
    "photographs that were moved are found again where they lay, or, those of an index, after "
    "`landmarks index --append --update` with their new place"
)

_MADE_BY = "landmarks matches"  # in the files of pictures

# Layout, in pixels.
_BOX_WIDTH, _BOX_HEIGHT = 480, 360  # an image is fitted into this
_MARGIN, _GAP = 24, 32
_FRAME = 3
_TEXT_SIZE, _LINE_HEIGHT = 16, 22
_CANVAS_WIDTH = 2 * _MARGIN + 2 * _BOX_WIDTH + _GAP

_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_FRAME_COLOURS = {True: (30, 150, 70), False: (200, 50, 45), None: (150, 150, 150)}
_CONSISTENT, _INCONSISTENT = np.array([60, 230, 110]), np.array([255, 140, 20])
_LOOSE = 0.03  # a residual of this part of the candidate's longest side is drawn as inconsistent
_OPACITY = 0.9
_SHIFT = 4  # fractional bits of the coordinates that OpenCV draws at


@dataclasses.dataclass(frozen=True)
class Panel:
    """A candidate to draw beside the query.

    Attributes:
      pixels: uint8 [H, W, 3], RGB.
      query_points: float32 [M, 2], (y, x) in pixels of the query.
      candidate_points: float32 [M, 2], (y, x) in pixels of the candidate; row m matches row m of
        `query_points`.
      caption: text under the images; may have several lines.
      correct: frames the candidate green or red; None is grey, where the truth is not known.
    """

    pixels: np.ndarray
    query_points: np.ndarray
    candidate_points: np.ndarray
    caption: str
    correct: bool | None = None

    def __post_init__(self) -> None:
        _check_pixels("pixels", self.pixels)
        shapes = np.shape(self.query_points), np.shape(self.candidate_points)
        if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][1] != 2:
            raise ValueError(
                f"query_points and candidate_points must both be [M, 2], got {shapes[0]} and {shapes[1]}"
            )


def draw_matches(query_pixels: np.ndarray, panels: Sequence[Panel], title: str = "") -> np.ndarray:
    """Draws the query at the left and a candidate at the right, one row for each panel, and lines between
    their matches.

    A line is green where the match fits the homography of its panel well, and turns orange with the residual.
    At most MAX_LINES of a panel are drawn, evenly chosen. Points outside their image are drawn at its edge.

    Args:
      query_pixels: uint8 [H, W, 3], RGB.
      panels: at least one.
      title: text above the first row; may have several lines.

    Returns:
      uint8 [height, width, 3], RGB; the width is the same for all pictures.

    Raises:
      ValueError: there is no panel, or `query_pixels` is no RGB image.
    """
    _check_pixels("query_pixels", query_pixels)
    if not panels:
        raise ValueError("there is no candidate to draw: panels is empty")
    rows = [_draw_row(query_pixels, panel) for panel in panels]
    lines = title.splitlines()
    head = np.full((_MARGIN + len(lines) * _LINE_HEIGHT, _CANVAS_WIDTH, 3), _PAPER, np.uint8)
    return np.vstack([_write(head, lines, top=_MARGIN - _LINE_HEIGHT // 2), *rows])


def _check_pixels(name: str, pixels: np.ndarray) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"{name} must be uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")


def _draw_row(query_pixels: np.ndarray, panel: Panel) -> np.ndarray:
    """One panel with its caption and the space under it: uint8 [height, _CANVAS_WIDTH, 3]."""
    query, query_scale = _fit(query_pixels)
    candidate, candidate_scale = _fit(panel.pixels)
    image_height = max(query.shape[0], candidate.shape[0]) + 2 * _FRAME
    lines = panel.caption.splitlines()
    row = np.full((image_height + len(lines) * _LINE_HEIGHT + _MARGIN, _CANVAS_WIDTH, 3), _PAPER, np.uint8)
    query_corner = _paste(row, query, image_height, _MARGIN, _FRAME_COLOURS[None])
    candidate_corner = _paste(
        row, candidate, image_height, _MARGIN + _BOX_WIDTH + _GAP, _FRAME_COLOURS[panel.correct]
    )
    chosen, looseness = choose_lines(panel.query_points, panel.candidate_points, max(panel.pixels.shape[:2]))
    starts = _on_canvas(panel.query_points[chosen], query_pixels, query_scale, query_corner)
    ends = _on_canvas(panel.candidate_points[chosen], panel.pixels, candidate_scale, candidate_corner)
    _draw_lines(row, starts, ends, colours(looseness))
    return _write(row, lines, top=image_height + 4)


def _fit(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Resizes an image to fit its box; returns it and the factor."""
    height, width = pixels.shape[:2]
    scale = min(_BOX_HEIGHT / height, _BOX_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), scale


def _paste(
    row: np.ndarray, image: np.ndarray, height: int, left: int, colour: tuple[int, int, int]
) -> tuple[int, int]:
    """Puts a framed image into the middle of its box; returns its top left corner, (y, x)."""
    y, x = (height - image.shape[0]) // 2, left + (_BOX_WIDTH - image.shape[1]) // 2
    bottom, right = y + image.shape[0], x + image.shape[1]
    row[y - _FRAME : bottom + _FRAME, x - _FRAME : right + _FRAME] = colour
    row[y:bottom, x:right] = image
    return y, x


def choose_lines(
    query_points: np.ndarray, candidate_points: np.ndarray, longest_side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which matches of a pair are drawn, and how loosely each fits the homography of all.

    Args:
      query_points, candidate_points: float32 [M, 2], (y, x) in pixels of the images fed.
      longest_side: of the candidate's image, pixels.

    Returns:
      int [L], at most MAX_LINES of the M matches; float64 [L], from 0 for a perfect fit to 1, see `colours`.
    """
    chosen = _choose(len(query_points))
    residuals = _residuals(query_points, candidate_points)[chosen]
    return chosen, np.clip(residuals / (_LOOSE * longest_side), 0, 1)


def _choose(count: int) -> np.ndarray:
    """Indices of at most MAX_LINES of `count` matches, evenly spread over their order."""
    return np.linspace(0, count - 1, min(count, MAX_LINES)).round().astype(int)


def _on_canvas(points: np.ndarray, pixels: np.ndarray, scale: float, corner: tuple[int, int]) -> np.ndarray:
    """Moves (y, x) in an image to (y, x) on the canvas; a pixel's centre has whole coordinates."""
    inside = np.clip(points, 0, np.array(pixels.shape[:2]) - 1)
    return (inside + 0.5) * scale - 0.5 + corner


def _residuals(query_points: np.ndarray, candidate_points: np.ndarray) -> np.ndarray:
    """Distance of each match from the least-squares homography of all: float64 [M], pixels of the candidate.

    Zero where there are too few matches, or they are too degenerate, to fit one.
    """
    source, target = (points[:, None, ::-1].astype(np.float64) for points in (query_points, candidate_points))
    homography = cv2.findHomography(source, target)[0] if len(source) >= 4 else None
    if homography is None:
        return np.zeros(len(source))
    return np.linalg.norm(cv2.perspectiveTransform(source, homography) - target, axis=2)[:, 0]


def colours(looseness: np.ndarray) -> list[tuple[int, int, int]]:
    """RGB of lines, green at a looseness of 0, orange at 1; `looseness` is float64 [L]."""
    mixed = _CONSISTENT + looseness[:, None] * (_INCONSISTENT - _CONSISTENT)
    return [tuple(colour) for colour in mixed.astype(int).tolist()]


def _draw_lines(
    row: np.ndarray, starts: np.ndarray, ends: np.ndarray, colours: Sequence[tuple[int, int, int]]
) -> None:
    """Draws thin lines over a dark shadow, and dots at their ends, in place."""
    overlay = row.copy()
    fixed = [
        [tuple(point) for point in np.rint(points[:, ::-1] * 2**_SHIFT).astype(int).tolist()]
        for points in (starts, ends)
    ]
    for start, end, colour in zip(*fixed, colours):
        cv2.line(overlay, start, end, (30, 30, 30), 2, cv2.LINE_AA, _SHIFT)
        cv2.line(overlay, start, end, colour, 1, cv2.LINE_AA, _SHIFT)
    cv2.addWeighted(overlay, _OPACITY, row, 1 - _OPACITY, 0, dst=row)
    for point, colour in zip(fixed[0] + fixed[1], [*colours, *colours]):
        cv2.circle(row, point, 4 << _SHIFT, (30, 30, 30), -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(row, point, 3 << _SHIFT, colour, -1, cv2.LINE_AA, _SHIFT)


def _write(row: np.ndarray, lines: Sequence[str], top: int) -> np.ndarray:
    """Writes lines of text from `top` down, and returns the row; what is too long for it ends in an
    ellipsis.
    """
    image = PIL.Image.fromarray(row)
    drawing = PIL.ImageDraw.Draw(image)
    font = PIL.ImageFont.load_default(_TEXT_SIZE)
    for number, line in enumerate(lines):
        text = line
        while text and drawing.textlength(text, font) > _CANVAS_WIDTH - 2 * _MARGIN:
            text = text.removesuffix("…")[:-1] + "…"
        drawing.text((_MARGIN, top + number * _LINE_HEIGHT), text, _INK, font)
    return np.array(image)


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image of a feature store: the photograph and where its local features lie.

    Attributes:
      ref: the photograph, with its label.
      location: of its local features.
      width, height: of the upright original, in pixels.
      image_scale: side of the image fed to the model divided by the side of the original.
    """

    ref: ImageRef
    location: FeatureLocation
    width: int
    height: int
    image_scale: float


def write_match_picture(
    run: str,
    image_id: str,
    output: str,
    max_candidates: int = 3,
    truth: str | None = None,
    names: str | None = None,
) -> None:
    """Draws a query of a finished run with its best candidates and writes the picture.

    The photographs are read again and the pairs verified again, by the run's settings and seeds. One that was
    changed since is said on standard error and in the picture.

    Args:
      run: folder made by the recognize job; its index and photographs lie where they lay.
      image_id: the query.
      output: file or URI to write; .png, .jpg or .jpeg.
      max_candidates: how many of the prediction's candidates to draw, best first.
      truth: CSV of the queries' landmarks; frames the right candidates green and the others red.
      names: CSV of the landmarks' names, see `tables.read_names`; they stand beside the ids.

    Raises:
      ConfigError: no such run, query or kind of picture, or there is no candidate to draw.
      ValueError: the features that the run was made from are gone.
      OSError: a photograph cannot be read, or the picture not be written.
    """
    if os.path.splitext(output)[1].lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"the picture {output!r} must end in .png, .jpg or .jpeg")
    manifest = outputs.read_manifest(run, RunManifest)
    index = read_index(run, manifest)
    prediction = _find_prediction(run, image_id)
    image_id = prediction["image_id"]
    candidates = prediction["candidates"][:max_candidates]
    if not candidates:
        raise ConfigError(f"{run} has no candidates for the query {image_id!r}")
    right = _read_landmarks(truth, image_id) if truth else None
    called = tables.read_names(names) if names else {}
    query_store, index_store = FeatureStore(manifest.query_store), FeatureStore(manifest.index)
    query = _found(query_store, manifest.shards, {image_id})[image_id]
    found = _found(index_store, index.shards, {c["image_id"] for c in candidates})
    for read in (query, *found.values()):
        if files.same_file(read.ref.uri, output):
            raise ConfigError(f"{output} is one of the photographs to draw; name another file")
    if files.exists(output) and not _made_here(output):
        raise ConfigError(f"{output} is there and was not made by `landmarks matches`; name another file")
    of_index = [found[c["image_id"]].ref for c in candidates]
    changed = [
        *changed_photographs([query.ref], run),
        *sorted(changed_photographs(of_index, manifest.index, index)),
    ]
    if changed:
        print(f"landmarks: changed since its features were found: {', '.join(changed)}", file=sys.stderr)
    settings = manifest.verification
    query_local = query_store.read_local(query.location)
    panels = []
    for rank, candidate in enumerate(candidates, 1):
        stored = found[candidate["image_id"]]
        local = index_store.read_local(stored.location)
        points = agreeing_points(image_id, query_local, candidate["image_id"], local, settings)
        panels.append(
            Panel(
                _read_pixels(stored.ref, index.recipe),
                *points,
                _candidate_caption(rank, candidate, called),
                None if right is None else candidate["landmark_id"] in right,
            )
        )
    title = _title(prediction, right, called) + (f"\nChanged since: {', '.join(changed)}" if changed else "")
    drawn = draw_matches(_read_pixels(query.ref, manifest.recipe), panels, title)
    encoded = io.BytesIO()
    picture, texts = PIL.Image.fromarray(drawn), PIL.PngImagePlugin.PngInfo()
    texts.add_text("Software", _MADE_BY)
    if output.lower().endswith(".png"):
        picture.save(encoded, "PNG", pnginfo=texts)
    else:
        picture.save(encoded, "JPEG", quality=92, comment=_MADE_BY)
    files.write_bytes(output, encoded.getvalue())


def read_index(run: str, manifest: RunManifest) -> IndexManifest:
    """The manifest of the index of a run.

    Raises:
      ConfigError: the index is not where it was.
    """
    try:
        return outputs.read_manifest(manifest.index, IndexManifest)
    except ConfigError as e:
        raise ConfigError(
            f"the index that {run} was made with is missing: {e}; where it was moved, put it back, or "
            "recognize again"
        ) from e


def _made_here(output: str) -> bool:
    """Whether a file is a picture that this module wrote: no other is written over."""
    try:
        with PIL.Image.open(io.BytesIO(files.read_bytes(output))) as picture:
            return _MADE_BY in (
                picture.info.get("Software"),
                picture.info.get("comment", b"").decode("latin-1"),
            )
    except PIL.UnidentifiedImageError:
        return False


def with_name(landmark_id: str, names: Mapping[str, str]) -> str:
    """A landmark as people read it: its name and id, or its id where it has no name."""
    return f"{names[landmark_id]} ({landmark_id})" if landmark_id in names else landmark_id


def _title(prediction: Mapping[str, Any], right: Collection[str] | None, names: Mapping[str, str]) -> str:
    predicted = (
        "nothing"
        if prediction["landmark_id"] is None
        else f"{with_name(prediction['landmark_id'], names)} (score {prediction['score']:.3f})"
    )
    shown = " or ".join(with_name(landmark_id, names) for landmark_id in right or ())
    truth = "" if right is None else f", shows {shown or 'no landmark'}"
    return f"Query {prediction['image_id']}: predicted {predicted}{truth}"


def _candidate_caption(rank: int, candidate: Mapping[str, Any], names: Mapping[str, str]) -> str:
    inliers = "not verified" if candidate["inliers"] is None else f"{candidate['inliers']} inliers"
    return (
        f"{rank}. {with_name(candidate['landmark_id'], names)}, image {candidate['image_id']}: similarity "
        f"{candidate['similarity']:.3f}, {inliers}, score {candidate['score']:.3f}"
    )


def _find_prediction(run: str, image_id: str) -> dict[str, Any]:
    """The row of run_store.PREDICTION_SCHEMA of a query; where none is called so, in composed or decomposed
    letters.
    """
    composed = unicodedata.normalize("NFC", image_id)
    for as_written in (True, False):
        for table in run_store.read_predictions(run):
            ids = table["image_id"]
            same = (
                pc.equal(ids, image_id) if as_written else pc.equal(pc.utf8_normalize(ids, "NFC"), composed)
            )
            rows = table.filter(same)
            if len(rows):
                return rows.to_pylist()[0]
    raise ConfigError(f"{run} has no prediction for a query {image_id!r}")


def _read_landmarks(truth: str, image_id: str) -> list[str] | None:
    """What a query shows; None where the table does not say."""
    table = tables.read_truth(truth)
    row = spelling.index_in(pa.array([image_id]), table["image_id"].combine_chunks())[0].as_py()
    return None if row is None else table["landmark_ids"][row].as_py()


STORED_COLUMNS = (
    "image_id",
    "landmark_id",
    "uri",
    "width",
    "height",
    "image_scale",
    "local_offset",
    "local_size",
)


def stored_images(unit: str, table: pa.Table) -> list[StoredImage]:
    """Rows of a shard's image table, with STORED_COLUMNS, as records."""
    return [
        StoredImage(
            ImageRef(row["image_id"], row["uri"], 0, row["landmark_id"]),
            FeatureLocation(unit, row["local_offset"], row["local_size"]),
            row["width"],
            row["height"],
            row["image_scale"],
        )
        for row in table.to_pylist()
    ]


def find_images(
    store: FeatureStore, shards: Iterable[ShardSummary], image_ids: Collection[str]
) -> dict[str, StoredImage]:
    """Looks images up in shards of a store, until all are found; those that are not there are left out."""
    wanted, there = pa.array(sorted(image_ids), pa.string()), {*store.units()}
    found: dict[str, StoredImage] = {}
    for unit in (shard.unit for shard in shards if shard_of(shard.unit) in there):
        if len(found) == len(wanted):
            break
        table = store.read_images(unit, STORED_COLUMNS)
        for image in stored_images(unit, table.filter(pc.is_in(table["image_id"], value_set=wanted))):
            found[image.ref.image_id] = image
    return found


def agreeing_points(
    query_id: str,
    query: QuantizedFeatures,
    candidate_id: str,
    candidate: QuantizedFeatures,
    settings: VerificationSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """The points of a pair that agree with its homography, verified again by the run's settings and seeds.

    Returns:
      float32 [M, 2] each, (y, x) in pixels of the images fed; row m of both is a match.
    """
    verified = verification.verify_pair(query_id, query, candidate_id, candidate, settings)
    agreeing = verified.matches[verified.inlier_mask]
    return query.keypoints[agreeing[:, 0]], candidate.keypoints[agreeing[:, 1]]


def _found(
    store: FeatureStore, shards: Iterable[ShardSummary], image_ids: set[str]
) -> dict[str, StoredImage]:
    found = find_images(store, shards, image_ids)
    if len(found) < len(image_ids):
        raise ValueError(f"{store.root} has no features of {', '.join(sorted(image_ids - found.keys()))}")
    return found


def changed_photographs(refs: Sequence[ImageRef], root: str, index: IndexManifest | None = None) -> set[str]:
    """The places of those photographs that are others now than those that the plans of an output know; one
    that is gone, or cannot be reached, is none.

    Args:
      root: of the output.
      index: its manifest, where it is an index, which may have parts.
    """
    ids, places = {ref.image_id for ref in refs}, {ref.uri for ref in refs}
    known: dict[str, list[ImageRef]] = {}
    for part in ("", *sorted(index.appended if index else ())):
        for planned in worklist.read_worklist(index_parts.folder(root, part), ids):
            if planned.uri in places:
                known.setdefault(planned.uri, []).append(planned)

    def is_another(uri: str) -> bool:
        try:
            now = current(uri)
        except OSError:
            return False
        return now is not None and all(is_changed(ref, now.size, now.version) for ref in known[uri])

    return {uri for uri, another in zip(known, files.read_all(is_another, known)) if another}


def unlimited(reading: ReadingConfig) -> ReadingConfig:
    """How photographs that have features are read again: they were within the limits of their day."""
    return dataclasses.replace(
        reading, max_image_pixels=sys.maxsize, max_image_memory=sys.maxsize // 1_000_000
    )


def _read_pixels(ref: ImageRef, recipe: Recipe) -> np.ndarray:
    """A photograph as it was fed to the model: uint8 [H, W, 3], RGB."""
    image = images.read_image(ref, recipe.settings.longest_side, unlimited(recipe.reading))
    if isinstance(image, Failure):
        moved = f"; {MOVED}" if image.kind == "not_found" else ""
        raise OSError(f"the photograph {ref.uri} cannot be drawn: {image.message}{moved}")
    return image.pixels
