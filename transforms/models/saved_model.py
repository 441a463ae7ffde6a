"""Features from a SavedModel of any DELG contract, chosen by what the loaded object offers and fed by name.

The contracts are those of tensorflow/models, research/delf: TF1-style exports with `prune`, TF2 exports with
a signature, local-only and global-only ones.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from transforms.models.card import CARD_NAME, ExtractionSettings, card_text, read_card, settings_from_card
from transforms.models.contract import Call, Contract, bind, first_line
from transforms.models.model import (
    Extracted,
    ExtractionError,
    Model,
    ModelError,
    check_image,
    check_keypoints,
    probe_image,
    shape_text,
    sides,
    strongest,
    summed,
    table,
)
from transforms.models.model_files import check_saved_model, fingerprint, size_bytes
from transforms.processes.tensorflow_runtime import import_tensorflow

# Keep a GPU busy while others copy and postprocess; more would only take memory.
_IN_FLIGHT_ON_GPU = 4

_MIN_SCALED_SIDE = (
    5  # pixels; below, the in-graph resize and the backbone abort, or take the process down with SIGFPE
)
_NOT_KNOWN = -1  # a width before the model has run
_HALF_CELL = 16.0  # px at a scale, that the middle of a cell at the border may lie outside of the image
# Of the image that a model is checked with when it is loaded, pixels: long enough that coordinates in another
# order lie outside of it by more than half a cell.
_TEST_SIDES = (192, 64)


class DelgModel(Model):
    """A SavedModel.

    Attributes:
      contract: what it offers.
    """

    RUN_BY = "TensorFlow, on a GPU where it sees one"

    def __init__(self, contract: Contract, call: Call, settings: ExtractionSettings):
        """Use `load`."""
        self.contract = contract
        self.settings = settings
        self._call = call
        self._inputs = {name for name, _, _ in contract.inputs}
        self._call_options = _mixed_precision if settings.precision == "bfloat16" else contextlib.nullcontext
        self.global_width = self.local_width = _NOT_KNOWN

    card = staticmethod(read_card)
    fingerprint = staticmethod(fingerprint)

    @classmethod
    def inspect(cls, place: str) -> str:
        return str(inspect_model(place))

    @classmethod
    def load(cls, model_dir: str, settings: ExtractionSettings) -> "DelgModel":
        """Loads a model, checks its contract, and runs it once on a small seeded image.

        Args:
          model_dir: a local folder, see fetch_model.
          settings: how it is used.

        Raises:
          ModelError: it is no SavedModel, offers no known contract, or breaks it; the message lists what was
            found.
          TensorFlowSettingsError: TensorFlow was started before, with other settings.
        """
        check_saved_model(model_dir)
        tf = import_tensorflow()
        try:
            loaded = tf.saved_model.load(model_dir)
        except (
            Exception
        ) as error:  # whatever a broken file raises in protobuf, TensorFlow or a custom operation
            raise ModelError(f"{model_dir} cannot be loaded: {first_line(error)}") from error
        contract, call = bind(loaded, model_dir, constant_weights=settings.precision == "bfloat16")
        model = cls(contract, call, settings)
        try:
            extracted = model.extract(probe_image(*_TEST_SIDES))
        except ExtractionError as error:
            raise ModelError(f"{model_dir} fails on a test image: {error}") from error
        except ModelError as error:
            raise ModelError(f"{model_dir}: {error}") from error
        if tf.config.list_physical_devices("GPU"):
            model.images_in_flight = _IN_FLIGHT_ON_GPU
        model.global_width = extracted.global_descriptor.shape[0]
        model.local_width = extracted.descriptors.shape[1]
        return model

    def extract(self, pixels: np.ndarray) -> Extracted:
        scales, global_indices = self._scales_for(pixels)
        outputs = self._run(pixels, scales, global_indices)
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise ExtractionError(
                    "non_finite", f"{name} of an image of {sides(pixels)} holds NaN or infinite values"
                )
        descriptor = np.zeros(0, np.float32)
        if self.contract.has_global:
            descriptor = self._global(outputs["global_descriptors"], len(scales), global_indices)
        keypoints, descriptors, scores = (
            np.zeros((0, 2), np.float32),
            np.zeros((0, 0), np.float32),
            np.zeros(0, np.float32),
        )
        if self.contract.has_local:
            keypoints, descriptors, scores = self._local(
                outputs["boxes"], outputs["features"], outputs["scores"]
            )
            check_keypoints(
                keypoints,
                np.array(pixels.shape[:2]),
                _HALF_CELL / min(scales),
                "boxes must be (y_min, x_min, y_max, x_max)",
            )
        return Extracted(descriptor, keypoints, descriptors, scores)

    def outputs(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """What the model gives for an image uint8 [H, W, 3], by name, untouched; raises as `extract` does."""
        return self._run(pixels, *self._scales_for(pixels))

    def _scales_for(self, pixels: np.ndarray) -> tuple[list[float], list[int]]:
        """The scales that this image is large enough for, and which of them make the global descriptor."""
        check_image(pixels)
        # Without local features the other scales would be computed for nothing.
        wanted = self.settings.image_scales if self.contract.has_local else self.settings.global_scales
        scales = [scale for scale in wanted if np.round(min(pixels.shape[:2]) * scale) >= _MIN_SCALED_SIDE]
        global_indices = [index for index, scale in enumerate(scales) if scale in self.settings.global_scales]
        if not scales or (self.contract.has_global and not global_indices):
            needed = self.settings.global_scales if self.contract.has_global else wanted
            raise ExtractionError(
                "too_small",
                f"an image of {sides(pixels)} is smaller than {_MIN_SCALED_SIDE} px "
                f"at every scale of {list(needed)}",
            )
        return scales, global_indices

    def _run(
        self, pixels: np.ndarray, scales: list[float], global_indices: list[int]
    ) -> dict[str, np.ndarray]:
        tf = import_tensorflow()
        feeds = {
            "input_image": tf.constant(pixels, tf.uint8),
            "input_scales": tf.constant(scales, tf.float32),
            "input_max_feature_num": tf.constant(self.settings.max_local_features, tf.int32),
            "input_abs_thres": tf.constant(self.settings.score_threshold, tf.float32),
            "input_global_scales_ind": tf.constant(global_indices, tf.int32),
        }
        try:
            with self._call_options():
                outputs = self._call({name: tensor for name, tensor in feeds.items() if name in self._inputs})
            return {name: tensor.numpy() for name, tensor in outputs.items()}
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(first_line(error)) from error
        except tf.errors.OpError as error:
            raise ExtractionError(
                "model_error",
                f"the model raised on an image of {sides(pixels)}: "
                f"{type(error).__name__}: {first_line(error)}",
            ) from error

    def _global(self, rows: np.ndarray, scale_count: int, global_indices: list[int]) -> np.ndarray:
        """The global descriptor float32 [D] from rows [G, D], or [S, D] of an export that cannot be told
        which.
        """
        takes_indices = "input_global_scales_ind" in self._inputs
        expected = len(global_indices) if takes_indices else scale_count
        if rows.ndim != 2 or rows.shape[0] != expected:
            raise ModelError(
                f"global_descriptors is {list(rows.shape)}, expected a row for each of {expected} scales"
            )
        _check_width("global_descriptors", rows, self.global_width)
        rows = rows if takes_indices else rows[global_indices]
        return summed(rows)

    def _local(
        self, boxes: np.ndarray, features: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keypoints [N, 2], descriptors [N, D'] and scores [N], float32, strongest first, as the settings
        ask.
        """
        scores = scores.reshape(-1)
        if boxes.shape != (len(scores), 4) or features.ndim != 2 or len(features) != len(scores):
            raise ModelError(
                f"boxes {list(boxes.shape)}, features {list(features.shape)} and {len(scores)} scores do not "
                f"fit together, expected [N, 4], [N, D] and N"
            )
        _check_width("features", features, self.local_width)
        # Exports without the inputs for them do not apply the limits themselves.
        return strongest((boxes[:, :2] + boxes[:, 2:]) / 2, features, scores, self.settings)


