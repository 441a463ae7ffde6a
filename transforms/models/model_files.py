"""The files of a model: where they lie, and what identifies them.

A model's folder is a SavedModel (saved_model.pb, variables/, assets/), or holds an ONNX file, beside which
its weights may lie in files of their own. A card may lie in it.
"""

import hashlib
import mmap
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping

from transforms.models.card import CARD_NAME
from transforms.models.model import ModelError
from transforms.storage.uris import is_local

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
ONNX = ".onnx"


def cache_folder() -> pathlib.Path:
    """The folder that models are kept in: `$XDG_CACHE_HOME/landmarks` or `~/.cache/landmarks`."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "landmarks"


def fetch_model(uri: str) -> str:
    """The local place of a model: the folder of a SavedModel, or an ONNX file.

    A remote model is copied into models/ of the user's cache folder when its files are not there yet as they
    are now: its key is made of their names, sizes and times.

    Args:
      uri: a folder that holds a model, or an ONNX file; local, or on a file system that Beam knows (gs://,
        s3://).

    Returns:
      `uri` itself, or the ONNX file in it; of a remote one that of the copy.

    Raises:
      ModelError: there is no model, or it cannot be listed; the message lists what was found.
    """
    if is_local(uri):
        return _model_in(uri)

    from transforms.storage import files  # only here is Beam needed

    folder, _, name = uri.rpartition("/") if uri.endswith(ONNX) else (uri.rstrip("/"), "", "")
    root = folder + "/"
    try:
        found = {entry.uri[len(root) :]: entry for entry in files.remote_entries(folder)}
    except (OSError, ValueError) as error:
        raise ModelError(f"{uri} cannot be listed: {error}") from error
    if not name and not any(path in _GRAPHS for path in found):
        name = _only_onnx(uri, found)
    if name:  # which of the files beside it hold its weights, it alone knows
        wanted = sorted(p for p in found if p == name or not ("/" in p or p.endswith(ONNX)))
    else:
        wanted = sorted(path for path in found if _is_model_file(path) or path == CARD_NAME)
    if name and name not in found:
        raise ModelError(f"{uri} is not there; {folder} holds {_shorten(found)}")
    escaping = [path for path in wanted if ".." in path.split("/")]
    if escaping:
        raise ModelError(f"{uri}: names that leave the folder: {escaping}")

    key = hashlib.sha256(root.encode())
    for path in wanted:
        key.update(f"\0{path}\0{found[path].size}\0{found[path].updated}".encode())
    cache = cache_folder() / "models"
    target = cache / key.hexdigest()[:32]
    if not target.exists():
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
    return str(target / name)


def _model_in(place: str) -> str:
    """`place` itself where it is a SavedModel's folder or an ONNX file, or the only ONNX file of the folder.

    Raises:
      ModelError: it is none of these.
    """
    path = pathlib.Path(place)
    if place.endswith(ONNX) and path.is_file():
        return place
    if path.is_dir() and not any((path / graph).is_file() for graph in _GRAPHS):
        return str(path / _only_onnx(place, os.listdir(path)))
    check_saved_model(place)
    return place


def _only_onnx(folder: str, names: Iterable[str]) -> str:
    """The ONNX file among the names of a folder without a SavedModel."""
    graphs = sorted(name for name in names if name.endswith(ONNX) and "/" not in name)
    if len(graphs) > 1:
        raise ModelError(f"{folder} holds several ONNX models, name one of them: {_shorten(graphs)}")
    if not graphs:
        raise ModelError(
            f"{folder} holds no model: neither a SavedModel's saved_model.pb nor an {ONNX} file among "
            f"{_shorten(names)}"
        )
    return graphs[0]


def fingerprint(model_dir: str) -> str:
    """What identifies a model's content: SHA-256, in hex, over its files' relative paths and contents in
    sorted order.

    Covers what decides about features (graph, variables, assets); neither fingerprint.pb nor the card.

    Raises:
      ModelError: there is no SavedModel.
    """
    return _digest(_model_files(model_dir)).hexdigest()


def onnx_fingerprint(graph: str, used_as: str) -> str:
    """What identifies the content of an ONNX model and how it is used: SHA-256, in hex, over its file, those
    with its weights, and a text.

    Raises:
      ModelError: it is no ONNX file, or lacks files with its weights.
    """
    digest = _digest(onnx_files(graph))
    digest.update(used_as.encode())
    return digest.hexdigest()


def onnx_files(graph: str) -> dict[str, pathlib.Path]:
    """An ONNX file, under the name "", and those beside it that hold its weights, by the names that it gives
    them.

    Raises:
      ModelError: it is no ONNX file, is not in its folder with its weights, or names files elsewhere.
    """
    root, found = pathlib.Path(graph).parent, {"": pathlib.Path(graph)}
    try:
        with open(graph, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        names = set(_external(memoryview(content), "model"))
    except (ValueError, IndexError) as error:
        raise ModelError(f"{graph} is no ONNX model: {error}") from error
    for name in names:
        if os.path.isabs(name) or ".." in pathlib.PurePath(name).parts:
            raise ModelError(f"{graph} has weights outside of its folder, in {name!r}")
        if not (root / name).is_file():
            raise ModelError(f"{graph} has weights in {name}, which is not beside it: both files are needed")
        found[name] = root / name
    return found


# Fields of the messages of onnx.proto3 on the way to the names of files with weights.
_WAYS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def _external(message: memoryview, kind: str) -> Iterator[str]:
    """Where the tensors of a message of onnx.proto3 lie that are in files of their own."""
    if kind == "entry":
        fields = {number: bytes(value).decode() for number, value in _fields(message)}
        if fields.get(1) == "location":
            yield fields.get(2, "")
        return
    for number, value in _fields(message):
        if inner := _WAYS[kind].get(number):
            yield from _external(value, inner)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Numbers and contents of the fields of a protobuf message that have a length; the others are skipped.

    Raises:
      ValueError, IndexError: it is no protobuf message.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            varint()
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size = varint()
            if at + size > len(message):
                raise ValueError("it is cut off")
            yield number, message[at : at + size]
            at += size
        else:
            raise ValueError("it is no protobuf")


def _digest(found: Mapping[str, pathlib.Path]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for name, path in sorted(found.items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest


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
