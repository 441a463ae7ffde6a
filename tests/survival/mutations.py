"""Damaged photographs, made from real ones: each from a seeded random generator alone."""

import functools
import gzip
import io
import pathlib
import random
import struct
import zlib
from collections.abc import Callable, Sequence

from PIL import Image

from transforms.patterns import IMAGE_SUFFIXES

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 60_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
MAGICS = (
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    b"RIFF\x10\x00\x00\x00WEBPVP8L",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"%PDF-1.7",
    b"\x00\x00\x00\x0cjP  ",
)
Sources = Sequence[tuple[str, bytes]]


def sources(photos: str | None = None) -> Sources:
    """(name, content) of undamaged files of every format, from scikit-image's photographs and those in the
    folder `photos`.
    """
    from skimage import data

    astronaut, cat, coffee = (Image.fromarray(p) for p in (data.astronaut(), data.chelsea(), data.coffee()))
    grey = Image.fromarray(data.camera())
    made = [
        ("jpeg", _saved(astronaut, "JPEG")),
        ("jpeg 4:4:4", _saved(coffee, "JPEG", quality=95, subsampling=0, exif=_exif(6))),
        ("progressive jpeg", _saved(cat, "JPEG", progressive=True)),
        ("grey jpeg", _saved(grey, "JPEG")),
        ("cmyk jpeg", _saved(cat.convert("CMYK"), "JPEG")),
        ("jpeg with restarts", _saved(cat, "JPEG", restart_marker_rows=1)),
        ("mpo", _saved(cat, "MPO", save_all=True, append_images=[cat.rotate(1)])),
        ("png", _saved(cat, "PNG", compress_level=1)),
        (
            "png 16 bit",
            _saved(Image.fromarray(data.camera().astype("uint16") * 257), "PNG", compress_level=1),
        ),
        ("palette png", _saved(cat.quantize(64), "PNG", transparency=3)),
        ("alpha png", _saved(_with_alpha(cat), "PNG", compress_level=1)),
        ("bilevel png", _saved(grey.convert("1"), "PNG")),
        ("animated png", _saved(cat, "PNG", save_all=True, append_images=[cat.rotate(1)], compress_level=1)),
        ("webp", _saved(coffee, "WEBP", method=0)),
        ("lossless webp", _saved(cat, "WEBP", lossless=True, method=0)),
        ("alpha webp", _saved(_with_alpha(cat), "WEBP", method=0)),
        ("animated webp", _saved(cat, "WEBP", save_all=True, append_images=[cat.rotate(1)], method=0)),
        ("gif", _saved(cat, "GIF")),
        (
            "animated gif",
            _saved(
                cat.quantize(32),
                "GIF",
                save_all=True,
                append_images=[cat.rotate(i).quantize(32) for i in range(4)],
            ),
        ),
        ("bmp", _saved(cat, "BMP")),
        ("tiff", _saved(cat, "TIFF")),
        ("jpeg tiff", _saved(cat, "TIFF", compression="jpeg")),
        ("lzw tiff", _saved(_with_alpha(cat), "TIFF", compression="tiff_lzw", exif=_exif(6))),
        ("avif", _saved(cat, "AVIF", speed=10)),
        ("palette bmp", _saved(cat.quantize(64), "BMP")),
        ("rle bmp", _rle_bmp(300, 200)),
    ]
    paths = sorted(pathlib.Path(photos).rglob("*")) if photos else []
    paths = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    return made + [("photo", path.read_bytes()) for path in paths[:200]]


def mutation(files: Sources, rng: random.Random) -> tuple[str, bytes, bool]:
    """One damaged file: how it was made, its content, and whether it is undamaged after all."""
    way = rng.choices(list(_WAYS), weights=list(_WAYS.values()))[0]
    name, data = rng.choice(files)
    if way is _whole:
        return f"undamaged of {name}", data, True
    if way in (_bomb, _renamed):
        name, data = way(rng)
        return f"{way.__name__[1:]}: {name}", data, False
    other = rng.choice(files)[1]
    return f"{way.__name__[1:]} of {name}", way(data, other, rng), False


