"""What a job is asked to do: frozen configurations, their defaults and checks.

The one home of every default. Light to import: no TensorFlow, no Beam, so that `--help` is quick.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from transforms.storage.uris import is_local
from transforms.types import ReadingConfig, ScoringSettings, VerificationSettings


@dataclasses.dataclass(frozen=True)
class Preset:
    """Query-time hyperparameters that are set together; a single flag overrides."""

    num_to_rerank: int
    verification: VerificationSettings
    scoring: ScoringSettings


# entry: the Kaggle entry; host: Google's baseline for the competition; accurate: measured on real
# photographs, see the docs.
PRESETS = {
    "entry": Preset(3, VerificationSettings(), ScoringSettings()),
    "host": Preset(
        10,
        VerificationSettings(
            max_reprojection_error=4.0, max_ransac_iterations=1000, homography_confidence=0.99
        ),
        ScoringSettings(top_k=5, max_inlier_score=70),
    ),
    "accurate": Preset(20, VerificationSettings(mutual_check=True), ScoringSettings()),
}
DEFAULT_PRESET = "entry"
TUNED = "tuned"  # the preset that an index's calibration is

# More failed images than this part fail the job, once everything has been written.
MAX_FAILURE_RATE = 0.05

# What a preset says of extraction holds for a model without a card of its own.
EXTRACTION_PRESETS: dict[str, dict[str, Any]] = {
    "entry": dict(image_scales=(1.414, 1.732, 2.0), max_local_features=4500, score_threshold=175.0),
    "host": dict(image_scales=(0.7071, 1.0, 1.4142), max_local_features=1000, score_threshold=175.0),
    "accurate": {},
}


# What --runner may be for the local one.
LOCAL_RUNNERS = (None, "DirectRunner", "direct", "FnApiRunner", "fnapi")


class ConfigError(ValueError):
    """A wrong option, or options that do not go together."""


class PipelineError(RuntimeError):
    """The pipeline failed; the text says why, as the engine tells it."""


class NotAwaited(Exception):
    """A pipeline was built, and nobody here waits for its end: a dry run, or a template; the text says which,
    and what comes next.
    """


@dataclasses.dataclass(frozen=True)
class TimeBudget:
    """How long a command may take.

    Attributes:
      seconds: from its start to its end.
      started: when it started, as time.time() tells it.
    """

    seconds: float
    started: float

    @property
    def ends(self) -> float:
        """When the time is over, as time.time() tells it."""
        return self.started + self.seconds


@dataclasses.dataclass(frozen=True)
class ExtractionOverrides:
    """Extraction settings given as flags; None leaves it to the index, or for a new one to the preset, the
    model's card or the official DELG settings.

    Attributes:
      preset: name in EXTRACTION_PRESETS, only where the flag was given.
      exif_orientation: see ReadingConfig.
      device: what runs the model, wherever the index was made; None for the processor.
    """

    preset: str | None = None
    exif_orientation: bool | None = None
    image_scales: tuple[float, ...] | None = None
    max_local_features: int | None = None
    score_threshold: float | None = None
    max_image_side: int | None = None
    precision: str | None = None
    device: str | None = None
    global_dimensions: int | None = None

    def given(self) -> dict[str, Any]:
        """The settings of the features that flags gave."""
        others = ("preset", "exif_orientation", "device")
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k not in others}


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """Arguments of `landmarks index`; see its --help.

    Attributes:
      labels: a table, or "folders" or "folders:2": the photographs' own.
      image_ids: see `patterns.match_images`; None for "name", or, with append, for those of the index.
      exclude: likewise.
      model: None for the embedded one, or, with append, for the one that the index names.
      local_model: what gives local features instead of `model`; None for itself, or as the index says.
      update: with append: photographs that were changed, moved or relabelled replace those of their ids.
    """

    images: tuple[str, ...]
    labels: str
    output: str
    model: str | None = None
    local_model: str | None = None
    image_ids: str | None = None
    exclude: tuple[str, ...] = ()
    overrides: ExtractionOverrides = ExtractionOverrides()
    reading: ReadingConfig = ReadingConfig()
    append: bool = False
    update: bool = False
    overwrite: bool = False
    max_failure_rate: float = MAX_FAILURE_RATE
    budget: TimeBudget | None = None

    def __post_init__(self) -> None:
        if self.update and not self.append:
            raise ConfigError(
                "--update goes with --append: it lets changed photographs replace those of their ids"
            )
        for flag, given in (("--overwrite", self.overwrite), ("--preset", self.overrides.preset)):
            if self.append and given:
                raise ConfigError(
                    f"{flag} and --append do not go together: an index that is added to keeps what it has "
                    "and its settings"
                )

    @property
    def label_levels(self) -> int:
        """How many folders are a photograph's label; 0 where a table has it."""
        match = re.fullmatch(r"folders(?::([1-9]))?", self.labels)
        return int(match[1] or 1) if match else 0


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """Arguments of `landmarks index` that change a finished index; see its --help.

    Attributes:
      output: the index.
      remove: ids, @lists of ids, and CSVs with a column `id`.
      relabel: CSV of labels.
      compact: whether shards are rewritten of which much was removed.
    """

    output: str
    remove: tuple[str, ...] = ()
    relabel: str | None = None
    compact: bool = False

    def __post_init__(self) -> None:
        if not (self.remove or self.relabel or self.compact):
            raise ConfigError("nothing to change: --remove, --relabel or --compact")


