"""Models by what users call them: built-in ones by their names, others by their file, folder or URI;
combinations as "FIRST + SECOND + FILE.npz": the global descriptor of the first, whitened by the file, beside
the local features of the second; the second or the file may be missing.
"""

import dataclasses
import functools
import hashlib
import os
from typing import Any, NamedTuple

import numpy as np

from transforms.arrays.whitening import Whitening
from transforms.models.card import ExtractionSettings, settings_from_card
from transforms.models.embedded import EmbeddedModel
from transforms.models.model import (
    BuiltInModel,
    Extracted,
    ExtractionError,
    Model,
    ModelError,
    check_image,
    leading,
    resized,
)
from transforms.models.model_files import ONNX, fetch_model
from transforms.models.onnx_model import OnnxModel, provider
from transforms.models.rootsift_vlad import RootSiftVlad
from transforms.models.saved_model import DelgModel
from transforms.storage.uris import is_local

EMBEDDED = "embedded"
ROOTSIFT_VLAD = "rootsift-vlad"
BUILT_IN: dict[str, type[BuiltInModel]] = {EMBEDDED: EmbeddedModel, ROOTSIFT_VLAD: RootSiftVlad}
_PLUS, _WHITENING = " + ", ".npz"
_LIMITS = ("max_local_features", "score_threshold")  # of local features, whichever model gives them


class Components(NamedTuple):
    """What a model consists of: the model itself, another one that gives the local features, and the file of
    a whitening of its global descriptor, see `Whitening`.
    """

    first: str
    second: str | None = None
    whitening: str | None = None


def combined(first: str, second: str | None = None, whitening: str | None = None) -> str:
    """What a model of these components is called.

    Raises:
      ModelError: a component is a combination itself, or the whitening no .npz file.
    """
    name = _PLUS.join(part for part in (first, second, whitening) if part is not None)
    if components(name) != (first, second, whitening):
        raise ModelError(f"{name} is no model, one with local features and a whitening ({_WHITENING})")
    return name


def components(model: str) -> Components:
    """What a model consists of, by its name."""
    first, *others = model.split(_PLUS)
    whitening = others.pop() if others and others[-1].endswith(_WHITENING) else None
    return Components(first, _PLUS.join(others) or None, whitening)


def find(model: str) -> tuple[type[Model], str]:
    """The adapter of a model and the place it takes: of a URI that of a local copy, made once.

    Raises:
      ModelError: there is no model.
    """
    if model in BUILT_IN:
        return BUILT_IN[model], BUILT_IN[model].CONSTANTS
    if components(model) != (model, None, None):
        return CombinedModel, model
    if is_local(model) and not os.path.exists(model):
        names = "" if "/" in model else f", and those that come with the package are {', '.join(BUILT_IN)}"
        raise ModelError(f"{model} is no model: there is no such file or folder{names}")
    place = fetch_model(model)
    return OnnxModel if place.endswith(ONNX) else DelgModel, place


def card(model: str) -> dict[str, Any] | None:
    """The card of a model; raises ModelError where there is no model, ValueError where the card is wrong."""
    adapter, place = find(model)
    return adapter.card(place)


def cohort(model: str) -> str | None:
    """The folder of the cohort that comes with a model, see `BuiltInModel`; None where it has none."""
    return BUILT_IN[model].COHORT if model in BUILT_IN else None


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


def runs_on(model: str, device: str) -> str:
    """What runs each part of a model on a device, for people.

    Raises:
      ModelError: the device runs no part of it: none is an ONNX model of one's own, or ONNX Runtime lacks it.
    """
    adapters = {part: find(part)[0] for part in components(model)[:2] if part}
    run_by = {
        part: f"ONNX Runtime's {provider(device)}" if adapter is OnnxModel else adapter.RUN_BY
        for part, adapter in adapters.items()
    }
    told = "; ".join(f"{part} is run by {what}" for part, what in run_by.items())
    if device != "cpu" and OnnxModel not in adapters.values():
        raise ModelError(f"--device {device} is for ONNX models of one's own; {told}")
    return told


def inspect(model: str) -> str:
    """What `landmarks model inspect` prints; raises ModelError where the model cannot be used."""
    adapter, place = find(model)
    return adapter.inspect(place)


def load(model: str, settings: ExtractionSettings) -> Model:
    """The model, loaded once in a process for as long as its files stay as they are.

    Raises:
      ModelError: it cannot be loaded or breaks its contract.
    """
    if settings.device != "cpu":
        runs_on(model, settings.device)
    adapter, place = (CombinedModel, model) if settings.global_dimensions else find(model)
    found: list[str] = []
    for part in filter(None, components(model)[:2]):
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


