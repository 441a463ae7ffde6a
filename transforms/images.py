"""From files to pictures: reading and decoding."""

import contextlib
import functools
import io
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from transforms import crash_notes
from transforms.process_settings import Held
from transforms.storage import files
from transforms.storage.object_stores import READS_IN_FLIGHT
from transforms.threads import map_ahead
from transforms.types import DecodedImage, Failure, ImageRef, ReadingConfig

# What a file may hold, whatever its suffix says.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# A picture is first brought to at least this many times the sides wanted by cheap means, then resized well.
# Measured on 12 JPEGs of 4000 x 3000 px against decoding them whole: 29 to 55 ms instead of 130; cosine of
# global descriptors at least 0.990, 0.996 to 0.998 in the mean (rootsift-vlad) and 0.9999 (ResNet-50); 96 to
# 98 % of keypoints kept, 99.7 %. With 1 in place of 2, 88 to 93 %.
_GAP = 2

_STRIP_PIXELS = 1 << 20  # converted at a time

# A few kilobytes can hold thousands of scans over a large picture; the worst take 5 ns a pixel each.
_MAX_SCANNED_PIXELS = 1_500_000_000

# Pillow's parsers go from part to part, some from byte to byte, in Python: about 3 us a read.
_MAX_READS = 300_000

_EXIF_ORIENTATION = 0x0112
_TO_UPRIGHT = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}


class DecodeError(ValueError):
    """A file that is no good image; `kind` is the failure row's kind."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@Held
@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Pillow neither warns of large pictures nor refuses them: their size is checked here against an option,
    with a failure row.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@_without_pillows_limit
def decode_image(
    data: bytes, max_side: int, reading: ReadingConfig = ReadingConfig()
) -> tuple[np.ndarray, int, int, float]:
    """Decodes an image file's content to upright RGB, shrunk so that its longest side is at most `max_side`.

    Any of _FORMATS in any colour mode; 16-bit samples lose their low byte, transparency is laid on white, the
    first frame stands for an animation.

    Returns:
      pixels uint8 [height, width, 3]; width and height of the upright original; image_scale (see
      DecodedImage).

    Raises:
      DecodeError: of kind empty_file, not_an_image, too_large or corrupt (truncated files too).
    """
    if not data:
        raise DecodeError("empty_file", "the file has no bytes")
    Image.init()  # Image.open(formats=...) knows only formats that are registered already
    try:
        # Its type depends on the format.
        image: Any = Image.open(_CountedReads(data), formats=_FORMATS)
    except DecodeError:
        raise
    except UnidentifiedImageError as e:
        raise DecodeError("not_an_image", f"none of {', '.join(_FORMATS)} in {len(data)} bytes") from e
    except Exception as e:  # Pillow's parsers raise whatever a broken header leads to
        raise DecodeError("corrupt", f"{type(e).__name__}: {e}") from e
    width, height = image.size
    if width * height > reading.max_image_pixels:
        raise DecodeError("too_large", f"{width} x {height} pixels, more than {reading.max_image_pixels:,}")
    scale = min(1.0, max_side / max(width, height))
    shrunk = (max(1, round(width * scale)), max(1, round(height * scale)))
    scans = _scans(image, data)
    if scans * width * height > _MAX_SCANNED_PIXELS:
        raise DecodeError(
            "too_large", f"{width} x {height} pixels in {scans} scans or runs, which would take too long"
        )
    try:
        image.draft(None, (_GAP * shrunk[0], _GAP * shrunk[1]))
        factor = max(1, min(image.width // (_GAP * shrunk[0]), image.height // (_GAP * shrunk[1])))
        needed = len(data) + _decoding_bytes(image, width * height, scans, factor, shrunk)
        if needed > reading.max_bytes:
            raise DecodeError(
                "too_large",
                f"{width} x {height} pixels take {needed:,} bytes to decode, more than {reading.max_bytes:,}",
            )
        turns = _TO_UPRIGHT.get(_orientation(image), ()) if reading.exif_orientation else ()
        image = _to_rgb(image, factor)
        if scale < 1.0:
            image = image.resize(shrunk, Image.Resampling.BICUBIC)
        for turn in turns:
            image = image.transpose(turn)
        pixels = np.asarray(image)
    except DecodeError:
        raise
    except Exception as e:
        raise DecodeError("corrupt", f"{type(e).__name__}: {e}") from e
    if turns and turns[0] in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
    ):
        width, height = height, width
    return pixels, width, height, scale


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except (ValueError, TypeError, SyntaxError, struct.error, OSError, KeyError):
        return 1  # damaged EXIF does not make a bad picture


class _CountedReads(io.BytesIO):
    """A file that no parser can spend hours on."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise DecodeError("too_large", f"the file has more than {_MAX_READS:,} parts")
        return super().read(size)


