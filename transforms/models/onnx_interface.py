"""How an ONNX model of one's own is fed and read: stated by its card, or guessed from names and shapes."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from transforms.models.card import CARD_NAME
from transforms.models.model import ModelError, shape_text

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = {"RGB": 3, "BGR": 3, "GRAY": 1}
POOLINGS = {"none": 2, "class_token": 3, "gem": 4}  # ranks of the outputs that they take
KEYPOINT_ORDERS = ("xy", "yx")
MAX_SIDE, MAX_MULTIPLE = 8192, 1024  # px fed
IN_CARD = f'under "onnx" in {CARD_NAME} beside the file'

# Of the photographs that most public networks were trained on: ImageNet, in RGB from 0 to 1.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
PIXELS = {**FLOATS, "tensor(uint8)": np.uint8}
# What exporters call a descriptor of a whole image, the likeliest first.
_GLOBAL_NAMES = [
    *("global_descriptor", "global_descriptors", "image_embeds", "embedding", "embeddings"),
    *("pooler_output", "x_norm_clstoken", "descriptor"),
]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a graph: its name, ONNX Runtime's name of its type, and its shape, -1 for any
    length.
    """

    name: str
    type: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.type[len('tensor(') : -1]} {shape_text(self.shape)}"


@dataclasses.dataclass(frozen=True)
class Interface:
    """How a graph is fed and read; "onnx" in the card has these keys.

    Attributes:
      input: name of the input that takes an image.
      layout: order of its axes, "NCHW" or "NHWC".
      channels: "RGB", "BGR" or "GRAY".
      value_range: a pixel's 255 becomes this, before mean and std: 1 or 255 as a rule.
      mean, std: of each channel; (value - mean) / std is fed.
      image_sides: height and width in px where the graph takes one size only, to which photographs are
        stretched; None where they keep their shape.
      side_multiple: both sides fed are multiples of this, in px.
      global_output: name of the output with the global descriptor; None for none.
      pooling: what makes a descriptor of it: "none" [1, D]; "class_token" [1, T, D], the first of T tokens;
        "gem" a map, generalised mean pooling.
      gem_power: p of "gem".
      map_layout: order of the map's axes, "NCHW" or "NHWC"; None for the one that its shapes tell, see
        `told_layout`.
      keypoints: name of the output [N, 2] or [1, N, 2], in px of the image fed; None for no local features.
      keypoint_order: of its coordinates, "xy" or "yx".
      descriptors: name of the output [N, D], [1, N, D] or [1, D, N].
      scores: name of the output [N], [1, N] or [1, N, 1].
    """

    input: str
    layout: str
    channels: str
    value_range: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_sides: tuple[int, int] | None
    side_multiple: int
    global_output: str | None
    pooling: str
    gem_power: float
    keypoints: str | None
    keypoint_order: str
    descriptors: str | None
    scores: str | None
    map_layout: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the card states it; without map_layout where shapes tell it."""
        return {k: v for k, v in dataclasses.asdict(self).items() if (k, v) != ("map_layout", None)}

    def __str__(self) -> str:
        size = "{} x {} px".format(*self.image_sides) if self.image_sides else "as photographs are"
        parts = [
            f"input {self.input}, {self.layout}, {self.channels} from 0 to {self.value_range:g}, mean "
            f"{list(self.mean)}, std {list(self.std)}",
            f"sides {size}, multiples of {self.side_multiple}",
        ]
        if self.global_output:
            parts.append(f"global descriptor {self.global_output}, pooling {self.pooling}")
        if self.keypoints:
            parts.append(
                f"local features {self.keypoints} ({self.keypoint_order}), {self.descriptors}, {self.scores}"
            )
        return "; ".join(parts)


def guess(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], stated: dict[str, Any], name: str
) -> Interface:
    """The interface of a graph: what its card states, and else what names and shapes make likely.

    Args:
      inputs, outputs: of the graph.
      stated: "onnx" of the card.
      name: of the graph's file; "patch14" and the like tell a multiple of the sides.

    Raises:
      ModelError: what is stated does not fit, or something cannot be told; the text lists what there is.
    """
    return _Guess(inputs, outputs, stated, name).interface()


def told_layout(maps: Sequence[tuple[tuple[int, ...], tuple[int, int]]]) -> str | None:
    """The order of a map's axes, one of LAYOUTS, by its shapes; None where they do not tell it.

    Args:
      maps: for images, the shape of the map, four axes, and the sides (H, W) fed. Its depth is the same for
        all of them, and its sides are to each other as those fed are, to a cell.
    """
    depths = {layout: {shape[layout.index("C")] for shape, _ in maps} for layout in LAYOUTS}
    possible = [layout for layout in LAYOUTS if len(depths[layout]) == 1]
    if len(possible) == 1:
        return possible[0]
    misfits = {layout: max(_misfit(shape, layout, fed) for shape, fed in maps) for layout in possible}
    least = min(misfits.values(), default=2)
    fitting = [layout for layout in possible if misfits[layout] == least < 2]
    return fitting[0] if len(fitting) == 1 else None


def _misfit(shape: tuple[int, ...], layout: str, fed: tuple[int, int]) -> int:
    """0 where sides are to each other as those fed, 1 where to a cell, else 2."""
    height, width = shape[layout.index("H")], shape[layout.index("W")]
    away = abs(height * fed[1] - width * fed[0])
    return 2 if height > fed[0] or width > fed[1] or away > max(fed) else int(away > 0)


class _Guess:
    def __init__(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], stated: dict[str, Any], name: str
    ) -> None:
        self._inputs, self._stated, self._name = inputs, stated, name
        self._outputs = {tensor.name: tensor for tensor in outputs}
        self._found = (
            f"; inputs {', '.join(map(str, inputs))}; outputs {', '.join(map(str, outputs))}"
            if outputs
            else ""
        )

    def interface(self) -> Interface:
        known = [field.name for field in dataclasses.fields(Interface)]
        if unknown := sorted(set(self._stated) - set(known)):
            raise self._error(f"unknown keys {unknown}; known are {known}")
        image = self._image()
        layout, channels = self._axes(image)
        depth, pixels = CHANNELS[channels], image.type == "tensor(uint8)"
        value_range = self._number("value_range", 255.0 if pixels else 1.0)
        plain = pixels or value_range != 1 or channels == "GRAY"
        mean = self._per_channel("mean", (0.0,) * depth if plain else IMAGENET_MEAN, depth)
        std = self._per_channel("std", (1.0,) * depth if plain else IMAGENET_STD, depth)
        if min(std) <= 0:
            raise self._error(f"std must be above 0, not {list(std)}")
        if channels == "BGR" and "mean" not in self._stated:
            mean, std = mean[::-1], std[::-1]
        if pixels and (value_range, mean, std) != (255.0, (0.0,) * depth, (1.0,) * depth):
            raise self._error(f"{image} takes pixels as they are: no value_range, mean or std")
        keypoints, descriptors, scores = self._local()
        output, pooling = self._global((keypoints, descriptors, scores))
        if output is None and keypoints is None:
            raise self._error("it has neither a global descriptor nor keypoints, descriptors and scores")
        return Interface(
            image.name,
            layout,
            channels,
            value_range,
            mean,
            std,
            self._sides(image, layout),
            self._multiple(pooling),
            output,
            pooling,
            self._number("gem_power", 3.0),
            keypoints,
            self._one_of("keypoint_order", KEYPOINT_ORDERS, "xy"),
            descriptors,
            scores,
            self._one_of("map_layout", LAYOUTS, "") if self._stated.get("map_layout") is not None else None,
        )

    def _image(self) -> Tensor:
        named = self._stated.get("input")
        images = [t for t in self._inputs if t.name == named or (named is None and len(t.shape) == 4)]
        if named is not None and not images:
            raise self._error(f"there is no input {named!r}")
        if len(self._inputs) != 1 or len(images) != 1:
            raise self._error(
                "it must have one input, an image of four axes: export the part that takes images alone"
            )
        image = images[0]
        if len(image.shape) != 4 or image.shape[0] not in (-1, 1):
            raise self._error(
                f"{image} must be one image, [1, 3, H, W] or [1, H, W, 3], or a batch of any size"
            )
        if image.type not in PIXELS:
            raise self._error(f"{image} must be float, float16, double or uint8")
        return image

    def _axes(self, image: Tensor) -> tuple[str, str]:
        depths = {"NCHW": image.shape[1], "NHWC": image.shape[3]}
        likely = [layout for layout, depth in depths.items() if depth in (1, 3)]
        layout = self._one_of("layout", LAYOUTS, likely[0] if likely else "NCHW")
        depth = depths[layout]
        channels = self._one_of("channels", tuple(CHANNELS), "GRAY" if depth == 1 else "RGB")
        if depth not in (-1, CHANNELS[channels]):
            raise self._error(f"{image} is not {layout} with {channels}'s {CHANNELS[channels]} channels")
        return layout, channels

    def _sides(self, image: Tensor, layout: str) -> tuple[int, int] | None:
        fixed = image.shape[2:] if layout == "NCHW" else image.shape[1:3]
        stated = self._stated.get("image_sides")
        if stated is not None:
            if (
                not isinstance(stated, list)
                or len(stated) != 2
                or not all(_is_count(side, MAX_SIDE) for side in stated)
            ):
                raise self._error(
                    f"image_sides must be [height, width] in px, at most {MAX_SIDE}, not {stated!r}"
                )
            if any(side not in (-1, given) for side, given in zip(fixed, stated)):
                raise self._error(f"image_sides {stated} are not those of {image}")
            return stated[0], stated[1]
        if max(fixed) > 0 and min(fixed) < 0:
            raise self._error(f"{image} leaves one side open: state both as image_sides {IN_CARD}")
        return (fixed[0], fixed[1]) if min(fixed) > 0 else None

    def _multiple(self, pooling: str) -> int:
        tokens = pooling == "class_token"
        size = re.search(r"(?:patch|vit\D{0,4}|dino\S*?)(14|16|32)(?!\d)", self._name.lower())
        dino = 14 if "dinov2" in self._name.lower() else 16
        multiple = self._stated.get("side_multiple", int(size[1]) if size else dino if tokens else 32)
        if not _is_count(multiple, MAX_MULTIPLE):
            raise self._error(
                f"side_multiple must be a whole number of at least 1 and at most {MAX_MULTIPLE}, not "
                f"{multiple!r}"
            )
        return multiple

    def _local(self) -> tuple[str | None, str | None, str | None]:
        names: list[str | None] = []
        for key, pattern in (("keypoints", "keypoint|kpt"), ("descriptors", "desc"), ("scores", "score")):
            likely = [n for n in self._outputs if re.search(pattern, n.lower()) and "global" not in n.lower()]
            name = self._output(key, likely[0] if len(likely) == 1 else None)
            if name is None and names and names[0]:
                raise self._error(
                    f"there are keypoints, {names[0]}, but which output has their {key} cannot be told: "
                    f'state it as "{key}" {IN_CARD}, or "keypoints": null'
                )
            names.append(name if not names or names[0] else None)
        for name, ranks in zip(names, ((2, 3), (2, 3), (1, 2, 3))):
            if name and len(self._outputs[name].shape) not in ranks:
                raise self._error(f"{self._outputs[name]} cannot be local features: it has too many axes")
        return names[0], names[1], names[2]

    def _global(self, local: tuple[str | None, ...]) -> tuple[str | None, str]:
        ranks = {rank: pooling for pooling, rank in POOLINGS.items()}
        likely = [
            t.name
            for t in self._outputs.values()
            if t.name not in local and t.type in FLOATS and len(t.shape) in ranks
        ]
        preferred = [name for name in _GLOBAL_NAMES if name in likely]
        if "global_output" not in self._stated and not preferred:
            if local[0]:
                likely = [name for name in likely if "global" in name.lower()]
            if len(likely) > 1:
                raise self._error(
                    "which output has the global descriptor cannot be told: state it as "
                    f'"global_output" {IN_CARD}'
                )
        name = self._output("global_output", next(iter(preferred or likely), None))
        if name is None:
            return None, "none"
        rank = len(self._outputs[name].shape)
        pooling = self._one_of("pooling", tuple(POOLINGS), ranks.get(rank, "none"))
        if rank != POOLINGS[pooling]:
            raise self._error(
                f"pooling {pooling!r} takes an output of {POOLINGS[pooling]} axes, not {self._outputs[name]}"
            )
        return name, pooling

    def _output(self, key: str, likely: str | None) -> str | None:
        name = self._stated.get(key, likely)
        if name is not None and name not in self._outputs:
            raise self._error(f"there is no output {name!r}, which the card names as {key}")
        return name

    def _one_of(self, key: str, choices: Sequence[str], likely: str) -> str:
        value = self._stated.get(key, likely)
        if value not in choices:
            raise self._error(f"{key} must be one of {list(choices)}, not {value!r}")
        return value

    def _number(self, key: str, likely: float) -> float:
        value = self._stated.get(key, likely)
        if not _is_number(value) or value <= 0:
            raise self._error(f"{key} must be a number above 0, not {value!r}")
        return float(value)

    def _per_channel(self, key: str, likely: tuple[float, ...], depth: int) -> tuple[float, ...]:
        value = self._stated.get(key, list(likely))
        if not isinstance(value, list) or len(value) != depth or not all(map(_is_number, value)):
            raise self._error(f"{key} must be a list of {depth} numbers, one per channel, not {value!r}")
        return tuple(map(float, value))

    def _error(self, problem: str) -> ModelError:
        return ModelError(f"{self._name}: {problem}{self._found}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
