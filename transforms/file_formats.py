"""What the bytes of a photograph's file are: the format by its first bytes, and the picture in it.

A file may hold more than its picture: phones put a video behind it, panorama and portrait modes further
pictures, and texts, profiles and thumbnails lie inside, any of which may be damaged, or made to exhaust a
reader. It may also hold less: a copy that was interrupted lacks its last bytes.
"""

import dataclasses
import enum
import importlib.util
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

HEIF_SUFFIXES = (".heic", ".heif", ".hif")

READS_HEIF = importlib.util.find_spec("pillow_heif") is not None
"""Whether HEIC and HEIF are decoded here, which takes the extra `heic`."""

HEIF_REMEDY = "pip install 'landmarks[heic]'"

# No picture needs more, and each takes time.
MAX_PARTS = 300_000

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"

# Within a scan 0xFF is followed by a zero or is a restart; before any marker more of them may stand.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_RESTART = re.compile(rb"\xff([\xd0-\xd7])", re.DOTALL)
_APP0, _APP1, _APP14, _APP15, _COM = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_TEM, _DHT, _DRI, _SOS = 0x01, 0xC4, 0xDD, 0xDA
_SOF = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})  # of blocks of coefficients, which can be decoded in pieces
_SEGMENTS = _SOF | {_DHT, 0xCC, _SOS, 0xDB, 0xDC, _DRI, *range(_APP0, _APP15 + 1), _COM}

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

# libavif and libheif look for EXIF by the type of its item.
_AVIF_EXIF = re.compile(rb"(infe.{8}(?:..)?)Exif", re.DOTALL)

# What a disk or a server gives for what it lost. In a scan it is a row of blocks full of coefficients -1,
# unless its table has the shortest code for the end of a block.
_LOST = bytes(64)

