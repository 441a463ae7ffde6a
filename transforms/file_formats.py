"""What the bytes of a photograph's file are: the format by its first bytes, and the picture in it.

A file may hold more than its picture: phones put a video behind it, panorama and portrait modes further
pictures, and texts, profiles and thumbnails lie inside, any of which may be damaged, or made to exhaust a
reader. It may also hold less: a copy that was interrupted lacks its last bytes.
"""

import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import Literal

# No picture needs more, and each takes time.
MAX_PARTS = 300_000

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"

# Within a scan 0xFF is followed by a zero or is a restart; before any marker more of them may stand.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_RESTART = re.compile(rb"\xff([\xd0-\xd7])", re.DOTALL)
_APP0, _APP1, _APP14, _APP15, _COM = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_TEM, _DRI, _SOS = 0x01, 0xDD, 0xDA
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SEGMENTS = _SOF | {0xC4, 0xCC, _SOS, 0xDB, 0xDC, _DRI, *range(_APP0, _APP15 + 1), _COM}

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PARTS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_NAME = re.compile(b"|".join(_PNG_PARTS))
_MAX_PROFILE = 1 << 20  # characters of an EXIF in a text

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

_TIFF_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4}
_TIFF_FURTHER = {0x8769, 0x8825, 0xA005}  # directories of EXIF, of GPS, and of interoperability
_MAX_DIRECTORIES = 1000

# libavif looks for EXIF by the type of its item.
_AVIF_EXIF = re.compile(rb"(infe.{8}(?:..)?)Exif", re.DOTALL)

# Stands for what a cut file lacks; no decoder takes it for the rest of a flat picture.
_NONSENSE = bytes((167 * i * i + 89 * i + 71) % 251 + 2 for i in range(96))

# A file that lacks more does not just lack its end.
_MAX_LACKING = 1 << 16


class TooManyPartsError(ValueError):
    """A file that no picture needs to be; the text says what is too many."""


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """The picture in a file, as a file of the same format without all else.

    Attributes:
      data: the file; completed where its end is missing.
      scans: how often a decoder goes over the pixels, those of a JPEG.
      orientation: as EXIF counts it, 1 for upright; 0 where metadata that is left out of `data` does not
        tell.
      ended: whether the end was there.
      otherwise: completed in another way: pixels that differ from those of `data` are not in the file. None
        where nothing had to be completed.
    """

    data: bytes
    scans: int = 1
    orientation: int = 0
    ended: bool = True
    otherwise: bytes | None = None


