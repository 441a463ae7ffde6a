"""A small data set to try everything on, made from the photographs that the scikit-image wheel carries;
nothing is downloaded.

Every "landmark" is an object in one of those photographs, or one of several separate regions where a
photograph is large (star fields, rows of coins). Its views show it like a poster on a wall or on the ground:
behind a random homography, at several sizes, in changing light, blurred, noisy, partly hidden, compressed.
Queries are harder than the index images. Some regions and textures are no landmarks and appear among the
queries only, as most photographs of a real query set do.

    OUTPUT/index/<landmark>/<id>.jpg    OUTPUT/labels.csv    id,landmark_id
    OUTPUT/queries/<id>.jpg             OUTPUT/truth.csv     id,landmarks,Usage
    OUTPUT/demo.json                    what the set was made with
"""

import csv
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import PIL.Image

from transforms.storage.uris import is_local

INDEX_VIEWS = 6
QUERY_VIEWS = 6
DISTRACTOR_VIEWS = 6
_RECIPE = {"made_by": "landmarks demo", "recipe": 1}  # raise the number when the images change
_MARKER = "demo.json"
_REGION_SIDE = 480  # longest side of a region before it is warped, pixels


@dataclasses.dataclass(frozen=True)
class DemoPaths:
    """Where the demo set lies.

    Attributes:
      index: folder of labelled images.
      queries: folder of query images.
      labels: CSV id,landmark_id of the index images.
      truth: CSV id,landmarks,Usage of the queries.
      already_there: the set had been made before, and was left alone.
    """

    index: str
    queries: str
    labels: str
    truth: str
    already_there: bool = False


@dataclasses.dataclass(frozen=True)
class _Region:
    """A part of a photograph: rows and columns [y0, x0, y1, x1] in its pixels; None is all of it.

    Several photographs show the same object from different places.
    """

    name: str
    photographs: tuple[str, ...]
    box: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class _Difficulty:
    """How far a view may go; each amount is drawn evenly between none (or the first number) and the value."""

    size: tuple[float, float]  # of the object relative to the frame
    rotation: float  # degrees, either way
    tilt: float  # shift of each corner, parts of the object's side
    offset: float  # shift of the centre, parts of the frame
    gamma: float  # exponent between 1 / gamma and gamma
    shade: float  # how much darker one side of the frame gets
    blur: float  # sigma, pixels
    noise: float  # sigma, grey levels
    hidden: float  # side of what stands before it, parts of the frame
    quality: tuple[int, int]  # of the JPEG


_INDEX = _Difficulty((0.8, 1.25), 8, 0.08, 0.05, 1.3, 0.3, 0.8, 4, 0.25, (70, 95))
_QUERY = _Difficulty((0.6, 1.5), 12, 0.12, 0.12, 1.7, 0.5, 1.5, 8, 0.45, (40, 90))

_LANDMARKS = (
    _Region("astronaut", ("astronaut.png",), (0, 0, 512, 345)),
    _Region("shuttle", ("astronaut.png",), (0, 350, 330, 512)),
    _Region("cameraman", ("camera.png",)),
    _Region("cat", ("chelsea.png",)),
    _Region("coffee", ("coffee.png",)),
    _Region("coins-upper", ("coins.png",), (0, 0, 152, 384)),
    _Region("coins-lower", ("coins.png",), (152, 0, 303, 384)),
    _Region("galaxies-northwest", ("hubble_deep_field.jpg",), (0, 0, 436, 500)),
    _Region("galaxies-northeast", ("hubble_deep_field.jpg",), (0, 500, 436, 1000)),
    _Region("galaxies-southwest", ("hubble_deep_field.jpg",), (436, 0, 872, 500)),
    _Region("tissue-left", ("ihc.png",), (0, 0, 512, 256)),
    _Region("moon-upper", ("moon.png",), (0, 0, 256, 512)),
    _Region("moon-lower", ("moon.png",), (256, 0, 512, 512)),
    _Region("motorcycle", ("motorcycle_left.png", "motorcycle_right.png")),
    _Region("page", ("page.png",)),
    _Region("retina-left", ("retina.jpg",), (100, 0, 1311, 705)),
    _Region("retina-right", ("retina.jpg",), (100, 705, 1311, 1411)),
    _Region("rocket", ("rocket.jpg",)),
    _Region("snake", ("logo.png",)),
    _Region("writing", ("text.png",)),
)
_DISTRACTORS = (
    _Region("galaxies-southeast", ("hubble_deep_field.jpg",), (436, 500, 872, 1000)),
    _Region("tissue-right", ("ihc.png",), (0, 256, 512, 512)),
    _Region("brick", ("brick.png",)),
    _Region("grass", ("grass.png",)),
    _Region("gravel", ("gravel.png",)),
    _Region("cell", ("cell.png",)),
    _Region("clock", ("clock_motion.png",)),
    _Region("horse", ("horse.png",)),
    _Region("chessboard", ("chessboard_RGB.png",)),
    _Region("phantom", ("phantom.png",)),
)
_BACKGROUNDS = ("brick.png", "grass.png", "gravel.png")
_OCCLUDERS = (
    "brick.png",
    "cell.png",
    "chessboard_RGB.png",
    "grass.png",
    "gravel.png",
    "horse.png",
)  # show no landmark


