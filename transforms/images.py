"""From files to pictures: reading and decoding."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from transforms.file_formats import (
    HEIC,
    HEIF_REMEDY,
    JPEG,
    MAX_PARTS,
    READS_HEIF,
    Decoding,
    FileFormat,
    PictureFile,
    TooManyPartsError,
    exif_orientation,
    picture_file,
    xmp_orientation,
)
from transforms.processes import crash_notes
from transforms.processes.settings import Held
from transforms.processes.threads import map_ahead
from transforms.storage import files, object_stores
from transforms.storage.machine import MachineError, has_memory, is_of_machine
from transforms.storage.object_stores import READS_IN_FLIGHT
from transforms.storage.parquet_images import RowReader
from transforms.storage.uris import row_of
from transforms.types import DecodedImage, Failure, ImageRef, ReadingConfig

# What a file may hold, whatever its suffix says; HEIC is opened in another way.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# A picture is first brought to at least this many times the sides wanted by cheap means, then resized well:
# several times as fast as decoding it whole, and its features hardly move (benchmarks/README.md, "Choices").
_GAP = 2

_STRIP_PIXELS = 1 << 20  # converted at a time

# A few kilobytes can hold thousands of scans over a large picture; the worst take 5 ns a pixel each.
_MAX_SCANNED_PIXELS = 1_500_000_000

# Where a file lacks its last bytes, so many pixels at each side of the last corner may be made up.
_LAST_CORNER = 32

# A decoder reads so many bytes of a JPEG's scan ahead. Ones are no code: at most the last block or two can be
# made of these.
_AHEAD = (b"\xff\0",) * 8

# Encoders may write so many bytes too many.
_EXTRA = 8

_TIFF_SUBFILE, _TIFF_ORIENTATION, _TIFF_ROWS_PER_STRIP, _DNG_VERSION = 254, 274, 278, 50706
_TIFF_BITS, _TIFF_TILE_SIDES, _TIFF_PARTS = 258, (322, 323), (273, 324)

_TO_UPRIGHT = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
_FROM_UPRIGHT = {**_TO_UPRIGHT, 6: _TO_UPRIGHT[8], 8: _TO_UPRIGHT[6]}


class DecodeError(ValueError):
    """A file that is no good image; `kind`, `limit` and `needed` are the failure row's."""

    def __init__(self, kind: str, message: str, limit: str | None = None, needed: int | None = None):
        super().__init__(message)
        self.kind, self.limit, self.needed = kind, limit, needed


@Held
@contextlib.contextmanager
def _our_rules_in_pillow() -> Iterator[None]:
    """Pillow neither warns of large pictures nor refuses them: their size is checked here against an option,
    with a failure row. And it refuses truncated ones, whatever the host process lets it do.
    """
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