def picture_file(data: bytes) -> PictureFile:
    """The picture in a file; a file of an unknown format is taken as it is.

    Raises:
      TooManyPartsError: more parts than any picture needs, or parts that count the same bytes again and
        again.
    """
    if data.startswith(_SOI):
        return _jpeg(data)
    if data.startswith(_PNG_SIGNATURE):
        return _png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:4] in _TIFF_ORDERS:
        _check_tiff(data)
    if data[4:8] == b"ftyp":
        return PictureFile(_AVIF_EXIF.sub(rb"\1none", data))
    return PictureFile(data)


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A marker of a JPEG, with its content where it has one, but without the data of a scan."""

    marker: int
    start: int
    end: int


def _jpeg_segments(data: bytes) -> Iterator[_Segment]:
    """The markers that libjpeg meets, in their order, up to the end of the picture: its end marker, or one
    that cannot stand in it. The last one may be cut.
    """
    at, restarts, scanned = len(_SOI), False, False
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, at)
        if found is None:
            return
        start, marker = found.start(), found[1][0]
        at = start + 2
        if marker in _SEGMENTS:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
        yield _Segment(marker, start, at)
        # Where a scan has restarts, libjpeg looks for the next one beyond markers that mean nothing.
        passed_over = marker == _TEM or (marker < 0xC0 and restarts)
        if not (marker in _SEGMENTS or passed_over) or (marker in _SOF and scanned):
            return
        restarts |= marker == _DRI
        scanned |= marker == _SOS
    raise TooManyPartsError(f"the file has more than {MAX_PARTS:,} parts")


def _jpeg(data: bytes) -> PictureFile:
    head, scans, first_scan, behind_scan, orientations = [_SOI], 0, len(data), 0, [0, 0]
    coding, scanning, ended = _Coding(), False, False
    for segment in _jpeg_segments(data):
        if scanning:
            behind_scan = segment.start
        content = data[segment.start + 4 : segment.end]
        ended = data[segment.start : segment.start + 2] == _EOI
        scanning = segment.marker == _SOS and segment.end <= len(data)
        if scanning:
            scans, first_scan = scans + 1, min(first_scan, segment.start)
            coding.add_scan(content)
        elif segment.marker in _SOF and not scans:
            coding.begin(segment.marker in _PROGRESSIVE, content)
        elif segment.marker == _APP1:
            found = exif_orientation(content), xmp_orientation(content)
            orientations = [before or now for before, now in zip(orientations, found)]
        if not scans and _is_needed(segment.marker, content):
            head.append(data[segment.start : segment.end])
        if ended:
            behind_scan = segment.end
    orientation = next(filter(None, orientations), 1)
    if ended or not coding.complete:
        picture = b"".join([*head, data[first_scan : behind_scan if ended else len(data)]])
        return PictureFile(picture, max(1, scans), orientation, ended)
    # What a file system or a server puts in the place of missing bytes is no picture.
    body = data[first_scan : len(data) if scanning else behind_scan].rstrip(b"\0\xff")
    restarts = _RESTART.findall(body, body.rindex(bytes([0xFF, _SOS])))
    following = restarts[-1][0] + 1 if restarts else 0
    nonsense = _NONSENSE + b"".join(
        bytes([0xFF, 0xD0 + (following + i) % 8]) + _NONSENSE for i in range(8)
    )  # 0xD0 is a multiple of 8
    picture = b"".join([*head, body])
    return PictureFile(picture + _EOI, scans, orientation, False, picture + nonsense + _EOI)


def _is_needed(marker: int, content: bytes) -> bool:
    """Whether the colours or shapes of a JPEG depend on a segment before its scans."""
    if marker == _APP0:
        return content.startswith(b"JFIF\0") and len(content) >= 14
    if marker == _APP14:
        return content.startswith(b"Adobe") and len(content) >= 12
    return not (_APP0 <= marker <= _APP15 or marker == _COM)


class _Coding:
    """Which bits of which coefficients the scans of a JPEG have coded."""

    def __init__(self) -> None:
        self._progressive = False
        self._missing: dict[int, dict[int, int]] = {}  # lowest bit coded, by component and coefficient

    def begin(self, progressive: bool, frame: bytes) -> None:
        """Takes note of a frame header."""
        self._progressive = progressive
        self._missing = {component: dict.fromkeys(range(64), 16) for component in frame[6::3]}

    def add_scan(self, header: bytes) -> None:
        """Takes note of a scan header."""
        count = header[0] if header else 0
        first, last, bits = header[-3:] if self._progressive and len(header) >= 4 else (0, 63, 0)
        for component in header[1 : 1 + 2 * count : 2]:
            coded = dict.fromkeys(range(first, min(last, 63) + 1), bits & 15)
            self._missing.get(component, {}).update(coded)

    @property
    def complete(self) -> bool:
        """Whether nothing of the picture is left to further scans."""
        return bool(self._missing) and not any(any(bits.values()) for bits in self._missing.values())


def _png(data: bytes) -> PictureFile:
    parts, orientation, ended = [_PNG_SIGNATURE], 0, False
    for name, start, end in _png_chunks(data):
        if name in _PNG_PARTS:
            parts.append(data[start:end])
            ended |= name == b"IEND"
        elif not orientation:
            orientation = _png_orientation(name, data[start + 8 : end - 4])
    return PictureFile(b"".join(parts), orientation=orientation or 1, ended=ended)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the chunks that are whole, and of those that no picture can do without, damaged
    or not; what else is damaged is passed over.
    """
    at = len(_PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        name, end = data[at + 4 : at + 8], _png_end(data, at)
        whole = name == b"IDAT" or _png_is_whole(data, at)
        if whole or name in (b"IHDR", b"PLTE"):
            yield name, at, end
        if name == b"IEND" or at >= len(data):
            return
        if not whole:  # its length may be what is damaged
            later = (found.start() - 4 for found in _PNG_NAME.finditer(data, at + 9))
            end = next(
                (start for start in itertools.islice(later, 100) if _png_is_whole(data, start)), len(data)
            )
        at = end
    raise TooManyPartsError(f"the file has more than {MAX_PARTS:,} parts")


def _png_end(data: bytes, at: int) -> int:
    return at + 12 + int.from_bytes(data[at : at + 4], "big")


def _png_is_whole(data: bytes, at: int) -> bool:
    """Whether a chunk at `at` has the checksum that stands behind it."""
    end = _png_end(data, at)
    return end <= len(data) and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(
        data[end - 4 : end], "big"
    )


def _png_orientation(name: bytes, content: bytes) -> int:
    """What a chunk of metadata says of the orientation; 0 for nothing."""
    keyword, _, text = content.partition(b"\0")
    if name == b"eXIf":
        return exif_orientation(content)
    if name == b"iTXt" and keyword == b"XML:com.adobe.xmp":
        return xmp_orientation(text)
    if name in (b"tEXt", b"zTXt") and keyword == b"Raw profile type exif":  # of ImageMagick
        try:
            text = zlib.decompressobj().decompress(text[1:], _MAX_PROFILE) if name == b"zTXt" else text
            return exif_orientation(bytes.fromhex(b"".join(text[:_MAX_PROFILE].split(b"\n")[3:]).decode()))
        except (zlib.error, ValueError):
            return 0
    return 0


def _webp(data: bytes) -> PictureFile:
    lacking = 8 + int.from_bytes(data[4:8], "little") - len(data)
    if not 0 < lacking <= _MAX_LACKING:
        return PictureFile(data)
    nonsense = (_NONSENSE * (1 + lacking // len(_NONSENSE)))[:lacking]
    return PictureFile(data + bytes(lacking), ended=False, otherwise=data + nonsense)


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data, with or without "Exif" in front of it; 0 where there is none. Nothing
    else of it is read.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = _TIFF_ORDERS.get(tiff[:4])
    if order is None:
        return 0
    at = int.from_bytes(tiff[4:8], order)
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(tiff[at : at + 2], order), 12):
        if int.from_bytes(tiff[entry : entry + 2], order) == _ORIENTATION:
            size = _WHOLE_NUMBERS.get(int.from_bytes(tiff[entry + 2 : entry + 4], order), 0)
            value = int.from_bytes(tiff[entry + 8 : entry + 8 + size], order)
            return value if 1 <= value <= 8 else 0
    return 0


def xmp_orientation(xmp: bytes) -> int:
    """The orientation in XMP; 0 where there is none."""
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 0


def _check_tiff(data: bytes) -> None:
    """Refuses a TIFF whose directories name more bytes than it has: Pillow reads all that they name."""
    order = _TIFF_ORDERS[data[:4]]

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    named, parts, seen, pending = 0, 0, set(), [number(4, 4)]
    while pending:
        at = pending.pop()
        if not at or at in seen:
            continue
        seen.add(at)
        entries = range(at + 2, min(at + 2 + 12 * number(at, 2), len(data)), 12)
        parts += len(entries)
        for entry in entries:
            named += number(entry + 4, 4) * _TIFF_SIZES.get(number(entry + 2, 2), 1)
            if number(entry, 2) in _TIFF_FURTHER:
                pending.append(number(entry + 8, 4))
        pending.append(number(at + 2 + 12 * number(at, 2), 4))
        if named > 2 * len(data) + (1 << 16) or len(seen) > _MAX_DIRECTORIES or parts > MAX_PARTS:
            raise TooManyPartsError("directories that name more than the file holds")


def format_name(data: bytes) -> str:
    """What a file is by its first bytes, for a person; "" where they say nothing."""
    for offset, magic, name in _MAGICS:
        if data.startswith(magic, offset):
            return name
    if data[4:8] == b"ftyp":
        brands = {data[at : at + 4] for at in (8, *range(16, min(int.from_bytes(data[:4], "big"), 256), 4))}
        return next((name for brand, name in _BRANDS if brand in brands), "a video (MP4)")
    if data[:4] == b"RIFF":
        return _RIFFS.get(data[8:12], "a RIFF file")
    start = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n\0").lower()
    for magic, name in _TEXTS:
        if magic in (start if name == "an SVG drawing" else start[: len(magic)]):
            return name
    if not data.strip(b"\0"):
        return "nothing but zero bytes"
    return "text" if _TEXT.fullmatch(data[:1000].rstrip(b"\0")) else ""


# Formats of pictures that are not decoded here.
UNDECODED = frozenset(
    {
        "a HEIC picture",
        "a JPEG XL picture",
        "a JPEG 2000 picture",
        "a camera's RAW file",
        "a Photoshop picture",
        "an icon",
        "an SVG drawing",
    }
)

_MAGICS = (
    (0, _SOI + b"\xff", "a JPEG"),
    (0, _PNG_SIGNATURE, "a PNG"),
    (0, b"GIF8", "a GIF"),
    (8, b"CR\x02", "a camera's RAW file"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"II+\0", "a TIFF picture"),
    (0, b"MM\0+", "a TIFF picture"),
    (0, b"IIU\0", "a camera's RAW file"),  # Panasonic
    (0, b"IIRO", "a camera's RAW file"),  # Olympus
    (0, b"IIRS", "a camera's RAW file"),
    (0, b"MMOR", "a camera's RAW file"),
    (0, b"FUJIFILMCCD-RAW", "a camera's RAW file"),
    (0, b"FOVb", "a camera's RAW file"),  # Sigma
    (0, b"\0MRM", "a camera's RAW file"),  # Minolta
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (4, b"JXL \r\n\x87\n", "a JPEG XL picture"),
    (4, b"jP  \r\n\x87\n", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"8BPS", "a Photoshop picture"),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"BM", "a BMP"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
    (0, b"\0\0\1\xba", "a video (MPEG)"),
    (0, b"\0\0\1\xb3", "a video (MPEG)"),
    (0, b"FLV\1", "a video (FLV)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a video (ASF, WMV)"),
    (4, b"moov", "a video (QuickTime)"),
    (4, b"mdat", "a video (QuickTime)"),
    (0, b"\0\5\x16\7", "the Mac's notes of a file (AppleDouble)"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
)

# Of files in boxes (ISO 14496-12), the most telling first.
_BRANDS = (
    *((brand, "an AVIF picture") for brand in (b"avif", b"avis")),
    *((brand, "a HEIC picture") for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm")),
    (b"crx ", "a camera's RAW file"),  # Canon
    *((brand, "a HEIC picture") for brand in (b"mif1", b"msf1")),
    (b"qt  ", "a video (QuickTime)"),
)

_RIFFS = {b"WEBP": "a WebP", b"AVI ": "a video (AVI)", b"WAVE": "a sound (WAVE)"}

_TEXTS = (
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<head", "an HTML page"),
    (b"<?xml", "XML"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file"),
    (b"{", "JSON"),
)

_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")
