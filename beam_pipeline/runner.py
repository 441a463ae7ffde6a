"""Running a pipeline: the choice of runner, visible progress, and what the metrics say afterwards."""

import builtins
import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import re
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import apache_beam as beam
import grpc
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
)
from apache_beam.runners import common
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.runners.runner import PipelineRunner
from apache_beam.runners.worker import sdk_worker
from apache_beam.transforms import core

from beam_pipeline import memory
from beam_pipeline.config import LOCAL_RUNNERS, NotAwaited, PipelineError
from transforms.processes.threads import beside
from transforms.storage import files

# One `landmarks` line at least this often where standard error is no terminal.
_SECONDS_BETWEEN_LINES = 10.0
_NEVER_MS = 1_000_000_000

_View = TypeVar("_View", bound=PipelineOptions)

_RAISED = re.compile(r"(?:\w+\.)*(\w+): (.*?)(?: \[while running '[^']*'\])?")
_OF_A_FILE = re.compile(r"\[Errno \d+\] (.+?): ['\"](.+)['\"]")
_FORESEEN = {"MachineError", "StoreError", "CredentialsError", "ModelError", "DamagedError", "LostError"}
_DAMAGED = re.compile("is no whole Parquet file|is not valid JSON")


@dataclasses.dataclass(frozen=True)
class Phase:
    """Something whose progress can be counted from outside, by looking at what has been written.

    Attributes:
      label: such as "extract".
      total: how many there are to do.
      done: how many are done.
      unit: follows the numbers, such as " MB".
      at_least: whether there may be more than `total`.
    """

    label: str
    total: int
    done: Callable[[], int]
    unit: str = ""
    at_least: bool = False


def row_counter(folder: str) -> Callable[[], int]:
    """A function that counts the rows of the Parquet files in `folder`, looking into each file only once."""
    rows: dict[str, int] = {}

    def count() -> int:
        for uri in files.list_files(folder, ".parquet"):
            if uri not in rows:
                rows[uri] = files.parquet_rows(uri)
        return sum(rows.values())

    return count


def local_workers(options: PipelineOptions) -> int | None:
    """Worker threads or processes of the local runner under `options`; None for another runner."""
    if options.view_as(StandardOptions).runner not in LOCAL_RUNNERS:
        return None
    # Beam's own default is 1 too; only the flags tell whether somebody asked for it.
    given = any(flag.partition("=")[0] == "--direct_num_workers" for flag in options._flags)
    return (given and options.view_as(DirectOptions).direct_num_workers) or len(os.sched_getaffinity(0))


def images_in_flight(options: PipelineOptions) -> int | None:
    """Photographs that a process has in the model at a time under the `options` of a pipeline as
    `run_pipeline` sets them.

    As many as the local runner has worker threads, which by default are the cores: all work though one has
    the last unit. None, which is one per unit at work, for its worker processes and for other engines, which
    run a process on each core.
    """
    direct = options.view_as(DirectOptions)
    in_threads = local_workers(options) is not None and direct.direct_running_mode != "multi_processing"
    return direct.direct_num_workers if in_threads else None


def resource_hints(options: PipelineOptions, min_ram: str) -> dict[str, str]:
    """What `PTransform.with_resource_hints` takes for a step whose workers need `min_ram`, such as "4GB",
    each, all their processes together.

    Empty but for Dataflow, which sizes workers by it. Other engines only keep steps with different hints in
    processes of their own, and memory would be taken for each.
    """
    return {"min_ram": min_ram} if _on_dataflow(options) else {}


def _on_dataflow(options: PipelineOptions) -> bool:
    return (
        "dataflow" in (options.view_as(StandardOptions).runner or "").lower()
    )  # DataflowRunner, or by its module's name