@dataclasses.dataclass(frozen=True)
class ModelReport:
    """What `landmarks model inspect` shows; str() is the text for a person.

    Attributes:
      model: its folder.
      contract: what the model offers.
      outputs: (name, shape) on the test image.
      test_image: its sides (height, width) in pixels.
      fingerprint: see fingerprint.
      card: see read_card; None where there is none.
      settings: those it was run with: the card's, else the official DELG ones.
      size_bytes: on disk.
    """

    model: str
    contract: Contract
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    test_image: tuple[int, int]
    fingerprint: str
    card: dict[str, Any] | None
    settings: ExtractionSettings
    size_bytes: int

    def __str__(self) -> str:
        gives = {
            (True, True): "global descriptor and local features",
            (True, False): "global descriptor only: no re-ranking",
            (False, True): "local features only: offers no global descriptor, so it cannot retrieve",
        }
        height, width = self.test_image
        return "\n".join(
            [
                f"model        {self.model}",
                f"gives        {gives[self.contract.has_global, self.contract.has_local]}",
                f"called by    {self.contract.kind}",
                *table(
                    "inputs",
                    [(name, dtype, shape_text(shape)) for name, dtype, shape in self.contract.inputs],
                ),
                *table(
                    "outputs",
                    [(name, dtype, shape_text(shape)) for name, dtype, shape in self.contract.outputs],
                ),
                f"on a test image of {height} x {width} px, with the settings below:",
                *table("", [(name, "", shape_text(shape)) for name, shape in self.outputs]),
                "card         "
                f"{'none, official DELG settings' if self.card is None else self.card.get('name', 'yes')}",
                *table(
                    "settings", [(name, "", str(value)) for name, value in self.settings.to_json().items()]
                ),
                f"fingerprint  {self.fingerprint}",
                f"size         {self.size_bytes / 1e6:.1f} MB",
                *(self._card_to_edit() if self.card is None else []),
            ]
        )

    def _card_to_edit(self) -> list[str]:
        name = os.path.basename(os.path.abspath(self.model))
        return [
            f"card to edit, as {os.path.join(self.model, CARD_NAME)}:",
            card_text(self.settings, name=name),
        ]


