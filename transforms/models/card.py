"""What belongs to a model and not to a job: its image scales, attention threshold, feature count and image
side.

They travel with the SavedModel in a small JSON file beside it, the card:

    {"name": "r50delg_gldv2clean", "image_scales": [0.7071, 1, 1.4142], "global_scales": [0.7071, 1, 1.4142],
     "max_local_features": 1000, "score_threshold": 454.6, "max_image_side": 1024, "max_distance": 0.9}
"""

import dataclasses
import json
import math
import os
from typing import Any

from transforms.storage.uris import is_local

CARD_NAME = "landmarks_card.json"
MAX_SCALE = 8.0
PRECISIONS = ("float32", "bfloat16")
DEVICES = ("cpu", "cuda", "tensorrt", "coreml", "openvino")


def _check_scales(name: str, scales: Any) -> tuple[float, ...]:
    if not isinstance(scales, (tuple, list)) or not scales:
        raise ValueError(f"{name} must be a list of one or more numbers, not {scales!r}")
    checked = tuple(_check_number(name, scale) for scale in scales)
    if min(checked) <= 0 or len(set(checked)) < len(checked):
        raise ValueError(f"{name} must be positive and different from each other, not {scales!r}")
    if max(checked) > MAX_SCALE:
        raise ValueError(f"{name} must be at most {MAX_SCALE:g}, not {scales!r}")
    return checked


def _check_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


@dataclasses.dataclass(frozen=True)
class ExtractionSettings:
    """How features are extracted.

    Attributes:
      image_scales: factors of the image pyramid, each one pass of the model; local features pool all of them.
      global_scales: those of image_scales that make the global descriptor.
      max_local_features: at most so many local features of an image, the strongest.
      score_threshold: least attention of a local feature.
      max_image_side: longest side of the image fed, in pixels.
      precision: "float32", or "bfloat16" for mixed precision on processors that have it.
      device: what runs an ONNX model of one's own, one of DEVICES; no part of what identifies features.
      local: scales and side of the second model of a pair, which gives the local features; its
        max_local_features and score_threshold are those above. None where one model gives all.
      global_dimensions: so many leading axes of the global descriptor are kept, before a whitening of the
        index; None for all.

    Raises:
      ValueError: a value makes no sense.
    """

    image_scales: tuple[float, ...]
    global_scales: tuple[float, ...]
    max_local_features: int
    score_threshold: float
    max_image_side: int
    precision: str = "float32"
    device: str = "cpu"
    local: "ExtractionSettings | None" = None
    global_dimensions: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.local, dict):  # as JSON has it
            object.__setattr__(self, "local", ExtractionSettings(**self.local))
        for name in ("image_scales", "global_scales"):
            object.__setattr__(self, name, _check_scales(name, getattr(self, name)))
        missing = sorted(set(self.global_scales) - set(self.image_scales))
        if missing:
            raise ValueError(f"global_scales {missing} are not among image_scales {list(self.image_scales)}")
        _check_count("max_local_features", self.max_local_features)
        _check_count("max_image_side", self.max_image_side)
        if self.global_dimensions is not None:
            _check_count("global_dimensions", self.global_dimensions)
        object.__setattr__(self, "score_threshold", _check_number("score_threshold", self.score_threshold))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, not {self.precision!r}")
        if self.device not in DEVICES:
            raise ValueError(f"device must be one of {DEVICES}, not {self.device!r}")

    @property
    def longest_side(self) -> int:
        """Longest side of an image as it is decoded, in pixels: enough for both models of a pair."""
        return max(self.max_image_side, self.local.max_image_side if self.local else 0)

    def to_json(self) -> dict[str, Any]:
        """What identifies features, JSON-able, as the constructor takes it; without what is not used."""
        values = json.loads(json.dumps(dataclasses.replace(self, local=None).__dict__))
        values = {k: v for k, v in values.items() if v is not None and k != "device"}
        return {**values, "local": self.local.to_json()} if self.local else values


# Those that a card may state.
_SETTINGS = [
    field.name
    for field in dataclasses.fields(ExtractionSettings)
    if field.name not in ("device", "local", "global_dimensions")
]

