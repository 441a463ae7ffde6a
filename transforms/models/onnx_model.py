"""Features from an ONNX model of one's own, run by ONNX Runtime: a global descriptor, local features, both.

A graph says its tensors' names and shapes; what it means by them, its card does, see `Interface`.
Images go through one by one: a product of several may add up in another order than that of one, and features
must not depend on an image's neighbours.
"""

import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import onnxruntime

from transforms.models.card import CARD_NAME, ExtractionSettings, card_text, read_card, settings_from_card
from transforms.models.contract import first_line
from transforms.models.model import (
    Extracted,
    ExtractionError,
    Model,
    ModelError,
    check_image,
    check_keypoints,
    probe_image,
    resized,
    shape_text,
    sides,
    strongest,
    summed,
    table,
)
from transforms.models.model_files import ONNX, onnx_files, onnx_fingerprint
from transforms.models.onnx_interface import IN_CARD, PIXELS, POOLINGS, Interface, Tensor, guess, told_layout
from transforms.processes.onnx_runtime import one_thread_session

MIN_SIDE = 5  # px of a photograph at a scale
_MARGIN = 1.0  # px that a keypoint may lie outside of the image fed
GEM_FLOOR = 1e-6  # Radenovic, Tolias and Chum, TPAMI 2019
_IN_FLIGHT = 4  # images at a time on a device of its own
_TEST_SIDES = ((128, 96), (224, 288))  # px, of the images that a model is checked with when it is loaded