def _scans(image: Any, data: bytes) -> int:
    """How often decoding goes over the pixels: the scans of a JPEG; slow decoders count for many."""
    if image.format in ("JPEG", "MPO"):  # Pillow has read up to the first scan
        return 1 + data.count(b"\xff\xda", image.fp.tell())
    return (
        200 if image.tile and image.tile[0].codec_name == "bmp_rle" else 1
    )  # written in Python, a byte at a time


def _decoding_bytes(image: Any, pixels: int, scans: int, factor: int, shrunk: tuple[int, int]) -> int:
    """Estimate of the memory that decode_image takes, not below what it takes.

    Args:
      image: opened and drafted, not loaded.
      pixels: of the file.
      scans, factor, shrunk: see _scans, _to_rgb and decode_image.
    """
    decoded = image.width * image.height
    loading = (1 if image.mode in ("1", "L", "P") else 4) * decoded
    if image.format == "WEBP":  # two canvases, the frame twice, and what a lossless file is decoded into
        loading = (16 if image.mode == "RGB" else 20) * pixels
    elif image.format in ("GIF", "BMP"):
        loading += 4 * decoded
    elif scans > 1:  # all coefficients of a JPEG, 2 bytes each, are kept until its last scan
        samples = [(h, v) for _, h, v, _ in image.layer]
        loading += (
            2
            * pixels
            * sum(h * v for h, v in samples)
            // max(1, max(h for h, _ in samples) * max(v for _, v in samples))
        )
    converted = 0 if _is_plain(image) and factor == 1 else 4 * decoded // factor**2 + 20 * _STRIP_PIXELS
    resized = 4 * shrunk[0] * image.height // factor
    return (
        loading + converted + resized + 14 * shrunk[0] * shrunk[1] + 64 * image.height
    )  # each row has a pointer and more


def _is_plain(image: Image.Image) -> bool:
    return image.mode == "RGB" and "transparency" not in image.info


def _to_rgb(image: Image.Image, factor: int) -> Image.Image:
    """`image` as RGB with sides divided by `factor`, made strip by strip: a conversion of the whole takes
    several times its memory.
    """
    image.load()
    rows = max(1, _STRIP_PIXELS // (image.width * factor)) * factor
    if _is_plain(image) or rows >= image.height:
        return _reduced(_converted(image), factor)
    rgb = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        rgb.paste(_reduced(_converted(strip), factor), (0, top // factor))
    return rgb


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    return image.reduce(factor) if factor > 1 else image


def _converted(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if _is_plain(image):
        return image
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def read_image(
    ref: ImageRef, max_side: int, reading: ReadingConfig = ReadingConfig()
) -> DecodedImage | Failure:
    """Reads and decodes one photograph; what goes wrong with it becomes a Failure of stage read or decode."""
    return _decoded(_read(ref, reading), max_side, reading)


_Content = tuple[ImageRef, bytes | Failure]  # of a photograph's file


def _read(ref: ImageRef, reading: ReadingConfig) -> _Content:
    crash = crash_notes.crash_of(ref)
    if crash is not None:
        return ref, crash
    if ref.size_bytes > reading.max_bytes:
        problem = f"{ref.size_bytes:,} bytes, more than {reading.max_bytes:,}"
        return ref, Failure("read", ref.image_id, ref.uri, "too_large", problem)
    try:
        return ref, files.read_bytes(ref.uri)
    except Exception as e:  # file systems raise errors of their own
        kind = "not_found" if isinstance(e, FileNotFoundError) else "unreadable"
        return ref, Failure("read", ref.image_id, ref.uri, kind, f"{type(e).__name__}: {e}")


def _decoded(content: _Content, max_side: int, reading: ReadingConfig) -> DecodedImage | Failure:
    ref, data = content
    if isinstance(data, Failure):
        return data
    try:
        with crash_notes.noted(ref):
            return DecodedImage(ref, *decode_image(data, max_side, reading))
    except DecodeError as e:
        return Failure("decode", ref.image_id, ref.uri, e.kind, str(e))


def read_images(
    refs: Sequence[ImageRef], max_side: int, reading: ReadingConfig = ReadingConfig(), ahead: int = 4
) -> Iterator[DecodedImage | Failure]:
    """Reads and decodes photographs in order, `ahead` of the consumer, so that the model does not wait for
    them.

    Those of another machine are read by threads of their own, several at a time and further ahead.
    """
    read = functools.partial(_read, reading=reading)
    decode = functools.partial(_decoded, max_side=max_side, reading=reading)
    with contextlib.ExitStack() as stack:
        decoders = stack.enter_context(ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode"))
        if all(files.is_local(ref.uri) for ref in refs):
            yield from map_ahead(decoders, lambda ref: decode(read(ref)), refs, ahead)
        else:
            readers = stack.enter_context(ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="read"))
            yield from map_ahead(decoders, decode, map_ahead(readers, read, refs, READS_IN_FLIGHT), ahead)
