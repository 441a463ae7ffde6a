"""The whole jobs as functions, for programs: what `landmarks index`, `recognize`, `evaluate` and others do.

They resume, lock, print and check as the commands do. The configurations are in `beam_pipeline.config`.
"""

from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import audit as _audit
from beam_pipeline import calibrate as _calibrate
from beam_pipeline import cleaning as _cleaning
from beam_pipeline import cohort as _cohort
from beam_pipeline import discover as _discover
from beam_pipeline import evaluate as _evaluate
from beam_pipeline import index as _index
from beam_pipeline import outputs
from beam_pipeline import recognize as _recognize
from beam_pipeline import rescore as _rescore
from beam_pipeline.config import (
    AuditConfig,
    CalibrateConfig,
    CleanConfig,
    CohortConfig,
    DiscoverConfig,
    EvaluateConfig,
    IndexConfig,
    PipelineError,
    RecognizeConfig,
    RescoreConfig,
)
from beam_pipeline.manifest import CohortManifest, IndexManifest, RunManifest
from beam_pipeline.prediction_rule import TunedSettings, read_tuned_settings
from transforms.gap import Metrics
from transforms.storage import files, object_stores


def index(config: IndexConfig, options: PipelineOptions | None = None) -> IndexManifest:
    """Makes an index of labelled photographs, adds to one, or goes on with either where it was stopped.

    Args:
      config: what is asked for.
      options: of Beam; None for the local runner on all cores.

    Returns:
      The index's manifest; `complete` is False where a time budget ended before the work.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong before the pipeline starts.
      PipelineError: the pipeline failed, or more photographs than `config.max_failure_rate` allows.
    """
    with object_stores.using(options) as options:
        _check(_index.run(config, options), config.output)
        return outputs.read_manifest(config.output, IndexManifest)


def recognize(config: RecognizeConfig, options: PipelineOptions | None = None) -> RunManifest:
    """Predicts the landmark of each query photograph, or goes on where it was stopped; arguments and errors
    are those of `index`.

    Returns:
      The run's manifest.
    """
    with object_stores.using(options) as options:
        _check(_recognize.run(config, options), config.output)
        return outputs.read_manifest(config.output, RunManifest)


def cohort(config: CohortConfig, options: PipelineOptions | None = None) -> CohortManifest:
    """Extracts photographs of other places, for `calibrate`; arguments and errors are those of `index`.

    Returns:
      The cohort's manifest.
    """
    with object_stores.using(options) as options:
        _check(_cohort.run(config, options), config.output)
        return outputs.read_manifest(config.output, CohortManifest)


def calibrate(config: CalibrateConfig, options: PipelineOptions | None = None) -> TunedSettings:
    """Lets an index tune itself; arguments and errors are those of `index`.

    Returns:
      What it found, as `landmarks recognize --preset tuned` takes it.
    """
    with object_stores.using(options) as options:
        _calibrate.run(config, options)
        return read_tuned_settings(_calibrate.output_of(config))


def clean(config: CleanConfig, options: PipelineOptions | None = None) -> IndexManifest:
    """Removes photographs from a finished index, or gives them other labels; arguments and errors are those
    of `index`.

    Returns:
      The index's manifest.
    """
    with object_stores.using(options) as options:
        _cleaning.run(config, options)
        return outputs.read_manifest(config.output, IndexManifest)


def audit(config: AuditConfig, options: PipelineOptions | None = None) -> None:
    """Looks for copies and wrong labels in an index; arguments and errors are those of `index`."""
    with object_stores.using(options) as options:
        _audit.run(config, options)


def discover(config: DiscoverConfig, options: PipelineOptions | None = None) -> None:
    """Groups queries without a landmark that show one place; arguments and errors are those of `index`."""
    with object_stores.using(options) as options:
        _discover.run(config, options)


def rescore(config: RescoreConfig, options: PipelineOptions | None = None) -> RunManifest:
    """Makes a run with other scores of a finished one; arguments and errors are those of `index`.

    Returns:
      The new run's manifest.
    """
    with object_stores.using(options) as options:
        _rescore.run(config, options)
        return outputs.read_manifest(config.output, RunManifest)


def evaluate(config: EvaluateConfig, options: PipelineOptions | None = None) -> Metrics:
    """Scores predictions, see `transforms.gap.evaluate_predictions`; arguments as `index`.

    Raises:
      ConfigError, ValueError, OSError: predictions or truth cannot be read, or do not fit together.
    """
    with object_stores.using(options) as options:
        return _evaluate.run(config, options)


def _check(code: int, output: str) -> None:
    if code:
        raise PipelineError(
            f"{output} is written, but more images failed than max_failure_rate allows; see "
            f"{files.join(output, 'failures')}"
        )