class OnnxModel(Model):
    """An ONNX model.

    Attributes:
      interface: how it is fed and read.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, interface: Interface, settings: ExtractionSettings
    ):
        """Use `load`."""
        self._session, self.interface, self.settings = session, interface, settings
        self.global_width = self.local_width = 0
        [image] = _tensors(session.get_inputs())
        self._dtype = PIXELS[image.type]
        wanted = (interface.global_output, interface.keypoints, interface.descriptors, interface.scores)
        self._wanted = [name for name in wanted if name]
        shapes = {tensor.name: tensor.shape for tensor in _tensors(session.get_outputs())}
        described = shapes.get(interface.descriptors or "", ())
        # The axis of a fixed length is the descriptor's, where the other one's length is open.
        self._columns = len(described) > 1 and described[-1] < 0 < described[-2]

    @classmethod
    def card(cls, place: str) -> dict[str, Any]:
        """The card with all that it leaves open filled in."""
        stated, interface = _described(place)
        card: dict[str, Any] = {"image_scales": (1.0,), "global_scales": (1.0,), "score_threshold": 0.0}
        # Twice what is fed, so that stretching to a square does not blow up the shorter side.
        card["max_image_side"] = 2 * max(interface.image_sides) if interface.image_sides else 512
        card["name"] = os.path.basename(place)[: -len(ONNX)]
        return {**card, **stated, "onnx": interface.to_json()}

    @classmethod
    def fingerprint(cls, place: str) -> str:
        return onnx_fingerprint(place, json.dumps(_described(place)[1].to_json(), sort_keys=True))

    @classmethod
    def remarks(cls, place: str) -> list[str]:
        stated, interface = _described(place)
        if not (guessed := _guessed(stated, interface)):
            return []
        edit = f"`landmarks model inspect {place}` prints a card to edit"
        return [f"{place}: {interface}", f"guessed is {guessed}: {edit}"]

    @classmethod
    def load(cls, place: str, settings: ExtractionSettings) -> "OnnxModel":
        """Loads a model, and runs it once or twice on small seeded images.

        Args:
          place: its file.
          settings: how it is used.

        Raises:
          ModelError: it cannot be loaded, or its outputs are not what its interface says.
        """
        interface = _described(place)[1]
        if settings.precision != "float32":
            raise ModelError(
                f"{place} runs in the precision that it was exported in, not {settings.precision}"
            )
        if interface.image_sides and settings.image_scales != (1.0,):
            raise ModelError(
                f"{place} takes images of {interface.image_sides} px alone, so it has the scale 1 and no "
                f"other, not {list(settings.image_scales)}"
            )
        model = cls(_session(place, settings.device), interface, settings)
        if settings.device != "cpu":
            model.images_in_flight = _IN_FLIGHT  # others copy and postprocess meanwhile
        for height, width in model._test_sides:
            try:
                extracted = model.extract(probe_image(height, width))
            except (ExtractionError, ModelError) as error:
                raised = isinstance(error, ExtractionError) and error.kind == "model_error"
                hint = _OPEN_SIDES if raised and not interface.image_sides else ""
                raise ModelError(
                    f"{place} fails on a test image of {height} x {width} px: {error}{hint}"
                ) from error
            widths = extracted.global_descriptor.shape[0], extracted.descriptors.shape[1]
            if model.global_width and widths[0] != model.global_width:
                raise ModelError(
                    f"{place}: {interface.global_output} is {widths[0]} wide on a test image of {height} x "
                    f"{width} px, but was {model.global_width} before: is its pooling another?"
                )
            model.global_width, model.local_width = widths[0], max(widths[1], model.local_width)
        return model

    @classmethod
    def inspect(cls, place: str) -> str:
        stated, interface = _described(place)
        guessed = _guessed(stated, interface)
        settings = settings_from_card(cls.card(place))
        model = cls.load(place, settings)
        inputs, outputs = _signature(place)
        given = model.outputs(probe_image(256, 192), 1.0)
        size = sum(path.stat().st_size for path in onnx_files(place).values())
        gives = [f"global descriptor [{model.global_width}]"] if model.global_width else []
        gives += [f"local [N, {model.local_width}]"] if interface.keypoints else ["no local features"]
        told = "stated" if interface.map_layout else "told by its shapes"
        pooled = [f"map          {model._map_layout}, {told}"] if interface.pooling == "gem" else []
        extra = {key: value for key, value in cls.card(place).items() if key not in vars(settings)}
        return "\n".join(
            [
                f"model        {place}",
                f"gives        {', '.join(gives)}",
                *pooled,
                f"run by       ONNX Runtime {onnxruntime.__version__}, {model._session.get_providers()[0]}",
                *table("inputs", [(t.name, t.type[7:-1], shape_text(t.shape)) for t in inputs]),
                *table("outputs", [(t.name, t.type[7:-1], shape_text(t.shape)) for t in outputs]),
                "on a test image of 256 x 192 px:",
                *table("", [(name, "", shape_text(values.shape)) for name, values in given.items()]),
                f"fingerprint  {cls.fingerprint(place)}",
                f"size         {size / 1e6:.1f} MB",
                f"card         {stated.get('name', 'yes' if stated else 'none')}, "
                + (f"guessed is {guessed}" if guessed else "all is stated"),
                f"card to edit, as {os.path.join(os.path.dirname(place), CARD_NAME)}:",
                card_text(settings, **extra),
            ]
        )

    def extract(self, pixels: np.ndarray) -> Extracted:
        check_image(pixels)
        interface, settings = self.interface, self.settings
        # Without local features the other scales would be computed for nothing.
        wanted = settings.image_scales if interface.keypoints else settings.global_scales
        scales = [s for s in wanted if np.round(min(pixels.shape[:2]) * s) >= MIN_SIDE]
        if not scales or (interface.global_output and not set(scales) & set(settings.global_scales)):
            raise ExtractionError(
                "too_small",
                f"an image of {sides(pixels)} is smaller than {MIN_SIDE} px at every scale of {list(wanted)}",
            )
        rows = []
        local: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for scale in scales:
            outputs = self.outputs(pixels, scale)
            if interface.global_output and scale in settings.global_scales:
                rows.append(self._row(outputs[interface.global_output]))
            if interface.keypoints:
                fed = np.array(self._fed_sides(pixels, scale))
                local.append(self._local(outputs, fed, fed / pixels.shape[:2]))
        descriptor = summed(np.stack(rows)) if rows else np.zeros(0, np.float32)
        if not local:
            nothing = np.zeros((0, 2), np.float32), np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
            return Extracted(descriptor, *nothing)
        keypoints, features, scores = (np.concatenate(parts) for parts in zip(*local))
        return Extracted(descriptor, *strongest(keypoints, features, scores, settings))

    def outputs(self, pixels: np.ndarray, scale: float) -> dict[str, np.ndarray]:
        """What the model gives for an image at a scale, by name; raises as `extract` does."""
        feeds = {self.interface.input: self._fed(pixels, scale)}
        try:
            outputs = dict(zip(self._wanted, self._session.run(self._wanted, feeds)))
        except Exception as error:  # ONNX Runtime has a class of its own for each kind of trouble
            if isinstance(error, MemoryError) or "allocat" in str(error):
                raise MemoryError(first_line(error)) from error
            fed = "{} x {} px".format(*self._fed_sides(pixels, scale))
            raise ExtractionError(
                "model_error", f"the model raised on an image of {fed}: {first_line(error)}"
            ) from error
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                half = "; float16 overflows where float32 does not" if values.dtype == np.float16 else ""
                raise ExtractionError(
                    "non_finite", f"{name} of an image of {sides(pixels)} holds NaN or infinite values{half}"
                )
        return outputs

    def _fed_sides(self, pixels: np.ndarray, scale: float) -> tuple[int, int]:
        if self.interface.image_sides:
            return self.interface.image_sides
        multiple = self.interface.side_multiple
        height, width = (max(1, round(side * scale / multiple)) * multiple for side in pixels.shape[:2])
        return height, width

    def _fed(self, pixels: np.ndarray, scale: float) -> np.ndarray:
        """What is fed of an image at a scale, [1, C, H, W] or [1, H, W, C]."""
        interface = self.interface
        seen = resized(pixels, *self._fed_sides(pixels, scale))
        if interface.channels == "GRAY":
            seen = cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)[..., None]
        elif interface.channels == "BGR":
            seen = seen[..., ::-1]
        if self._dtype != np.uint8:
            values = seen.astype(np.float32) * np.float32(interface.value_range / 255)
            seen = (values - np.array(interface.mean, np.float32)) / np.array(interface.std, np.float32)
        if interface.layout == "NCHW":
            seen = np.moveaxis(seen, 2, 0)
        return np.ascontiguousarray(seen[None], self._dtype)

    def _row(self, output: np.ndarray) -> np.ndarray:
        """The descriptor [D] of what the model gives as the global one."""
        interface = self.interface
        if output.ndim != POOLINGS[interface.pooling] or output.shape[0] != 1 or 0 in output.shape:
            raise ModelError(
                f"{interface.global_output} is {list(output.shape)}: not for pooling {interface.pooling}"
            )
        values = output[0].astype(np.float64)
        if interface.pooling == "class_token":
            return values[0]
        if interface.pooling == "gem":
            cells = (
                values.reshape(len(values), -1)
                if self._map_layout == "NCHW"
                else values.reshape(-1, values.shape[-1]).T
            )
            powers = np.maximum(cells, GEM_FLOOR) ** interface.gem_power
            return powers.mean(axis=1) ** (1 / interface.gem_power)
        return values

    @functools.cached_property
    def _map_layout(self) -> str:
        """The order of the axes of the map that is pooled; raises as `extract` does."""
        interface = self.interface
        if interface.map_layout:
            return interface.map_layout
        images = [probe_image(*test) for test in self._test_sides]
        maps = [self.outputs(image, 1.0)[interface.global_output or ""].shape for image in images]
        fed = [self._fed_sides(image, 1.0) for image in images]
        layout = told_layout(list(zip(maps, fed)))
        if not layout:
            raise ModelError(
                f"which axis of {interface.global_output}, {list(maps[0])} on an image fed of {fed[0][0]} x "
                f'{fed[0][1]} px, has the channels cannot be told: state "map_layout", "NCHW" or "NHWC", '
                f"{IN_CARD}"
            )
        return layout

    @property
    def _test_sides(self) -> Sequence[tuple[int, int]]:
        """The sides of the images that it is checked with."""
        return _TEST_SIDES[:1] if self.interface.image_sides else _TEST_SIDES

    def _local(
        self, outputs: dict[str, np.ndarray], fed: np.ndarray, zoom: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keypoints (y, x) in px of the image, descriptors and scores of the outputs on an image that was
        fed with the sides `fed` [2], `zoom` [2] times as large.
        """
        interface = self.interface
        keypoints, features, scores = (
            outputs[name or ""] for name in (interface.keypoints, interface.descriptors, interface.scores)
        )
        shapes = f"{list(keypoints.shape)}, {list(features.shape)} and {list(scores.shape)}"
        if keypoints.ndim == 3:
            keypoints = keypoints[0] if len(keypoints) == 1 else keypoints
        if features.ndim == 3:
            features = features[0] if len(features) == 1 else features
        features = features.T if self._columns else features
        scores = scores.reshape(-1)
        if keypoints.shape != (len(scores), 2) or features.ndim != 2 or len(features) != len(scores):
            raise ModelError(
                f"{interface.keypoints}, {interface.descriptors} and {interface.scores} are {shapes}, which "
                "do not fit together: expected [N, 2], [N, D] and [N]"
            )
        ordered = keypoints[:, ::-1] if interface.keypoint_order == "xy" else keypoints
        must_be = f"{interface.keypoints} must be {interface.keypoint_order} (keypoint_order)"
        check_keypoints(ordered[scores >= self.settings.score_threshold], fed, _MARGIN, must_be)
        # Whole numbers are the middles of pixels.
        return (ordered.astype(np.float64) + 0.5) / zoom, features, scores.astype(np.float32)


