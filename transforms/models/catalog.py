"""Where models lie: the built-in ones by their names, others by their folder or URI."""

from transforms.models import builtin
from transforms.models.saved_model import fetch_model

EMBEDDED = "embedded"
ROOTSIFT_VLAD = "rootsift-vlad"


def model_folder(model: str) -> str:
    """A local folder with the SavedModel that `model` names: a built-in one, a folder, or a URI (copied once
    into the cache).

    Raises:
      ModelError: there is no SavedModel.
    """
    return builtin.model_dir(model) if model in builtin.MODELS else fetch_model(model)
