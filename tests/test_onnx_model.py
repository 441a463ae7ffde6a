"""ONNX models of one's own: what is guessed, what the card says, what comes out, and errors."""

import dataclasses
import json
import os
import re
import shutil

import cv2
import numpy as np
import onnxruntime
import pytest

from beam_pipeline import main
from tests import tiny_onnx
from tests.file_systems import FolderFileSystem
from tests.pictures import textured
from tests.tiny_onnx import load
from transforms.models import catalog, model_files
from transforms.models.model import ExtractionError, ModelError
from transforms.models.onnx_interface import IMAGENET_MEAN, IMAGENET_STD, Tensor, guess, told_layout
from transforms.models.onnx_model import OnnxModel

IMAGE = textured(128, 160)


def build(folder, kind="pooled", card=None, name="tiny.onnx", **options):
    """The path of a tiny model, with a card beside it where one is given."""
    folder.mkdir(exist_ok=True)
    tiny_onnx.build(folder / name, kind, **options)
    if card is not None:
        (folder / "landmarks_card.json").write_text(json.dumps(card))
    return str(folder / name)


def cells(pixels):
    """What the tiny network's map must be for an image, float64 [WIDTH, H / 8, W / 8], by NumPy alone."""
    values = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    height, width = (side // 8 for side in pixels.shape[:2])
    patches = values[: height * 8, : width * 8].reshape(height, 8, width, 8, 3)
    return np.einsum("yaxbc,ocab->oyx", patches, tiny_onnx.kernels())


def unit(vector):
    return vector / np.linalg.norm(vector)


class TestGlobalDescriptor:
    def test_pooled(self, tmp_path):
        found = load(build(tmp_path)).extract(IMAGE)
        np.testing.assert_allclose(found.global_descriptor, unit(cells(IMAGE).mean((1, 2))), atol=1e-5)
        assert found.global_descriptor.dtype == np.float32 and len(found.keypoints) == 0

    def test_map_is_pooled_by_gem(self, tmp_path):
        found = load(build(tmp_path, "map")).extract(IMAGE)
        expected = (np.maximum(cells(IMAGE), 1e-6) ** 3).mean((1, 2)) ** (1 / 3)
        np.testing.assert_allclose(found.global_descriptor, unit(expected), atol=1e-5)

    @pytest.mark.parametrize("image", ["[B,3,H,W]", "[1,3,128,160]", "[B,H,W,3]", "[1,128,160,3]"])
    @pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
    def test_the_layout_of_a_map_is_told_by_its_shapes(self, tmp_path, image, axes):
        found = load(build(tmp_path, "map", image=image, map_axes=axes)).extract(IMAGE)
        expected = load(build(tmp_path / "plain", "map")).extract(IMAGE).global_descriptor
        np.testing.assert_allclose(found.global_descriptor, expected, atol=1e-5)

    def test_a_map_whose_layout_cannot_be_told(self, tmp_path):
        options = {"image": "[1,3,128,128]", "map_axes": (0, 2, 3, 1)}  # [1, 16, 16, 16]
        with pytest.raises(ModelError, match=r'features, \[1, 16, 16, 16\] on .* told: state "map_layout"'):
            load(build(tmp_path, "map", **options))
        path = build(tmp_path, "map", {"onnx": {"map_layout": "NHWC"}}, **options)
        image = textured(128, 128)
        expected = load(build(tmp_path / "plain", "map")).extract(image).global_descriptor
        np.testing.assert_allclose(load(path).extract(image).global_descriptor, expected, atol=1e-5)

    @pytest.mark.parametrize(
        ("maps", "layout"),
        [
            ([((1, 64, 7, 7), (224, 224))], "NCHW"),
            ([((1, 7, 7, 64), (224, 224))], "NHWC"),
            ([((1, 8, 7, 7), (224, 224))], "NCHW"),
            ([((1, 7, 7, 7), (224, 224))], None),
            ([((1, 16, 6, 8), (112, 128)), ((1, 16, 6, 9), (112, 144))], "NCHW"),
            ([((1, 512, 1, 1), (32, 32))], "NCHW"),
            ([((1, 5, 50, 3), (224, 224))], None),
        ],
    )
    def test_told_layout(self, maps, layout):
        assert told_layout(maps) == layout

    def test_first_token_is_the_class_token(self, tmp_path):
        found = load(build(tmp_path, "tokens")).extract(IMAGE)
        np.testing.assert_allclose(found.global_descriptor, unit(cells(IMAGE).mean((1, 2))), atol=1e-5)

    def test_scales_are_looped_and_summed(self, tmp_path):
        scales = dict(image_scales=(1.0, 0.5), global_scales=(1.0, 0.5))
        path = build(tmp_path, card=scales)
        one, half = (
            load(path, image_scales=(s,), global_scales=(s,)).extract(IMAGE).global_descriptor
            for s in (1.0, 0.5)
        )
        both = load(path, **scales).extract(IMAGE).global_descriptor
        np.testing.assert_allclose(both, unit(one.astype(float) + half), atol=1e-6)
        assert np.abs(one - half).max() > 0.01

    @pytest.mark.parametrize("image", ["[B,H,W,3]", "[1,H,W,3]"])
    def test_channels_last(self, tmp_path, image):
        first, last = build(tmp_path / "first"), build(tmp_path / "last", image=image)
        one, other = (load(path).extract(IMAGE).global_descriptor for path in (first, last))
        np.testing.assert_allclose(other, one, atol=1e-6)

    def test_pixels_as_they_are(self, tmp_path):
        path = build(tmp_path, float_type="uint8", image="[1,H,W,3]")
        plain = {"value_range": 255, "mean": [0, 0, 0], "std": [1, 1, 1]}
        one = build(tmp_path / "float", card={"onnx": plain})
        a, b = (load(p).extract(IMAGE).global_descriptor for p in (path, one))
        np.testing.assert_allclose(a, b, atol=1e-5)

    def test_bgr_is_the_other_order(self, tmp_path):
        rgb, bgr = build(tmp_path / "rgb"), build(tmp_path / "bgr", card={"onnx": {"channels": "BGR"}})
        swapped = np.ascontiguousarray(IMAGE[..., ::-1])
        one, other = load(rgb).extract(IMAGE).global_descriptor, load(bgr).extract(swapped).global_descriptor
        assert np.abs(one - other).max() > 0.01  # mean and std go with their channels
        plain = {"mean": [0.4] * 3, "std": [0.2] * 3}
        for channels in ("RGB", "BGR"):
            card = {"onnx": {**plain, "channels": channels}}
            (tmp_path / channels.lower() / "landmarks_card.json").write_text(json.dumps(card))
        one, other = load(rgb).extract(IMAGE).global_descriptor, load(bgr).extract(swapped).global_descriptor
        np.testing.assert_array_equal(one, other)

    def test_half_precision(self, tmp_path):
        single, half = build(tmp_path / "single"), build(tmp_path / "half", float_type="float16")
        one, other = (load(path).extract(IMAGE).global_descriptor for path in (single, half))
        assert other.dtype == np.float32
        np.testing.assert_allclose(other, one, atol=5e-3)

    def test_a_fixed_size_is_stretched_to(self, tmp_path):
        path = build(tmp_path, image="[1,3,64,96]")
        assert catalog.settings(path).max_image_side == 192
        found = load(path).extract(np.full((200, 100, 3), 90, np.uint8)).global_descriptor
        np.testing.assert_allclose(
            found, load(path).extract(np.full((64, 96, 3), 90, np.uint8)).global_descriptor, atol=1e-6
        )
        with pytest.raises(ModelError, match=r"\(64, 96\) px alone, so it has the scale 1 and no other"):
            load(path, image_scales=(1.0, 0.5))

    def test_sides_are_multiples(self, tmp_path):
        path = build(tmp_path, card={"onnx": {"side_multiple": 24}})
        image = np.full((100, 50, 3), 90, np.uint8)
        fed = load(path).outputs(image, 1.0)["embedding"]
        assert load(path)._fed_sides(image, 1.0) == (96, 48) and fed.shape == (1, 16)

    def test_an_image_too_small(self, tmp_path):
        with pytest.raises(ExtractionError, match="4 x 9 px is smaller than 5 px at every scale") as error:
            load(build(tmp_path)).extract(textured(4, 9))
        assert error.value.kind == "too_small"

    def test_what_is_no_image_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="uint8"):
            load(build(tmp_path)).extract(IMAGE.astype(np.float32))


