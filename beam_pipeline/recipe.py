"""How photographs become features: which model a job uses, with which settings, and that it is the one it
should be.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from beam_pipeline.config import EXTRACTION_PRESETS, ConfigError, ExtractionOverrides
from transforms import extraction
from transforms.features import ReadImages
from transforms.models import catalog
from transforms.models.card import OFFICIAL_DELG, ExtractionSettings
from transforms.models.model import ModelError
from transforms.storage import files
from transforms.types import ReadingConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model with the settings that a job runs it with, and how the photographs are read for it.

    Attributes:
      model: as the user named it: a built-in one's name, a folder or a URI.
      name: for people.
      fingerprint: of its content.
      settings: of the extraction.
      reading: of the photographs.
    """

    model: str
    name: str
    fingerprint: str
    settings: ExtractionSettings
    reading: ReadingConfig

    @property
    def identity(self) -> dict[str, Any]:
        """See `extraction.identity`."""
        return extraction.identity(self.settings, self.fingerprint, self.reading)

    @property
    def reader(self) -> ReadImages:
        """Reads and decodes photographs as the model and the options want them."""
        return extraction.photograph_reader(self.settings, self.reading)

    def to_json(self, root: str) -> dict[str, Any]:
        """The part of the manifest of an output in `root` that says how features were made."""
        return {
            **self.identity,
            "model": {
                "uri": _placed(self.model, root, files.place_in),
                "name": self.name,
                "fingerprint": self.fingerprint,
            },
            "reading": dataclasses.asdict(self.reading),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], root: str) -> "Recipe":
        """Reads what `to_json` made; other keys are left alone.

        Raises:
          KeyError, TypeError, ValueError: it is something else.
        """
        model = value["model"]
        return cls(
            _placed(model["uri"], root, files.place_of),
            model["name"],
            model["fingerprint"],
            ExtractionSettings(**_tuples(value["extraction"])),
            ReadingConfig(**value["reading"]),
        )


def _placed(model: str, root: str, place: Callable[[str, str], str]) -> str:
    """A model as an output in `root` names it, or as it is found from there."""

    def placed(part: str) -> str:
        return part if part in catalog.BUILT_IN else place(root, part)

    first, second, whitening = catalog.components(model)
    return catalog.combined(placed(first), second and placed(second), whitening and placed(whitening))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def choose(model: str, overrides: ExtractionOverrides, reading: ReadingConfig) -> Recipe:
    """Finds the model and settles its settings: a flag, else the model's card, else the preset, else the
    official DELG ones.

    Raises:
      ModelError: no model there.
      ConfigError: settings that do not go together.
    """
    card = catalog.card(model) or {}
    values = dataclasses.asdict(OFFICIAL_DELG)
    values.update(EXTRACTION_PRESETS.get(overrides.preset or "", {}))
    values.update({k: v for k, v in _tuples(card).items() if k in values})
    values.update(overrides.given(), device=overrides.device or "cpu")
    # Where the scales were chosen anew, the global descriptor takes its own of them, or all.
    values["global_scales"] = (
        tuple(s for s in values["global_scales"] if s in values["image_scales"]) or values["image_scales"]
    )
    try:
        settings = ExtractionSettings(**values)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    name = card.get("name") or model.rstrip("/").rsplit("/", 1)[-1]
    if overrides.exif_orientation is not None:
        reading = dataclasses.replace(reading, exif_orientation=overrides.exif_orientation)
    for line in catalog.remarks(model):
        print(line, file=sys.stderr)
    _say_device(model, overrides)
    return Recipe(model, name, catalog.fingerprint(model), settings, reading)


def choose_as_indexed(
    model: str | None,
    local_model: str | None,
    overrides: ExtractionOverrides,
    reading: ReadingConfig,
    indexed: Recipe,
    dimensions: int,
) -> Recipe:
    """The model and settings that an index was made with.

    Args:
      model: where the model, or the first of a pair, lies now; None for where it lay.
      local_model: where the second of a pair lies now; likewise.
      reading: whose limits hold; photographs are turned as they were for the index.
      dimensions: width of the index's global descriptors.

    Raises:
      ConfigError: the model's content or a given setting is another than the index's.
      ModelError: a model is no longer where it lay.
    """
    its = {**vars(indexed.settings), "global_dimensions": dimensions}
    for name, value in overrides.given().items():
        if value != its[name]:
            raise ConfigError(
                f"--{name} {value} differs from the index's {its[name]}: both sides need the same features"
            )
    turned = indexed.reading.exif_orientation
    if overrides.exif_orientation not in (None, turned):
        no = {True: "--exif_orientation", False: "--no-exif_orientation"}
        raise ConfigError(
            f"{no[not turned]} differs from the index's {no[turned]}: both sides need photographs that are "
            "read alike"
        )
    first, second, whitening = catalog.components(indexed.model)
    if local_model and not second:
        raise ConfigError(
            f"--local_model {local_model}: the index has {first} alone, and both sides need the same features"
        )
    for given, lay, flag in ((model, first, "--model"), (local_model, second, "--local_model")):
        if lay and not given:
            _check_there(lay, flag)
    uri = catalog.combined(model or first, local_model or second, whitening)
    fingerprint = catalog.fingerprint(uri)
    if fingerprint != indexed.fingerprint:
        raise ConfigError(
            f"the model {uri} (fingerprint {fingerprint[:12]}) is not the one the index was made with "
            f"({indexed.model}, {indexed.fingerprint[:12]})"
        )
    _say_device(uri, overrides)
    settings = dataclasses.replace(indexed.settings, device=overrides.device or "cpu")
    return dataclasses.replace(
        indexed, model=uri, settings=settings, reading=dataclasses.replace(reading, exif_orientation=turned)
    )


def _check_there(lay: str, flag: str) -> None:
    """Raises ModelError where the model that lay at a place does so no more."""
    try:
        catalog.find(lay)
    except ModelError as error:
        raise ModelError(
            f"the index was made by the model at {lay}, which is gone or no longer one ({error}): put it "
            f"back, or name its new place by {flag}"
        ) from error


def _say_device(model: str, overrides: ExtractionOverrides) -> None:
    if overrides.device is not None:
        print(catalog.runs_on(model, overrides.device), file=sys.stderr)


def card_distance(recipe: Recipe) -> float | None:
    """The greatest distance of matching descriptors by the card of the model; None where it does not say."""
    return (catalog.card(recipe.model) or {}).get("max_distance")