def inspect_model(model_dir: str) -> ModelReport:
    """Loads the model in a folder, runs it on a seeded test image of 256 x 192 px, and reports.

    Raises:
      ModelError: it cannot be used.
      ValueError: its card is malformed.
    """
    card = read_card(model_dir)
    model = DelgModel.load(model_dir, settings_from_card(card))
    image = probe_image(256, 192)
    shapes = tuple((name, tuple(values.shape)) for name, values in model.outputs(image).items())
    return ModelReport(
        model_dir,
        model.contract,
        shapes,
        image.shape[:2],
        fingerprint(model_dir),
        card,
        model.settings,
        size_bytes(model_dir),
    )


@contextlib.contextmanager
def _mixed_precision() -> Iterator[None]:
    """Functions called inside, in this thread, run their convolutions and products in bfloat16 where oneDNN
    can.

    The call options of the thread rather than tf.config's switch, which is global: other models and steps of
    the process stay in float32. It works on processors; a GPU ignores it.
    """
    import_tensorflow()
    from tensorflow.core.protobuf import rewriter_config_pb2
    from tensorflow.python.eager import context

    eager = context.context()
    before = eager.function_call_options
    config = eager.config
    config.allow_soft_placement = True  # as TensorFlow itself sets it for calls
    config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = (
        rewriter_config_pb2.RewriterConfig.ON
    )
    eager.function_call_options = context.FunctionCallOptions(before.executor_type, config)
    try:
        yield
    finally:
        eager.function_call_options = before


def _check_width(name: str, rows: np.ndarray, expected: int) -> None:
    if expected != _NOT_KNOWN and rows.shape[1] != expected:
        raise ModelError(f"{name} are {rows.shape[1]} wide, but were {expected} before")