class _Options(PipelineOptions):
    """Options whose views are made once: Beam asks for one with each step, and parses all flags for it."""

    _views: ClassVar[weakref.WeakKeyDictionary["_Options", dict[type, Any]]] = weakref.WeakKeyDictionary()

    def view_as(self, cls: type[_View]) -> _View:
        views = self._views.setdefault(self, {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        view: _View = views[cls]
        return view


def run_pipeline(
    build: Callable[[beam.Pipeline], Any],
    options: PipelineOptions,
    phases: Sequence[Phase],
    engine: PipelineRunner | None = None,
    few: bool = False,
) -> dict[str, int]:
    """Builds a pipeline, runs it to its end and shows progress meanwhile.

    On the local runner all cores work, as threads of one process, unless options say otherwise.

    Args:
      build: makes the graph.
      options: of Beam.
      phases: whose progress is shown.
      engine: what runs it; by default the runner that `options` name.
      few: so little is to be done that the local runner is sooner done with one worker, unless options say
        otherwise; it needs no servers.

    Returns:
      The job's own counters (namespace "landmarks"), and of each distribution its sum, by name.

    Raises:
      PipelineError: the pipeline failed.
      NotAwaited: it was built, and that is all that the options ask for.
    """
    workers = local_workers(options)
    if workers is not None and (little := memory.lack(memory.FOR_PIPELINES, workers)):
        raise PipelineError(little)
    options = _Options.from_dictionary(
        options.get_all_options(drop_default=True, retain_unknown_options=False)
    )
    given = options.get_all_options(drop_default=True)
    if workers is not None:
        engine = engine or FnApiRunner()
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers = workers
        if "direct_running_mode" not in given:
            direct.direct_running_mode = "multi_threading" if workers > 1 else "in_memory"
    setup, not_awaited = options.view_as(SetupOptions), _not_awaited(options)
    if setup.save_main_session is None:
        setup.save_main_session = False  # all that workers run they import from the installed packages
    with _signatures_read_once():
        pipeline = beam.Pipeline(runner=engine, options=options)
        build(pipeline)  # for all cores, which one worker's threads use too
        if few and workers is not None and not {"direct_num_workers", "direct_running_mode"} & given.keys():
            direct = pipeline.options.view_as(DirectOptions)
            direct.direct_num_workers, direct.direct_running_mode = 1, "in_memory"
        with whole_elements(), _errors_told_once(), progress([] if not_awaited else phases):
            try:
                result = pipeline.run()
                if not not_awaited:
                    result.wait_until_finish()
            except Exception as e:
                raise PipelineError(_told(e)) from e
    if not_awaited:
        raise NotAwaited(not_awaited)
    return _metrics(result)


def lost_work(what: str) -> PipelineError:
    """The error of an engine whose pipeline succeeded without doing all of its work."""
    return PipelineError(
        f"the pipeline ended well, but {what}, and no deadline had passed: the engine lost them; the same "
        "command goes on from here"
    )


@contextlib.contextmanager
def _signatures_read_once() -> Iterator[None]:
    """Keeps Beam from reading the signatures of all methods of every DoFn, inherited ones too, again and
    again: six times for each step that a pipeline has, and with each worker that runs it.
    """
    read, known = core.get_signature, dict[Any, inspect.Signature]()

    def read_once(function: Any) -> inspect.Signature:
        if not isinstance(function, types.MethodType):
            return read(function)
        if function.__func__ not in known:
            known[function.__func__] = read(function)
        return known[function.__func__]

    core.get_signature = read_once
    try:
        yield
    finally:
        core.get_signature = read


@contextlib.contextmanager
def whole_elements() -> Iterator[None]:
    """Keeps the local runner's worker threads from sending half an element, during the block.

    They send what they have written once a second, from another thread and without a lock, in Beam 2.77 also
    while an element is being written: its reader then takes bytes for what they are not, fails, or asks for
    all memory. On a loaded machine that is met within minutes. Buffers are still sent by their size, and when
    they end.
    """
    before = worker_handlers.DATA_BUFFER_TIME_LIMIT_MS
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = _NEVER_MS
    try:
        yield
    finally:
        worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = before


@contextlib.contextmanager
def _errors_told_once() -> Iterator[None]:
    """Keeps the local runner's worker threads from writing each error's traceback; `_told` does."""
    loggers = [logging.getLogger(module.__name__) for module in (common, sdk_worker)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    vars(sdk_worker)["print"] = lambda *text, **options: None
    try:
        yield
    finally:
        del vars(sdk_worker)["print"]
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


def _told(error: Exception) -> str:
    """What to say of the error that ended a pipeline; the traceback of one that nobody foresaw is printed."""
    if isinstance(error, grpc.FutureTimeoutError):
        return (
            "a worker did not answer within a minute: this machine is too busy, or does not let its programs "
            "connect to one another (localhost); the same command goes on from here"
        )
    # A worker's error comes as itself, or as the text of its traceback, where what was raised stands in the
    # last line.
    text = str(error).strip().rpartition("\n")[2].removeprefix("RuntimeError: ")
    if not isinstance(error, RuntimeError):
        text = f"{type(error).__name__}: {text}"
    raised = _RAISED.fullmatch(text)
    name, said = raised.groups() if raised else ("", text)
    of_system = issubclass(getattr(builtins, name, Exception), (OSError, MemoryError, EOFError))
    if not of_system and name not in _FORESEEN and not _DAMAGED.search(said):
        sys.stderr.write("".join(traceback.format_exception(error)))
        return text
    if found := _OF_A_FILE.fullmatch(said):
        said = f"{found[2]}: {found[1][0].lower()}{found[1][1:]}"
    return said if "goes on from here" in said else f"{said}; the same command goes on from here"


def _not_awaited(options: PipelineOptions) -> str | None:
    """Why the pipeline's end is not waited for, where it is not; other engines than Dataflow do not know
    these options and run it.
    """
    if not _on_dataflow(options):
        return None
    if options.view_as(TestOptions).dry_run:
        return "dry run: the job was built, nothing was submitted"
    if template := options.view_as(GoogleCloudOptions).template_location:
        return (
            f"{template} was made; once a job made from it has ended, the same command with the local "
            "runner completes the output"
        )
    return None


def _metrics(result: beam.runners.runner.PipelineResult) -> dict[str, int]:
    try:
        found = result.metrics().query(MetricsFilter().with_namespace("landmarks"))
    except (NotImplementedError, ValueError):
        return {}  # not every engine reports
    values: dict[str, int] = {}
    for counter in found["counters"]:
        values[counter.key.metric.name] = values.get(counter.key.metric.name, 0) + (counter.result or 0)
    for distribution in found["distributions"]:
        name = distribution.key.metric.name
        values[name] = values.get(name, 0) + (distribution.result.sum if distribution.result else 0)
    return values


def seconds(started: float, metrics: dict[str, int]) -> dict[str, float]:
    """For the manifest: "total" since `started`, as time.monotonic() tells it, and worker seconds per step,
    from the distributions named <step>_milliseconds; they add up over parallel workers.
    """
    suffix = "_milliseconds"
    steps = {k[: -len(suffix)]: round(v / 1000, 1) for k, v in sorted(metrics.items()) if k.endswith(suffix)}
    return {"total": round(time.monotonic() - started, 1), **steps}


class Stages:
    """What is to be said of phases that follow each other, by what is done of each."""

    def __init__(self, phases: Sequence[Phase], done: Sequence[int], now: float) -> None:
        self._phases, self._first = phases, done
        self._at, self._begun = 0, now
        self._width = max((len(phase.label) for phase in phases), default=0)

    def lines(self, done: Sequence[int], now: float, ended: bool = False) -> Iterator[tuple[str, bool]]:
        """Lines in their order, each with whether it is the last of its phase; the last line may be none.

        A phase is over when all of it is done, or when a later one moves: time ran out, or what it counts by
        cannot be seen.

        Args:
          done: of each phase.
          now: as time.monotonic() tells it.
          ended: the work is over; a phase that it did not get to is not shown.
        """
        while self._at < len(self._phases):
            at = self._at
            later = any(d > f for d, f in zip(done[at + 1 :], self._first[at + 1 :]))
            phase = self._phases[at]
            over = later or (done[at] >= phase.total and not phase.at_least)
            yield self._line(done[at], now - self._begun, over or ended), over or ended
            if not over:
                break
            self._at, self._begun = at + 1, now

    def _line(self, done: int, seconds: float, last: bool) -> str:
        phase = self._phases[self._at]
        rate = (done - self._first[self._at]) / seconds if seconds > 0 else 0.0
        time_ = f" in {time_text(seconds)}" if last else ""
        least, total = ("at least ", max(done, phase.total)) if phase.at_least else ("", phase.total)
        if rate and not last and done < total:
            time_ = f", {least}{time_text((total - done) / rate)} left"
        number = f"{self._at + 1}/{len(self._phases)} " if len(self._phases) > 1 else ""
        amount = f"{done:>9,} of {least}{total:,}{phase.unit}"
        rate_ = f"  {rate:,.1f}{phase.unit}/s{time_}" if rate or not last else ""  # done between two looks
        return f"{number}{phase.label:<{self._width}} {amount}{rate_}"


def progress(phases: Sequence[Phase]) -> contextlib.AbstractContextManager[None]:
    """Prints done, rate and time left of the phase at work, until the block ends: on a terminal in one live
    line for each, elsewhere a line now and then.
    """
    shown = [phase for phase in phases if phase.total or phase.at_least]
    return beside(functools.partial(_print_progress, shown), "progress")


def _print_progress(phases: Sequence[Phase], stop: threading.Event) -> None:
    terminal = sys.stderr.isatty()
    printed = asked = time.monotonic()
    stages, pause, ended = Stages(phases, [phase.done() for phase in phases], asked), 0.5, False
    while not ended:
        ended = stop.wait(pause)
        asked = time.monotonic()
        done, now = [phase.done() for phase in phases], time.monotonic()
        pause = max(0.5, 10 * (now - asked))  # to list a large folder of an object store takes seconds
        for line, last in stages.lines(done, now, ended):
            if last or terminal or now - printed > _SECONDS_BETWEEN_LINES:
                text, end = (f"\r\033[K{line}", "\n" if last else "") if terminal else (line, "\n")
                print(text, end=end, file=sys.stderr, flush=True)
                printed = now


def time_text(seconds: float) -> str:
    """Seconds for people: 0.7s, 12s, 3m05s, 2h07m."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
