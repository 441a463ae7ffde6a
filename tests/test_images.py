"""Reading and decoding photographs."""

import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.file_systems import write
from tests.pictures import encoded
from transforms import images
from transforms.types import DecodedImage, Failure, ImageRef, ReadingConfig


def gradient(height=40, width=60):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


class TestDecode:
    @pytest.mark.parametrize(
        "kind, mode",
        [
            ("PNG", "RGB"),
            ("PNG", "L"),
            ("PNG", "P"),
            ("PNG", "1"),
            ("PNG", "RGBA"),
            ("PNG", "LA"),
            ("JPEG", "RGB"),
            ("JPEG", "L"),
            ("JPEG", "CMYK"),
            ("WEBP", "RGB"),
            ("WEBP", "RGBA"),
            ("GIF", "P"),
            ("BMP", "RGB"),
        ],
    )
    def test_every_format_and_mode_gives_the_picture(self, kind, mode):
        source = Image.fromarray(gradient()).convert(mode)
        pixels, width, height, scale = images.decode_image(encoded(source, kind), 1000)
        assert (
            pixels.dtype == np.uint8
            and pixels.shape == (40, 60, 3)
            and (width, height, scale) == (60, 40, 1.0)
        )
        expected = np.asarray(source.convert("RGB"), np.int16)
        assert np.abs(pixels.astype(np.int16) - expected).mean() < 12

    def test_16_bit_grey_keeps_its_range(self):
        grey = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27
        pixels, *_ = images.decode_image(encoded(Image.fromarray(grey)), 1000)
        assert np.array_equal(pixels[..., 0], (grey >> 8).astype(np.uint8))

    def test_transparent_pixels_become_white(self):
        pixels, *_ = images.decode_image(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0))), 100)
        assert (pixels == 255).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, orientation):
        upright = Image.fromarray(
            np.kron(np.array([[10, 80, 150], [220, 30, 100]], np.uint8), np.ones((16, 16), np.uint8))
        )
        inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[
            orientation
        ]  # the operation that undoes it
        stored = upright if inverse is None else upright.transpose(Image.Transpose(inverse))
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(stored, "JPEG", exif=exif, quality=95)
        pixels, width, height, _ = images.decode_image(data, 1000)
        assert (width, height) == upright.size
        assert np.abs(pixels[..., 0].astype(int) - np.asarray(upright)).mean() < 3
        unturned, *_ = images.decode_image(data, 1000, ReadingConfig(exif_orientation=False))
        assert unturned.shape[:2] == stored.size[::-1]

    def test_a_large_image_is_shrunk(self):
        pixels, width, height, scale = images.decode_image(encoded(Image.fromarray(gradient(300, 400))), 100)
        assert pixels.shape == (75, 100, 3) and (width, height, scale) == (400, 300, 0.25)

    @pytest.mark.parametrize(
        "data, kind",
        [
            (b"", "empty_file"),
            (b"no picture at all", "not_an_image"),
            (encoded(Image.fromarray(gradient()), "JPEG")[:-200], "corrupt"),
            (encoded(Image.fromarray(gradient()), "PNG")[:-60], "corrupt"),
            (encoded(Image.fromarray(gradient()), "WEBP")[:100], "corrupt"),
            (encoded(Image.fromarray(gradient(101, 101))), "too_large"),
        ],
        ids=["empty", "text", "truncated jpeg", "truncated png", "truncated webp", "too large"],
    )
    def test_bad_files_say_what_is_wrong(self, data, kind):
        with pytest.raises(images.DecodeError) as error:
            images.decode_image(data, 1000, ReadingConfig(max_image_pixels=10_000))
        assert error.value.kind == kind

    def test_damage_is_said_in_words(self):
        noise = np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)
        for kind, article in (("PNG", "a PNG"), ("GIF", "a GIF")):
            data = bytearray(encoded(Image.fromarray(noise), kind))
            middle = len(data) // 2
            data[middle : middle + 999] = bytes(999)
            with pytest.raises(images.DecodeError, match=rf"^{article} that is damaged \("):
                images.decode_image(bytes(data), 1000)


