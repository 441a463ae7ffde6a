"""The built-in models: SavedModels that the package builds itself, once, into the user's cache folder."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from types import ModuleType

from transforms.models import frozen_graph, rootsift_vlad, small_delg
from transforms.models.card import write_card
from transforms.models.model_files import cache_folder

MODELS: dict[str, ModuleType] = {"embedded": small_delg, "rootsift-vlad": rootsift_vlad}


def model_dir(name: str, cache_root: str | None = None) -> str:
    """Returns the folder of a built-in model, building it where it does not exist.

    The folder's name holds a hash of the code and the constants that it is built from, so a new version gets
    a new folder. Processes that build at the same time are safe: each writes a folder of its own and renames
    it; the first one stays.

    Args:
      name: one of MODELS.
      cache_root: where cached models lie; `model_files.cache_folder` where None.

    Raises:
      OSError: where the cache folder cannot be written.
    """
    root, model = cache_root or str(cache_folder()), MODELS[name]
    target = os.path.join(root, f"{model.NAME}-{_version(model)}")
    if os.path.isfile(os.path.join(target, "saved_model.pb")):
        return target
    os.makedirs(root, exist_ok=True)
    building = tempfile.mkdtemp(prefix=f".{model.NAME}-", dir=root)
    try:
        _build(model, building)
        with contextlib.suppress(OSError):  # some file systems have no modes
            os.chmod(building, 0o755)  # mkdtemp gives 0o700; a shared cache is for everyone
        try:
            os.rename(building, target)
        except OSError:
            if not os.path.isfile(os.path.join(target, "saved_model.pb")):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _build(model: ModuleType, directory: str) -> None:
    with open(os.path.join(directory, "saved_model.pb"), "wb") as out:
        out.write(model.saved_model_bytes())
    write_card(directory, model.SETTINGS, name=model.NAME, max_distance=model.MAX_DISTANCE)


def _version(model: ModuleType) -> str:
    """A short hash of what the model is built from; both take parts of rootsift_vlad."""
    digest = hashlib.sha256()
    sources = [module.__file__ or "" for module in (frozen_graph, rootsift_vlad, model)]
    for path in (*sources, model.CONSTANTS):
        with open(path, "rb") as source:
            digest.update(source.read())
    return digest.hexdigest()[:12]