class TestLocalFeatures:
    @pytest.mark.parametrize("kind", ["both", "local", "local_columns"])
    def test_places_order_and_length(self, tmp_path, kind):
        model = load(build(tmp_path, kind))
        found = model.extract(IMAGE)
        expected = cells(IMAGE)
        assert len(found.keypoints) == expected[0].size and model.local_width == tiny_onnx.WIDTH
        assert bool(model.global_width) == (kind == "both")
        assert (np.diff(found.scores) <= 0).all()
        at = np.rint((found.keypoints - 0.5) / 8).astype(int)
        rows = expected[:, at[:, 0], at[:, 1]].T  # (y, x)
        np.testing.assert_allclose(found.scores, (rows**2).sum(1), rtol=1e-4)
        np.testing.assert_allclose(found.descriptors, rows / np.linalg.norm(rows, axis=1)[:, None], atol=1e-5)

    def test_keypoints_are_in_pixels_of_the_image(self, tmp_path):
        path = build(tmp_path, "both", card={"image_scales": [0.5], "global_scales": [0.5]})
        found = load(path).extract(IMAGE)  # 128 x 160 px, fed as 64 x 64
        assert found.keypoints.max(0).tolist() == [128 / 64 * (8 * 7 + 0.5), 160 / 64 * (8 * 7 + 0.5)]

    def test_order_of_coordinates(self, tmp_path):
        image, square = textured(64, 64), {"image": "[1,3,64,64]"}
        card = {"onnx": {"keypoint_order": "yx"}}
        xy = load(build(tmp_path / "xy", "both", **square)).extract(image).keypoints
        yx = load(build(tmp_path / "yx", "both", card, **square)).extract(image).keypoints
        np.testing.assert_array_equal(xy, yx[:, ::-1])
        assert (xy != yx).any()

    def test_scales_are_pooled_and_limits_hold(self, tmp_path):
        scales = dict(image_scales=(1.0, 0.5), global_scales=(1.0,))
        path = build(tmp_path, "both", card=scales)
        every = load(path, **scales).extract(IMAGE)
        assert len(every.scores) == 16 * 20 + 8 * 8
        few = load(path, **scales, max_local_features=50).extract(IMAGE)
        np.testing.assert_array_equal(few.keypoints, every.keypoints[:50])
        threshold = float(np.median(every.scores))
        kept = load(path, **scales, score_threshold=threshold).extract(IMAGE).scores
        assert 0 < len(kept) < len(every.scores) and kept.min() >= threshold

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"step": 1 / 128}, "from 0 to .* in y and from 0 to .* in x, as if divided by the sides"),
            ({"step": 80}, "from 0 to 1200 in y and from 0 to 880 in x"),
            ({"step": -8}, "from -120 to -?0 in y and from -88 to -?0 in x"),
            (
                {"card": {"onnx": {"keypoint_order": "yx"}}},
                r"yx \(keypoint_order\) .*; is their order another",
            ),
        ],
    )
    def test_keypoints_are_in_pixels(self, tmp_path, options, message):
        path = build(tmp_path, "both", **options)
        with pytest.raises(
            ModelError, match=r"fails on a test image of 128 x 96 px: keypoints must be .*" + message
        ):
            load(path)

    def test_keypoints_that_fill_up_a_fixed_number(self, tmp_path):
        assert not (load(build(tmp_path, "both", step=0)).extract(IMAGE).keypoints > 2).any()

    def test_a_photograph_with_keypoints_outside(self, tmp_path):
        model = load(build(tmp_path, "both", step=8.1))  # within a pixel on small images alone
        with pytest.raises(ExtractionError, match="of 128 x 1600 px; .* to 1611.9 in x") as error:
            model.extract(textured(128, 1600))
        assert error.value.kind == "keypoints_outside"


