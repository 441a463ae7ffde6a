"""Reading photographs from an object store: our reader against Beam's own ways, and against the local disk,
the same files everywhere.

    python benchmarks/run.py stores --root s3://bucket/folder --s3_endpoint_url=http://...
    --s3_access_key_id=... --s3_secret_access_key=... STORAGE_EMULATOR_HOST=http://... python
    benchmarks/run.py stores --root gs://bucket/folder

Photographs that the folder lacks are copied there first. Nothing is decoded. What a store far away adds, the
time until an answer begins, a server on this machine does not show: several reads in flight wait for theirs
at once.
"""

import argparse
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import runner
from benchmarks import commands
from benchmarks.goals import Goals
from transforms.processes.threads import map_ahead
from transforms.storage import files
from transforms.storage.object_stores import READS_IN_FLIGHT, store_of, using

Reader = Callable[[], Iterator[tuple[str, int]]]  # gives name and size of each file read


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py stores", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands.add_photos_flag(parser)
    parser.add_argument("--root", required=True, metavar="URI", help="folder in a bucket that is there")
    parser.add_argument(
        "--number", type=int, default=500, metavar="N", help="photographs (default: %(default)s)"
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="of which the median counts (default: %(default)s)"
    )
    args, flags = parser.parse_known_args(argv)
    options = PipelineOptions(flags)
    with using(options):
        return measure(args, options)


def measure(args: argparse.Namespace, options: PipelineOptions) -> int:
    """Reads by every way and prints the table."""
    paths = [row.path for row in commands.photographs(args.photos)[: args.number]]
    uris = [files.join(args.root, pathlib.Path(path).name) for path in paths]
    copy(paths, uris)
    sizes = {pathlib.Path(path).name: pathlib.Path(path).stat().st_size for path in paths}
    print(
        commands.machine(
            f"{len(paths)} photographs of {sum(sizes.values()) / 1e6 / len(sizes):.2f} MB in the mean, in "
            f"{args.root}"
        )
    )

    in_flight = f"ours, {READS_IN_FLIGHT} in flight"
    readers: dict[str, Reader] = {
        "local disk": lambda: one_by_one(paths, files.read_bytes),
        "ours, one by one": lambda: one_by_one(uris, files.read_bytes),
        in_flight: lambda: ahead(uris),
        "Beam's FileSystems.open, one by one": lambda: one_by_one(uris, open_and_read),
        "Beam's ReadMatches on the local runner": lambda: in_a_pipeline(uris, options),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    goals = Goals()
    for run, (name, reader) in itertools.product(range(args.runs), readers.items()):
        begun = time.perf_counter()
        found = dict(reader())
        seconds[name].append(time.perf_counter() - begun)
        if not run:
            goals.agree(f"names and sizes: {name}", found == sizes)
    rates = {name: len(paths) / statistics.median(taken) for name, taken in seconds.items()}
    print(f"{'':<42}{'photographs/s':>14}{'MB/s':>8}")
    for name, rate in rates.items():
        print(f"{name:<42}{rate:>14,.0f}{rate * sum(sizes.values()) / 1e6 / len(sizes):>8,.0f}")
    for name in list(rates)[3:]:
        goals.at_least(f"{in_flight} / {name}", rates[in_flight] / rates[name], 3)
    return goals.exit_code


def copy(paths: list[str], uris: list[str]) -> None:
    """Copies the files that the store lacks."""
    there = {entry.uri for entry in files.remote_entries(uris[0].rsplit("/", 1)[0])}
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda pair: store_of(pair[1]).write(pair[1], pathlib.Path(pair[0]).read_bytes()),
                [pair for pair in zip(paths, uris) if pair[1] not in there],
            )
        )


def one_by_one(uris: list[str], read: Callable[[str], bytes]) -> Iterator[tuple[str, int]]:
    """Reads a file after the other."""
    return ((pathlib.PurePath(uri).name, len(read(uri))) for uri in uris)


def ahead(uris: list[str]) -> Iterator[tuple[str, int]]:
    """Reads as `images.read_images` does."""
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        yield from zip(
            (pathlib.PurePath(uri).name for uri in uris),
            map(len, map_ahead(pool, files.read_bytes, uris, READS_IN_FLIGHT)),
        )


def open_and_read(uri: str) -> bytes:
    """A file as Beam's file systems give it."""
    with FileSystems.open(uri, compression_type="uncompressed") as f:
        return f.read()


def in_a_pipeline(uris: list[str], options: PipelineOptions) -> Iterator[tuple[str, int]]:
    """Reads as Beam's documentation does."""
    _found.clear()

    def build(pipeline: beam.Pipeline) -> None:
        (pipeline | beam.Create(uris) | fileio.MatchAll() | fileio.ReadMatches() | beam.Map(_read_and_note))

    runner.run_pipeline(build, options, [])
    return iter(_found)


_found: list[tuple[str, int]] = []  # the local runner's workers are threads of this process


def _read_and_note(file: fileio.ReadableFile) -> None:
    _found.append((pathlib.PurePath(file.metadata.path).name, len(file.read())))
