"""Is a store as it was written? Sizes are checked before a store is used, contents by `landmarks verify`.

Whoever writes a shard records the size and SHA-256 of its files beside it; a finished output's manifest holds
these records.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from beam_pipeline import outputs
from beam_pipeline.manifest import CohortManifest, IndexManifest, Manifest, RunManifest
from transforms.storage import files
from transforms.storage.feature_store import FeatureStore
from transforms.storage.files import FileRecord
from transforms.submission import SUBMISSION

MISSING = "missing"

_NAMED = 10  # damaged files named in an error


class DamagedError(ValueError):
    """Files of a store are missing or not as they were written."""


def record_files(root: str, uris: Sequence[str]) -> dict[str, FileRecord]:
    """The records of files below `root`, by path below it; each is read."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        records = pool.map(lambda uri: files.content_record(files.read_bytes(uri)), uris)
        return {uri[len(root) :].lstrip("/"): record for uri, record in zip(uris, records)}


def record_run(root: str) -> dict[str, FileRecord]:
    """The records of the files of a run that its manifest vouches for, beside its features."""
    uris = [files.join(root, SUBMISSION)]
    for part in ("predictions", "failures"):
        uris += files.list_files(files.join(root, part), ".parquet")
    return record_files(root, uris)


def wrong_sizes(records: Mapping[str, FileRecord]) -> dict[str, str]:
    """What is wrong, by URI, with files that are missing or of another size than recorded."""
    sizes: dict[str, int] = {}
    for folder in sorted({uri.rsplit("/", 1)[0] for uri in records}):
        sizes.update(files.file_sizes(folder, ""))
    problems = {}
    for uri, record in records.items():
        if uri not in sizes:
            problems[uri] = MISSING
        elif sizes[uri] != record.bytes:
            cut = "truncated" if sizes[uri] < record.bytes else "altered"
            problems[uri] = f"{cut}: {sizes[uri]:,} bytes, {record.bytes:,} written"
    return problems


def check_sizes(root: str, manifest: Manifest) -> None:
    """Checks that every file of a finished output is there in its full size, and may be read.

    Raises:
      DamagedError: some are not; the text names them.
    """
    records = manifest.records(root)
    wrong = wrong_sizes(records)
    problems = [f"{uri} is {problem}" for uri, problem in wrong.items()]
    closed = [uri for uri in records if files.is_local(uri) and not os.access(uri, os.R_OK)]
    problems += [f"{uri} may not be read by this user" for uri in closed if uri not in wrong]
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise DamagedError(f"{root} is damaged: {'; '.join(problems[:_NAMED])}{more}")


def discard_damaged(store: FeatureStore, units: Sequence[str]) -> list[str]:
    """Makes those of the finished shards unfinished again whose files are missing or of another size than
    recorded.

    Returns:
      What was wrong, a line per file.
    """
    lines, wanted = [], set(units)
    there = [unit for unit in store.units() if unit in wanted]
    summaries = store.summaries(there)
    problems = wrong_sizes(
        {files.join(store.root, name): record for s in summaries for name, record in s.files.items()}
    )
    for summary in summaries:
        found = [uri for uri in (files.join(store.root, name) for name in summary.files) if uri in problems]
        if found:
            store.discard(summary.unit)
            lines += [f"{uri} is {problems[uri]}" for uri in found]
    return lines


def find_problems(root: str, manifest: Manifest) -> tuple[int, dict[str, str]]:
    """Reads every file that a manifest vouches for.

    Returns:
      Number of files; what is wrong, by URI, with those that are missing, truncated, altered or unreadable.
    """
    records = manifest.records(root)
    problems = wrong_sizes(records)
    whole = [uri for uri in records if uri not in problems]
    with ThreadPoolExecutor(max_workers=8) as pool:
        for uri, problem in zip(whole, pool.map(lambda uri: _wrong_content(uri, records[uri].sha256), whole)):
            if problem:
                problems[uri] = problem
    return len(records), problems


def _wrong_content(uri: str, checksum: str) -> str | None:
    try:
        found = files.content_record(files.read_bytes(uri)).sha256
    except OSError as e:
        return f"unreadable: {e}"
    return None if found == checksum else f"altered: SHA-256 {found}, {checksum} written"


def run(root: str) -> int:
    """Verifies the finished output of `index`, `recognize` or `cohort`; prints what is wrong, file by file,
    and returns the exit code.

    Raises:
      ConfigError: there is no finished output.
    """
    manifest = outputs.read_manifest(root, IndexManifest, RunManifest, CohortManifest)
    count, problems = find_problems(root, manifest)
    for uri in sorted(problems):
        print(f"{uri}: {problems[uri]}")
    if problems:
        missing = sum(problem == MISSING for problem in problems.values())
        counts = {"are missing": missing, "are not as they were written": len(problems) - missing}
        said = ", ".join(f"{n:,} of {count:,} files {what}" for what, n in counts.items() if n)
        print(f"landmarks: error: {root}: {said}", file=sys.stderr)
        return 1
    print(f"{root}: {count:,} files, all as they were written")
    return 0