# Where what lies before a picture is no more than a web server's line ends.
_IN_FRONT = re.compile(rb"[\xef\xbb\xbf \t\r\n]{1,64}")

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
      format: by its first bytes; None where they say nothing.
      data: the file; completed where its end is missing.
      scans: how often a decoder goes over the pixels, those of a JPEG.
      scan_data: where in `data` the coded samples of each scan of a JPEG lie, those that can be decoded in
        pieces.
      orientation: as EXIF counts it, 1 for upright; 0 where metadata that is left out of `data` does not
        tell.
      ended: whether the end was there.
      otherwise: completed in another way: pixels that differ from those of `data` are not in the file. None
        where nothing had to be completed, or `scan_data` tells.
      lacks: what of the picture is not in the file; "" for nothing.
      warning: what else is wrong with the file; "" for nothing.
    """

    data: bytes
    format: "FileFormat | None" = None
    scans: int = 1
    scan_data: tuple[tuple[int, int], ...] = ()
    orientation: int = 0
    ended: bool = True
    otherwise: bytes | None = None
    lacks: str = ""
    warning: str = ""


def picture_file(data: bytes) -> PictureFile:
    """The picture in a file; a file of an unknown format is taken as it is.

    Raises:
      TooManyPartsError: more parts than any picture needs, or parts that count the same bytes again and
        again.
    """
    found = format_of(data)
    if in_front := _IN_FRONT.match(data):
        behind = format_of(data[in_front.end() :])
        if behind is not None and behind.decoding is Decoding.ALWAYS:
            file = picture_file(data[in_front.end() :])
            problem = f"{in_front.end()} bytes of white space stand before the picture"
            return dataclasses.replace(file, warning=file.warning or problem)
    if found is _TIFF:
        _check_tiff(data)
    file = _READERS[found](data) if found in _READERS else PictureFile(data)
    return dataclasses.replace(file, format=found)


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
    head, first_scan, behind_scan, orientations = [_SOI], len(data), 0, [0, 0]
    coding, scanning, ended = _Coding(), False, False
    scans: list[tuple[int, int]] = []  # where the data of each lie
    for segment in _jpeg_segments(data):
        if scanning:
            behind_scan = segment.start
            scans[-1] = scans[-1][0], segment.start
        content = data[segment.start + 4 : segment.end]
        ended = data[segment.start : segment.start + 2] == _EOI
        scanning = segment.marker == _SOS and segment.end <= len(data)
        if scanning:
            scans.append((segment.end, len(data)))
            first_scan = min(first_scan, segment.start)
            coding.add_scan(content)
        elif segment.marker in _SOF and not scans:
            coding.begin(segment.marker, content)
        elif segment.marker == _DHT:
            coding.add_tables(content)
        elif segment.marker == _DRI:
            coding.restart_interval = int.from_bytes(content, "big")
        elif segment.marker == _APP1:
            found = exif_orientation(content), xmp_orientation(content)
            orientations = [before or now for before, now in zip(orientations, found)]
        if not scans and _is_needed(segment.marker, content):
            head.append(data[segment.start : segment.end])
        if ended:
            behind_scan = segment.end
    orientation = next(filter(None, orientations), 1)
    if not scans:
        return PictureFile(data, orientation=orientation, ended=ended)
    if ended:
        body = data[first_scan:behind_scan]
    else:  # what a file system or a server puts in the place of missing bytes is no picture
        body = data[first_scan : len(data) if scanning else behind_scan].rstrip(b"\0\xff") + _EOI
    picture = b"".join([*head, body])
    moved, last = len(picture) - len(body) - first_scan, first_scan + len(body) - len(_EOI)
    spans = tuple((start + moved, max(start, min(end, last)) + moved) for start, end in scans)
    damage = coding.damage([picture[start:end] for start, end in spans])
    return PictureFile(
        picture,
        scans=len(scans),
        scan_data=spans if coding.in_pieces else (),
        orientation=orientation,
        ended=ended,
        lacks="" if coding.complete else "the file ends before the last scan of its progressive picture",
        warning=damage,
    )


def _is_needed(marker: int, content: bytes) -> bool:
    """Whether the colours or shapes of a JPEG depend on a segment before its scans."""
    if marker == _APP0:
        return content.startswith(b"JFIF\0") and len(content) >= 14
    if marker == _APP14:
        return content.startswith(b"Adobe") and len(content) >= 12
    return not (_APP0 <= marker <= _APP15 or marker == _COM)


class _Coding:
    """Which bits of which coefficients the scans of a JPEG have coded, in how many parts.

    Attributes:
      restart_interval: blocks, or groups of them, from one restart to the next; 0 for no restarts.
      in_pieces: whether a decoder can be given the file piece by piece.
    """

    def __init__(self) -> None:
        self.restart_interval, self.in_pieces = 0, False
        self._progressive, self._width, self._height = False, 0, 0
        self._sampling: dict[int, tuple[int, int]] = {}  # across and down, by component
        self._missing: dict[int, dict[int, int]] = {}  # lowest bit coded, by component and coefficient
        self._zeros_code_ends = False  # whether a table has its first code for the end of a block
        self._scans: list[tuple[int, bool]] = []  # restarts, and whether zeros may stand in it

    def begin(self, marker: int, frame: bytes) -> None:
        """Takes note of a frame header."""
        self._progressive, self.in_pieces = marker in _PROGRESSIVE, marker in _HUFFMAN
        self._height, self._width = (int.from_bytes(frame[at : at + 2], "big") for at in (1, 3))
        self._sampling = {
            component: (max(1, sides >> 4), max(1, sides & 15))
            for component, sides in zip(frame[6::3], frame[7::3])
        }
        self._missing = {component: dict.fromkeys(range(64), 16) for component in frame[6::3]}

    def add_tables(self, content: bytes) -> None:
        """Takes note of tables of codes."""
        at = 0
        while at + 17 < len(content):
            self._zeros_code_ends |= content[at] >= 16 and content[at + 17] == 0
            at += 17 + sum(content[at + 1 : at + 17])

    def add_scan(self, header: bytes) -> None:
        """Takes note of a scan header."""
        count = header[0] if header else 0
        first, last, bits = header[-3:] if self._progressive and len(header) >= 4 else (0, 63, 0)
        components = header[1 : 1 + 2 * count : 2]
        for component in components:
            coded = dict.fromkeys(range(first, min(last, 63) + 1), bits & 15)
            self._missing.get(component, {}).update(coded)
        restarts = (self._units(components) - 1) // self.restart_interval if self.restart_interval else 0
        self._scans.append((restarts, first == 0 and (self._progressive or self._zeros_code_ends)))

    def _units(self, components: bytes) -> int:
        """How many blocks, or groups of blocks of several components, make a scan."""
        across, down = (max((sides[i] for sides in self._sampling.values()), default=1) for i in (0, 1))
        sides = (1, 1) if len(components) > 1 else self._sampling.get(components[0], (1, 1))
        width = -(-self._width * (sides[0] if len(components) == 1 else 1) // across)
        height = -(-self._height * (sides[1] if len(components) == 1 else 1) // down)
        return -(-width // 8) * -(-height // 8)

    @property
    def complete(self) -> bool:
        """Whether nothing of the picture is left to further scans."""
        return bool(self._missing) and not any(any(bits.values()) for bits in self._missing.values())

    def damage(self, scans: Sequence[bytes]) -> str:
        """What is wrong in the coded samples of the scans; "" for nothing that is seen without decoding."""
        if not self.in_pieces or not self._height:
            return ""
        for number, (data, (restarts, has_zeros)) in enumerate(zip(scans, self._scans), 1):
            if restarts and (found := len(_RESTART.findall(data))) < restarts:
                return f"{restarts - found:,} of {restarts:,} restarts are missing in scan {number}"
            if not has_zeros and _LOST in data:
                return f"zeros stand in the place of a part of scan {number}"
        return ""


def _png(data: bytes) -> PictureFile:
    parts, orientation, ended, warning = [_PNG_SIGNATURE], 0, False, ""
    for name, start, end in _png_chunks(data):
        if name in _PNG_PARTS:
            parts.append(data[start:end])
            ended |= name == b"IEND"
            if name == b"IDAT" and not warning and not _png_is_whole(data, start):
                warning = "its pixels do not have the checksum that stands behind them"
        elif not orientation:
            orientation = _png_orientation(name, data[start + 8 : end - 4])
    return PictureFile(b"".join(parts), orientation=orientation or 1, ended=ended, warning=warning)


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


def _avif(data: bytes) -> PictureFile:
    return PictureFile(_AVIF_EXIF.sub(rb"\1none", data))


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


class Decoding(enum.Enum):
    """What of a format's files is decoded here."""

    ALWAYS = "all"
    PARTLY = "most"
    NEVER = "nothing, though they are pictures"
    NO_PICTURE = "nothing, since they are none"


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """What a file can be.

    Attributes:
      text: for a person, such as "a JPEG".
      decoding: what of it is decoded here.
    """

    text: str
    decoding: Decoding = Decoding.NO_PICTURE