def make_demo(output: str, seed: int = 0) -> DemoPaths:
    """Makes the demo set in a local folder; the same seed gives the same bytes on one machine.

    The folder appears complete or not at all.

    Args:
      output: the folder to make; may exist empty, or as a demo set of the same seed, which is then left
        alone.
      seed: of every random choice.

    Returns:
      Where the parts lie.

    Raises:
      ValueError: `output` is a URI, or `seed` is negative.
      FileExistsError: `output` exists and is not the demo set of this seed.
      FileNotFoundError: scikit-image, or one of its photographs, is not installed.
    """
    if not is_local(output):
        raise ValueError(f"the demo set is made in a local folder, got {output!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    root = pathlib.Path(output)
    recipe = {**_RECIPE, "seed": seed}
    paths = DemoPaths(
        str(root / "index"), str(root / "queries"), str(root / "labels.csv"), str(root / "truth.csv")
    )
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        found = _read_marker(root)
        if found != recipe:
            raise FileExistsError(
                f"{output} exists and holds {found or 'something else'}, not the demo set {recipe}; "
                "name another folder or remove it"
            )
        return dataclasses.replace(paths, already_there=True)
    photographs = _read_photographs()
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".demo-") as scratch:
        staging = pathlib.Path(scratch, "demo")
        _write_set(staging, photographs, seed)
        (staging / _MARKER).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        staging.rename(root)
    return paths