class TestGuess:
    IMAGE = Tensor("image", "tensor(float)", (-1, 3, -1, -1))
    MAP = Tensor("features", "tensor(float)", (-1, 64, -1, -1))

    def guessed(self, stated=None, inputs=None, outputs=None, name="m.onnx"):
        return guess(inputs or [self.IMAGE], outputs or [self.MAP], stated or {}, name)

    @pytest.mark.parametrize(
        ("name", "multiple"),
        [
            ("dinov2_vits14.onnx", 14),
            ("dinov2.onnx", 14),
            ("clip-vit-base-patch32.onnx", 32),
            ("vit_b_16.onnx", 16),
            ("model.onnx", 16),
        ],
    )
    def test_patches_by_the_name(self, name, multiple):
        tokens = Tensor("last_hidden_state", "tensor(float)", (-1, -1, 384))
        assert self.guessed(outputs=[tokens], name=name).side_multiple == multiple
        assert self.guessed(outputs=[tokens], name=name).pooling == "class_token"

    def test_names_decide_between_outputs(self):
        pooled = Tensor("pooler_output", "tensor(float)", (-1, 384))
        other = Tensor("logits", "tensor(float)", (-1, 1000))
        assert self.guessed(outputs=[other, pooled]).global_output == "pooler_output"

    def test_what_is_stated_holds(self):
        stated = {
            "input": "image",
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "gem_power": 4,
            "image_sides": [224, 224],
        }
        made = self.guessed(stated)
        assert (made.mean, made.std, made.gem_power) == ((0.5,) * 3, (0.25,) * 3, 4.0)
        assert made.image_sides == (224, 224)
        assert self.guessed(json.loads(json.dumps(made.to_json()))) == made

    def test_gray(self):
        made = self.guessed(inputs=[Tensor("image", "tensor(float)", (1, 1, -1, -1))])
        assert (made.channels, made.mean, made.std) == ("GRAY", (0.0,), (1.0,))

    @pytest.mark.parametrize(
        ("stated", "message"),
        [
            ({"means": [1]}, r"unknown keys \['means'\]; known are \['input'"),
            ({"input": "x"}, "there is no input 'x'; inputs image float"),
            ({"mean": [0.5]}, r"mean must be a list of 3 numbers, one per channel, not \[0.5\]"),
            ({"std": [0, 1, 1]}, "std must be above 0"),
            ({"channels": "GRAY"}, "is not NCHW with GRAY's 1 channels"),
            ({"layout": "CHW"}, r"layout must be one of \['NCHW', 'NHWC'\], not 'CHW'"),
            ({"pooling": "class_token"}, "pooling 'class_token' takes an output of 3 axes, not features"),
            ({"global_output": "x"}, "there is no output 'x', which the card names as global_output"),
            ({"global_output": None}, "neither a global descriptor nor keypoints"),
            ({"side_multiple": 0}, "side_multiple must be a whole number of at least 1"),
            ({"side_multiple": 100000}, "side_multiple must be .* at most 1024, not 100000"),
            ({"image_sides": [224, 9000]}, "image_sides must be .* at most 8192"),
            ({"map_layout": "CHW"}, r"map_layout must be one of \['NCHW', 'NHWC'\], not 'CHW'"),
            ({"image_sides": 224}, r"image_sides must be \[height, width\] in px, .*, not 224"),
            ({"value_range": "1"}, "value_range must be a number above 0"),
            (
                {"keypoints": "features"},
                'which output has their descriptors cannot be told: state it as "desc',
            ),
        ],
    )
    def test_a_card_that_does_not_fit(self, stated, message):
        with pytest.raises(ModelError, match=message):
            self.guessed(stated)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ([IMAGE, Tensor("input_ids", "tensor(int64)", (-1, -1))], "must have one input, an image"),
            ([Tensor("x", "tensor(float)", (-1, 3))], "must have one input, an image of four axes"),
            ([Tensor("x", "tensor(float)", (8, 3, 64, 64))], "must be one image, .* or a batch of any size"),
            ([Tensor("x", "tensor(bfloat16)", (1, 3, 64, 64))], "must be float, float16, double or uint8"),
            (
                [Tensor("x", "tensor(float)", (1, 3, 64, -1))],
                "leaves one side open: state both as image_sides",
            ),
            ([Tensor("x", "tensor(float)", (1, 4, 64, 64))], "is not NCHW with RGB's 3 channels"),
        ],
    )
    def test_inputs_that_cannot_be_fed(self, inputs, message):
        with pytest.raises(ModelError, match=message):
            self.guessed(inputs=inputs)

    def test_pixels_take_no_mean(self):
        pixels = Tensor("image", "tensor(uint8)", (1, -1, -1, 3))
        with pytest.raises(ModelError, match="takes pixels as they are: no value_range, mean or std"):
            self.guessed({"mean": [127, 127, 127]}, inputs=[pixels])

    def test_two_outputs_that_could_be_it(self, tmp_path):
        path = build(tmp_path, "two_globals")
        with pytest.raises(ModelError, match=r'cannot be told: state it as "global_output".*outputs a float'):
            catalog.card(path)
        (tmp_path / "landmarks_card.json").write_text('{"onnx": {"global_output": "b"}}')
        assert load(path).global_width == tiny_onnx.WIDTH and load(path).interface.pooling == "gem"

    def test_is_said_until_the_card_states_all(self, tmp_path):
        path = build(tmp_path)
        first, second = catalog.remarks(path)
        assert (
            "input image, NCHW, RGB from 0 to 1, mean [0.485" in first and "embedding, pooling none" in first
        )
        assert "guessed is channels, " in second and f"landmarks model inspect {path}" in second
        before = catalog.fingerprint(path)
        (tmp_path / "landmarks_card.json").write_text(json.dumps(OnnxModel.card(path)))
        assert catalog.remarks(path) == [] and catalog.fingerprint(path) == before


