"""The files of a model: where they lie, and what identifies them.

A model's folder is a SavedModel (saved_model.pb, variables/, assets/). A card may lie in it.
"""

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterable

from transforms.models.card import CARD_NAME
from transforms.models.model import ModelError
from transforms.storage.uris import is_local

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")


def cache_folder() -> pathlib.Path:
    """The folder that models are kept in: `$XDG_CACHE_HOME/landmarks` or `~/.cache/landmarks`."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "landmarks"


def fetch_model(uri: str) -> str:
    """A local folder that holds the model.

    A remote model is copied into models/ of the user's cache folder when its files are not there yet as they
    are now: its key is made of their names, sizes and times.

    Args:
      uri: a local folder, or one on a file system that Beam knows (gs://, s3://).

    Returns:
      `uri` itself where it is local, else the folder of the copy.

    Raises:
      ModelError: there is no SavedModel, or it cannot be listed; the message lists what was found.
    """
    if is_local(uri):
        check_saved_model(uri)
        return uri

    from transforms.storage import files  # only here is Beam needed

    root = uri.rstrip("/") + "/"
    try:
        found = {entry.uri[len(root) :]: entry for entry in files.remote_entries(uri)}
    except (OSError, ValueError) as error:
        raise ModelError(f"{uri} cannot be listed: {error}") from error
    wanted = sorted(path for path in found if _is_model_file(path) or path == CARD_NAME)
    if not any(path in _GRAPHS for path in wanted):
        raise ModelError(f"{uri} is no SavedModel: no saved_model.pb among {_shorten(found)}")
    escaping = [path for path in wanted if ".." in path.split("/")]
    if escaping:
        raise ModelError(f"{uri}: names that leave the folder: {escaping}")

    key = hashlib.sha256(root.encode())
    for path in wanted:
        key.update(f"\0{path}\0{found[path].size}\0{found[path].updated}".encode())
    cache = cache_folder() / "models"
    target = cache / key.hexdigest()[:32]
    if target.exists():
        return str(target)

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as temporary:
        copy = pathlib.Path(temporary) / "copy"
        for path in wanted:
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_bytes(files.read_bytes(root + path))
        try:
            copy.rename(target)
        except OSError:
            if not target.exists():  # else another process was faster
                raise
    return str(target)


def fingerprint(model_dir: str) -> str:
    """What identifies a model's content: SHA-256, in hex, over its files' relative paths and contents in
    sorted order.

    Covers what decides about features (graph, variables, assets); neither fingerprint.pb nor the card.

    Raises:
      ModelError: there is no SavedModel.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_model_files(model_dir).items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def size_bytes(model_dir: str) -> int:
    """Bytes of the files that `fingerprint` covers."""
    return sum(path.stat().st_size for path in _model_files(model_dir).values())


def check_saved_model(model_dir: str) -> None:
    """Checks that a folder is a SavedModel.

    Raises:
      ModelError: it is none; the message lists what was found.
    """
    root = pathlib.Path(model_dir)
    if any((root / graph).is_file() for graph in _GRAPHS):
        return
    if not root.exists():
        raise ModelError(f"{model_dir} is no SavedModel: there is no such folder")
    if not root.is_dir():
        raise ModelError(f"{model_dir} is no SavedModel: it is a file (an archive has to be unpacked first)")
    raise ModelError(f"{model_dir} is no SavedModel: no saved_model.pb among {_shorten(os.listdir(root))}")


def _model_files(model_dir: str) -> dict[str, pathlib.Path]:
    """Files that decide about features, by their path relative to the model's folder."""
    check_saved_model(model_dir)
    root = pathlib.Path(model_dir)
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path for name, path in files.items() if _is_model_file(name)}


def _is_model_file(name: str) -> bool:
    return name in _GRAPHS or name.startswith(("variables/", "assets/"))


def _shorten(names: Iterable[str], limit: int = 12) -> str:
    """The first names in order, for a message."""
    names = sorted(names)
    return f"{names[:limit]}" + (f" and {len(names) - limit} more" if len(names) > limit else "")