@_our_rules_in_pillow
def decode_image(
    data: bytes,
    max_side: int,
    reading: ReadingConfig = ReadingConfig(),
    warn: Callable[[str], None] = lambda text: None,
) -> tuple[np.ndarray, int, int, float]:
    """Decodes an image file's content to upright RGB, shrunk so that its longest side is at most `max_side`.

    Any of _FORMATS in any colour mode; 16-bit samples lose their low byte, transparency is laid on white, the
    first frame stands for an animation. Only what is needed to see the picture is read: what lies behind it,
    and texts, profiles and thumbnails, may be damaged or large.

    Args:
      warn: told of a file that lacks its last bytes though its picture is whole, or is damaged though every
        row of it can be decoded.

    Returns:
      pixels uint8 [height, width, 3]; width and height of the upright original; image_scale (see
      DecodedImage).

    Raises:
      DecodeError: of kind empty_file, not_an_image, unsupported_format (a picture, but none that is decoded
        here), too_large or corrupt (truncated files too).
      MemoryError: there is not enough of it now, or the file makes a decoder ask for more than its pixels
        take.
    """
    if not data:
        raise DecodeError("empty_file", "the file has no bytes")
    try:
        file = picture_file(data)
    except TooManyPartsError as e:
        raise DecodeError("too_large", str(e)) from e
    image: Any = _open(file.data, file.format, reading)  # its type depends on the format
    width, height = image.size
    if width * height > reading.max_image_pixels:
        raise DecodeError(
            "too_large",
            f"{width} x {height} pixels, more than {reading.max_image_pixels:,}; --max_image_pixels allows "
            "more",
            "max_image_pixels",
            width * height,
        )
    scale = min(1.0, max_side / max(width, height))
    shrunk = (max(1, round(width * scale)), max(1, round(height * scale)))
    scans = _scans(image, file)
    if scans * width * height > _MAX_SCANNED_PIXELS:
        raise DecodeError(
            "too_large", f"{width} x {height} pixels in {scans} scans or runs, which would take too long"
        )
    needed = reading.max_bytes
    try:
        if image.format != "HEIF":  # whose draft is a picture of its own, made by who knows whom
            image.draft(None, (_GAP * shrunk[0], _GAP * shrunk[1]))
        factor = max(1, min(image.width // (_GAP * shrunk[0]), image.height // (_GAP * shrunk[1])))
        needed = len(data) + _decoding_bytes(image, file, width * height, scans, factor, shrunk)
        if needed > reading.max_bytes:
            raise DecodeError(
                "too_large",
                f"{width} x {height} pixels take {needed:,} bytes to decode, more than {reading.max_bytes:,};"
                " --max_image_memory allows more",
                "max_image_memory",
                _megabytes(needed),
            )
        orientation = _orientation(image, file)
        turns = _TO_UPRIGHT.get(orientation, ()) if reading.exif_orientation else ()
        if image.format == "TIFF":  # turned by Pillow
            turns = () if reading.exif_orientation else _FROM_UPRIGHT.get(orientation, ())
        damage = _load_jpeg(image, file) if file.scan_data else image.load() and ""
        if file.lacks:
            raise DecodeError("corrupt", file.lacks)
        if not file.ended:
            _check_end(image, file, width)
            warn("the file lacks its last bytes; every row of its picture is there")
        if damage := damage or file.warning:
            warn(damage)
        image = _to_rgb(image, factor)
        if scale < 1.0:
            image = image.resize(shrunk, Image.Resampling.BICUBIC)
        for turn in turns:
            image = image.transpose(turn)
        pixels = np.asarray(image)
    except (DecodeError, MemoryError):
        raise
    except Exception as e:
        if not has_memory(needed):  # libjpeg and others call it broken data
            raise MemoryError(f"{needed:,} bytes to decode {width} x {height} pixels cannot be had") from e
        raise _damaged(file.format, e) from e
    if turns and turns[0] in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
    ):
        width, height = height, width
    return pixels, width, height, scale


def _damaged(found: FileFormat | None, error: Exception) -> DecodeError:
    if "truncated" in str(error).lower():
        return DecodeError("corrupt", "the file ends before its picture does")
    return DecodeError("corrupt", f"{found.text if found else 'a picture'} that is damaged ({error})")


def _open(data: bytes, found: FileFormat | None, reading: ReadingConfig) -> Image.Image:
    """The picture in a file whose first bytes say that it is `found`, not loaded yet."""
    name, decoding = (found.text, found.decoding) if found else ("", Decoding.NO_PICTURE)
    if decoding is Decoding.NEVER:
        raise DecodeError("unsupported_format", f"{name}, which is not decoded here; convert it to JPEG")
    if found is HEIC and not READS_HEIF:
        raise DecodeError("unsupported_format", f"{name}; {HEIF_REMEDY} decodes it, or convert it to JPEG")
    # Image.open(formats=...) knows only formats that are registered already, JPEG among the first.
    (Image.preinit if found is JPEG else Image.init)()
    try:
        image: Any = (
            _open_heif(data)
            if found is HEIC
            else Image.open(_CountedReads(data), formats=[name for name in _FORMATS if name in Image.OPEN])
        )
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError as e:
        if decoding is Decoding.PARTLY:
            problem = f"{name} that is damaged, or of a kind that is not decoded here; convert it to JPEG"
            raise DecodeError("unsupported_format", problem) from e
        if decoding is Decoding.ALWAYS:
            raise DecodeError("corrupt", f"{name} with a damaged header, in {len(data):,} bytes") from e
        raise DecodeError(
            "not_an_image",
            f"{name}, in {len(data):,} bytes"
            if name
            else f"none of {', '.join(_FORMATS)} in {len(data)} bytes",
        ) from e
    except Exception as e:  # Pillow's parsers raise whatever a broken header leads to
        if not has_memory(reading.max_bytes):  # WebP's decoder takes its memory here
            raise MemoryError("the memory that a picture may take cannot be had") from e
        raise _damaged(found, e) from e
    if image.format == "TIFF" and (image.tag_v2.get(_TIFF_SUBFILE, 0) == 1 or _DNG_VERSION in image.tag_v2):
        raise DecodeError(
            "unsupported_format", "a camera's RAW file, which is not decoded; convert it to JPEG"
        )
    return image


def _open_heif(data: bytes) -> Image.Image:
    from pillow_heif.as_plugin import HeifImageFile  # an extra, and registering it would change the process

    try:
        return HeifImageFile(io.BytesIO(data))
    except SyntaxError as e:  # as Pillow's plugins say that they do not know a file
        raise UnidentifiedImageError(str(e)) from e


def _orientation(image: Any, file: PictureFile) -> int:
    if image.format == "HEIF":  # turned by libheif as its boxes say; its EXIF tells nothing more
        return 1
    if file.orientation:
        return file.orientation
    if image.format == "TIFF":
        return image.tag_v2.get(_TIFF_ORIENTATION, 1)
    return exif_orientation(image.info.get("exif", b"")) or xmp_orientation(image.info.get("xmp", b""))


class _JpegDecoder:
    """Pillow's decoder of an opened JPEG, given the file by hand: what it leaves of its food tells whether
    it is in the midst of a scan. Pillow passes over what libjpeg only warns of.
    """

    def __init__(self, image: Any):
        image.load_prepare()
        ((name, extents, _, settings),) = image.tile
        self._decoder = Image._getdecoder(image.mode, name, settings, image.decoderconfig)
        self._decoder.setimage(image.im, extents)
        self._left, self.finished = b"", False

    def give(self, piece: memoryview | bytes) -> int:
        """Has the decoder take what it can, and returns how many bytes are left for later."""
        if self.finished:
            return 0
        food = self._left + piece if self._left else piece
        taken, error = self._decoder.decode(food)
        if error < 0:
            raise OSError("broken data stream")
        self.finished = taken < 0
        self._left = b"" if self.finished else bytes(food[taken:])
        return len(self._left)

    def is_past_scan(self, pieces: Iterable[memoryview | bytes]) -> bool:
        """Whether the decoder takes bytes one by one: it looks for the next marker. In a scan it takes them
        only when it has enough for the next symbols.
        """
        return max((self.give(piece) for piece in pieces), default=0) <= 1


def _load_jpeg(image: Any, file: PictureFile) -> str:
    """Loads an opened JPEG; returns how it is damaged, "" for not at all.

    Each scan has to take all of its data, and no more: what damage does to it shifts the blocks behind it, up
    to the next restart.

    Raises:
      DecodeError: the data of the last scan end before the picture does.
    """
    damage, content, at = "", memoryview(file.data), 0
    decoder = _JpegDecoder(image)
    for number, (start, end) in enumerate(file.scan_data, 1):
        nearly = max(start, end - _EXTRA)
        decoder.give(content[at:nearly])
        if decoder.is_past_scan(content[i : i + 1] for i in range(nearly, end - 1)) and end - start > _EXTRA:
            damage = damage or f"the data of scan {number} are damaged: some are left over"
        decoder.give(b"".join([content[max(start, end - 1) : end], *_AHEAD]))
        single, last = len(file.scan_data) == 1, number == len(file.scan_data)
        if not decoder.finished and (single or not decoder.is_past_scan(_AHEAD)):
            if last:
                raise DecodeError("corrupt", "the picture's data end before its last row")
            damage = damage or f"the data of scan {number} are damaged: some are missing"
        at = end
    decoder.give(content[at:])
    if not decoder.finished:
        raise OSError("the picture's data end before its last row")
    image.tile = []
    return damage


def _check_end(image: Any, file: PictureFile, width: int) -> None:
    """Refuses the loaded picture of a file that lacks its end where more than the last corner of the picture
    depends on what the file lacks.

    Args:
      width: of the picture in the file; the loaded one may be smaller.
    """
    if file.otherwise is None:  # the decoder has met the end of its last row
        return
    other = Image.open(_CountedReads(file.otherwise), formats=_FORMATS[:3])
    other.draft(None, image.size)
    other.load()
    corner = -(-_LAST_CORNER * image.width // width)
    right, bottom = (side - min(corner, side // 4) for side in image.size)
    for top in range(0, image.height, _LAST_CORNER):
        strip = (0, top, image.width, min(image.height, top + _LAST_CORNER))
        differs = np.asarray(image.crop(strip)) != np.asarray(other.crop(strip))
        differs[max(0, bottom - top) :, right:] = False
        if differs.any():
            raise DecodeError("corrupt", f"the file ends before row {top + _LAST_CORNER} of {image.height}")


class _CountedReads(io.BytesIO):
    """A file that no parser can spend hours on."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._reads += 1
        if self._reads > MAX_PARTS:
            raise DecodeError("too_large", f"the file has more than {MAX_PARTS:,} parts")
        return super().read(size)


def _scans(image: Any, file: PictureFile) -> int:
    """How often decoding goes over the pixels: the scans of a JPEG; slow decoders count for many."""
    if image.tile and image.tile[0].codec_name == "bmp_rle":
        return 200  # written in Python, a byte at a time
    if image.format == "TIFF" and "jpeg" in image.info["compression"]:
        parts = next((image.tag_v2[tag] for tag in _TIFF_PARTS if tag in image.tag_v2), ())
        return max(1, 1 + file.data.count(b"\xff\xda") - len(parts))
    return file.scans


def _decoding_bytes(
    image: Any, file: PictureFile, pixels: int, scans: int, factor: int, shrunk: tuple[int, int]
) -> int:
    """Estimate of the memory that decode_image takes beside the file's content, not below what it takes.

    Args:
      image: opened and drafted, not loaded.
      pixels: of the file.
      file, scans, factor, shrunk: see _scans, _to_rgb and decode_image.
    """
    decoded = image.width * image.height
    loading = (1 if image.mode in ("1", "L", "P") else 4) * decoded
    if image.format == "WEBP":  # two canvases, the frame twice, and what a lossless file is decoded into
        loading = (16 if image.mode == "RGB" else 20) * pixels
    elif image.format in ("AVIF", "HEIF"):
        loading = 24 * pixels
    elif image.format == "TIFF":  # turned, and a strip or tile of it
        loading = (8 if image.tag_v2.get(_TIFF_ORIENTATION, 1) > 1 else 4) * decoded + _tiff_part_bytes(image)
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
    if file.otherwise is not None:
        loading = 2 * loading + len(file.otherwise)
    converted = 0 if _is_plain(image) and factor == 1 else 4 * decoded // factor**2 + 20 * _STRIP_PIXELS
    resized = 4 * shrunk[0] * image.height // factor
    return (
        len(file.data) + loading + converted + resized + 14 * shrunk[0] * shrunk[1] + 64 * image.height
    )  # each row has a pointer and more


def _tiff_part_bytes(image: Any) -> int:
    tile = image.tag_v2.get(_TIFF_TILE_SIDES[0], 0) * image.tag_v2.get(_TIFF_TILE_SIDES[1], 0)
    longer = max(image.size)
    strip = longer * min(longer, image.tag_v2.get(_TIFF_ROWS_PER_STRIP, longer))
    bits = image.tag_v2.get(_TIFF_BITS, (1,))
    return 0 if image.info["compression"] == "raw" else max(4, -(-sum(bits) // 8)) * max(tile, strip)


def _is_plain(image: Image.Image) -> bool:
    return image.mode == "RGB" and "transparency" not in image.info


def _to_rgb(image: Image.Image, factor: int) -> Image.Image:
    """`image` as RGB with sides divided by `factor`, made strip by strip: a conversion of the whole takes
    several times its memory.
    """
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
    """Reads and decodes one photograph; what is wrong with it becomes a Failure of stage read or decode.

    Raises:
      MachineError: what is wrong is not the photograph.
    """
    return _decoded(_read(ref, reading, RowReader()), max_side, reading)


def _megabytes(size: int) -> int:
    return -(-size // 1_000_000)


_Content = tuple[ImageRef, bytes | Failure]  # of a photograph's file


def _too_large(ref: ImageRef, size: int, reading: ReadingConfig) -> Failure:
    problem = f"{size:,} bytes, more than {reading.max_bytes:,}; --max_image_memory allows more"
    limit = "max_image_memory", _megabytes(size)
    return Failure("read", ref.image_id, ref.uri, "too_large", problem, *limit)


def _read(ref: ImageRef, reading: ReadingConfig, rows: RowReader) -> _Content:
    crash = crash_notes.crash_of(ref)
    if crash is not None:
        return ref, crash
    if ref.size_bytes > reading.max_bytes:
        return ref, _too_large(ref, ref.size_bytes, reading)
    try:
        row = row_of(ref.uri)
        data = rows.read(row) if row else files.read_bytes(ref.uri)
        if len(data) > reading.max_bytes:
            return ref, _too_large(ref, len(data), reading)
        if not files.is_local(ref.uri):
            object_stores.note_readable(ref.uri)
        return ref, data
    except Exception as e:  # file systems raise errors of their own
        forbidden = isinstance(e, PermissionError) and not files.is_local(ref.uri)
        if is_of_machine(e) or (forbidden and object_stores.is_closed(ref.uri)):
            raise MachineError(ref.uri, e) from e
        kind = "not_found" if isinstance(e, FileNotFoundError) else "unreadable"
        reason = getattr(e, "strerror", None)  # of the system's
        problem = f"{reason[0].lower()}{reason[1:]}" if reason else f"{type(e).__name__}: {e}"
        return ref, Failure("read", ref.image_id, ref.uri, kind, problem)


def _decoded(content: _Content, max_side: int, reading: ReadingConfig) -> DecodedImage | Failure:
    ref, data = content
    if isinstance(data, Failure):
        return data
    warnings: list[str] = []
    had_memory: list[bool] = []

    def decode() -> DecodedImage:
        try:
            with crash_notes.noted(ref):
                return DecodedImage(
                    ref, *decode_image(data, max_side, reading, warnings.append), *warnings[:1]
                )
        except MemoryError:
            had_memory.append(has_memory(reading.max_bytes))
            raise

    try:
        return files.retried(decode)
    except DecodeError as e:
        return Failure("decode", ref.image_id, ref.uri, e.kind, str(e), e.limit, e.needed)
    except MemoryError as e:
        if not all(had_memory):
            raise MachineError(ref.uri, e) from e
        problem = f"a decoder asks for more memory than the picture takes ({e})"
        return Failure("decode", ref.image_id, ref.uri, "too_large", problem)
    except OSError as e:  # of the notes
        raise MachineError(ref.uri, e) from e


def read_images(
    refs: Sequence[ImageRef], max_side: int, reading: ReadingConfig = ReadingConfig(), ahead: int = 4
) -> Iterator[DecodedImage | Failure]:
    """Reads and decodes photographs in order, `ahead` of the consumer, so that the model does not wait for
    them.

    Those of another machine are read by threads of their own, several at a time and further ahead.
    """
    read = functools.partial(_read, reading=reading, rows=RowReader(ref.uri for ref in refs))
    decode = functools.partial(_decoded, max_side=max_side, reading=reading)
    with contextlib.ExitStack() as stack:
        decoders = stack.enter_context(ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode"))
        if all(files.is_local(ref.uri) for ref in refs):
            yield from map_ahead(decoders, lambda ref: decode(read(ref)), refs, ahead)
        else:
            readers = stack.enter_context(ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="read"))
            yield from map_ahead(decoders, decode, map_ahead(readers, read, refs, READS_IN_FLIGHT), ahead)