# ONNX Runtime's execution providers by device.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}

_OPEN_SIDES = (
    '; a model that takes images of one size alone needs "image_sides", one of patches the right '
    f'"side_multiple", {IN_CARD}'
)


def _tensors(nodes: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(node.name, node.type, tuple(s if isinstance(s, int) else -1 for s in node.shape))
        for node in nodes
    )


def provider(device: str) -> str:
    """ONNX Runtime's execution provider of a device.

    Raises:
      ModelError: the ONNX Runtime that is installed lacks it.
    """
    wanted, there = PROVIDERS[device], onnxruntime.get_available_providers()
    if wanted not in there:
        raise ModelError(
            f"--device {device} needs ONNX Runtime's {wanted}, but the one that is installed has {there}: "
            f"possible are {[name for name, its in PROVIDERS.items() if its in there]}"
        )
    return wanted


def _session(place: str, device: str = "cpu", optimised: bool = True) -> onnxruntime.InferenceSession:
    """The graph in a file, run by a device; what that cannot run, the processor does.

    Raises:
      ModelError: the file cannot be loaded, or the device is not there.
    """
    onnx_files(place)
    wanted = provider(device)
    try:
        session = one_thread_session(place, [*dict.fromkeys([wanted, PROVIDERS["cpu"]])], optimised)
    except Exception as error:  # ONNX Runtime has a class of its own for each kind of trouble
        raise ModelError(f"{place} cannot be loaded: {first_line(error)}") from error
    if session.get_providers()[0] != wanted:  # it falls back without a word
        raise ModelError(f"--device {device}: {wanted} does not start here; its libraries may be missing")
    return session


def _signature(place: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of the graph in a file."""
    stat = os.stat(place)
    return _read_signature(place, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _read_signature(place: str, changed: int, size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    session = _session(place, optimised=False)
    return _tensors(session.get_inputs()), _tensors(session.get_outputs())


def _guessed(stated: dict[str, Any], interface: Interface) -> str:
    """The keys of an interface that a card does not state."""
    return ", ".join(sorted(set(interface.to_json()) - set(stated.get("onnx", {}))))


def _described(place: str) -> tuple[dict[str, Any], Interface]:
    """What the card of a file states, and its interface.

    Raises:
      ModelError: the interface cannot be told.
      ValueError: the card is malformed.
    """
    folder = pathlib.Path(place).parent
    stated = read_card(str(folder)) or {}
    others = sorted(path.name for path in folder.glob("*" + ONNX))
    if stated and len(others) > 1:
        raise ModelError(
            f"{folder / CARD_NAME} lies beside several models, {others}: give each a folder of its own"
        )
    return stated, guess(*_signature(place), stated.get("onnx", {}), os.path.basename(place))