# Official DELG extraction: tensorflow/models, research/delf/delf/python/delg/*_config.pbtxt
OFFICIAL_DELG = ExtractionSettings(
    image_scales=(0.25, 0.3536, 0.5, 0.7071, 1.0, 1.4142, 2.0),
    global_scales=(0.7071, 1.0, 1.4142),
    max_local_features=1000,
    score_threshold=175.0,
    max_image_side=1024,
)


def read_card(model_dir: str) -> dict[str, Any] | None:
    """The card of a model: the keys it states, checked; scales as tuples.

    Args:
      model_dir: folder of the model, local or on a file system that Beam knows.

    Returns:
      None where there is no card. Keys are fields of ExtractionSettings (image_scales and global_scales come
      together), "max_distance" of putative matches, "name" and "description", "ordered_axes", whether leading
      axes of the global descriptor do for all, and "onnx", an object that the adapter of ONNX models checks.

    Raises:
      ValueError: the card is no JSON object, has an unknown key, or a value that makes no sense.
    """
    path, content = _read_card(model_dir)
    if content is None:
        return None
    try:
        card = json.loads(content.decode())
        if not isinstance(card, dict):
            raise ValueError(f"expected a JSON object, found {type(card).__name__}")
        return _check_card(card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def card_text(settings: ExtractionSettings, **extra: Any) -> str:
    """The JSON text of a card, a key in a line; arguments and errors as `write_card`."""
    return _lines(_check_card({**extra, **{key: getattr(settings, key) for key in _SETTINGS}}), "\n")


def _lines(value: Any, start: str) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    inner = start + "  "
    return (
        "{" + ",".join(f"{inner}{json.dumps(k)}: {_lines(v, inner)}" for k, v in value.items()) + start + "}"
    )


def settings_from_card(card: dict[str, Any] | None) -> ExtractionSettings:
    """The settings of a checked card; what it leaves open is as in OFFICIAL_DELG."""
    fields = {field.name for field in dataclasses.fields(ExtractionSettings)}
    return dataclasses.replace(
        OFFICIAL_DELG, **{key: value for key, value in (card or {}).items() if key in fields}
    )


def write_card(model_dir: str, settings: ExtractionSettings, **extra: Any) -> None:
    """Writes the card of a model in a local folder.

    Args:
      model_dir: the folder.
      settings: all of them are stated in the card.
      **extra: name, description, max_distance, ordered_axes.

    Raises:
      ValueError: a key or value of `extra` that read_card would refuse.
    """
    with open(os.path.join(model_dir, CARD_NAME), "w", encoding="utf-8") as file:
        file.write(card_text(settings, **extra) + "\n")


def _read_card(model_dir: str) -> tuple[str, bytes | None]:
    """Path and bytes of the card; None where there is none."""
    if is_local(model_dir):
        path = os.path.join(model_dir, CARD_NAME)
        if not os.path.exists(path):
            return path, None
        with open(path, "rb") as file:
            return path, file.read()

    from transforms.storage import files  # only here is Beam needed

    path = files.join(model_dir, CARD_NAME)
    return path, files.read_bytes(path) if files.exists(path) else None


def _check_card(card: dict[str, Any]) -> dict[str, Any]:
    known = [*_SETTINGS, "max_distance", "name", "description", "ordered_axes", "onnx"]
    unknown = sorted(set(card) - set(known))
    if unknown:
        raise ValueError(f"unknown keys {unknown}; known are {known}")
    for key in ("name", "description"):
        if not isinstance(card.get(key, ""), str):
            raise ValueError(f"{key} must be a text, not {card[key]!r}")
    if not card.get("name", "").isprintable():
        raise ValueError(f"name must be a line without control characters, not {card['name']!r}")
    if not isinstance(card.get("ordered_axes", False), bool):
        raise ValueError(f"ordered_axes must be true or false, not {card['ordered_axes']!r}")
    if not isinstance(card.get("onnx", {}), dict):
        raise ValueError(f"onnx must be an object, not {card['onnx']!r}")
    if "max_distance" in card and not 0 < _check_number("max_distance", card["max_distance"]) <= 2:
        raise ValueError(f"max_distance must be in (0, 2], not {card['max_distance']!r}")
    if ("image_scales" in card) != ("global_scales" in card):
        raise ValueError("image_scales and global_scales must be given together")
    settings = dataclasses.asdict(settings_from_card(card))
    return {key: settings.get(key, value) for key, value in card.items()}