def chunk(name, content, damaged=False):
    """A chunk of a PNG; its checksum is wrong where it is damaged."""
    checksum = zlib.crc32(name + content) ^ damaged
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def with_chunks(png, *chunks):
    """`png` with chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def with_segment(jpeg, marker, content):
    """`jpeg` with a segment in front."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def textured(height=200, width=300):
    """A picture in which no two blocks are alike."""
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    return Image.fromarray((gradient(height, width) // 2 + noise).astype(np.uint8))


def heic(image, **options):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + random.Random(0).randbytes(400_000) + b"\xff\xda" * 2000
BASELINE = encoded(textured(), "JPEG", quality=90)
PROGRESSIVE = encoded(textured(), "JPEG", quality=90, progressive=True)
RESTARTS = encoded(textured(), "JPEG", quality=90, restart_marker_rows=1)
COLOURS_APART = encoded(textured().convert("CMYK"), "JPEG", progressive=True)
MPO = encoded(textured(), "MPO", save_all=True, append_images=[textured().rotate(1), textured().rotate(2)])
LOSSY_WEBP = encoded(textured(), "WEBP")
WHOLE = {"baseline": BASELINE, "progressive": PROGRESSIVE, "restarts": RESTARTS, "cmyk": COLOURS_APART}


def same(data, expected, warnings):
    """Whether a file decodes as another one, with this many warnings."""
    told = []
    pixels, *rest = images.decode_image(data, 1000, warn=told.append)
    wanted, *others = images.decode_image(expected, 1000)
    return np.array_equal(pixels, wanted) and rest == others and len(told) == warnings


class TestWhatLiesBehind:
    """Markers count inside the picture alone."""

    @pytest.mark.parametrize("name", WHOLE)
    @pytest.mark.parametrize(
        "trailer",
        [VIDEO, BASELINE + MPO, PROGRESSIVE * 300, b"MotionPhoto_Data" + VIDEO, b"\0" * 5000, b"\xff" * 5000],
        ids=["video", "pictures", "300 pictures", "samsung", "zeros", "ones"],
    )
    def test_a_jpeg_with_a_trailer(self, name, trailer):
        assert same(WHOLE[name] + trailer, WHOLE[name], 0)

    def test_a_large_motion_photo(self):
        large = encoded(Image.new("RGB", (4000, 3000), "teal"), "JPEG")
        assert images.decode_image(large + VIDEO * 20, 100)[1:3] == (4000, 3000)

    def test_a_picture_of_several_is_its_first(self):
        assert same(MPO + VIDEO, MPO, 0)

    @pytest.mark.parametrize("data", [encoded(textured()), LOSSY_WEBP, encoded(textured(), "BMP")])
    def test_other_formats(self, data):
        assert same(data + VIDEO, data, 0)

    def test_a_thumbnail_has_markers_of_its_own(self):
        data = with_segment(BASELINE, 0xE1, b"Exif\0\0" + PROGRESSIVE[:30_000] + b"\xff\xda" * 3000)
        assert same(data, BASELINE, 0)

    @pytest.mark.parametrize("ending", [0, 2], ids=["whole", "without end"])
    def test_scans_inside_count_whatever_follows(self, ending):
        data = encoded(Image.new("L", (1000, 1000)), "JPEG", progressive=True)
        last = data.rfind(b"\xff\xda")
        bomb = data[:-2] + data[last:-2] * 2000 + data[-2:]
        with pytest.raises(images.DecodeError, match=r"1000 x 1000 pixels in 20\d\d scans"):
            images.decode_image(bomb[: len(bomb) - ending] + VIDEO, 100)

    def test_scans_behind_markers_that_restarts_pass_over_count(self):
        data = encoded(Image.new("L", (1000, 1000)), "JPEG", progressive=True, restart_marker_rows=1)
        last = data.rfind(b"\xff\xda")
        bomb = data[:-2] + (b"\xff\x05\xff\xff" + data[last:-2]) * 2000 + data[-2:]
        with pytest.raises(images.DecodeError, match=r"in 20\d\d scans"):
            images.decode_image(bomb, 100)


class TestMissingEnds:
    """A file that lacks its last bytes is a photograph where its rows are all there."""

    @pytest.mark.parametrize("name", WHOLE)
    @pytest.mark.parametrize("missing", [1, 2])
    @pytest.mark.parametrize(
        "filler", [b"", b"\0" * 3000, BASELINE], ids=["", "zeros behind", "another picture behind"]
    )
    def test_without_its_end_marker(self, name, missing, filler):
        assert same(WHOLE[name][:-missing] + filler, WHOLE[name], 1)

    def test_without_its_end_marker_before_a_video(self):
        for seed in range(20):
            video = VIDEO[:24] + random.Random(seed).randbytes(50_000)
            pixels, *_ = images.decode_image(BASELINE[:-2] + video, 1000)
            assert np.array_equal(pixels, images.decode_image(BASELINE, 1000)[0])

    @pytest.mark.parametrize("name", WHOLE)
    @pytest.mark.parametrize("filler", [0, 3000])
    def test_cut_at_any_place_it_is_whole_but_for_a_corner_or_it_is_corrupt(self, name, filler):
        whole = images.decode_image(WHOLE[name], 1000)[0].astype(int)
        cuts = [*range(3, 12), *random.Random(0).sample(range(12, len(WHOLE[name]) - 30), 60)]
        decoded = 0
        for cut in cuts:
            try:
                pixels, *_ = images.decode_image(WHOLE[name][:-cut] + b"\0" * filler, 1000)
            except images.DecodeError as e:
                assert e.kind == "corrupt" and (cut > 2)
                continue
            decoded += 1
            differing = np.argwhere((pixels != whole).any(axis=2))
            assert not len(differing) or (differing.min(axis=0) >= (200 - 32, 300 - 32)).all()
        assert decoded < len(cuts) / 2

    def test_a_host_that_lets_pillow_pass_over_truncation_changes_nothing(self, monkeypatch):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        for data in (BASELINE, encoded(textured()), encoded(textured(), "BMP")):
            with pytest.raises(images.DecodeError):
                images.decode_image(data[: len(data) // 2], 1000)
        assert ImageFile.LOAD_TRUNCATED_IMAGES

    def test_a_small_one_is_not_all_corner(self):
        data = encoded(textured(24, 24), "JPEG", quality=95)
        assert same(data[:-2], data, 1)
        with pytest.raises(images.DecodeError, match="the picture's data end before its last row"):
            images.decode_image(data[: -(len(data) - data.rindex(b"\xff\xda")) // 2], 1000)

    def test_a_progressive_one_without_its_last_scan_is_corrupt(self):
        for scan in range(1, PROGRESSIVE.count(b"\xff\xda")):
            cut = [at for at in range(len(PROGRESSIVE)) if PROGRESSIVE.startswith(b"\xff\xda", at)][scan]
            with pytest.raises(images.DecodeError) as error:
                images.decode_image(PROGRESSIVE[:cut], 1000)
            assert error.value.kind == "corrupt"

    def test_one_that_is_shrunk_while_it_is_decoded(self):
        data = encoded(textured(1600, 2000), "JPEG", quality=90)
        told = []
        pixels, *rest = images.decode_image(data[:-2], 200, warn=told.append)
        wanted, *others = images.decode_image(data, 200)
        assert np.array_equal(pixels, wanted) and rest == others and len(told) == 1
        with pytest.raises(images.DecodeError, match="the picture's data end before its last row"):
            images.decode_image(data[:-5000], 200)

    def test_a_png_without_its_last_chunk(self):
        data = encoded(textured())
        for missing in (4, 8, 12):
            assert same(data[:-missing], data, 1)
        for missing in (30, 1000):
            with pytest.raises(images.DecodeError) as error:
                images.decode_image(data[:-missing], 1000)
            assert error.value.kind == "corrupt"

    def test_a_webp_whose_metadata_are_cut(self):
        data = encoded(textured(), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0" + bytes(500))
        assert same(data[:-300], data, 1)
        with pytest.raises(images.DecodeError) as error:
            images.decode_image(data[:-2000], 1000)
        assert error.value.kind == "corrupt"


def told(data):
    """What is told of a file that is decoded."""
    warnings = []
    images.decode_image(data, 1000, warn=warnings.append)
    return warnings


class TestDamagedData:
    """A JPEG's decoder makes a picture of anything: what its data do not hold is told."""

    @pytest.mark.parametrize("name", WHOLE)
    @pytest.mark.parametrize("behind", [b"", VIDEO, BASELINE], ids=["", "video", "picture"])
    @pytest.mark.parametrize("side", [1000, 100], ids=["", "shrunk"])
    def test_cut_in_half_with_an_end_marker_it_is_corrupt(self, name, behind, side):
        for part in (0.3, 0.5, 0.9):
            cut = WHOLE[name][: int(part * len(WHOLE[name]))] + b"\xff\xd9" + behind
            with pytest.raises(images.DecodeError, match="before its last row|the last scan") as error:
                images.decode_image(cut, side)
            assert error.value.kind == "corrupt"

    @pytest.mark.parametrize("name", WHOLE)
    @pytest.mark.parametrize("lost", [bytes(3000), random.Random(1).randbytes(3000), b""])
    def test_damaged_in_the_middle_it_is_told_or_corrupt(self, name, lost):
        middle = len(WHOLE[name]) // 2
        try:
            assert told(WHOLE[name][:middle] + lost + WHOLE[name][middle + 3000 :])
        except images.DecodeError as e:
            assert e.kind == "corrupt"

    @pytest.mark.parametrize(
        "options",
        [
            {"optimize": True},
            {"progressive": True},
            {"restart_marker_blocks": 1},
            {"subsampling": 0},
            {"quality": 5, "optimize": True},
            {"restart_marker_rows": 1, "progressive": True},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("size", [(7, 5), (333, 1), (640, 481), (1001, 900)])
    def test_a_whole_one_is_told_nothing_of(self, options, size):
        for source in (Image.new("RGB", size), Image.new("L", size, 200), textured(*size[::-1])):
            assert not told(encoded(source, "JPEG", **options))

    @pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
    def test_other_formats_say_that_they_are_cut(self, kind):
        with pytest.raises(images.DecodeError, match="the file ends before its picture does") as error:
            images.decode_image(encoded(textured(), kind)[:-5000], 1000)
        assert error.value.kind == "corrupt"

    def test_a_png_whose_pixels_do_not_fit_a_checksum(self):
        data = bytearray(encoded(textured()))
        data[data.index(b"IEND") - 5] ^= 1  # the chunk's own
        assert told(bytes(data)) == ["its pixels do not have the checksum that stands behind them"]
        data[len(data) // 2] ^= 1
        with pytest.raises(images.DecodeError):
            images.decode_image(bytes(data), 1000)

    @pytest.mark.parametrize("before", [b"\r\n", b"\n", b"\xef\xbb\xbf", b" \r\n\r\n"])
    @pytest.mark.parametrize("name", ["baseline", "progressive"])
    def test_white_space_in_front_of_a_picture_is_passed_over_and_told(self, name, before):
        assert same(before + WHOLE[name], WHOLE[name], 1)
        assert told(before + WHOLE[name]) == [f"{len(before)} bytes of white space stand before the picture"]
        with pytest.raises(images.DecodeError, match="text|none of"):
            images.decode_image(before + b"no picture", 100)


class TestMetadata:
    """What is not needed to see the picture may be damaged."""

    @pytest.mark.parametrize("name", [b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"iCCP", b"pHYs", b"gAMA", b"tIME"])
    @pytest.mark.parametrize("content", [b"", b"\xff" * 5, b"Comment\0\0hello"])
    @pytest.mark.parametrize("damaged", [True, False])
    def test_a_chunk(self, name, content, damaged):
        data = encoded(textured())
        assert same(with_chunks(data, chunk(name, content, damaged)), data, 0)
        assert same(data[:-12] + chunk(name, content, damaged) + data[-12:], data, 0)

    @pytest.mark.parametrize("length", [0, 3, 70, 70_000, 0xFFFFFFF0])
    def test_a_chunk_of_a_wrong_length(self, length):
        data = encoded(textured())
        text = chunk(b"tEXt", b"Comment\0IDAT and IEND in a text")
        assert same(with_chunks(data, struct.pack(">I", length) + text[4:]), data, 0)

    def test_a_chunk_with_a_damaged_name(self):
        data = encoded(textured())
        assert same(with_chunks(data, chunk(b"tEXt", b"Comment\0hello").replace(b"tEXt", b"TEXt")), data, 0)

    def test_a_text_that_unpacks_to_gigabytes(self):
        data = encoded(textured())
        assert same(with_chunks(data, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(200 << 20), 1))), data, 0)

    @pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
    def test_what_is_needed_must_be_right(self, name):
        data = bytearray(encoded(textured().quantize(64)))
        data[data.index(name) + 6] ^= 1
        with pytest.raises(images.DecodeError) as error:
            images.decode_image(bytes(data), 1000)
        assert error.value.kind == "corrupt"

    @pytest.mark.parametrize(
        "marker, content",
        [
            (0xE0, b"JFIF"),
            (0xE0, b"JFXX\0\x10" + PROGRESSIVE[:5000]),
            (0xE1, b"Exif\0\0" + b"\xff" * 100),
            (0xE1, b""),
            (0xE2, b"ICC_PROFILE\0"),
            (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
            (0xED, b"Photoshop 3.0\x008BIM\xff"),
            (0xEE, b"Adobe"),
            (0xFE, b""),
        ],
    )
    def test_a_segment(self, marker, content):
        assert same(with_segment(BASELINE, marker, content), BASELINE, 0)

    @pytest.mark.parametrize(
        "data",
        [
            with_segment(BASELINE, 0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'),
            with_segment(BASELINE, 0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"),
            with_chunks(
                encoded(textured()), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation>6<")
            ),
            with_chunks(encoded(textured()), chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6")),
            with_chunks(
                encoded(textured()),
                chunk(
                    b"zTXt",
                    b"Raw profile type exif\0\0"
                    + zlib.compress(b"\nexif\n      20\n4d4d002a00000008000101120003000000\n0100060000\n"),
                ),
            ),
        ],
        ids=["jpeg xmp", "jpeg exif", "png xmp", "png exif", "png profile"],
    )
    def test_the_orientation_is_read_wherever_it_stands(self, data):
        assert images.decode_image(data, 1000)[1:3] == (200, 300)
        assert images.decode_image(data, 1000, ReadingConfig(exif_orientation=False))[1:3] == (300, 200)


class TestFormats:
    """What a file is, whatever its suffix says."""

    @pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "1", "I;16"])
    def test_a_tiff(self, compression, mode):
        if compression == "jpeg" and mode not in ("RGB", "L"):
            pytest.skip("is not written by Pillow")
        source = Image.fromarray(np.arange(60_000, dtype=np.uint16).reshape(200, 300))
        source = source if mode == "I;16" else textured().convert(mode)
        pixels, *rest = images.decode_image(encoded(source, "TIFF", compression=compression), 1000)
        expected = np.asarray(source) >> 8 if mode == "I;16" else np.asarray(source.convert("RGB"))
        assert rest == [300, 200, 1.0]
        assert np.abs(pixels - (expected[..., None] if mode == "I;16" else expected).astype(int)).mean() < 8

    @pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
    @pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
    def test_orientation(self, kind, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        jpeg = encoded(textured(), "JPEG", exif=exif, quality=95)
        other = encoded(textured(), kind, exif=exif, **({"quality": 95} if kind == "AVIF" else {}))
        for reading in (ReadingConfig(), ReadingConfig(exif_orientation=False)):
            pixels, *rest = images.decode_image(other, 1000, reading)
            wanted, *others = images.decode_image(jpeg, 1000, reading)
            assert rest == others and np.abs(pixels - wanted.astype(int)).mean() < 12

    def test_an_avif(self):
        for source in (textured(), textured().convert("RGBA"), textured().convert("L")):
            pixels, *rest = images.decode_image(encoded(source, "AVIF", quality=95), 150)
            wanted, *others = images.decode_image(encoded(source), 150)
            assert rest == others == [300, 200, 0.5] and np.abs(pixels - wanted.astype(int)).mean() < 8

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
    def test_a_heic(self, mode):
        source, registered = textured().convert(mode), {*images.Image.OPEN}  # imageio registers HEIF
        for tile_size in (0, 64):
            pixels, *rest = images.decode_image(heic(source, tile_size=tile_size), 150)
            wanted, *others = images.decode_image(encoded(source), 150)
            assert rest == others == [300, 200, 0.5] and np.abs(pixels - wanted.astype(int)).mean() < 8
        assert {*images.Image.OPEN} == registered

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_a_heic_is_upright_whatever_its_exif_says_beside(self, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        wanted, *others = images.decode_image(encoded(textured(), "JPEG", exif=exif, quality=95), 1000)
        for reading in (ReadingConfig(), ReadingConfig(exif_orientation=False)):
            pixels, *rest = images.decode_image(heic(textured(), exif=exif.tobytes()), 1000, reading)
            assert rest == others and np.abs(pixels - wanted.astype(int)).mean() < 12

    def test_a_heic_that_is_cut_or_damaged_is_no_photograph_and_no_crash(self):
        data, draw = heic(textured()), random.Random(0)
        for end in range(40, len(data) - 1, len(data) // 40):
            with pytest.raises(images.DecodeError) as error:
                images.decode_image(data[:end], 1000)
            assert error.value.kind in ("corrupt", "unsupported_format")
        for _ in range(100):
            damaged = bytearray(data)
            for _ in range(draw.randint(1, 20)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            with contextlib.suppress(images.DecodeError):
                images.decode_image(bytes(damaged), 1000)

    def test_a_heic_is_decoded_within_the_limits(self):
        with pytest.raises(images.DecodeError, match="300 x 200 pixels, more than 59,999") as error:
            images.decode_image(heic(textured()), 1000, ReadingConfig(max_image_pixels=59_999))
        assert error.value.needed == 60_000

    def test_without_its_package_a_heic_names_it(self, monkeypatch):
        monkeypatch.setattr(images, "READS_HEIF", False)
        with pytest.raises(
            images.DecodeError, match=r"a HEIC picture; pip install 'landmarks\[heic\]' dec"
        ) as e:
            images.decode_image(heic(textured()), 1000)
        assert e.value.kind == "unsupported_format"

    def test_a_tiff_that_is_the_preview_of_a_raw_file(self):
        data = encoded(textured(), "TIFF", tiffinfo={254: 1})
        with pytest.raises(images.DecodeError, match="a camera's RAW file") as error:
            images.decode_image(data, 1000)
        assert error.value.kind == "unsupported_format"

    @pytest.mark.parametrize("tag", [322, 278], ids=["tile", "strip"])
    def test_a_tiff_of_absurd_parts_is_refused(self, tag):
        data = encoded(textured(), "TIFF", compression="tiff_lzw", tiffinfo={322: 16, 323: 2**27, 278: 2**31})
        with pytest.raises(images.DecodeError) as error:
            images.decode_image(data, 1000)
        assert error.value.kind in ("too_large", "corrupt", "unsupported_format")

    def test_a_tiff_of_jpegs_of_thousands_of_scans_is_refused(self):
        tiff = encoded(Image.new("RGB", (1000, 1000)), "TIFF", compression="jpeg")
        with pytest.raises(images.DecodeError, match=r"1000 x 1000 pixels in 2\d\d\d scans"):
            images.decode_image(tiff + b"\xff\xda" * 2000, 100)

    @pytest.mark.parametrize(
        "start, kind, name",
        [
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported_format", "a HEIC picture"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "unsupported_format", "a HEIC picture"),
            (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "unsupported_format", "an AVIF picture"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported_format", "a JPEG XL picture"),
            (b"\xff\x0a", "unsupported_format", "a JPEG XL picture"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "unsupported_format", "a JPEG 2000 picture"),
            (b"II*\0\x10\0\0\0CR\x02\0", "unsupported_format", "a camera's RAW file"),
            (b"FUJIFILMCCD-RAW 0201", "unsupported_format", "a camera's RAW file"),
            (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "unsupported_format", "a camera's RAW file"),
            (b"MM\0*\0\0\0\x08\0\0", "unsupported_format", "a TIFF picture"),
            (b"8BPS\0\1", "unsupported_format", "a Photoshop picture"),
            (b"P6\n4 4\n255\n", "unsupported_format", "a Netpbm picture"),
            (b"P5 4 4 255 ", "unsupported_format", "a Netpbm picture"),
            (b"P2\n# grey\n4 4", "unsupported_format", "a Netpbm picture"),
            (b"\xff\xd8\xff\xf7\0\x0b", "unsupported_format", "a JPEG-LS picture"),
            (b"{\\rtf1", "not_an_image", "a text document"),
            (b"[InternetShortcut]\r\nURL=", "not_an_image", "a link to a web page"),
            (b"bplist00", "not_an_image", "a property list"),
            (b'<?xml version="1.0"?>\n<svg xmlns="', "unsupported_format", "an SVG drawing"),
            (b"<svg width='1'/>", "unsupported_format", "an SVG drawing"),
            (b"%PDF-1.7", "not_an_image", "a PDF document"),
            (b"\r\n<!DOCTYPE html><html>", "not_an_image", "an HTML page"),
            (b"<HTML>", "not_an_image", "an HTML page"),
            (b'{"error": "not found"}', "not_an_image", "JSON"),
            (b"\0\0\0\x20ftypisom\0\0\2\0isom", "not_an_image", r"a video \(MP4\)"),
            (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "not_an_image", r"a video \(QuickTime\)"),
            (b"RIFF\0\0\1\0AVI LIST", "not_an_image", r"a video \(AVI\)"),
            (b"\x1a\x45\xdf\xa3", "not_an_image", "a video"),
            (b"PK\3\4", "not_an_image", "a ZIP archive"),
            (b"\0\5\x16\7", "not_an_image", "AppleDouble"),
            (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image", "Git LFS"),
            (b"Not Found", "not_an_image", "text"),
            (b"\0" * 10, "not_an_image", "nothing but zero bytes"),
            (b"\xff\xd8\xff\xe0", "corrupt", "a JPEG with a damaged header"),
            (b"\x89PNG\r\n\x1a\n", "corrupt", "a PNG with a damaged header"),
            (b"\x80\1\2\3", "not_an_image", "none of JPEG, PNG"),
        ],
    )
    def test_what_is_no_photograph_is_named(self, start, kind, name):
        for data in (start, start + b"\0" * 500):
            with pytest.raises(images.DecodeError, match=name) as error:
                images.decode_image(data, 1000)
            assert error.value.kind == kind


class TestLimits:
    @pytest.mark.parametrize(
        "kind, mode",
        [
            ("PNG", "RGB"),
            ("PNG", "L"),
            ("PNG", "P"),
            ("PNG", "RGBA"),
            ("PNG", "LA"),
            ("PNG", "I;16"),
            ("PNG", "1"),
            ("JPEG", "RGB"),
            ("WEBP", "RGBA"),
            ("GIF", "P"),
        ],
    )
    def test_large_pictures_are_shrunk_strip_by_strip_to_the_same(self, kind, mode):
        y, x = np.mgrid[:1501, :1999]
        if mode == "I;16":
            source, expected = Image.fromarray((x * 32).astype(np.uint16)), x // 8
        else:
            source = Image.fromarray(np.stack([x // 8, y // 6, (x + y) // 14], -1).astype(np.uint8)).convert(
                mode
            )
            expected = np.asarray(source.convert("RGB"))[..., 0]
        pixels, width, height, scale = images.decode_image(
            encoded(source, kind, **({"quality": 95} if kind == "JPEG" else {})), 200
        )
        assert (
            pixels.shape == (150, 200, 3)
            and (width, height) == (1999, 1501)
            and scale == pytest.approx(200 / 1999)
        )
        expected = np.asarray(
            Image.fromarray(expected.astype(np.uint8)).resize((200, 150), Image.Resampling.BICUBIC), int
        )
        assert np.abs(pixels[..., 0] - expected).mean() < 2

    @pytest.mark.parametrize(
        "data, message",
        [
            (
                encoded(Image.new("RGBA", (2000, 2000))),
                "2000 x 2000 pixels take .* bytes to decode, more than 20,000,000",
            ),
            (encoded(Image.new("RGB", (1200, 1200)), "WEBP"), "1200 x 1200 pixels take"),
            (
                encoded(Image.new("RGB", (1800, 1800)), "JPEG", progressive=True, subsampling=0),
                "1800 x 1800 pixels take",
            ),
            (b" " * 20_000_000, None),
        ],
        ids=["alpha", "webp", "progressive jpeg", "no image"],
    )
    def test_what_takes_too_much_memory_is_refused(self, data, message):
        with pytest.raises(images.DecodeError, match=message) as error:
            images.decode_image(data, 256, ReadingConfig(max_image_memory=20))
        assert error.value.kind == ("too_large" if message else "not_an_image")

    @pytest.mark.parametrize("position", [2, None], ids=["in front", "behind a scan"])
    def test_a_file_of_too_many_parts_is_refused(self, position):
        data = encoded(Image.new("L", (10, 10)), "JPEG")
        position = position or len(data) - 2
        with pytest.raises(images.DecodeError, match="more than 300,000 parts"):
            images.decode_image(data[:position] + b"\xff\xfe\0\2" * 400_000 + data[position:], 100)

    def test_limits_name_the_option_that_lifts_them(self):
        data = encoded(Image.fromarray(gradient()))
        with pytest.raises(images.DecodeError, match="--max_image_pixels allows more"):
            images.decode_image(data, 100, ReadingConfig(max_image_pixels=100))
        with pytest.raises(images.DecodeError, match="--max_image_memory allows more"):
            images.decode_image(data, 100, ReadingConfig(max_image_memory=0))

    @pytest.mark.parametrize("place", ["in front", "behind"])
    def test_metadata_that_names_the_same_bytes_again_and_again_is_not_read(self, place):
        content = struct.pack("<H", 4000) + b"".join(
            struct.pack("<HHII", tag, 7, 40_000, 8) for tag in range(4000)
        )
        exif = (b"II*\0\x08\0\0\0" + content).ljust(65_000, b"\0")
        source = Image.fromarray(gradient())
        if place == "in front":  # of a JPEG; Pillow reads all of it to know the resolution
            data = encoded(source, "JPEG")
            data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + data[20:]
        else:
            data = with_chunks(encoded(source), chunk(b"eXIf", exif))
        assert images.decode_image(data, 100)[1:3] == (60, 40)
        with pytest.raises(images.DecodeError, match="directories that name more than the file holds"):
            images.decode_image(exif, 100)  # as a TIFF

    def test_files_larger_than_the_memory_allowed_are_not_read(self, tmp_path):
        ref = ImageRef("a", str(tmp_path / "absent.jpg"), 30_000_000)
        failure = images.read_image(ref, 100, ReadingConfig(max_image_memory=20))
        assert (failure.stage, failure.kind) == ("read", "too_large")


class TestRead:
    def test_images_and_failures_come_in_order(self, tmp_path):
        good = encoded(Image.fromarray(gradient()))
        refs = [
            ImageRef("a", write(tmp_path / "a.png", good), 1),
            ImageRef("b", str(tmp_path / "vanished.png"), 1),
            ImageRef("c", write(tmp_path / "c.png"), 1),
            ImageRef("d", write(tmp_path / "d.png", good), 1),
        ]
        results = list(images.read_images(refs, 1000, ahead=2))
        assert [type(r) for r in results] == [DecodedImage, Failure, Failure, DecodedImage]
        assert [(r.stage, r.image_id, r.kind) for r in results if isinstance(r, Failure)] == [
            ("read", "b", "not_found"),
            ("decode", "c", "not_an_image"),
        ]
        assert results[3].ref == refs[3]
