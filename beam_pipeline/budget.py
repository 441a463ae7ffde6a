"""The time budget of a job: its plan, by what a pilot measured, and until when each stage may work.

Extraction comes first, then retrieval; verification has the time that is left. The deadlines are points in
time that workers look at between two images or pairs, so that a stage overruns by one of them at most; what a
stage did not reach is left for a later start of the same command. The last part of the budget is a reserve,
in which the results are written.
"""

import dataclasses
import math
import time
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions

from beam_pipeline import runner
from beam_pipeline.config import TimeBudget

# Pipelines without work that a job's shuffles take as long as, measured on the local runner, rounded up:
# before the first image, between the last image and the first pair, and after the last pair.
_PIPELINES_BEFORE, _PIPELINES_BETWEEN, _PIPELINES_AFTER = 1.0, 2.0, 2.0
# What an engine that is not this machine takes to start its workers, and to end; an assumption.
ENGINE_START, ENGINE_END = 300.0, 120.0
# The reserve covers this many times what is expected, for a machine that slows down, and a part of the
# budget.
_CAUTION, _PART = 1.5, 0.01
# Without a forecast, since the pilot died, this part of the budget is the reserve.
_BLIND_PART = 0.1
_CSV_ROW = 2e-5  # seconds to read a prediction and to write its row


class OutOfTimeError(ValueError):
    """A time budget that nothing can be done in."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a job has to do.

    Attributes:
      images: photographs to extract, in `units` units.
      queries: images to search for; 0 for an index.
      index_images: images to search among.
      pairs: of a query and a candidate, to verify.
      shards: of predictions, to write.
      workers: threads or processes of the local runner; workers of an engine.
      engine: whether the workers are machines of their own, each of them taken to be as fast as this one.
    """

    images: int
    units: int
    queries: int = 0
    index_images: int = 0
    pairs: int = 0
    shards: int = 0
    workers: int = 1
    engine: bool = False


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the pilot measured on this machine, all local workers at work: seconds pass on the wall, per item.

    Attributes:
      load: to load the model; 0 where it is not needed.
      image: to read, extract and write an image.
      search: to compare a query with an index image.
      pair: to verify a pair.
      score: to make a prediction of a query's candidates.
      shard: to write a shard of predictions and read it again.
      pipeline: to run a pipeline with nothing to do.
      process: to start a process with all its imports; to end one is taken to be as slow.
      image_bytes, shard_bytes: written per image, per shard of predictions.
      memory: most bytes the pilot's process held.
      images, pairs: how many were tried.
      dimensions: width of the model's global descriptor; 0 where the model was not needed.
      has_local: whether the model has local features.
      seconds: that the pilot took.
    """

    load: float = 0.0
    image: float = 0.0
    search: float = 0.0
    pair: float = 0.0
    score: float = 0.0
    shard: float = 0.0
    pipeline: float = 0.0
    process: float = 0.0
    image_bytes: float = 0.0
    shard_bytes: float = 0.0
    memory: int = 0
    images: int = 0
    pairs: int = 0
    dimensions: int = 0
    has_local: bool = False
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """A line of the plan: `number` items of a kind, seconds for each, bytes written in all."""

    name: str
    number: int
    item: str
    each: float
    size: float = 0.0

    @property
    def seconds(self) -> float:
        return self.number * self.each


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a job is expected to take.

    Attributes:
      work, measured: what it was made from.
      stages: extract, and for queries retrieve and verify.
      start: seconds before the first image.
      between: seconds between the stages.
      end: seconds after the last pair: shards, submission and manifest are written, the process ends.
    """

    work: Work
    measured: Measured
    stages: tuple[Stage, ...]
    start: float
    between: float
    end: float

    @property
    def seconds(self) -> float:
        """All that is expected from now on, the pilot not counted."""
        return self.overhead + sum(stage.seconds for stage in self.stages)

    @property
    def overhead(self) -> float:
        """Seconds that are no stage's."""
        return self.start + self.between + self.end

    def stage(self, name: str) -> Stage:
        return next((s for s in self.stages if s.name == name), Stage(name, 0, "", 0.0))


