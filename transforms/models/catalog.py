"""Models by what users call them: built-in ones by their names, others by their file, folder or URI; a pair
of them, the global descriptor of the first beside the local features of the second, as "FIRST + SECOND".
"""

import dataclasses
import functools
import hashlib
import os
from typing import Any

import numpy as np

from transforms.models.card import ExtractionSettings, settings_from_card
from transforms.models.embedded import EmbeddedModel
from transforms.models.model import BuiltInModel, Extracted, Model, ModelError, check_image, resized
from transforms.models.model_files import ONNX, fetch_model
from transforms.models.onnx_model import OnnxModel
from transforms.models.rootsift_vlad import RootSiftVlad
from transforms.models.saved_model import DelgModel

EMBEDDED = "embedded"
ROOTSIFT_VLAD = "rootsift-vlad"
BUILT_IN: dict[str, type[BuiltInModel]] = {EMBEDDED: EmbeddedModel, ROOTSIFT_VLAD: RootSiftVlad}
_PLUS = " + "


def pair(model: str, local_model: str | None = None) -> str:
    """What the pair of a model and one with local features is called; the model itself where there is none.

    Raises:
      ModelError: one of them is a pair.
    """
    both = [model] if local_model is None else [model, local_model]
    if len(both) > 1 and any(_PLUS in one for one in both):
        raise ModelError(f"{_PLUS.join(both)} is no pair of two models")
    return _PLUS.join(both)


def parts(model: str) -> list[str]:
    """The two models of a pair, or the one that it is."""
    return model.split(_PLUS)


def find(model: str) -> tuple[type[Model], str]:
    """The adapter of a model and the place it takes: of a URI that of a local copy, made once.

    Raises:
      ModelError: there is no model.
    """
    if model in BUILT_IN:
        return BUILT_IN[model], BUILT_IN[model].CONSTANTS
    if len(parts(model)) == 2:
        return PairedModel, model
    place = fetch_model(model)
    return OnnxModel if place.endswith(ONNX) else DelgModel, place


def card(model: str) -> dict[str, Any] | None:
    """The card of a model; raises ModelError where there is no model, ValueError where the card is wrong."""
    adapter, place = find(model)
    return adapter.card(place)


def settings(model: str) -> ExtractionSettings:
    """The settings that a model's card states, the official DELG ones where it states none; raises as `card`
    does.
    """
    return settings_from_card(card(model))


def fingerprint(model: str) -> str:
    """What identifies a model's content; raises ModelError where there is no model."""
    adapter, place = find(model)
    return adapter.fingerprint(place)


def remarks(model: str) -> list[str]:
    """What a user should know who begins to use a model; raises as `card` does."""
    adapter, place = find(model)
    return adapter.remarks(place)


def inspect(model: str) -> str:
    """What `landmarks model inspect` prints; raises ModelError where the model cannot be used."""
    adapter, place = find(model)
    return adapter.inspect(place)


def load(model: str, settings: ExtractionSettings) -> Model:
    """The model, loaded once in a process for as long as its files stay as they are.

    Raises:
      ModelError: it cannot be loaded or breaks its contract.
    """
    adapter, place = find(model)
    found: list[str] = []
    for part in parts(model):
        where = find(part)[1]
        found += [os.path.join(root, name) for root, _, names in os.walk(where) for name in names] or [where]
    return _load(adapter, place, settings, max(os.stat(path).st_mtime_ns for path in found))


@functools.lru_cache(maxsize=1)  # checked before a pipeline starts, then used in it
def _load(adapter: type[Model], place: str, settings: ExtractionSettings, changed: int) -> Model:
    return adapter.load(place, settings)


def load_for_retrieval(model: str, settings: ExtractionSettings) -> Model:
    """As `load`, of a model that retrieval can use.

    Raises:
      ModelError: also where it has no global descriptor.
    """
    loaded = load(model, settings)
    if not loaded.global_width:
        raise ModelError(f"{model} offers no global descriptor, which retrieval needs (it is local-only)")
    return loaded


class PairedModel(Model):
    """The global descriptor of one model beside the local features of another; its place is its name."""

    def __init__(self, first: Model, second: Model, settings: ExtractionSettings):
        """Use `load`."""
        self._first, self._second, self.settings = first, second, settings
        self.global_width, self.local_width = first.global_width, second.local_width
        wanted = [n for n in (first.images_in_flight, second.images_in_flight) if n is not None]
        self.images_in_flight = min(wanted, default=None)

    @classmethod
    def card(cls, place: str) -> dict[str, Any]:
        """The first model's, with limits and distance of the second one's local features."""
        cards = [card(part) or {} for part in parts(place)]
        names = [c.get("name") or part.rstrip("/").rsplit("/", 1)[-1] for c, part in zip(cards, parts(place))]
        local = settings_from_card(cards[1])
        made = {key: value for key, value in cards[0].items() if key not in ("max_distance", "onnx")}
        if "max_distance" in cards[1]:
            made["max_distance"] = cards[1]["max_distance"]
        limits = {name: getattr(local, name) for name in ("max_local_features", "score_threshold")}
        return {**made, **limits, "name": _PLUS.join(names), "local": local}

    @classmethod
    def fingerprint(cls, place: str) -> str:
        return hashlib.sha256("\0".join(map(fingerprint, parts(place))).encode()).hexdigest()

    @classmethod
    def remarks(cls, place: str) -> list[str]:
        return [line for part in parts(place) for line in remarks(part)]

    @classmethod
    def load(cls, place: str, settings: ExtractionSettings) -> "PairedModel":
        """Loads both; raises ModelError where one cannot be loaded or lacks what it is for."""
        if settings.local is None:
            raise ModelError(f"{place} needs settings of its second model")
        limits = {name: getattr(settings, name) for name in ("max_local_features", "score_threshold")}
        loaded = []
        for part, its in zip(parts(place), (settings, dataclasses.replace(settings.local, **limits))):
            adapter, where = find(part)
            loaded.append(adapter.load(where, dataclasses.replace(its, local=None)))
        if not loaded[0].global_width:
            raise ModelError(f"{parts(place)[0]} offers no global descriptor for the pair {place}")
        if not loaded[1].local_width:
            raise ModelError(f"{parts(place)[1]} offers no local features for the pair {place}")
        return cls(loaded[0], loaded[1], settings)

    @classmethod
    def inspect(cls, place: str) -> str:
        loaded = cls.load(place, settings(place))
        gives = f"global descriptor [{loaded.global_width}], local [N, {loaded.local_width}]"
        own = [f"pair         {place}", f"gives        {gives}", f"fingerprint  {cls.fingerprint(place)}"]
        return "\n\n".join(["\n".join(own), *(inspect(part) for part in parts(place))])

    def extract(self, pixels: np.ndarray) -> Extracted:
        check_image(pixels)
        whole = self._first.extract(_shrunk(pixels, self._first.settings.max_image_side))
        seen = _shrunk(pixels, self._second.settings.max_image_side)
        local = self._second.extract(seen)
        keypoints = local.keypoints * (np.array(pixels.shape[:2]) / seen.shape[:2])
        return Extracted(
            whole.global_descriptor, keypoints.astype(np.float32), local.descriptors, local.scores
        )


def _shrunk(pixels: np.ndarray, longest: int) -> np.ndarray:
    """An image whose longest side is at most `longest` px."""
    height, width = pixels.shape[:2]
    if max(height, width) <= longest:
        return pixels
    factor = longest / max(height, width)
    return resized(pixels, max(1, round(height * factor)), max(1, round(width * factor)))
