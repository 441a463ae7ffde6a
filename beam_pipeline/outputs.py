"""An output folder and its state: new, unfinished, or finished, and made with which settings.

<root>/settings.json is written before the work, <root>/manifest.json after it. What lies between them are
shards that are written once, so a job that finds its own settings goes on where the last one stopped. While
it works it holds the lock (lock.py).
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from beam_pipeline import layout, lock
from beam_pipeline.changes import Changes, failed, kinds_failed, let_in, some
from beam_pipeline.config import ConfigError
from beam_pipeline.manifest import FORMAT, MANIFEST, Manifest
from transforms.storage import files, worklist
from transforms.types import ImageRef, ReadingConfig

SETTINGS = "settings.json"

M = TypeVar("M", bound=Manifest)

# Stands for the settings while an old output is deleted.
_CLEARING = "overwrite"


# What an output is to people, and which of its counts says how large it is.
_CALLED = {
    "index": ("index", "indexed"),
    "recognize": ("run", "queries"),
    "audit": ("audit", "images"),
    "discover": ("groups", "photographs"),
    "cohort": ("cohort", "photographs"),
}

# Settings that are digests, which tell nobody anything.
_DIGESTS = {"index": "the index is another, or was changed since", "model": "the model is another"}


@dataclasses.dataclass(frozen=True)
class Photographs:
    """What an output is made of.

    Attributes:
      key: of their digest in the settings.
      refs: to the photographs.
      store: folder of their features.
      reading: with which limits.
      take_up: is called with the photographs of before, and readies the output to be made of these instead:
        some that failed were mended, or a higher limit lets them in.
      check: is called before; raises a ConfigError where the output cannot be made of these.
      known: gives the photographs as the output has them now, where it was added to or relabelled since.
    """

    key: str
    refs: Sequence[ImageRef]
    store: str
    reading: ReadingConfig
    take_up: Callable[[list[ImageRef]], None]
    check: Callable[[], None] = lambda: None
    known: Callable[[], list[ImageRef]] | None = None


@contextlib.contextmanager
def opened(
    root: str,
    settings: dict[str, Any],
    overwrite: bool = False,
    photographs: Photographs | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[bool]:
    """Readies `root` for a job with `settings` and holds its lock during the block; gives whether there is
    anything to do.

    A finished output is neither locked nor written to. `overwrite` deletes what an earlier job of the same
    command wrote, by its names (layout.py), and nothing else. Where all that is different are photographs
    that failed, or a higher limit lets some of them in, the output is unfinished again. `check` is called
    before anything is written or deleted.

    Raises:
      ConfigError: the folder holds something else, the output of another command, or of other settings (each
        difference is named) and `overwrite` is off; or another run works on it.
    """
    settings = json.loads(json.dumps(settings))  # tuples and lists compare alike
    if _is_finished(root, settings, overwrite, photographs):
        yield False
        return
    with lock.held(root):
        if _is_finished(root, settings, overwrite, photographs):  # by the run that held the lock before
            yield False
            return
        check()
        if overwrite or not _take_up(root, settings, photographs):
            _clear(root, settings)
        yield True


def check_inputs(root: str, command: str, inputs: Iterable[tuple[str, str]]) -> None:
    """Checks that a job of `command` with its output in `root` would touch none of its inputs, given as (what
    it is, URI).

    Raises:
      ConfigError: one has the name of a file that the job writes.
    """
    for what, uri in inputs:
        path = layout.inside(root, uri)
        if path is not None and layout.is_own(command, path):
            raise ConfigError(
                f"{what} {uri} has the name of a file that the job writes in its output {root}; move it, or "
                "name another output"
            )


def check_outside(uri: str) -> None:
    """Checks that what a command writes at `uri` of this machine lies in no folder of an output's own, all of
    whose files are read.

    Raises:
      ConfigError: it does.
    """
    for folder in pathlib.Path(files.absolute(uri)).parents if files.is_local(uri) else ():
        try:
            command = _command_of(_read_settings(str(folder)))
        except (ConfigError, OSError):  # settings of somebody else
            continue
        if command and layout.holds(command, layout.inside(str(folder), files.absolute(uri)) or ""):
            raise ConfigError(
                f"--output {uri} lies where `landmarks {command}` keeps its own files, in {folder}; name "
                "another place"
            )


def check_result(uri: str | None, key: str) -> None:
    """Checks that a result, a JSON object with `key`, would replace nothing but an earlier one at `uri`.

    Raises:
      ConfigError: something else is there.
    """
    if uri is None or not files.exists(uri):
        return
    try:
        found = files.read_json(uri)
    except (ValueError, OSError):
        found = None
    if not isinstance(found, dict) or key not in found:
        raise ConfigError(f"--output {uri} is there and was not written by this command; name another file")


def check_store(root: str) -> None:
    """Checks that the folder of a query store is not the output of a command.

    Raises:
      ConfigError: it is.
    """
    if command := _command_of(_read_settings(root)):
        raise ConfigError(
            f"{root} is an output of `landmarks {command}`; keep the queries' features elsewhere"
        )


def _is_finished(
    root: str, settings: dict[str, Any], overwrite: bool, photographs: Photographs | None
) -> bool:
    """Whether `root` holds the whole output of `settings`; see `opened` for the errors."""
    found = _read_settings(root)
    if found is None:
        if not is_empty(root):
            raise ConfigError(f"{root} is not empty and was not made by landmarks; name another folder")
        return False
    if _command_of(found) not in (settings["command"], None):
        raise ConfigError(
            f"{root} is an output of `landmarks {_command_of(found)}`, which `landmarks "
            f"{settings['command']}` does not touch; name another folder"
        )
    if overwrite or found["command"] == _CLEARING:
        return False
    key = photographs.key if photographs else ""
    there, wanted = ({k: v for k, v in s.items() if k != key} for s in (found, settings))
    differing = list(differences(there, wanted))
    problem = f"was made with other settings ({'; '.join(differing)})" if differing else ""
    if photographs and found.get(key) != settings[key]:
        changes = Changes.between(worklist.read_worklist(root), photographs.refs)
        if not differing and changes and changes.only_of(failed(root, photographs.store)):
            return False
        if changes and photographs.known:
            changes = Changes.between(photographs.known(), photographs.refs)
            if not changes and not differing and _is_complete(root):
                if more := _let_in(root, photographs):  # perhaps some that are not of the first part
                    raise ConfigError(
                        f"the limits let in {len(more):,} more of {root} ({some(more)}): `landmarks index "
                        "--append` takes them up"
                    )
                return True
        if changes:
            problem += f"{', and ' if problem else ''}was made of other photographs: {changes}"
            if changes.more and not differing and settings["command"] == "index":
                problem += "; `landmarks index --append` with those that are more adds them"
            if changes.relabelled and not differing and settings["command"] == "index":
                problem += "; `landmarks index --relabel` takes new labels"
            if (changes.changed or changes.moved) and not differing and settings["command"] == "index":
                problem += "; `landmarks index --append --update` takes what was changed or moved"
    if problem:
        raise ConfigError(f"{root} {problem}; --overwrite starts anew, another --output leaves this one")
    return _is_complete(root) and not _let_in(root, photographs)


def _let_in(root: str, photographs: Photographs | None) -> list[str]:
    return let_in(root, photographs.reading, photographs.refs) if photographs else []


def is_empty(root: str) -> bool:
    """Whether there is nothing in `root` but hidden files."""
    if files.is_local(root):
        if os.path.exists(root) and not os.path.isdir(root):
            raise ConfigError(f"{root} is a file; name a folder")
        return not files.list_files(root, "")
    start = len(files.join(root, ""))
    return all(entry.uri[start:].startswith(".") for entry in files.remote_entries(root))


def _is_complete(root: str) -> bool:
    """Whether a manifest says that all is done; one that was written when time ran out says `"complete":
    false`.
    """
    uri = files.join(root, MANIFEST)
    return files.exists(uri) and files.read_json(uri).get("complete", True)


def _take_up(root: str, settings: dict[str, Any], photographs: Photographs | None) -> bool:
    """Makes a locked output of other photographs the unfinished one of these, and says so; False where it is
    not that.
    """
    found, uri = _read_settings(root), files.join(root, MANIFEST)
    if found is None or found["command"] == _CLEARING or photographs is None:
        return False
    within_limits = _let_in(root, photographs)
    if found == settings and not within_limits:
        return False
    photographs.check()
    before = worklist.read_worklist(root)
    changes = str(Changes.between(before, photographs.refs)) or "its photographs are known better now"
    if within_limits:
        changes = f"the limits let in {len(within_limits):,} more ({some(within_limits)})"
    print(f"{root}: {changes}; what failed is tried again")
    if files.exists(uri):  # readers go on with what there is
        files.write_json(uri, {**files.read_json(uri), "complete": False})
    photographs.take_up(before)
    files.write_json(files.join(root, SETTINGS), settings)  # last: until then this is done again
    return True


def _clear(root: str, settings: dict[str, Any]) -> None:
    """Makes a locked `root` the unfinished or empty output of `settings`."""
    uri, command = files.join(root, SETTINGS), settings["command"]
    found = _read_settings(root)
    if found == settings and not _is_complete(root):
        return
    if found is not None and found["command"] != _CLEARING:
        print(f"{root}: --overwrite deletes {_described(root, command)}", file=sys.stderr)
    # In this order: whenever the job is killed meanwhile, nothing half deleted is taken for whole, or for
    # somebody else's.
    files.delete(files.join(root, MANIFEST))
    if found is not None:
        files.write_json(uri, {"command": _CLEARING, "of": command})
        layout.delete(root, command, keep=(SETTINGS, lock.LOCK))
    files.write_json(uri, settings)


def _described(root: str, command: str) -> str:
    """What an output is for a person, such as "the index of 12 photographs"."""
    what, counted = _CALLED[command]
    try:
        counts = files.read_json(files.join(root, MANIFEST))["counts"]
        return f"the {what} of {counts[counted]:,} photographs there"
    except (OSError, ValueError, KeyError, TypeError):
        return f"the unfinished {what} there"


def finish(root: str, manifest: Manifest) -> None:
    """Writes the manifest: from now on the output is whole."""
    files.write_json(files.join(root, MANIFEST), manifest.to_json(root))


def find_manifest(root: str, kind: type[M]) -> M | None:
    """The manifest of an output of which one is there already; None for none."""
    return read_manifest(root, kind) if files.exists(files.join(root, MANIFEST)) else None


def read_manifest(root: str, *kinds: type[M]) -> M:
    """The manifest of a finished output, which is one of `kinds`.

    Raises:
      ConfigError: there is no such folder, no manifest in it, or one of another command or format.
      ValueError: it is damaged.
    """
    commands = [kind.COMMAND for kind in kinds]
    uri = files.join(root, MANIFEST)
    if not files.exists(uri):
        found = (_read_settings(root) or {}).get("command")
        if found in commands:
            failures = files.join(root, "failures")
            why = (
                f"; what failed, and why, stands in {failures}"
                if files.list_files(failures, ".parquet")
                else ""
            )
            raise ConfigError(f"{root} is not finished: run the same `landmarks {found}` again{why}")
        why = _lacks(root, MANIFEST)
        raise ConfigError(f"{root} is no output of `landmarks {'` or `landmarks '.join(commands)}`: {why}")
    value = files.read_json(uri)
    command, version = value.get("command"), value.get("format")
    if command not in commands:
        raise ConfigError(f"{uri}: command {command!r}, expected {' or '.join(map(repr, commands))}")
    if version != FORMAT:
        model = value.get("model", {}).get("name")
        raise ConfigError(
            f"{root} was made by another version of landmarks, with the model {model!r} and in format "
            f"{version!r}; this one reads format {FORMAT}: run `landmarks {command}` again with --overwrite"
        )
    try:
        return kinds[commands.index(command)].from_json(value, root)
    except ValueError as e:
        raise ValueError(f"{uri} is damaged: {e}") from e


def exit_code(root: str, failed: int, images: int, max_failure_rate: float) -> int:
    """0, or 1 with a message on standard error where more than this part of the images failed."""
    if failed <= max_failure_rate * images:
        return 0
    print(
        f"landmarks: error: {failed:,} of {images:,} images failed ({failed / images:.1%}), more than "
        f"--max_failure_rate {max_failure_rate:g}; everything else is written, why they failed stands in "
        f"{files.join(root, 'failures')}: {kinds_failed(root)}",
        file=sys.stderr,
    )
    return 1


def _read_settings(root: str) -> dict[str, Any] | None:
    """The settings of an output; None where there are none.

    Raises:
      ConfigError: a file of their name is somebody else's.
    """
    uri = files.join(root, SETTINGS)
    if not files.exists(uri):
        return None
    try:
        found: dict[str, Any] | None = files.read_json(uri)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("command") not in (*layout.COMMANDS, _CLEARING):
        raise ConfigError(f"{root} was not made by landmarks, its {SETTINGS} says; name another folder")
    return found


def read_settings(root: str) -> dict[str, Any]:
    """The settings of an output.

    Raises:
      ConfigError: it has none.
    """
    found = _read_settings(root)
    if found is None:
        raise ConfigError(f"{root} is no output of landmarks: {_lacks(root, SETTINGS)}")
    return found


def _lacks(root: str, name: str) -> str:
    """Why there is no file `name` in an output."""
    there = not files.is_local(root) or os.path.exists(root)
    return f"it has no {name}" if there else "there is no such folder"


def _command_of(settings: dict[str, Any] | None) -> str | None:
    """The command that made an output; None where that is not known."""
    if settings is None:
        return None
    return settings.get("of") if settings["command"] == _CLEARING else settings["command"]


def differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Says of every value that differs between two JSON-able values where it stands and what it is in
    each.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield _DIGESTS.get(name) or f"{name}: {found!r} there, {wanted!r} wanted"