class CombinedModel(Model):
    """The global descriptor of a model, perhaps cut to its leading axes, perhaps whitened, beside its own
    local features or those of a second one; its place is its name.
    """

    def __init__(
        self, first: Model, second: Model | None, whitening: Whitening | None, settings: ExtractionSettings
    ):
        """Use `load`."""
        self._first, self._second, self._whitening, self.settings = first, second, whitening, settings
        self._dimensions = settings.global_dimensions or first.global_width
        self.global_width = whitening.projection.shape[1] if whitening else self._dimensions
        self.local_width = (second or first).local_width
        wanted = [one.images_in_flight for one in (first, second) if one and one.images_in_flight]
        self.images_in_flight = min(wanted, default=None)

    @classmethod
    def card(cls, place: str) -> dict[str, Any]:
        """The first model's, with limits and distance of the second one's local features."""
        first, second, _ = components(place)
        made = {key: value for key, value in (card(first) or {}).items() if key != "onnx"}
        made["name"] = made.get("name") or _base_name(first)
        if second is None:
            return made
        its = card(second) or {}
        local = settings_from_card(its)
        made["name"] += _PLUS + (its.get("name") or _base_name(second))
        made.pop("max_distance", None)
        made.update({"max_distance": its["max_distance"]} if "max_distance" in its else {})
        return {**made, **{name: getattr(local, name) for name in _LIMITS}, "local": local}

    @classmethod
    def fingerprint(cls, place: str) -> str:
        first, second, whitening = components(place)
        digest = hashlib.sha256(f"{fingerprint(first)}\0{second and fingerprint(second)}\0".encode())
        digest.update(_read_whitening(whitening) if whitening else b"")
        return digest.hexdigest()

    @classmethod
    def remarks(cls, place: str) -> list[str]:
        return [line for part in components(place)[:2] if part for line in remarks(part)]

    @classmethod
    def load(cls, place: str, settings: ExtractionSettings) -> "CombinedModel":
        """Loads all components; raises ModelError where one cannot be loaded or lacks what it is for."""
        names = components(place)
        first = _loaded(names.first, dataclasses.replace(settings, local=None, global_dimensions=None))
        if not first.global_width:
            raise ModelError(f"{names.first} offers no global descriptor for {place}")
        dimensions = settings.global_dimensions or first.global_width
        _check_dimensions(names.first, first.global_width, dimensions)
        second = whitening = None
        if names.second is not None:
            if settings.local is None:
                raise ModelError(f"{place} needs settings of its second model")
            limits = {name: getattr(settings, name) for name in _LIMITS}
            its = dataclasses.replace(settings.local, **limits, device=settings.device)
            second = _loaded(names.second, its)
            if not second.local_width:
                raise ModelError(f"{names.second} offers no local features for {place}")
        if names.whitening is not None:
            try:
                whitening = Whitening.from_bytes(_read_whitening(names.whitening))
            except (ValueError, KeyError) as error:
                raise ModelError(f"{names.whitening} is no whitening: {error}") from error
            if len(whitening.mean) != dimensions:
                raise ModelError(
                    f"{names.whitening} whitens descriptors {len(whitening.mean)} wide, {names.first} gives "
                    f"{dimensions}"
                )
        return cls(first, second, whitening, settings)

    @classmethod
    def inspect(cls, place: str) -> str:
        loaded = cls.load(place, settings(place))
        gives = f"global descriptor [{loaded.global_width}], local [N, {loaded.local_width}]"
        own = [f"model        {place}", f"gives        {gives}", f"fingerprint  {cls.fingerprint(place)}"]
        return "\n\n".join(["\n".join(own), *(inspect(part) for part in components(place)[:2] if part)])

    def extract(self, pixels: np.ndarray) -> Extracted:
        check_image(pixels)
        seen = _shrunk(pixels, self._first.settings.max_image_side)
        found = self._first.extract(seen)
        [descriptor] = leading(found.global_descriptor[None], self._dimensions)
        if not descriptor.any():
            raise ExtractionError("non_finite", "the global descriptor has no length on its leading axes")
        if self._whitening:
            descriptor = self._whitening(descriptor[None])[0]
        if self._second:
            seen = _shrunk(pixels, self._second.settings.max_image_side)
            found = self._second.extract(seen)
        keypoints = found.keypoints * (np.array(pixels.shape[:2]) / seen.shape[:2])
        return Extracted(descriptor, keypoints.astype(np.float32), found.descriptors, found.scores)


def _loaded(model: str, settings: ExtractionSettings) -> Model:
    adapter, place = find(model)
    return adapter.load(
        place, settings if adapter is OnnxModel else dataclasses.replace(settings, device="cpu")
    )


def _check_dimensions(model: str, width: int, dimensions: int) -> None:
    """Raises ModelError where a model's global descriptor cannot be cut to so many axes."""
    if dimensions > width:
        raise ModelError(f"--global_dimensions {dimensions}: the global descriptor of {model} has {width}")
    if dimensions < width and not (card(model) or {}).get("ordered_axes"):
        raise ModelError(
            f"--global_dimensions {dimensions}: nothing says that the {width} axes of {model} are ordered "
            "and the leading ones do for all; `landmarks model whiten --dimensions N` orders those of an "
            'index, and "ordered_axes": true in the card says that the training did'
        )


def _base_name(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]


def _read_whitening(uri: str) -> bytes:
    from transforms.storage import files  # only here is Beam needed

    try:
        return files.read_bytes(uri)
    except OSError as error:
        raise ModelError(f"the whitening {uri} cannot be read: {error}") from error


def _shrunk(pixels: np.ndarray, longest: int) -> np.ndarray:
    """An image whose longest side is at most `longest` px."""
    height, width = pixels.shape[:2]
    if max(height, width) <= longest:
        return pixels
    factor = longest / max(height, width)
    return resized(pixels, max(1, round(height * factor)), max(1, round(width * factor)))