@dataclasses.dataclass(frozen=True)
class RecognizeConfig:
    """Arguments of `landmarks recognize`; see its --help.

    Attributes:
      image_ids, exclude: see `patterns.match_images`.
      sample_submission: a table whose ids are the submission's rows; None for a row of each image.
      model, local_model: None for those that the index names.
      query_store: folder of the queries' features; None for OUTPUT/queries.
      tuned: num_to_rerank, verification and scoring are those of the index's calibration.
      min_probability: below it a query has no landmark; only with `tuned`.
      max_distance: of matching descriptors; None for that of the model's card, else that of `verification`.
    """

    images: tuple[str, ...]
    index: str
    output: str
    truth: str | None = None
    model: str | None = None
    local_model: str | None = None
    query_store: str | None = None
    sample_submission: str | None = None
    image_ids: str = "name"
    exclude: tuple[str, ...] = ()
    overrides: ExtractionOverrides = ExtractionOverrides()
    reading: ReadingConfig = ReadingConfig()
    num_to_rerank: int = PRESETS[DEFAULT_PRESET].num_to_rerank
    verification: VerificationSettings = PRESETS[DEFAULT_PRESET].verification
    scoring: ScoringSettings = PRESETS[DEFAULT_PRESET].scoring
    max_distance: float | None = None
    tuned: bool = False
    min_probability: float = 0.0
    overwrite: bool = False
    max_failure_rate: float = MAX_FAILURE_RATE
    budget: TimeBudget | None = None

    def __post_init__(self) -> None:
        if self.min_probability and not self.tuned:
            raise ConfigError("--min_probability needs the probabilities of --preset tuned")
        if self.scoring.top_k > self.num_to_rerank:
            raise ConfigError(
                f"--top_k {self.scoring.top_k} is more than --num_to_rerank {self.num_to_rerank}"
            )
        for flag, folder in (("--output", self.output), ("--query_store", self.query_store)):
            if folder is not None and holds(folder, self.index):
                raise ConfigError(f"{flag} {folder} is or holds the index {self.index}; name another folder")
        store = self.query_store
        if store is not None and holds(store, self.output) and holds(self.output, store):
            raise ConfigError(f"--query_store {store} is the output {self.output}; name another folder")


