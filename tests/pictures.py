"""Pictures made of random numbers, and their files."""

import io

import numpy as np
from PIL import Image


def textured(height, width, seed=0):
    """An image uint8 [height, width, 3] of random patches, with corners at several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for size in (4, 16):
        coarse = rng.integers(0, 128, (-(-height // size), -(-width // size), 3))
        image += np.kron(coarse, np.ones((size, size, 1)))[:height, :width]
    return image.astype(np.uint8)


def encoded(image, kind="PNG", **options):
    """The bytes of an image's file; `image` is a picture of Pillow's or uint8 [height, width, 3]."""
    content = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(content, kind, **options)
    return content.getvalue()