def _whole(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data


def _bit_flips(data: bytes, other: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    within = min(
        len(data), rng.choice((64, 700, len(data)))
    )  # headers are hit more often than their size would have it
    for _ in range(rng.choice((1, 1, 4, 16, 64))):
        damaged[rng.randrange(within)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _truncated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    boundaries = _boundaries(data)
    return data[
        : rng.choice(
            (
                rng.randrange(64),
                rng.randrange(len(data)),
                len(data) - rng.randrange(1, 16),
                max(0, rng.choice(boundaries) + rng.randrange(-2, 6)),
            )
        )
    ]


def _overwritten(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    size = min(len(data) - start, rng.choice((1, 16, 300, 5000)))
    fill = rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size)))
    return data[:start] + fill + data[start + size :]


def _cut_or_doubled(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.choice((rng.choice(_boundaries(data)), rng.randrange(len(data))))
    part = data[start : start + rng.choice((1, 2, 100, 4000))]
    return data[:start] + rng.choice((b"", part * rng.choice((2, 3, 50)))) + data[start + len(part) :]


def _spliced(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return (
        data[: rng.choice((rng.randrange(200), rng.randrange(len(data))))]
        + other[rng.choice((0, rng.randrange(len(other)))) :]
    )


def _wrong_header(data: bytes, other: bytes, rng: random.Random) -> bytes:
    magic = rng.choice(MAGICS)
    return magic + data[rng.choice((0, len(magic))) :]


def _extreme_number(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A number of a header set to an extreme one; checksums of a PNG set right, or nothing but them would be
    tested.
    """
    within = rng.choice((40, 200, 1000))
    at = rng.choice(
        (rng.randrange(min(len(data), within)), rng.choice(_boundaries(data)) + rng.randrange(12))
    )
    number, form = rng.choice(EXTREMES), rng.choice(("<H", ">H", "<I", ">I"))
    packed = struct.pack(form, number & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
    return _png_checksums(data[:at] + packed + data[at + len(packed) :])


def _absurd_exif(data: bytes, other: bytes, rng: random.Random) -> bytes:
    tags = b"".join(
        struct.pack(
            ">HHII",
            rng.choice((0x0112, 0x8769, 0x8825, 0x0100, rng.randrange(65536))),
            rng.choice((1, 2, 3, 4, 5, 12, 13, 99)),
            rng.choice(EXTREMES),
            rng.choice((8, 0, rng.randrange(200), 0x00060000, 0x00090000, 0xFFFFFFFF)),
        )
        for _ in range(rng.choice((1, 3, 40)))
    )
    count = rng.choice((len(tags) // 12, 0, 65535))
    tiff = (
        b"MM\0*\0\0\0\x08"
        + struct.pack(">H", count)
        + tags
        + struct.pack(">I", rng.choice((0, 8, 0xFFFFFFFF)))
    )
    return _with_metadata(data, b"Exif\0\0" + tiff, 0xE1, b"eXIf", tiff)


def _absurd_icc(data: bytes, other: bytes, rng: random.Random) -> bytes:
    profile = rng.choice(
        (b"", b"\0" * 40_000, rng.randbytes(3000), struct.pack(">I", 0xFFFFFFFF) + b"acsp" * 99)
    )
    parts = bytes([rng.choice((0, 1, 255)), rng.choice((0, 1, 255))])
    packed = rng.choice((zlib.compress(profile), profile, _zeros(200 << 20)))
    return _with_metadata(data, b"ICC_PROFILE\0" + parts + profile, 0xE2, b"iCCP", b"x\0\0" + packed)


def _trailing(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A picture with others, a video, or what a file system leaves behind it; often with more than one."""
    video = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + rng.randbytes(200_000)
    trailers = (other, video, b"MotionPhoto_Data" + video, b"\0" * 1_000_000, b"\xff\xda" * 5000, b"\xff\xd8")
    return data + b"".join(rng.choices(trailers, k=rng.choice((1, 1, 3))))


def _without_end(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A picture that lacks its last bytes, and what may stand in their place."""
    kept = data[: -rng.choice((1, 2, 2, 3, 12, 100, 1000))]
    return kept + rng.choice((b"", b"", b"\0" * 4096, b"\xff" * 100, other))


def _same_size(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """An edit in place: bytes are exchanged within the file, or taken from the same place of another one."""
    size = min(len(data) // 2, rng.choice((2, 8, 64, 4096)))
    a, b = sorted(rng.randrange(len(data) - size) for _ in range(2))
    if b < a + size:
        return (data[:a] + other[a : a + size] + data[a + size :])[: len(data)].ljust(len(data), b"\0")
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def _bomb(rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(sorted(_BOMBS))
    return name, _made_bomb(name)


def _renamed(rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(sorted(_OTHER_FILES))
    return name, _OTHER_FILES[name]


_WAYS: dict[Callable, int] = {
    _whole: 4,
    _bit_flips: 22,
    _truncated: 18,
    _overwritten: 8,
    _cut_or_doubled: 8,
    _spliced: 8,
    _wrong_header: 5,
    _extreme_number: 10,
    _absurd_exif: 5,
    _absurd_icc: 4,
    _trailing: 8,
    _without_end: 8,
    _same_size: 6,
    _bomb: 4,
    _renamed: 2,
}


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _boundaries(data: bytes) -> list[int]:
    """Where parts of the file begin: markers of a JPEG, chunks of a PNG or RIFF, blocks of a GIF; at least
    0.
    """
    found = [0]
    for sign in (
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xda",
        b"\xff\xdb",
        b"\xff\xe1",
        b"\xff\xd0",
        b"IHDR",
        b"PLTE",
        b"IDAT",
        b"IEND",
        b"VP8",
        b"ALPH",
        b"ANMF",
        b"fdAT",
        b"\x21\xf9",
        b"\x2c\0\0",
    ):
        at = data.find(sign)
        while at >= 0 and len(found) < 200:
            found.append(at)
            at = data.find(sign, at + 1)
    return found


def _with_metadata(data: bytes, segment: bytes, marker: int, chunk: bytes, content: bytes) -> bytes:
    """`data` with a segment after a JPEG's start, a chunk after a PNG's header, a chunk at a WEBP's end;
    other formats get it appended.
    """
    if data.startswith(b"\xff\xd8"):
        return (
            data[:2]
            + b"\xff"
            + bytes([marker])
            + struct.pack(">H", min(65535, 2 + len(segment)))
            + segment[:65533]
            + data[2:]
        )
    if data.startswith(b"\x89PNG"):
        return data[:33] + _chunk(chunk, content) + data[33:]
    name = {b"eXIf": b"EXIF", b"iCCP": b"ICCP"}[chunk]
    return data + name + struct.pack("<I", len(content)) + content


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png_checksums(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG"):
        return data
    made, at = data[:8], 8
    while at + 12 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        if at + 12 + size > len(data):
            break
        made += _chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + size])
        at += 12 + size
    return made + data[at:]


@functools.lru_cache(maxsize=4)
def _zeros(size: int) -> bytes:
    """`size` zeros compressed, made without having them all."""
    packer, block = zlib.compressobj(1), bytes(1 << 20)
    return b"".join(
        [packer.compress(block) for _ in range(size >> 20)]
        + [packer.compress(bytes(size & (1 << 20) - 1)), packer.flush()]
    )


def _png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    interlaced: int = 0,
    rows: int | None = None,
    *extra: bytes,
) -> bytes:
    """A PNG of zeros; `rows` of its pixels are there, all by default."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    size = (height if rows is None else rows) * (1 + -(-width * samples * depth // 8))
    palette = _chunk(b"PLTE", bytes(768)) + _chunk(b"tRNS", bytes(256)) if colour == 3 else b""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + palette
        + b"".join(extra)
        + _chunk(b"IDAT", _zeros(size))
        + _chunk(b"IEND", b"")
    )


def _solid(kind: str, width: int, height: int, mode: str = "RGB", **options) -> bytes:
    return _saved(Image.new(mode, (width, height)), kind, **options)


def _rescaled_jpeg(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that claims another size."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def _many_scans(data: bytes, scans: int) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def _rle_bmp(width: int, height: int, line: bytes = b"") -> bytes:
    """An 8-bit BMP in runs; each line is `line` and an end of line, by default runs of rising values."""
    line = line or b"".join(bytes([min(50, width - x), x % 256]) for x in range(0, width, 50))
    pixels = (line + b"\0\0") * height + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return (
        b"BM" + struct.pack("<IHHI", 54 + 1024 + len(pixels), 0, 0, 54 + 1024) + header + bytes(1024) + pixels
    )


_BOMBS: dict[str, Callable[[], bytes]] = {
    "60,000 x 60,000 png": lambda: _png(60_000, 60_000, 8, 2, rows=1000),
    "60,000 x 60,000 bilevel png": lambda: _png(60_000, 60_000, 1, 0),
    "9,999 x 9,999 rgb png": lambda: _png(9_999, 9_999, 8, 2),
    "9,999 x 9,999 alpha png": lambda: _png(9_999, 9_999, 8, 6),
    "9,999 x 9,999 16-bit png": lambda: _png(9_999, 9_999, 16, 0),
    "9,999 x 9,999 palette png": lambda: _png(9_999, 9_999, 8, 3),
    "9,999 x 9,999 interlaced grey png": lambda: _png(9_999, 9_999, 8, 0, 1, 10_010),
    "10,000,000 x 1 png": lambda: _png(10_000_000, 1, 8, 2),
    "1 x 10,000,000 png": lambda: _png(1, 10_000_000, 8, 6),
    "8,000 x 8,000 16-bit alpha png": lambda: _png(8_000, 8_000, 16, 6),
    "png with a text of 1 GB": lambda: _png(8, 8, 8, 2, 0, None, _chunk(b"zTXt", b"x\0\0" + _zeros(1 << 30))),
    "png with 100 texts of 60 MB": lambda: _png(
        8, 8, 8, 2, 0, None, *[_chunk(b"iTXt", b"x\0\1\0\0\0" + _zeros(60 << 20))] * 100
    ),
    "png with a million empty chunks": lambda: _png(8, 8, 8, 2, 0, None, _chunk(b"teSt", b"") * 1_000_000),
    "65,500 x 65,500 jpeg": lambda: _rescaled_jpeg(_solid("JPEG", 64, 64), 65_500, 65_500),
    "9,999 x 9,999 jpeg": lambda: _solid("JPEG", 9_999, 9_999),
    "9,999 x 9,999 jpeg header": lambda: _rescaled_jpeg(_solid("JPEG", 64, 64), 9_999, 9_999),
    "9,999 x 9,999 progressive jpeg": lambda: _rescaled_jpeg(
        _solid("JPEG", 64, 64, progressive=True, subsampling=0), 9_999, 9_999
    ),
    "8,000 x 8,000 progressive jpeg": lambda: _solid("JPEG", 8_000, 8_000, progressive=True, subsampling=0),
    "8,000 x 8,000 cmyk progressive jpeg": lambda: _rescaled_jpeg(
        _solid("JPEG", 64, 64, "CMYK", progressive=True), 8_000, 8_000
    ),
    "6,000 x 6,000 jpeg of 30 scans": lambda: _many_scans(
        _solid("JPEG", 6_000, 6_000, "L", progressive=True), 22
    ),
    "9,999 x 9,999 jpeg of 3,000 scans": lambda: _many_scans(
        _rescaled_jpeg(_solid("JPEG", 64, 64, progressive=True), 9_999, 9_999), 3_000
    ),
    "200 x 200 jpeg of 3,000 scans": lambda: _many_scans(_solid("JPEG", 200, 200, progressive=True), 3_000),
    "jpeg with a megabyte of fill": lambda: b"\xff\xd8" + b"\xff" * 1_000_000 + _solid("JPEG", 64, 64)[2:],
    "4,000 x 4,000 webp": lambda: _solid("WEBP", 4_000, 4_000, method=0),
    "4,500 x 4,500 lossless webp": lambda: _solid("WEBP", 4_500, 4_500, "RGBA", lossless=True, method=0),
    "7,000 x 7,000 webp": lambda: _solid("WEBP", 7_000, 7_000, method=0),
    "16,383 x 16,383 webp canvas": lambda: (
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xfe\x3f\0" * 2 + b"VP8L\0\0\0\0"
    ),
    "65,535 x 65,535 gif": lambda: (
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + _solid("GIF", 8, 8, "P")[13:]
    ),
    "9,999 x 9,999 gif": lambda: _solid("GIF", 9_999, 9_999, "P"),
    "gif with a larger frame": lambda: (lambda gif: gif[:6] + struct.pack("<HH", 8, 8) + gif[10:])(
        _solid("GIF", 5_000, 5_000, "P")
    ),
    "gif of 2,000 frames": lambda: _saved(
        Image.new("P", (64, 64)),
        "GIF",
        save_all=True,
        append_images=[Image.new("P", (64, 64), i % 256) for i in range(2_000)],
    ),
    "webp of 300 frames": lambda: _saved(
        Image.new("RGB", (64, 64)),
        "WEBP",
        save_all=True,
        append_images=[Image.new("RGB", (64, 64), (i % 256, 0, 0)) for i in range(300)],
    ),
    "60,000 x 60,000 bmp": lambda: (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "bmp of negative sides": lambda: (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -9_000, -(1 << 31), 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "60,000 x 1,600 rle bmp of empty lines": lambda: _rle_bmp(60_000, 1_600, b"\1\0"),
    "2,700 x 2,700 rle bmp of empty lines": lambda: _rle_bmp(2_700, 2_700, b"\1\0"),
}


@functools.cache
def _made_bomb(name: str) -> bytes:
    return _BOMBS[name]()


_OTHER_FILES: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\xff",
    "text": "Ein schöner Turm\n".encode() * 500,
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "mp4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + b"\0\0\x10\0mdat" + bytes(4096),
    "avi": b"RIFF\0\x10\0\0AVI LIST" + bytes(4096),
    "wave": b"RIFF\0\x10\0\0WAVEfmt " + bytes(4096),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(4096),
    "pdf": b"%PDF-1.7\n" + bytes(4096),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "gzip": gzip.compress(b"x" * 10_000, mtime=0),
    "zip": b"PK\x03\x04" + bytes(400),
    "elf": b"\x7fELF\x02\x01\x01" + bytes(400),
    "tiff": b"II*\0\x08\0\0\0" + bytes(400),
    "zeros": bytes(100_000),
}
