"""Reading and decoding photographs."""

import io

import numpy as np
import pytest
from PIL import Image

from transforms import images
from transforms.types import DecodedImage, Failure, ImageRef, ReadingConfig


def gradient(height=40, width=60):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


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
            (b"\x89PNG\r\n\x1a\n" + b" " * 20_000_000, None),
        ],
        ids=["alpha", "webp", "progressive jpeg", "no image"],
    )
    def test_what_takes_too_much_memory_is_refused(self, data, message):
        with pytest.raises(images.DecodeError, match=message) as error:
            images.decode_image(data, 256, ReadingConfig(max_image_memory=20))
        assert error.value.kind == ("too_large" if message else "not_an_image")

    def test_a_jpeg_of_thousands_of_scans_is_refused(self):
        data = encoded(Image.new("L", (1000, 1000)), "JPEG", progressive=True)
        last = data.rfind(b"\xff\xda")
        with pytest.raises(images.DecodeError, match=r"1000 x 1000 pixels in 20\d\d scans"):
            images.decode_image(data[:-2] + data[last:-2] * 2000 + data[-2:], 100)

    def test_a_file_of_too_many_parts_is_refused(self):
        data = encoded(Image.new("L", (10, 10)), "JPEG")
        with pytest.raises(images.DecodeError, match="more than 300,000 parts"):
            images.decode_image(data[:2] + b"\xff" * 400_000 + data[2:], 100)

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