class TestInspect:
    @pytest.mark.parametrize("kind", ["map", "pooled", "tokens", "both"])
    def test_prints_a_card_that_is_taken(self, tmp_path, kind):
        path = build(tmp_path, kind)
        text = catalog.inspect(path)
        assert ("map          NCHW, told by its shapes" in text) == (kind == "map")
        assert "guessed is" in text and catalog.fingerprint(path) in text and "CPUExecutionProvider" in text
        (tmp_path / "landmarks_card.json").write_text(text[text.index("{") :])
        again = catalog.inspect(path)
        assert "all is stated" in again and catalog.fingerprint(path) in text

    def test_shows_the_shapes(self, tmp_path):
        text = catalog.inspect(build(tmp_path, "both", image="[1,3,96,128]"))
        assert "[1, 3, 96, 128]" in text and "global descriptor [16], local [N, 16]" in text


class TestFiles:
    def test_a_folder_means_its_only_model(self, tmp_path):
        path = build(tmp_path / "a")
        assert catalog.find(str(tmp_path / "a")) == (OnnxModel, path)
        build(tmp_path / "a", name="other.onnx")
        with pytest.raises(
            ModelError, match=r"holds several ONNX models, name one of them: \['other.onnx', "
        ):
            catalog.find(str(tmp_path / "a"))
        assert load(path).global_width
        (tmp_path / "a" / "landmarks_card.json").write_text('{"name": "whose?"}')
        with pytest.raises(ModelError, match="lies beside several models"):
            catalog.card(path)

    @pytest.mark.parametrize(
        ("place", "message"),
        [
            ("nothing.onnx", "nothing.onnx is no model: there is no such file or folder$"),
            (".", "neither a SavedModel's saved_model.pb nor an .onnx file among"),
        ],
    )
    def test_no_model(self, tmp_path, place, message):
        (tmp_path / "a.jpg").write_bytes(b"")
        with pytest.raises(ModelError, match=message):
            catalog.find(str(tmp_path / place))

    def test_a_name_that_is_none(self):
        with pytest.raises(
            ModelError, match="rootsift is no model: .* come with the package are embedded, roo"
        ):
            catalog.find("rootsift")

    def test_the_fingerprint_covers_file_card_and_weights_beside(self, tmp_path):
        path = build(tmp_path / "a", external=True)
        prints = [catalog.fingerprint(path)]
        weights = tmp_path / "a" / "weights.bin"
        content = bytearray(weights.read_bytes())
        content[100] ^= 1
        weights.write_bytes(content)
        prints.append(catalog.fingerprint(path))
        (tmp_path / "a" / "landmarks_card.json").write_text('{"onnx": {"std": [1, 1, 1]}}')
        prints.append(catalog.fingerprint(path))
        prints.append(catalog.fingerprint(build(tmp_path / "b")))
        assert len(set(prints)) == 4
        shutil.copytree(tmp_path / "a", tmp_path / "moved")
        assert catalog.fingerprint(str(tmp_path / "moved")) == prints[2]

    def test_weights_beside_it(self, tmp_path):
        inside, beside = build(tmp_path / "a"), build(tmp_path / "b", external=True)
        assert list(model_files.onnx_files(inside)) == [""]
        assert set(model_files.onnx_files(beside)) == {"", "weights.bin"}
        one, other = (load(path).extract(IMAGE).global_descriptor for path in (inside, beside))
        np.testing.assert_array_equal(one, other)
        os.remove(tmp_path / "b" / "weights.bin")
        with pytest.raises(ModelError, match="has weights in weights.bin, which is not beside it"):
            catalog.fingerprint(beside)

    def test_weights_elsewhere_are_refused(self, tmp_path):
        path = build(tmp_path / "a", external=True)
        os.rename(tmp_path / "a" / "weights.bin", tmp_path / "weights.bin")
        content = (tmp_path / "a" / "tiny.onnx").read_bytes()
        (tmp_path / "a" / "tiny.onnx").write_bytes(content.replace(b"weights.bin", b"../ghts.bin"))
        with pytest.raises(ModelError, match=r"weights outside of its folder, in '../ghts.bin'"):
            catalog.fingerprint(path)

    @pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x08\x3a\xff\x01"])
    def test_a_broken_file(self, tmp_path, content):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=r"a.onnx (is no ONNX model|cannot be loaded)"):
            catalog.card(str(tmp_path / "a.onnx"))

    @pytest.mark.parametrize("uri", ["folder://shelf/m", "folder://shelf/m/tiny.onnx"])
    def test_a_remote_model_is_copied(self, tmp_path, monkeypatch, uri):
        FolderFileSystem.use(tmp_path, monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (tmp_path / "shelf").mkdir()
        path = build(tmp_path / "shelf" / "m", card={"name": "far"}, external=True)
        assert catalog.card(uri)["name"] == "far" and catalog.fingerprint(uri) == catalog.fingerprint(path)
        with pytest.raises(ModelError, match=r"nosuch.onnx is not there; folder://shelf/m holds \['landm"):
            catalog.find("folder://shelf/m/nosuch.onnx")


class TestDevice:
    def test_one_that_is_not_installed(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        path = build(tmp_path)
        message = r"--device cuda needs ONNX Runtime's CUDAExecutionProvider, .*possible are \['cpu'\]"
        with pytest.raises(ModelError, match=message):
            load(path, device="cuda")
        (tmp_path / "labels.csv").write_text("id,landmark_id\np,a\n")
        cv2.imwrite(str(tmp_path / "p.png"), IMAGE)
        command = ["index", "--images", str(tmp_path / "p.png"), "--labels", str(tmp_path / "labels.csv")]
        command += ["--output", str(tmp_path / "index"), "--device", "cuda"]
        assert main.main([*command, "--model", path]) == 1
        assert "--device cuda needs ONNX" in capsys.readouterr().err
        assert main.main([*command, "--model", "rootsift-vlad"]) == 1
        error = capsys.readouterr().err
        assert "is for ONNX models of one's own; rootsift-vlad is run by the processor" in error
        assert not (tmp_path / "index").exists()

    def test_is_said_for_each_part_of_a_model(self, tmp_path, monkeypatch):
        there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
        path, saved = build(tmp_path / "m"), str(tmp_path / "saved")
        alone = "embedded is run by ONNX Runtime on the processor alone"
        by_itself = f"{saved} is run by TensorFlow, on a GPU where it sees one"
        assert catalog.runs_on(f"{path} + embedded", "cuda") == (
            f"{path} is run by ONNX Runtime's CUDAExecutionProvider; {alone}"
        )
        assert catalog.runs_on(saved, "cpu") == by_itself
        with pytest.raises(ModelError, match=re.escape(f"ONNX models of one's own; {alone}; {by_itself}")):
            catalog.runs_on(f"embedded + {saved}", "cuda")

    def test_one_that_does_not_start(self, tmp_path, monkeypatch):
        there = ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
        path, session = build(tmp_path), onnxruntime.InferenceSession

        def without(place, options, providers):
            return session(place, options, providers=providers[-1:])

        monkeypatch.setattr(onnxruntime, "InferenceSession", without)
        with pytest.raises(ModelError, match="OpenVINOExecutionProvider does not start here"):
            load(path, device="openvino")

    def test_is_no_part_of_what_identifies_features(self, tmp_path):
        settings = catalog.settings(build(tmp_path))
        assert dataclasses.replace(settings, device="cuda").to_json() == settings.to_json()
        with pytest.raises(ValueError, match="device must be one of .*'openvino'.*, not 'tpu'"):
            dataclasses.replace(settings, device="tpu")


class TestFaults:
    def test_overflow_of_half_precision(self, tmp_path):
        path = build(tmp_path, float_type="float16", scale=60000.0)
        with pytest.raises(
            ModelError, match="NaN or infinite values; float16 overflows where float32 does not"
        ):
            load(path)

    def test_sizes_that_it_does_not_take(self, tmp_path):
        """A graph that says any size, and was made for one."""
        import onnx

        path = build(tmp_path, image="[1,3,64,64]")
        model = onnx.load(path)
        for axis, dimension in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
            if axis >= 2:
                dimension.dim_param = "HW"[axis - 2]
        names = [node.name for node in model.graph.node]
        assert names
        reshape = next(node for node in model.graph.node if node.op_type == "Reshape")
        folded = next(i for i in model.graph.initializer if i.name == reshape.input[1])
        folded.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 16, 64]), folded.name))
        rows = next(node.output[0] for node in model.graph.node if node.op_type == "Transpose")
        model.graph.output.pop()
        model.graph.output.append(onnx.helper.make_tensor_value_info(rows, 1, [1, 64, 16]))
        onnx.save(model, path)
        with pytest.raises(
            ModelError, match='one size alone needs "image_sides", .* "onnx" in landmarks_card.json'
        ):
            load(path)
        (tmp_path / "landmarks_card.json").write_text('{"onnx": {"image_sides": [64, 64]}}')
        assert load(path).global_width == 16

    def test_one_that_cannot_be_used_leaves_what_there_is(self, tmp_path, capsys):
        (tmp_path / "labels.csv").write_text("id,landmark_id\np,a\n")
        cv2.imwrite(str(tmp_path / "p.png"), IMAGE)
        index, path = tmp_path / "index", build(tmp_path / "m", "local")
        command = ["index", "--images", str(tmp_path / "p.png"), "--labels", str(tmp_path / "labels.csv")]
        command += ["--output", str(index)]
        refused = [*command, "--model", path]
        assert main.main(refused) == 1 and "offers no global descriptor" in capsys.readouterr().err
        assert main.main(command) == 0  # no --overwrite is needed
        manifest = (index / "manifest.json").read_bytes()
        assert main.main([*refused, "--overwrite"]) == 1
        assert "--overwrite deletes" not in capsys.readouterr().err
        assert (index / "manifest.json").read_bytes() == manifest

    def test_another_precision_is_refused(self, tmp_path):
        with pytest.raises(ModelError, match="precision that it was exported in, not bfloat16"):
            load(build(tmp_path), precision="bfloat16")


