"""An output folder and its state: new, unfinished, or finished, and made with which settings.

<root>/settings.json is written before the work, <root>/manifest.json after it. What lies between them are shards that are written
once, so a job that finds its own settings goes on where the last one stopped.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Iterator

from beam_pipeline.config import ConfigError
from transforms import files
from transforms.stores import MANIFEST

FORMAT = 1
_SETTINGS = "settings.json"


def digest(value: Any) -> str:
    """Short fingerprint of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def prepare(root: str, settings: dict[str, Any], overwrite: bool) -> bool:
    """Readies `root` for a job with `settings`; returns whether there is anything to do.

    Raises:
      ConfigError: the folder holds something else, or the output of other settings (each difference is named) and `overwrite` is off.
    """
    found = _read_settings(root)
    if found is not None:
        # Through JSON, so that tuples and lists compare alike.
        differing = list(_differences(found, json.loads(json.dumps(settings))))
        if not differing and not overwrite:
            files.delete_temporaries(root)
            return not files.exists(files.join(root, MANIFEST))
        if not overwrite:
            raise ConfigError(f"{root} was made with other settings ({'; '.join(differing)}); --overwrite starts anew")
        # The manifest goes first: without it nothing half deleted is taken for whole.
        files.delete_tree(files.join(root, MANIFEST))
        files.delete_tree(root)
    elif files.is_local(root) and files.exists(root) and files.list_files(root, ""):
        raise ConfigError(f"{root} is not empty and was not made by landmarks; name another folder")
    files.write_json(files.join(root, _SETTINGS), settings)
    return True


def finish(root: str, manifest: dict[str, Any]) -> None:
    """Writes the manifest: from now on the output is whole."""
    files.write_json(files.join(root, MANIFEST), manifest)


def read_manifest(root: str, command: str) -> dict[str, Any]:
    """The manifest of a finished output of `command`.

    Raises:
      ConfigError: there is none, or it is of another command or format.
    """
    uri = files.join(root, MANIFEST)
    if not files.exists(uri):
        unfinished = files.exists(files.join(root, _SETTINGS))
        raise ConfigError(f"{root} is {'not finished: run the same `landmarks ' + command + '` again' if unfinished else 'no output of `landmarks ' + command + '`: it has no ' + MANIFEST}")
    manifest = files.read_json(uri)
    if manifest.get("command") != command or manifest.get("format") != FORMAT:
        raise ConfigError(f"{uri}: command {manifest.get('command')!r} format {manifest.get('format')!r}, expected {command!r} format {FORMAT}")
    return manifest


def _read_settings(root: str) -> dict[str, Any] | None:
    uri = files.join(root, _SETTINGS)
    return files.read_json(uri) if files.exists(uri) else None


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield f"{name}: {found!r} there, {wanted!r} wanted"