def format_of(data: bytes) -> FileFormat | None:
    """What a file is by its first bytes; None where they say nothing."""
    for offset, magic, found in _MAGICS:
        if data.startswith(magic, offset):
            return found
    if data[4:8] == b"ftyp":
        brands = {data[at : at + 4] for at in (8, *range(16, min(int.from_bytes(data[:4], "big"), 256), 4))}
        return next((found for brand, found in _BRANDS if brand in brands), FileFormat("a video (MP4)"))
    if data[:4] == b"RIFF":
        return _RIFFS.get(data[8:12], FileFormat("a RIFF file"))
    if _NETPBM.match(data):
        return FileFormat("a Netpbm picture (PBM, PGM, PPM, PAM or PFM)", Decoding.NEVER)
    start = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n\0").lower()
    for magic, found in _TEXTS:
        if magic in (start if found is _SVG else start[: len(magic)]):
            return found
    if not data.strip(b"\0"):
        return FileFormat("nothing but zero bytes")
    return FileFormat("text") if _TEXT.fullmatch(data[:1000].rstrip(b"\0")) else None


JPEG = FileFormat("a JPEG", Decoding.ALWAYS)
_PNG = FileFormat("a PNG", Decoding.ALWAYS)
_WEBP = FileFormat("a WebP", Decoding.ALWAYS)
_GIF = FileFormat("a GIF", Decoding.ALWAYS)
_BMP = FileFormat("a BMP", Decoding.ALWAYS)
_TIFF = FileFormat("a TIFF picture", Decoding.PARTLY)
_AVIF = FileFormat("an AVIF picture", Decoding.PARTLY)
HEIC = FileFormat("a HEIC picture", Decoding.PARTLY)
_JPEG_XL = FileFormat("a JPEG XL picture", Decoding.NEVER)
_JPEG_2000 = FileFormat("a JPEG 2000 picture", Decoding.NEVER)
_JPEG_LS = FileFormat("a JPEG-LS picture", Decoding.NEVER)
_JPEG_XR = FileFormat("a JPEG XR picture", Decoding.NEVER)
_RAW = FileFormat("a camera's RAW file", Decoding.NEVER)
_SVG = FileFormat("an SVG drawing", Decoding.NEVER)
_HTML = FileFormat("an HTML page")
_PROGRAM = FileFormat("a program")
_MPEG = FileFormat("a video (MPEG)")
_QUICKTIME = FileFormat("a video (QuickTime)")


_READERS = {JPEG: _jpeg, _PNG: _png, _WEBP: _webp, _AVIF: _avif, HEIC: _avif}


def _undecoded(text: str) -> FileFormat:
    return FileFormat(text, Decoding.NEVER)