def test_index_and_recognize(tmp_path, capsys):
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"p{number}.png"), textured(128, 160, number // 2))
    (tmp_path / "labels.csv").write_text("id,landmark_id\np0,a\np2,b\np4,c\n")
    path, index, run = build(tmp_path / "m", "both"), str(tmp_path / "index"), tmp_path / "run"
    images = [str(tmp_path / f"p[{numbers}].png") for numbers in ("024", "135")]
    labels = str(tmp_path / "labels.csv")
    command = ["index", "--images", images[0], "--labels", labels, "--output", index, "--model", path]
    assert main.main(command) == 0
    assert f"{path}: input image, NCHW" in capsys.readouterr().err
    command = ["recognize", "--images", images[1], "--index", index, "--output", str(run)]
    assert main.main(command) == 0
    rows = (run / "submission.csv").read_text().splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["p1,a", "p3,b", "p5,c"]
    (tmp_path / "m" / "landmarks_card.json").write_text('{"onnx": {"channels": "BGR"}}')
    assert main.main([*command[:-1], str(tmp_path / "other")]) == 2
    assert "is not the one the index was made with" in capsys.readouterr().err
    (tmp_path / "m" / "landmarks_card.json").unlink()
    (tmp_path / "m").rename(tmp_path / "n")
    assert main.main([*command[:-1], str(tmp_path / "other")]) == 1
    error = capsys.readouterr().err
    assert f"made by the model at {path}, which is gone" in error and "name its new place by --model" in error
    assert main.main([*command[:-1], str(tmp_path / "other"), "--model", str(tmp_path / "n")]) == 0
