"""One measured process of the benchmark `scale`: a job with Beam's metrics and its memory, or a launcher at
its plan. Linux only.

python -m benchmarks.scale_job REPORT.json index --images ... (any command line of `landmarks`)
python -m benchmarks.scale_job REPORT.json launch LIST LABELS OUTPUT
"""

import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import monitoring_infos
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipeline import index, main, recipe, runner
from beam_pipeline.config import ExtractionOverrides
from beam_pipeline.extraction import ExtractionTask, match
from benchmarks import commands
from transforms.models import catalog
from transforms.storage import tables, worklist
from transforms.types import ReadingConfig

_GROUP_BY_KEY = common_urns.primitives.GROUP_BY_KEY.urn
_UNIT_IMAGES = worklist.unit_size(1_000_000)


def collections(pipeline: beam_runner_api_pb2.Pipeline, infos: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Counts and sizes, as the SDK reports them, of a graph's PCollections.

    Returns:
      By unique name of the transform that makes it (with its tag where it has several outputs): `elements`;
      `mean` and `largest`, encoded bytes of the sampled elements, all of the first ten; `shuffles`, names of
      the GroupByKeys that it goes into.
    """
    names, shuffles = {}, {}
    for transform in pipeline.components.transforms.values():
        for tag, collection in transform.outputs.items():
            if not transform.subtransforms:
                names[collection] = transform.unique_name + (f"[{tag}]" if len(transform.outputs) > 1 else "")
        if transform.spec.urn == _GROUP_BY_KEY:
            [collection] = transform.inputs.values()
            shuffles.setdefault(collection, []).append(transform.unique_name)
    found: dict[str, dict[str, Any]] = {}
    for info in infos:
        collection = info.labels.get(monitoring_infos.PCOLLECTION_LABEL)
        name = names.get(collection)
        if name is None:
            continue
        row = found.setdefault(
            name, {"elements": 0, "mean": 0.0, "largest": 0, "shuffles": shuffles.get(collection, [])}
        )
        if info.urn == monitoring_infos.ELEMENT_COUNT_URN:
            row["elements"] = monitoring_infos.extract_counter_value(info)
        elif info.urn == monitoring_infos.SAMPLED_BYTE_SIZE_URN:
            count, total, _, largest = monitoring_infos.extract_distribution(info)
            if count:
                row["mean"], row["largest"] = total / count, largest
    return found


def peak_memory(process: int) -> int:
    """The most bytes that the process of that id has held in memory so far; 0 where it is gone."""
    try:
        lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def largest_worker() -> int:
    """The most bytes that any one of the local runner's worker processes has held so far, of those that still
    run.
    """
    import psutil

    return max((peak_memory(child.pid) for child in psutil.Process().children(recursive=True)), default=0)


class RecordingRunner(FnApiRunner):
    """The local runner; gives the graph, and what the SDK reported of it, to `record`."""

    def __init__(self, record: Callable[[beam_runner_api_pb2.Pipeline, list[Any]], None]):
        super().__init__()
        self._record = record

    def run_via_runner_api(self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: Any) -> Any:
        result = super().run_via_runner_api(pipeline_proto, options)
        self._record(pipeline_proto, list(result.monitoring_infos()))
        return result


def job(flags: list[str]) -> dict[str, Any]:
    """Runs a command, its workers in processes of their own; units are as large as in a large set."""
    report: dict[str, Any] = {}

    def record(pipeline: beam_runner_api_pb2.Pipeline, infos: list[Any]) -> None:
        report["collections"] = collections(pipeline, infos)
        report["graph"] = pipeline.ByteSize()

    runner.FnApiRunner = functools.partial(RecordingRunner, record)
    worklist.unit_size = lambda images: _UNIT_IMAGES
    with commands.measuring(largest_worker) as memory:
        started = time.monotonic()
        if main.main([*flags, "--direct_running_mode=multi_processing"]):
            raise SystemExit(f"{' '.join(flags)} failed")
        report["seconds"] = time.monotonic() - started
    return {**report, "worker": max(memory), "launcher": peak_memory(os.getpid())}


def launch(names: str, labels: str, output: str) -> dict[str, Any]:
    """What the launcher of `landmarks index` does before its pipeline runs: the photographs of a list, their
    labels, the plan, the graph.
    """
    seconds, started = {}, time.monotonic()

    def done(step: str) -> None:
        nonlocal started
        seconds[step], started = time.monotonic() - started, time.monotonic()

    made = recipe.choose(catalog.EMBEDDED, ExtractionOverrides(), ReadingConfig())
    catalog.load(made.model, made.settings)
    before = peak_memory(os.getpid())
    done("model")
    table = tables.read_labels(labels)
    pa.default_memory_pool().release_unused()  # as the command does
    labelled = index.labelled(match((f"@{names}",)), table)[0]
    done("match")
    task = ExtractionTask.of(labelled, made, output, output)
    task.write_worklist()
    done("plan")
    pipeline = beam.Pipeline()
    index.build(pipeline, task)
    graph = pipeline.to_runner_api().ByteSize()
    done("graph")
    plan = sum(os.path.getsize(path) for path in pathlib.Path(output, "plan").iterdir())
    return {
        "seconds": seconds,
        "before": before,
        "launcher": peak_memory(os.getpid()),
        "units": len(task.units),
        "plan": plan,
        "graph": graph,
    }


if __name__ == "__main__":
    path, *arguments = sys.argv[1:]
    result = launch(*arguments[1:]) if arguments[0] == "launch" else job(arguments)
    pathlib.Path(path).write_text(json.dumps(result))
