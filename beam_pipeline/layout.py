"""Which files of an output its command writes, by their names: these alone are ever deleted.

Whatever else lies in an output, such as photographs, notes, or another command's output in a folder of its
own, is somebody else's.
"""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from transforms.storage import files
from transforms.storage.derived_shards import LIST_NAME, SHARD_NAME
from transforms.storage.overlays import CHANGED_UNIT
from transforms.storage.worklist import UNIT_NAME

_BLOCK = r"\d{5,}(\.provisional)?-\d{6,}(\.provisional)?"
_STORE = (
    rf"(images|failures)/{CHANGED_UNIT}\.parquet|local_features/{CHANGED_UNIT}\.bin"
    rf"|summaries/{CHANGED_UNIT}\.json"
)
_PLAN = r"plan/\d{6}\.parquet"
_OUTPUT = rf"settings\.json|manifest\.json|\.lock\.json|failures/out_of_time\.parquet|{_PLAN}"

_SEARCH = rf"search/((predictions|candidates)/{_BLOCK}|failures/verify-{_BLOCK})\.parquet"  # self_search.py
_PAGE = r"index\.html|style\.css|photographs/\d{5,}\.webp"  # report/single_page.py
AUDIT_TABLES = ("exact_duplicates", "near_duplicates", "mislabelled", "unconfirmed", "label_pairs")

# By command; see the texts of transforms/storage for what they are.
_OWN = {
    "index": re.compile(
        rf"{_OUTPUT}|{_STORE}|failures/no_label-{UNIT_NAME}\.parquet"
        rf"|overlays/{CHANGED_UNIT}\.parquet"
        rf"|appended/[0-9a-f]{{16}}/(settings\.json|{_PLAN})|whitening/[0-9a-f]{{16}}\.npz"
        rf"|augmented/({SHARD_NAME}\.parquet|{LIST_NAME}\.json)"
        rf"|calibration\.json|calibration/[0-9a-f]{{16}}/cohort/({_STORE})"
        rf"|calibration/[0-9a-f]{{16}}/(self|negatives-\d+)"
        rf"/((predictions|candidates)/{_BLOCK}|failures/verify-{_BLOCK})\.parquet"
    ),
    "recognize": re.compile(
        rf"{_OUTPUT}|queries/({_STORE})|submission\.csv|wanted\.parquet|metrics\.json"
        rf"|predictions/({_BLOCK}|unpredicted)\.parquet|candidates/{_BLOCK}\.parquet"
        rf"|failures/(extract|verify-{_BLOCK})\.parquet"
    ),
    "audit": re.compile(rf"{_OUTPUT}|{_SEARCH}|{_PAGE}|({'|'.join(AUDIT_TABLES)})\.(parquet|csv)"),
    "discover": re.compile(
        rf"{_OUTPUT}|{_SEARCH}|{_PAGE}|report\.js|groups\.(parquet|csv)|(pairs|wanted)\.parquet"
    ),
    "cohort": re.compile(rf"{_OUTPUT}|{_STORE}"),
    "query store": re.compile(rf"\.lock\.json|{_STORE}"),
}
_FOLDERS = {
    "index": (
        "images",
        "local_features",
        "summaries",
        "failures",
        "overlays",
        "plan",
        "appended",
        "augmented",
        "calibration",
        "whitening",
    ),
    "recognize": ("queries", "predictions", "candidates", "failures", "plan"),
    "audit": ("search", "photographs"),
    "discover": ("search", "photographs"),
    "cohort": ("images", "local_features", "summaries", "failures", "plan"),
    "query store": ("images", "local_features", "summaries", "failures"),
}
COMMANDS = tuple(command for command in _OWN if command != "query store")  # that have an output
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")  # see files.write_bytes


def is_own(command: str, path: str) -> bool:
    """Whether `path`, from the output's folder on, is a file that `command` writes."""
    return _OWN[command].fullmatch(path) is not None


def inside(root: str, uri: str) -> str | None:
    """The path of `uri` from the folder `root` on; None where it lies elsewhere."""
    place = files.place_in(root, uri)
    return None if os.path.isabs(place) or not files.is_local(place) else place


def holds(command: str, path: str) -> bool:
    """Whether `path`, from the output's folder on, is or lies in a folder in which `command` writes."""
    return path.split("/")[0] in _FOLDERS[command]


def own_files(root: str, command: str) -> list[str]:
    """The files in an output that its command wrote, by their paths from there on, sorted."""
    paths = [path for path in _paths(root, _FOLDERS[command]) if is_own(command, path)]
    return sorted(paths)


def own_sizes(root: str, command: str) -> dict[str, int]:
    """Bytes of the files that `own_files` lists, by path."""
    if files.is_local(root):
        return {path: os.path.getsize(os.path.join(root, path)) for path in own_files(root, command)}
    start = len(files.join(root, ""))
    entries = files.retried(lambda: list(files.remote_entries(root)))
    return {e.uri[start:]: e.size for e in entries if is_own(command, e.uri[start:])}


def delete(root: str, command: str, keep: tuple[str, ...] = (), below: str = "") -> None:
    """Deletes what `command` wrote in its output `root`, or `below` a folder of it, but for the files in
    `keep`, and the folders that are empty then.
    """
    own = [path for path in own_files(root, command) if path.startswith(below) and path not in keep]
    with ThreadPoolExecutor(max_workers=16) as pool:
        for _ in pool.map(lambda path: files.delete(files.join(root, path)), own):
            pass  # to meet its errors
    if files.is_local(root):
        folders = {str(folder) for path in own for folder in pathlib.PurePath(path).parents} - {"."}
        for folder in sorted(folders, key=len, reverse=True):
            with contextlib.suppress(OSError):  # what is somebody else's stays, and so does a link
                os.rmdir(os.path.join(root, folder))


def delete_temporaries(root: str) -> int:
    """Deletes what killed writers left of the files of a local output or query store; returns how many."""
    count = 0
    if files.is_local(root):
        for path in _paths(root, {name for names in _FOLDERS.values() for name in names}):
            folder, name = os.path.split(path)
            if (made := _TEMPORARY.fullmatch(name)) and any(
                is_own(command, os.path.join(folder, made[1])) for command in _OWN
            ):
                with contextlib.suppress(FileNotFoundError):  # its writer lives after all
                    os.remove(os.path.join(root, path))
                    count += 1
    return count


def _paths(root: str, folders: tuple[str, ...] | set[str]) -> Iterator[str]:
    """Files directly in `root` and below those of its folders, by their paths from there on."""
    if not files.is_local(root):
        start = len(files.join(root, ""))
        for folder in ("", *sorted(folders)):
            yield from (uri[start:] for uri in files.retried(functools.partial(_listed, root, folder)))
        return
    if os.path.isdir(root):
        yield from (name for name in os.listdir(root) if os.path.isfile(os.path.join(root, name)))
    for top in sorted(folders):
        for folder, _, names in os.walk(os.path.join(root, top)):
            yield from (os.path.relpath(os.path.join(folder, name), root) for name in names)


def _listed(root: str, folder: str) -> list[str]:
    """URIs of the files directly in an object store's `root`, or in and below a `folder` of it."""
    return [entry.uri for entry in files.remote_entries(files.join(root, folder), descend=bool(folder))]