@dataclasses.dataclass(frozen=True)
class CohortConfig:
    """Arguments of `landmarks cohort`; see its --help.

    Attributes:
      model: None for the embedded one.
      local_model: what gives local features instead of `model`; None for itself.
      image_ids, exclude: see `patterns.match_images`.
    """

    images: tuple[str, ...]
    output: str
    model: str | None = None
    local_model: str | None = None
    image_ids: str = "name"
    exclude: tuple[str, ...] = ()
    overrides: ExtractionOverrides = ExtractionOverrides()
    reading: ReadingConfig = ReadingConfig()
    overwrite: bool = False
    max_failure_rate: float = MAX_FAILURE_RATE


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
    """Arguments of `landmarks calibrate`; see its --help.

    Attributes:
      sample: photographs of the index that are asked for, about.
      index: None for that of the run.
      runs: finished runs: one, whose queries `truth` tells of; or several of the same queries, whose indexes
        are calibrated together, as an ensemble.
      truth: of the runs' queries, which are learned from too.
      negatives: outputs of cohort, index or recognize, of photographs that show no landmark of the index;
        beside the cohort of its model, where that has one.
      non_landmark_share: the part of the queries that is expected to show no landmark of the index.
      output: file of the calibration; None for INDEX/calibration.json; an ensemble needs a place of its own.
      budget: how long it may take; None for as long as it does.
    """

    index: str | None = None
    runs: tuple[str, ...] = ()
    truth: str | None = None
    sample: int = 2000
    negatives: tuple[str, ...] = ()
    non_landmark_share: float = 0.5
    output: str | None = None
    budget: TimeBudget | None = None

    def __post_init__(self) -> None:
        if self.index is None and not self.runs:
            raise ConfigError("--index is missing: what is to be calibrated; or --run")
        if self.truth and not self.runs:
            raise ConfigError("--truth tells of the queries of a --run, which is missing")
        if len(self.runs) == 1 and not self.truth:
            raise ConfigError("--run needs --truth, or another --run for an ensemble of both")
        if len(self.runs) > 1 and (self.index or self.negatives or not self.output):
            raise ConfigError(
                "an ensemble's indexes are those of its runs, whose calibration needs an --output of its own "
                "and takes no --negatives"
            )


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Arguments of `landmarks audit`; see its --help."""

    index: str
    output: str
    neighbors: int = 20
    overwrite: bool = False
    budget: TimeBudget | None = None

    def __post_init__(self) -> None:
        if holds(self.output, self.index):
            raise ConfigError(
                f"--output {self.output} is or holds the index {self.index}; name another folder"
            )


@dataclasses.dataclass(frozen=True)
class DiscoverConfig:
    """Arguments of `landmarks discover`; see its --help.

    Attributes:
      min_probability, min_score: a query below one of them has no landmark; None for no such bound.
    """

    run: str
    output: str
    min_probability: float | None = None
    min_score: float | None = None
    neighbors: int = 20
    overwrite: bool = False
    budget: TimeBudget | None = None

    def __post_init__(self) -> None:
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise ConfigError(f"--min_score must be a number, not {self.min_score}")
        if holds(self.output, self.run):
            raise ConfigError(f"--output {self.output} is or holds the run {self.run}; name another folder")


@dataclasses.dataclass(frozen=True)
class RescoreConfig:
    """Arguments of `landmarks rescore`; see its --help.

    Attributes:
      more_runs: of the same queries, whose candidates are joined with those of `run`: an ensemble.
      num_to_rerank: candidates that count, the most similar ones; None for all that the run has.
      scoring: the fields of ScoringSettings that are other than the run's.
      calibration: file of one; None for the run's own, or none.
      min_probability: None for the run's own.
    """

    run: str
    output: str
    more_runs: tuple[str, ...] = ()
    truth: str | None = None
    num_to_rerank: int | None = None
    scoring: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    calibration: str | None = None
    min_probability: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.calibration and (self.scoring or self.num_to_rerank):
            raise ConfigError("--calibration brings its own scores: it goes with no other flag of them")
        for run in (self.run, *self.more_runs):
            if holds(self.output, run):
                raise ConfigError(f"--output {self.output} is or holds the run {run}; name another folder")


def holds(folder: str, other: str) -> bool:
    """Whether `other` is `folder` or lies in it."""
    folder, other = (
        (os.path.realpath(name) if is_local(name) else name).rstrip("/") + "/" for name in (folder, other)
    )
    return other.startswith(folder)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Arguments of `landmarks report`; see its --help."""

    run: str
    output: str
    truth: str | None = None
    names: str | None = None
    against: str | None = None
    max_queries: int = 2000


@dataclasses.dataclass(frozen=True)
class FullSize:
    """What `landmarks plan` reckons with; None for what there is.

    Attributes:
      photographs: to extract; of recognize, queries.
      index_photographs: that the index will have.
      prices: a JSON file, see `costs.Prices`.
    """

    photographs: int | None = None
    index_photographs: int | None = None
    prices: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether anything is."""
        return self != FullSize()


@dataclasses.dataclass(frozen=True)
class WhitenConfig:
    """Arguments of `landmarks model whiten`; see its --help.

    Attributes:
      model, local_model: where the models lie now; None for where they lay.
      dimensions, shrinkage: None for DIMENSIONS and SHRINKAGE, or those that a whitened index has.
    """

    DIMENSIONS: ClassVar[int] = 512
    SHRINKAGE: ClassVar[float] = 0.03

    index: str
    model: str | None = None
    local_model: str | None = None
    dimensions: int | None = None
    shrinkage: float | None = None


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Arguments of `landmarks evaluate`; see its --help."""

    predictions: str
    truth: str
    output: str | None = None
    non_landmark_share: float | None = None

    def __post_init__(self) -> None:
        for flag, read in (("--truth", self.truth), ("--predictions", self.predictions)):
            if self.output is not None and holds(self.output, read):
                raise ConfigError(f"--output {self.output} is or holds what {flag} names; name another file")
