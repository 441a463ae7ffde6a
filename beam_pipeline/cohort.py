"""The cohort job: photographs without labels in, a feature store out. They show what an index does not know,
and `landmarks calibrate` learns from them how far other places are drawn to it.
"""

import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import left_out, outputs, recipe, runner
from beam_pipeline.config import CohortConfig
from beam_pipeline.extraction import ExtractionTask, input_files, match, naming
from beam_pipeline.manifest import FORMAT, CohortCounts, CohortManifest, versions
from transforms import features
from transforms.models import catalog


def build(pipeline: beam.Pipeline, task: ExtractionTask) -> beam.PCollection[str]:
    """The graph: the features that the store lacks go there; gives the names of all its units."""
    hints = runner.resource_hints(pipeline.options, features.MIN_RAM)
    return pipeline | "Extract" >> task.transform().with_resource_hints(**hints)


def run(config: CohortConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Makes a cohort, or goes on with one where it was stopped; returns the exit code.

    Raises:
      ConfigError, ModelError, OSError: something is wrong before the pipeline starts.
      PipelineError: the pipeline failed.
    """
    started = time.monotonic()
    images, passed_over = match(config.images, config.image_ids, exclude=config.exclude)
    outputs.check_inputs(config.output, "cohort", input_files(config.images, images))
    left_out.say_passed_over(len(images), passed_over)
    model = catalog.combined(config.model or catalog.EMBEDDED, config.local_model)
    made = recipe.choose(model, config.overrides, config.reading)
    task = ExtractionTask.of(images, made, config.output, config.output)
    task.try_suspects()
    settings = {
        "command": "cohort",
        "format": FORMAT,
        **made.identity,
        **naming(config.image_ids),
        "images": task.digest,
    }
    photographs = outputs.Photographs("images", task.refs, config.output, made.reading, lambda before: None)

    def check() -> None:
        catalog.load_for_retrieval(made.model, made.settings)

    with outputs.opened(config.output, settings, config.overwrite, photographs, check) as unfinished:
        if unfinished:
            task.write_worklist()
            task.discard_damaged()
            task.discard_let_in()
            metrics = runner.run_pipeline(
                lambda pipeline: build(pipeline, task), options, [task.phase()], engine
            )
            shards = task.conclude(config.output, float("inf")).shards
            task.store.prune({*task.names})
            failed = task.images - sum(shard.images for shard in shards)
            counts = CohortCounts(task.images, failed, sum(passed_over.values()))
            seconds = runner.seconds(started, metrics)
            manifest = CohortManifest(
                recipe=made,
                shards=shards,
                passed_over=passed_over,
                counts=counts,
                seconds=seconds,
                versions=versions(),
            )
            outputs.finish(config.output, manifest)
            print(
                f"{config.output}: {task.images:,} photographs, {failed:,} failed; {seconds['total']:,.1f} s"
            )
        else:
            print(f"{config.output} is finished; nothing to do")
    counts = outputs.read_manifest(config.output, CohortManifest).counts
    return outputs.exit_code(config.output, counts.failed, counts.photographs, config.max_failure_rate)