@dataclasses.dataclass(frozen=True)
class Deadlines:
    """Until when, as time.time() tells it, images are extracted, and candidates retrieved and verified.

    Retrieval may go on when it is too late to verify, so what it finds in the end is never taken for final.
    """

    extract: float = math.inf
    retrieve: float = math.inf
    verify: float = math.inf

    def __post_init__(self) -> None:
        if not self.extract <= self.verify <= self.retrieve:
            raise ValueError(f"deadlines must be in the order extract, verify, retrieve: {self}")


NO_TIME = Deadlines(0.0, 0.0, 0.0)


def make_plan(work: Work, measured: Measured) -> Plan:
    """What `work` takes at the measured pace; an engine's machines share the items evenly."""
    share = 1 / work.workers if work.engine else 1.0  # on this machine all workers were measured together
    stages = [
        Stage("extract", work.images, "images", measured.image * share, work.images * measured.image_bytes)
    ]
    if work.queries:
        stages.append(Stage("retrieve", work.queries, "queries", measured.search * work.index_images * share))
        stages.append(
            Stage("verify", work.pairs, "pairs", measured.pair * share, work.shards * measured.shard_bytes)
        )
    start = measured.load + _PIPELINES_BEFORE * measured.pipeline + work.engine * ENGINE_START
    end = measured.process + _PIPELINES_AFTER * measured.pipeline + work.engine * ENGINE_END
    end += (work.shards * measured.shard + work.queries * measured.score) * share + work.queries * _CSV_ROW
    between = _PIPELINES_BETWEEN * measured.pipeline if work.queries else 0.0
    return Plan(work, measured, tuple(stages), start, between, end)


def deadlines(budget: TimeBudget, plan: Plan | None, now: float) -> Deadlines:
    """The deadlines that leave time for all that comes after each stage; `plan` is None where there is no
    forecast.
    """
    if plan is None:
        reserve = _BLIND_PART * budget.seconds
        return Deadlines(
            extract=budget.ends - 2 * reserve,
            retrieve=budget.ends - reserve / 2,
            verify=budget.ends - reserve,
        )
    verify = budget.ends - _PART * budget.seconds - _CAUTION * (plan.end + plan.stage("verify").each) - 1.0
    if now + plan.start - plan.measured.load >= verify:
        return NO_TIME
    extract = verify - _CAUTION * (plan.between + plan.stage("retrieve").seconds + plan.stage("extract").each)
    if now + plan.start >= extract:
        extract = 0.0  # a model would be loaded for nothing
    return Deadlines(extract, budget.ends - plan.end, verify)


def format_plan(plan: Plan, budget: TimeBudget | None, now: float) -> str:
    """The plan as a table, and what of it fits the budget."""
    work, measured = plan.work, plan.measured
    machine = ", each taken to be as fast as this machine" if work.engine else " of this machine"
    where = f"{work.workers} workers{machine}"
    lines = [
        f"plan for {where}, by a pilot of {measured.images} images and {measured.pairs} pairs in "
        f"{measured.process + measured.seconds:.1f} s:"
    ]
    for stage in plan.stages:
        units = f" in {work.units:,} units" if stage.name == "extract" and stage.number else ""
        lines.append(
            _row(
                stage.name,
                f"{stage.number:,} {stage.item}{units}",
                f"{1000 * stage.each:,.3g} ms each",
                stage.seconds,
                stage.size,
            )
        )
    lines.append(_row("overhead", "", "", plan.overhead))
    lines.append(_row("all", "", "", plan.seconds, sum(stage.size for stage in plan.stages)))
    if work.engine:
        lines.append(f"  memory per worker process: about {measured.memory / 1e9:.1f} GB")
    if budget is not None:
        lines.append(f"time budget {runner.time_text(budget.seconds)}: {_fit(plan, budget, now)}")
    return "\n".join(lines)