def _read_marker(root: pathlib.Path) -> Any:
    try:
        return json.loads((root / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _read_photographs() -> dict[str, np.ndarray]:
    """Reads the photographs in use from the installed package: name to uint8 [H, W, 3], RGB."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "the demo set needs the photographs of scikit-image; install it: pip install scikit-image"
        )
    folder = pathlib.Path(package.origin).parent / "data"
    names = {name for region in _LANDMARKS + _DISTRACTORS for name in region.photographs} | set(_BACKGROUNDS)
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise FileNotFoundError(
            f"scikit-image in {folder} lacks {', '.join(missing)}; reinstall it from its wheel: "
            "pip install --force-reinstall scikit-image"
        )
    return {name: _read_rgb(folder / name) for name in sorted(names)}


def _read_rgb(path: pathlib.Path) -> np.ndarray:
    """Reads uint8 [H, W, 3], RGB; transparent parts turn white."""
    with PIL.Image.open(path) as image:
        pixels = image.convert("RGBA")
    white = PIL.Image.new("RGBA", pixels.size, "white")
    return np.asarray(PIL.Image.alpha_composite(white, pixels).convert("RGB"))


def _write_set(root: pathlib.Path, photographs: Mapping[str, np.ndarray], seed: int) -> None:
    labels, truth = [], []
    for region in _LANDMARKS:
        for view in range(INDEX_VIEWS):
            image_id = _write_view(
                root / "index" / region.name, f"{region.name}/index/{view}", region, _INDEX, photographs, seed
            )
            labels.append((image_id, region.name))
    for regions, views in ((_LANDMARKS, QUERY_VIEWS), (_DISTRACTORS, DISTRACTOR_VIEWS)):
        for region in regions:
            for view in range(views):
                image_id = _write_view(
                    root / "queries", f"{region.name}/query/{view}", region, _QUERY, photographs, seed
                )
                usage = "Public" if _digest(f"{seed}/usage/{image_id}")[0] < 256 // 3 else "Private"
                truth.append((image_id, region.name if regions is _LANDMARKS else "", usage))
    _write_csv(root / "labels.csv", ("id", "landmark_id"), labels)
    _write_csv(root / "truth.csv", ("id", "landmarks", "Usage"), truth)


def _write_csv(path: pathlib.Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *sorted(rows)])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _write_view(
    folder: pathlib.Path,
    name: str,
    region: _Region,
    difficulty: _Difficulty,
    photographs: Mapping[str, np.ndarray],
    seed: int,
) -> str:
    """Writes one view of a region and returns its image id, 16 hex characters; both follow from `name` and
    `seed`.
    """
    digest = _digest(f"{seed}/{name}")
    rng = np.random.default_rng(list(digest))
    photograph = photographs[region.photographs[rng.integers(len(region.photographs))]]
    y0, x0, y1, x1 = region.box or (0, 0, *photograph.shape[:2])
    background = photographs[_BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]]
    occluder = photographs[_OCCLUDERS[rng.integers(len(_OCCLUDERS))]]
    view = _make_view(_shrink(photograph[y0:y1, x0:x1]), background, occluder, difficulty, rng)
    quality = int(rng.integers(difficulty.quality[0], difficulty.quality[1] + 1))
    image_id = digest.hex()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(view).save(folder / f"{image_id}.jpg", quality=quality)
    return image_id


def _shrink(pixels: np.ndarray) -> np.ndarray:
    factor = _REGION_SIDE / max(pixels.shape[:2])
    return (
        pixels
        if factor >= 1
        else cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    )


def _make_view(
    region: np.ndarray,
    background: np.ndarray,
    occluder: np.ndarray,
    difficulty: _Difficulty,
    rng: np.random.Generator,
) -> np.ndarray:
    """Photographs a region: uint8 [H, W, 3] arrays in and out, RGB; the longest side of the result is 320 to
    480 pixels.
    """
    long_side, aspect = int(rng.integers(320, 481)), rng.uniform(0.7, 0.8)
    sides = np.array([long_side, round(long_side * aspect)])
    width, height = (sides if region.shape[1] >= region.shape[0] else sides[::-1]).tolist()
    view = _background(background, width, height, rng)
    corners = _place(region, width, height, difficulty, rng)
    sides = np.array([region.shape[1], region.shape[0]], np.float32)
    source = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * sides
    homography = cv2.getPerspectiveTransform(source, corners)
    inside = cv2.warpPerspective(np.ones(region.shape[:2], np.float32), homography, (width, height))[
        :, :, None
    ]
    warped = cv2.warpPerspective(region, homography, (width, height), borderMode=cv2.BORDER_REPLICATE)
    view = warped * inside + view * (1 - inside)
    _occlude(view, occluder, difficulty, rng)
    return _expose(view, difficulty, rng)


def _background(texture: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A tinted part of a texture, out of focus: float32 [height, width, 3]."""
    part = rng.uniform(0.4, 0.9)
    rows, columns = (int(part * side) for side in texture.shape[:2])
    y, x = rng.integers(texture.shape[0] - rows + 1), rng.integers(texture.shape[1] - columns + 1)
    resized = cv2.resize(
        texture[y : y + rows, x : x + columns], (width, height), interpolation=cv2.INTER_AREA
    )
    resized = cv2.GaussianBlur(resized, (0, 0), rng.uniform(1, 4))
    return resized * (rng.uniform(0.5, 1.0) * rng.uniform(0.85, 1.0, size=3)).astype(np.float32)


def _place(
    region: np.ndarray, width: int, height: int, difficulty: _Difficulty, rng: np.random.Generator
) -> np.ndarray:
    """Where the corners of the region fall in the frame: float32 [4, 2], (x, y), clockwise from the top
    left.
    """
    fit = min(width / region.shape[1], height / region.shape[0])
    scale = fit * np.exp(rng.uniform(*np.log(difficulty.size)))
    size = scale * np.array([region.shape[1], region.shape[0]])
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = (corners + rng.uniform(-difficulty.tilt, difficulty.tilt, size=(4, 2))) * size
    angle = np.deg2rad(rng.uniform(-difficulty.rotation, difficulty.rotation))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = (0.5 + rng.uniform(-difficulty.offset, difficulty.offset, size=2)) * (width, height)
    return (corners @ rotation + centre).astype(np.float32)


def _occlude(
    view: np.ndarray, occluder: np.ndarray, difficulty: _Difficulty, rng: np.random.Generator
) -> None:
    """Puts an elliptic part of another photograph before the view, in place."""
    height, width = view.shape[:2]
    axes = np.maximum(1, rng.uniform(0, difficulty.hidden / 2, size=2) * (width, height)).astype(int)
    centre = (rng.uniform(0.1, 0.9, size=2) * (width, height)).astype(int)
    mask = cv2.ellipse(
        np.zeros((height, width), np.uint8),
        centre.tolist(),
        axes.tolist(),
        rng.uniform(0, 180),
        0,
        360,
        1,
        -1,
    )
    hidden = mask.astype(bool)
    view[hidden] = cv2.resize(occluder, (width, height), interpolation=cv2.INTER_AREA)[hidden]


def _expose(view: np.ndarray, difficulty: _Difficulty, rng: np.random.Generator) -> np.ndarray:
    """Light, gamma, tint, blur and noise: float32 [H, W, 3] in 0 to 255 to uint8."""
    height, width = view.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (
        np.cos(angle) * np.linspace(-1, 1, width)[None, :]
        + np.sin(angle) * np.linspace(-1, 1, height)[:, None]
    )
    shade = 1 - rng.uniform(0, difficulty.shade) * (ramp - ramp.min()) / np.ptp(ramp)
    exponent = difficulty.gamma ** rng.uniform(-1, 1)
    tint = rng.uniform(0.9, 1.1, size=3)
    view = cv2.pow(view / np.float32(255), exponent) * (255 * shade[:, :, None] * tint).astype(np.float32)
    view = cv2.GaussianBlur(view, (0, 0), rng.uniform(0.1, difficulty.blur))
    noise = np.float32(rng.uniform(0, difficulty.noise)) * rng.standard_normal(view.shape, dtype=np.float32)
    return np.clip(np.rint(view + noise), 0, 255).astype(np.uint8)
