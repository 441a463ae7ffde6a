"""The files of a model: where they lie, what identifies them, and the projection that DELF v1 needs.

A model's folder is a SavedModel (saved_model.pb, variables/, assets/) or, as DELF v1 is released, holds one
in its subfolder model/ and a projection in pca/. A card may lie in the folder.
"""

import hashlib
import os
import pathlib
import tempfile

import numpy as np

from transforms.models.card import CARD_NAME, is_remote
from transforms.tensorflow_runtime import import_tensorflow

PCA_WIDTH = 128  # what remains of the 1024 dimensions of DELF v1

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
_PCA_FILES = ("pca.npz", "pca/mean.datum", "pca/pca_proj_mat.datum")


class ModelError(ValueError):
    """The model cannot be used: not a SavedModel, a contract that is not known, outputs that break it."""


def fetch_model(uri: str) -> str:
    """A local folder that holds the model.

    A remote model is copied into the user's cache folder ($XDG_CACHE_HOME or ~/.cache, landmarks/models/)
    when its files are not there yet as they are now: its key is made of their names, sizes and times.

    Args:
      uri: a local folder, or one on a file system that Beam knows (gs://, s3://).

    Returns:
      `uri` itself where it is local, else the folder of the copy.

    Raises:
      ModelError: there is no SavedModel, or it cannot be listed; the message lists what was found.
    """
    if not is_remote(uri):
        saved_model_folder(uri)
        return uri

    from transforms.storage import files  # only here is Beam needed

    root = uri.rstrip("/") + "/"
    try:
        found = {entry.uri[len(root) :]: entry for entry in files.remote_entries(uri)}
    except (OSError, ValueError) as error:
        raise ModelError(f"{uri} cannot be listed: {error}") from error
    wanted = sorted(
        path for path in found if _is_model_file(path.removeprefix("model/")) or path == CARD_NAME
    )
    if not any(path in _GRAPHS or path.removeprefix("model/") in _GRAPHS for path in wanted):
        raise ModelError(f"{uri} is no SavedModel: no saved_model.pb among {_shorten(found)}")
    escaping = [path for path in wanted if ".." in path.split("/")]
    if escaping:
        raise ModelError(f"{uri}: names that leave the folder: {escaping}")

    key = hashlib.sha256(root.encode())
    for path in wanted:
        key.update(f"\0{path}\0{found[path].size}\0{found[path].updated}".encode())
    cache = (
        pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        / "landmarks"
        / "models"
    )
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

    Covers what decides about features (graph, variables, assets, projection); neither fingerprint.pb nor the
    card.

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


def saved_model_folder(model_dir: str) -> pathlib.Path:
    """Where the SavedModel lies: the folder itself, or its subfolder model/.

    Raises:
      ModelError: in neither; the message lists what was found.
    """
    root = pathlib.Path(model_dir)
    for folder in (root, root / "model"):
        if any((folder / graph).is_file() for graph in _GRAPHS):
            return folder
    if not root.exists():
        raise ModelError(f"{model_dir} is no SavedModel: there is no such folder")
    if not root.is_dir():
        raise ModelError(f"{model_dir} is no SavedModel: it is a file (an archive has to be unpacked first)")
    raise ModelError(f"{model_dir} is no SavedModel: no saved_model.pb among {_shorten(os.listdir(root))}")


def read_pca(model_dir: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The projection that lies with a model, from pca.npz (arrays mean and projection) or the DELF release's
    pca/*.datum.

    Returns:
      mean float32 [W] and projection float32 [PCA_WIDTH, W], the rows of most variance; None where there is
      none.

    Raises:
      ModelError: the files do not hold that.
    """
    root = pathlib.Path(model_dir)
    try:
        if (root / "pca.npz").is_file():
            with np.load(root / "pca.npz", allow_pickle=False) as arrays:
                mean, projection = arrays["mean"], arrays["projection"]
        elif (root / "pca/mean.datum").is_file():
            mean = _read_datum(root / "pca/mean.datum")
            projection = _read_datum(root / "pca/pca_proj_mat.datum").reshape(-1, mean.size)
        else:
            return None
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(f"{model_dir}: the PCA cannot be read: {error}") from error
    if mean.ndim != 1 or projection.shape[0] < PCA_WIDTH or projection.shape[1:] != mean.shape:
        raise ModelError(
            f"{model_dir}: the PCA needs mean [W] and projection [>= {PCA_WIDTH}, W], "
            f"found {list(mean.shape)} and {list(projection.shape)}"
        )
    return mean.astype(np.float32), projection[:PCA_WIDTH].astype(np.float32)


def _read_datum(path: pathlib.Path) -> np.ndarray:
    """The values of a DatumProto (tensorflow/models, research/delf/delf/protos/datum.proto), float32, flat.

    On the wire its float_list is the one of tf.train.Feature (field 2, packed), so that message reads it.
    """
    from google.protobuf.message import DecodeError

    try:
        return np.array(
            import_tensorflow().train.Feature.FromString(path.read_bytes()).float_list.value, np.float32
        )
    except DecodeError as error:
        raise ValueError(f"{path.name} is no DatumProto: {error}") from error


def _model_files(model_dir: str) -> dict[str, pathlib.Path]:
    """Files that decide about features, by their path relative to the SavedModel or, for the PCA, to the
    model's folder.
    """
    folder = saved_model_folder(model_dir)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files.update(
        {
            name: pathlib.Path(model_dir, name)
            for name in _PCA_FILES
            if pathlib.Path(model_dir, name).is_file()
        }
    )
    return {name: path for name, path in files.items() if _is_model_file(name)}


def _is_model_file(name: str) -> bool:
    return name in _GRAPHS or name in _PCA_FILES or name.startswith(("variables/", "assets/"))


def _shorten(names, limit: int = 12) -> str:
    """The first names in order, for a message."""
    names = sorted(names)
    return f"{names[:limit]}" + (f" and {len(names) - limit} more" if len(names) > limit else "")
