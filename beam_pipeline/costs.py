"""What a plan takes beside time: disk, memory and money, on this machine and on Dataflow."""

import dataclasses
import math
import os
import pathlib
import shutil
from typing import Any

from beam_pipeline import runner
from beam_pipeline.budget import ENGINE_END, ENGINE_START, Plan, Work
from beam_pipeline.config import ConfigError, FullSize
from transforms.retrieval import UNIT_QUERIES
from transforms.storage import files
from transforms.storage.worklist import unit_size

_PRICES = str(pathlib.Path(__file__).parent / "prices.json")
_WORKERS = (1, 4, 16, 64)


@dataclasses.dataclass(frozen=True)
class DataflowPrices:
    """A worker of Dataflow, and its prices an hour.

    Attributes:
      machine_type: of Compute Engine.
      vcpus, memory_gb, disk_gb: that it has.
      cores_per_vcpu: how many cores of this machine a vCPU is worth.
      vcpu_hour, memory_gb_hour, disk_gb_hour: prices.
    """

    machine_type: str
    vcpus: float
    memory_gb: float
    disk_gb: float
    cores_per_vcpu: float
    vcpu_hour: float
    memory_gb_hour: float
    disk_gb_hour: float

    @property
    def hour(self) -> float:
        """Price of a worker for an hour."""
        return (
            self.vcpus * self.vcpu_hour
            + self.memory_gb * self.memory_gb_hour
            + self.disk_gb * self.disk_gb_hour
        )


@dataclasses.dataclass(frozen=True)
class Prices:
    """What users pay, by a JSON file that they can edit: a copy of prices.json.

    Attributes:
      currency: of all prices.
      machine_hour: of this machine.
      storage_gb_month: of a bucket.
      dataflow: of a worker.
    """

    currency: str
    machine_hour: float
    storage_gb_month: float
    dataflow: DataflowPrices


def read_prices(uri: str | None) -> Prices:
    """The prices in a file; None for those of the package.

    Raises:
      ConfigError: it is no table of prices; the text says why.
      OSError: it cannot be read.
    """
    try:
        value = files.read_json(uri or _PRICES)
        dataflow = _record(DataflowPrices, value.pop("dataflow"))
        return _record(Prices, value, dataflow=dataflow)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise ConfigError(f"{uri} is no table of prices: {e}; a copy of {_PRICES} is") from e


def _record(kind: type[Any], value: dict[str, Any], **others: Any) -> Any:
    for field in dataclasses.fields(kind):
        if field.name in value:
            number = value[field.name]
            is_right = isinstance(number, str) if field.type is str else isinstance(number, (int, float))
            if not is_right or (field.type is not str and not 0 <= number < math.inf):
                raise ValueError(f"{field.name} is {number!r}")
    return kind(**value, **others)


def at_size(work: Work, size: FullSize, candidates: int = 0) -> Work:
    """The `work` for as many photographs as `size` says, all of them still to do.

    Args:
      candidates: verified per query.
    """
    changes: dict[str, Any] = {}
    if size.photographs is not None:
        count = size.photographs
        changes = {"images": count, "units": -(-count // unit_size(count))}
        if work.queries:
            shards = -(-count // UNIT_QUERIES)
            changes |= {"queries": count, "pairs": count * candidates, "shards": shards}
    if size.index_photographs is not None:
        changes["index_images"] = size.index_photographs
    return dataclasses.replace(work, **changes)


def format_costs(plan: Plan, output: str, prices: Prices | None) -> str:
    """Disk and memory against what there is, and money where there are prices, in lines for people."""
    written = sum(stage.size for stage in plan.stages) / 1e9
    lines = []
    if files.is_local(output):
        free = _free(output) / 1e9
        lines.append(f"  disk: {written:,.1f} GB for {output}, {free:,.1f} GB are free{_fit(written, free)}")
    if not plan.work.engine:
        took, there = plan.measured.memory / 1e9, _memory() / 1e9
        lines.append(f"  memory: about {took:,.1f} GB, this machine has {there:,.1f}{_fit(took, there)}")
    if prices is None:
        return "\n".join(lines)
    hours = plan.seconds / 3600
    if prices.machine_hour and not plan.work.engine:
        lines.append(
            f"  {hours:,.1f} hours of this machine: {hours * prices.machine_hour:,.2f} {prices.currency}"
        )
    lines.append(
        f"  in a bucket {written:,.1f} GB: {written * prices.storage_gb_month:,.2f} {prices.currency} a month"
    )
    return "\n".join([*lines, *_on_dataflow(plan, prices)])


def _on_dataflow(plan: Plan, prices: Prices) -> list[str]:
    worker, work, measured = prices.dataflow, plan.work, plan.measured
    cores = len(os.sched_getaffinity(0))  # were at work when it was measured
    seconds = cores * (
        work.images * measured.image
        + work.queries * work.index_images * measured.search
        + work.pairs * measured.pair
        + work.shards * measured.shard
    )
    took = measured.memory / 1e9
    lines = [
        f"on Dataflow, workers {worker.machine_type} ({worker.vcpus:g} vCPUs, {worker.memory_gb:g} GB"
        f"{_fit(took, worker.memory_gb)}), a vCPU as {worker.cores_per_vcpu:g} cores of this machine; not "
        "measured:"
    ]
    for workers in _WORKERS:
        at_work = seconds / (workers * worker.vcpus * worker.cores_per_vcpu)
        hours = (ENGINE_START + at_work + ENGINE_END) / 3600
        money = workers * hours * worker.hour
        lines.append(
            f"  {workers:>3} workers {runner.time_text(3600 * hours):>10}{money:>12,.2f} {prices.currency}"
        )
    return lines


def _fit(needed: float, there: float) -> str:
    return "" if needed <= there else ": does not fit"


def _free(output: str) -> int:
    """Bytes that are free where an output is, or will be."""
    folder = os.path.abspath(output)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free


def _memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
