"""Where models lie: the built-in one by its name, others by their folder or URI."""

from __future__ import annotations

from transforms.delg import embedded
from transforms.delg.saved_model import fetch_model

EMBEDDED = "embedded"


def model_folder(model: str) -> str:
    """A local folder with the SavedModel that `model` names: "embedded", a folder, or a URI (copied once into the cache).

    Raises:
      ModelError: there is no SavedModel.
    """
    return embedded.model_dir() if model == EMBEDDED else fetch_model(model)
