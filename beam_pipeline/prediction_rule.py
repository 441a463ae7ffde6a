"""How candidates become predictions, as a run remembers it; and the calibration of an index."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from beam_pipeline.config import ConfigError
from beam_pipeline.manifest import IndexManifest
from transforms.aggregation import AggregatePredictions
from transforms.arrays.calibration import Calibration
from transforms.storage import files
from transforms.types import ScoringSettings, VerificationSettings

CALIBRATION = "calibration.json"

S = TypeVar("S", VerificationSettings, ScoringSettings, Calibration)


def _record(kind: type[S], values: Mapping[str, Any]) -> S:
    names = [field.name for field in dataclasses.fields(kind)]
    if missing := sorted(set(names) - set(values)):
        raise ConfigError(f"made by another version of landmarks: {kind.__name__} without {missing}")
    return kind(**{name: values[name] for name in names})


@dataclasses.dataclass(frozen=True)
class PredictionRule:
    """How candidates become predictions.

    Attributes:
      scoring: of the candidates.
      calibration: of the predictions; None for no probabilities.
      min_probability: below it a query has no landmark.
    """

    scoring: ScoringSettings
    calibration: Calibration | None = None
    min_probability: float = 0.0

    def __post_init__(self) -> None:
        if self.min_probability and self.calibration is None:
            raise ConfigError("--min_probability needs a calibration: --preset tuned, or --calibration")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What of it a run remembers."""
        values = dataclasses.asdict(self.scoring)
        if self.calibration is not None:
            values["calibration"] = dataclasses.asdict(self.calibration)
            values["min_probability"] = self.min_probability
        return values

    @classmethod
    def of(cls, hyperparameters: Mapping[str, Any]) -> "PredictionRule":
        """That of a run."""
        known = hyperparameters.get("calibration")
        return cls(
            _record(ScoringSettings, hyperparameters),
            None if known is None else _record(Calibration, known),
            hyperparameters.get("min_probability", 0.0),
        )

    @property
    def step(self) -> AggregatePredictions:
        """The step that does it."""
        return AggregatePredictions(self.scoring, self.calibration, self.min_probability)


@dataclasses.dataclass(frozen=True)
class EnsembleMember:
    """What the calibration of an ensemble says of one of its indexes.

    Attributes:
      index: digest of its manifest.
      model: its name.
      weight: of its runs.
      verification: how their candidates are verified.
    """

    index: str
    model: str
    weight: float
    verification: VerificationSettings


@dataclasses.dataclass(frozen=True)
class TunedSettings:
    """What the calibration of an index says.

    Attributes:
      index: digest of the index's manifest.
      num_to_rerank: candidates that are retrieved and verified.
      verification: how.
      scoring: of the candidates.
      calibration: None where the index was too small to learn one.
      ensemble: of a calibration of several indexes what it says of each; empty for one index.
    """

    index: str
    num_to_rerank: int
    verification: VerificationSettings
    scoring: ScoringSettings
    calibration: Calibration | None
    ensemble: tuple[EnsembleMember, ...] = ()

    def rule(self, min_probability: float) -> PredictionRule:
        """How candidates become predictions by it.

        Raises:
          ConfigError: probabilities are asked for, and there are none.
        """
        if min_probability and self.calibration is None:
            raise ConfigError(
                "--min_probability: the index was too small to learn probabilities from; more photographs of "
                "each landmark, or `landmarks calibrate --negatives`, may help"
            )
        return PredictionRule(self.scoring, self.calibration, min_probability)


def read_tuned_settings(uri: str) -> TunedSettings:
    """Reads what `landmarks calibrate` wrote.

    Raises:
      ConfigError: there is none, or it is no calibration.
    """
    if not files.exists(uri):
        raise ConfigError(f"there is no {uri}: `landmarks calibrate` makes it")
    try:
        value = files.read_json(uri)
        settings, coefficients = value["settings"], value["coefficients"]
        return TunedSettings(
            value["index"],
            settings["num_to_rerank"],
            _record(VerificationSettings, settings),
            _record(ScoringSettings, settings),
            None if coefficients is None else _record(Calibration, coefficients),
            tuple(
                EnsembleMember(**{**one, "verification": VerificationSettings(**one["verification"])})
                for one in value.get("ensemble", ())
            ),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise ConfigError(f"{uri} is no calibration, or is damaged: {e!r}") from e


def tuned_settings_of(index: str, manifest: IndexManifest) -> TunedSettings:
    """The calibration of an index.

    Raises:
      ConfigError: it has none, or the index was changed since.
    """
    uri, command = files.join(index, CALIBRATION), f"`landmarks calibrate --index {index}`"
    if not files.exists(uri):
        raise ConfigError(f"{index} is not calibrated, which --preset tuned needs: {command} does it")
    tuned = read_tuned_settings(uri)
    if tuned.ensemble:
        raise ConfigError(f"{uri} is of an ensemble, which `landmarks rescore --calibration` takes")
    if tuned.index != manifest.digest(index):
        raise ConfigError(f"{uri} is of before the index was changed: {command} makes it anew")
    return tuned
