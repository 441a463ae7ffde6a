"""An output folder and its state: new, unfinished, or finished, and made with which settings.

<root>/settings.json is written before the work, <root>/manifest.json after it. What lies between them are
shards that are written once, so a job that finds its own settings goes on where the last one stopped. While
it works it holds the lock (lock.py).
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

from beam_pipeline import lock
from beam_pipeline.config import ConfigError
from beam_pipeline.manifest import FORMAT, MANIFEST, Manifest
from transforms.storage import files

_SETTINGS = "settings.json"

M = TypeVar("M", bound=Manifest)

# Stands for the settings while an old output is deleted.
_CLEARING = {"command": "overwrite"}


@contextlib.contextmanager
def opened(root: str, settings: dict[str, Any], overwrite: bool = False) -> Iterator[bool]:
    """Readies `root` for a job with `settings` and holds its lock during the block; gives whether there is
    anything to do.

    A finished output is neither locked nor written to.

    Raises:
      ConfigError: the folder holds something else, or the output of other settings (each difference is named)
        and `overwrite` is off; or another run works on it.
    """
    settings = json.loads(json.dumps(settings))  # tuples and lists compare alike
    if _is_finished(root, settings, overwrite):
        yield False
        return
    with lock.held(root):
        if _is_finished(root, settings, overwrite):  # by the run that held the lock before
            yield False
            return
        _clear(root, settings)
        yield True


def _is_finished(root: str, settings: dict[str, Any], overwrite: bool) -> bool:
    """Whether `root` holds the whole output of `settings`; see `opened` for the errors."""
    found = _read_settings(root)
    if found is None:
        if files.is_local(root) and files.exists(root) and files.list_files(root, ""):
            raise ConfigError(f"{root} is not empty and was not made by landmarks; name another folder")
        return False
    if overwrite or found == _CLEARING:
        return False
    differing = list(differences(found, settings))
    if differing:
        raise ConfigError(
            f"{root} was made with other settings ({'; '.join(differing)}); --overwrite starts anew"
        )
    return _is_complete(root)


def _is_complete(root: str) -> bool:
    """Whether a manifest says that all is done; one that was written when time ran out says `"complete":
    false`.
    """
    uri = files.join(root, MANIFEST)
    return files.exists(uri) and files.read_json(uri).get("complete", True)


def _clear(root: str, settings: dict[str, Any]) -> None:
    """Makes a locked `root` the unfinished or empty output of `settings`."""
    uri = files.join(root, _SETTINGS)
    if _read_settings(root) == settings and not _is_complete(root):
        return
    # In this order: whenever the job is killed meanwhile, nothing half deleted is taken for whole, or for
    # somebody else's.
    files.delete(files.join(root, MANIFEST))
    if files.exists(uri):
        files.write_json(uri, _CLEARING)
        files.delete_tree(root, keep=(_SETTINGS, lock.LOCK))
    files.write_json(uri, settings)


def finish(root: str, manifest: Manifest) -> None:
    """Writes the manifest: from now on the output is whole."""
    files.write_json(files.join(root, MANIFEST), manifest.to_json(root))


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
            raise ConfigError(f"{root} is not finished: run the same `landmarks {found}` again")
        why = f"it has no {MANIFEST}"
        if files.is_local(root) and not os.path.exists(root):
            why = "there is no such folder"
        raise ConfigError(f"{root} is no output of `landmarks {'` or `landmarks '.join(commands)}`: {why}")
    value = files.read_json(uri)
    command, version = value.get("command"), value.get("format")
    if command not in commands or version != FORMAT:
        expected = " or ".join(map(repr, commands))
        raise ConfigError(
            f"{uri}: command {command!r} format {version!r}, expected {expected} format {FORMAT}"
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
        f"{files.join(root, 'failures')}",
        file=sys.stderr,
    )
    return 1


def _read_settings(root: str) -> dict[str, Any] | None:
    uri = files.join(root, _SETTINGS)
    return files.read_json(uri) if files.exists(uri) else None


def differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Says of every value that differs between two JSON-able values where it stands and what it is in
    each.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield f"{name}: {found!r} there, {wanted!r} wanted"
