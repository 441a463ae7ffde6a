"""Which model a job uses, with which settings, and that it is the one it should be."""

import dataclasses
from typing import Any

from beam_pipeline.config import EXTRACTION_PRESETS, ConfigError, ExtractionOverrides
from transforms.models import saved_model
from transforms.models.builtin import MODELS
from transforms.models.card import OFFICIAL_DELG, ExtractionSettings, read_card
from transforms.models.catalog import model_folder
from transforms.storage import files


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A model with the settings that a job runs it with.

    Attributes:
      model: as the user named it: a built-in one's name, a folder or a URI.
      name: for people.
      fingerprint: of its content.
      settings: of the extraction.
    """

    model: str
    name: str
    fingerprint: str
    settings: ExtractionSettings

    def extraction(self) -> dict[str, Any]:
        """The settings as JSON."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self.settings).items()
        }

    def as_json(self, root: str) -> dict[str, Any]:
        """For the manifest of an output in `root`."""
        uri = self.model if self.model in MODELS else files.place_in(root, self.model)
        return {
            "model": {"uri": uri, "name": self.name, "fingerprint": self.fingerprint},
            "extraction": self.extraction(),
        }


def choose(model: str, overrides: ExtractionOverrides) -> ModelChoice:
    """Finds the model and settles its settings: a flag, else the model's card, else the preset, else the
    official DELG ones.

    Raises:
      ModelError: no SavedModel there.
      ConfigError: settings that do not go together.
    """
    folder = model_folder(model)
    card = read_card(folder) or {}
    values = dataclasses.asdict(OFFICIAL_DELG)
    values.update(EXTRACTION_PRESETS.get(overrides.preset or "", {}))
    values.update({k: tuple(v) if isinstance(v, list) else v for k, v in card.items() if k in values})
    values.update(overrides.given())
    # Where the scales were chosen anew, the global descriptor takes its own of them, or all.
    values["global_scales"] = (
        tuple(s for s in values["global_scales"] if s in values["image_scales"]) or values["image_scales"]
    )
    try:
        settings = ExtractionSettings(**values)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    return ModelChoice(
        model,
        card.get("name") or folder.rstrip("/").rsplit("/", 1)[-1],
        saved_model.fingerprint(folder),
        settings,
    )


def choose_as_indexed(
    model: str | None, overrides: ExtractionOverrides, manifest: dict[str, Any], root: str
) -> ModelChoice:
    """The model and settings that an index was made with.

    Args:
      model: where the model lies now; None for where it lay.
      manifest: of the index.
      root: the index's folder.

    Raises:
      ConfigError: the model's content or a given setting is another than the index's.
    """
    indexed = manifest["model"]
    settings = ExtractionSettings(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in manifest["extraction"].items()}
    )
    for name, value in overrides.given().items():
        if value != getattr(settings, name):
            raise ConfigError(
                f"--{name} {value} differs from the index's {getattr(settings, name)}: both sides need the "
                "same features"
            )
    uri = model or (indexed["uri"] if indexed["uri"] in MODELS else files.place_of(root, indexed["uri"]))
    fingerprint = saved_model.fingerprint(model_folder(uri))
    if fingerprint != indexed["fingerprint"]:
        raise ConfigError(
            f"the model {uri} (fingerprint {fingerprint[:12]}) is not the one the index was made with "
            f"({indexed['uri']}, {indexed['fingerprint'][:12]})"
        )
    return ModelChoice(uri, indexed["name"], fingerprint, settings)


def inspect(model: str) -> str:
    """What `landmarks model inspect` prints."""
    return str(saved_model.inspect_model(model_folder(model)))