def _row(name: str, number: str, each: str, seconds: float, size: float = 0.0) -> str:
    written = f"{size / 1e6:>12,.1f} MB" if size else ""
    return f"  {name:<14}{number:<34}{each:>16}{runner.time_text(seconds):>10}{written}"


def _fit(plan: Plan, budget: TimeBudget, now: float) -> str:
    """What of the plan is done before its deadlines, should the forecast hold."""
    until, extract, verify = deadlines(budget, plan, now), plan.stage("extract"), plan.stage("verify")
    at = now + plan.start
    if extract.number and at + extract.seconds > until.extract:
        done = max(0, int((until.extract - at) / extract.each)) if until.extract else 0
        return f"too short; about {done:,} of {extract.number:,} images can be extracted" + (
            ", no pair verified" if plan.work.queries else ""
        )
    at += extract.seconds + plan.between + plan.stage("retrieve").seconds
    if at + verify.seconds > until.verify:
        done = max(0, int((until.verify - at) / verify.each)) if verify.each else 0
        return (
            f"short; about {min(1.0, done / max(1, verify.number)):.0%} of the pairs can be verified, "
            "the most promising queries first"
        )
    return f"enough, with {runner.time_text(until.verify - at - verify.seconds)} to spare"


def compared(plan: Plan, metrics: dict[str, int], seconds: float) -> dict[str, dict[str, float]]:
    """The forecast of what was done beside what happened, by stage and for "all": number, seconds expected
    for it, seconds it took.

    Args:
      metrics: the job's counters; timers add up over workers, who are taken to have shared the work evenly.
      seconds: from the end of the pilot to now.
    """
    done = {
        "extract": metrics.get("extract_out", 0) + metrics.get("extract_failed", 0),
        "retrieve": metrics.get("retrieve_in", 0),
        "verify": metrics.get("verify_pairs", 0),
    }
    result = {}
    for stage in plan.stages:
        number = done[stage.name]
        happened = metrics.get(f"{stage.name}_milliseconds", 0) / 1000 / plan.work.workers
        result[stage.name] = {
            "number": number,
            "forecast": round(number * stage.each, 2),
            "happened": round(happened, 2),
        }
    forecast = plan.overhead - plan.measured.process + sum(values["forecast"] for values in result.values())
    result["all"] = {"forecast": round(forecast, 2), "happened": round(seconds, 2)}
    return result


def format_compared(comparison: dict[str, dict[str, float]]) -> str:
    """`compared` as a line for people."""
    parts = [
        f"{name} {values['forecast']:,.1f} s, was {values['happened']:,.1f} s"
        for name, values in comparison.items()
        if values["forecast"] or values["happened"]
    ]
    return "forecast: " + "; ".join(parts)


def work_of(options: PipelineOptions, **counts: Any) -> Work:
    """A Work of `counts` for the workers that `options` ask for."""
    local = runner.local_workers(options)
    if local is not None:
        return Work(**counts, workers=local)
    return Work(**counts, workers=options.view_as(WorkerOptions).num_workers or 1, engine=True)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a job was told about its time.

    Attributes:
      budget: None where there is none.
      plan: None where there is no budget, or no forecast.
      deadlines: of its stages.
      begun: when the pilot was over, as time.time() tells it.
    """

    budget: TimeBudget | None = None
    plan: Plan | None = None
    deadlines: Deadlines = Deadlines()
    begun: float = 0.0

    @property
    def hopeless(self) -> bool:
        """Whether there is no time for anything but to write what is known already."""
        return self.deadlines == NO_TIME

    def report(self, metrics: dict[str, int]) -> dict[str, Any] | None:
        """For the manifest: the budget, the time it took so far, and the forecast beside what happened; None
        without a budget.
        """
        if self.budget is None:
            return None
        now = time.time()
        report: dict[str, Any] = {"seconds": self.budget.seconds, "used": round(now - self.budget.started, 1)}
        if self.plan is not None and not self.hopeless:
            report["stages"] = compared(self.plan, metrics, now - self.begun)
            print(format_compared(report["stages"]))
        return report