_MAGICS = (
    (0, _SOI + b"\xff\xf7", _JPEG_LS),
    (0, _SOI + b"\xff", JPEG),
    (0, _PNG_SIGNATURE, _PNG),
    (0, b"GIF8", _GIF),
    (8, b"CR\x02", _RAW),
    (0, b"II*\0", _TIFF),
    (0, b"MM\0*", _TIFF),
    (0, b"II+\0", _TIFF),
    (0, b"MM\0+", _TIFF),
    (0, b"IIU\0", _RAW),  # Panasonic
    (0, b"IIRO", _RAW),  # Olympus
    (0, b"IIRS", _RAW),
    (0, b"MMOR", _RAW),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"FOVb", _RAW),  # Sigma
    (0, b"\0MRM", _RAW),  # Minolta
    (0, b"II\xbc", _JPEG_XR),
    (0, b"\xff\x0a", _JPEG_XL),
    (4, b"JXL \r\n\x87\n", _JPEG_XL),
    (4, b"jP  \r\n\x87\n", _JPEG_2000),
    (0, b"\xff\x4f\xff\x51", _JPEG_2000),
    (0, b"8BPS", _undecoded("a Photoshop picture")),
    (0, b"gimp xcf", _undecoded("a GIMP picture")),
    (0, b"\0\0\1\0", _undecoded("an icon")),
    (0, b"icns", _undecoded("an icon")),
    (0, b"v/1\x01", _undecoded("an OpenEXR picture")),
    (0, b"#?RADIANCE", _undecoded("a Radiance HDR picture")),
    (0, b"DDS ", _undecoded("a DirectDraw picture")),
    (0, b"qoif", _undecoded("a QOI picture")),
    (0, b"BPG\xfb", _undecoded("a BPG picture")),
    (0, b"AT&TFORM", _undecoded("a DjVu document")),
    (0, b"SIMPLE  =", _undecoded("a FITS picture")),
    (0, b"BM", _BMP),
    (0, b"%PDF", FileFormat("a PDF document")),
    (0, b"%!PS", FileFormat("a PostScript document")),
    (0, b"{\\rtf", FileFormat("a text document (RTF)")),
    (0, b"\xd0\xcf\x11\xe0", FileFormat("an Office document, or a folder's thumbnails (OLE)")),
    (0, b"\x1f\x8b", FileFormat("a gzip archive")),
    (0, b"BZh", FileFormat("a bzip2 archive")),
    (0, b"\xfd7zXZ\0", FileFormat("an xz archive")),
    (0, b"\x28\xb5\x2f\xfd", FileFormat("a Zstandard archive")),
    (0, b"PK\3\4", FileFormat("a ZIP archive")),
    (0, b"Rar!", FileFormat("a RAR archive")),
    (0, b"7z\xbc\xaf\x27\x1c", FileFormat("a 7z archive")),
    (257, b"ustar", FileFormat("a tar archive")),
    (0, b"SQLite format 3", FileFormat("a database (SQLite)")),
    (0, b"bplist00", FileFormat("a property list of Apple, not the file")),
    (0, b"PAR1", FileFormat("a Parquet file")),
    (0, b"\x1a\x45\xdf\xa3", FileFormat("a video (Matroska or WebM)")),
    (0, b"\0\0\1\xba", _MPEG),
    (0, b"\0\0\1\xb3", _MPEG),
    (0, b"FLV\1", FileFormat("a video (FLV)")),
    (0, b"0&\xb2u\x8ef\xcf\x11", FileFormat("a video (ASF, WMV)")),
    (4, b"moov", _QUICKTIME),
    (4, b"mdat", _QUICKTIME),
    (0, b"ID3", FileFormat("a sound (MP3)")),
    (0, b"OggS", FileFormat("a sound or video (Ogg)")),
    (0, b"fLaC", FileFormat("a sound (FLAC)")),
    (0, b"\0\5\x16\7", FileFormat("the Mac's notes of a file (AppleDouble)")),
    (0, b"\0\0\0\1Bud1", FileFormat("the Mac's notes of a folder")),
    (0, b"L\0\0\0\1\x14\2", FileFormat("a shortcut of Windows, not the file")),
    (0, b"\x7fELF", _PROGRAM),
    (0, b"MZ", _PROGRAM),
)

# Of files in boxes (ISO 14496-12), the most telling first.
_BRANDS = (
    *((brand, _AVIF) for brand in (b"avif", b"avis")),
    *((brand, HEIC) for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm")),
    (b"crx ", _RAW),  # Canon
    *((brand, HEIC) for brand in (b"mif1", b"msf1")),
    (b"qt  ", _QUICKTIME),
)

_RIFFS = {b"WEBP": _WEBP, b"AVI ": FileFormat("a video (AVI)"), b"WAVE": FileFormat("a sound (WAVE)")}

_NETPBM = re.compile(rb"P([1-7]|[Ff])\s")

_TEXTS = (
    (b"<svg", _SVG),
    (b"<!doctype html", _HTML),
    (b"<html", _HTML),
    (b"<head", _HTML),
    (b"<?xml", FileFormat("XML")),
    (b"version https://git-lfs", FileFormat("a pointer of Git LFS, not the file")),
    (b"[internetshortcut]", FileFormat("a link to a web page, not the file")),
    (b"data:image/", FileFormat("a picture in a web address (base64), not the file")),
    (b"{", FileFormat("JSON")),
)

_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")
