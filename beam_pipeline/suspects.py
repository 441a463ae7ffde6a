"""After a crash: which of the photographs that were at work kills the process."""

from __future__ import annotations

import functools

from beam_pipeline.config import ReadingConfig
from beam_pipeline.models import ModelChoice
from transforms import in_flight
from transforms.delg.catalog import model_folder
from transforms.delg.saved_model import DelgModel
from transforms.features import extract_unit
from transforms.images import read_images
from transforms.types import ImageUnit


def try_suspects(choice: ModelChoice, reading: ReadingConfig) -> None:
    """Decodes and extracts each photograph that was noted at the last crash, alone; a guilty one takes this process down again.

    Raises:
      ModelError: the model itself is at fault.
    """
    model, settings = None, choice.settings
    read = functools.partial(
        read_images, max_side=settings.max_image_side, exif_orientation=reading.exif_orientation, max_pixels=reading.max_image_pixels,
        max_memory=1_000_000 * reading.max_image_memory)
    for ref in in_flight.suspects():
        model = model or DelgModel.load(model_folder(choice.model), settings)
        extract_unit(ImageUnit("suspect", (ref,)), model, read)
