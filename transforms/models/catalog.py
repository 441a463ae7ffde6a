"""Models by what users call them: built-in ones by their names, others by their file, folder or URI."""

import functools
import os
from typing import Any

from transforms.models.card import ExtractionSettings, settings_from_card
from transforms.models.embedded import EmbeddedModel
from transforms.models.model import BuiltInModel, Model, ModelError
from transforms.models.model_files import ONNX, fetch_model
from transforms.models.onnx_model import OnnxModel
from transforms.models.rootsift_vlad import RootSiftVlad
from transforms.models.saved_model import DelgModel

EMBEDDED = "embedded"
ROOTSIFT_VLAD = "rootsift-vlad"
BUILT_IN: dict[str, type[BuiltInModel]] = {EMBEDDED: EmbeddedModel, ROOTSIFT_VLAD: RootSiftVlad}


def find(model: str) -> tuple[type[Model], str]:
    """The adapter of a model and the place it takes: of a URI that of a local copy, made once.

    Raises:
      ModelError: there is no model.
    """
    if model in BUILT_IN:
        return BUILT_IN[model], BUILT_IN[model].CONSTANTS
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
    found = [os.path.join(root, name) for root, _, names in os.walk(place) for name in names] or [place]
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
