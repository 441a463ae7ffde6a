"""Makes the product's model of a checkpoint: `python -m training.fit --photographs FOLDER --output FOLDER`.

Averages the tuned weights with the original ones, and with those of an earlier model where one is given
(Wortsman et al. 2022, both of them), learns the whitening on the photographs that the network was trained on,
and writes the graph in 8 bits; in float32 too, beside the checkpoint, to compare with.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime import quantization

from training import graph, photographs, split
from training.network import Network, folded, pretrained
from training.rounding import round_weights
from transforms.arrays.whitening import Whitening
from transforms.models.embedded import EmbeddedModel, feeds, fitted, strongest_corners
from transforms.processes.onnx_runtime import one_thread_session

TUNED = 0.5  # share of the tuned weights in the average
CALIBRATION = 40  # photographs that ranges and roundings are chosen on
GLOBAL, GLOBAL_SHRINKAGE = 512, 0.01  # dimensions, and what is added to their variances
LOCAL, LOCAL_POWER = 64, 0.25
LOCAL_PHOTOGRAPHS = 600  # that the local whitening is learned on,
LOCAL_SAMPLE = 60  # with so many corners of each


def averaged(checkpoint: str, share: float) -> Network:
    """The original network and the one of a checkpoint, averaged weight by weight."""
    network = pretrained()
    tuned = torch.load(checkpoint, weights_only=True)["network"]
    own = network.state_dict()
    network.load_state_dict({name: value + share * (tuned[name] - value) for name, value in own.items()})
    return network


def unpacked(path: str) -> dict[str, np.ndarray]:
    """The folded weights of a model that `quantised` has made, by their names in its graph."""
    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    found = {}
    for node in (name.removesuffix("/bias_quantized") for name in stored if name.endswith("/bias_quantized")):
        kernel, bias = (stored[f"{name}_quantized"].astype(np.float32) for name in (node, f"{node}/bias"))
        found[node] = kernel * stored[f"{node}_scale"].reshape(-1, 1, 1, 1)
        found[f"{node}/bias"] = bias * stored[f"{node}/bias_quantized_scale"]
    return found


def inputs(folder: str, chosen: list[split.Photograph]) -> Iterator[dict[str, np.ndarray]]:
    """What the graph takes of photographs."""
    settings = EmbeddedModel.SETTINGS
    for photograph in chosen:
        seen = fitted(photographs.load(folder, [photograph], settings.max_image_side)[0])
        yield feeds(seen, strongest_corners(seen, settings.max_local_features, settings.score_threshold)[0])


class _Calibration(quantization.CalibrationDataReader):
    def __init__(self, fed: list[dict[str, np.ndarray]]):
        self._inputs = iter(fed)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


def quantised(model: onnx.ModelProto, fed: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """The graph with convolutions in 8 bits, ranges and roundings as is best for these inputs.

    Weights have 7 bits: sums of two products of 8 bits overflow 16 on processors without VNNI.
    """
    with tempfile.TemporaryDirectory() as work:
        whole, small = os.path.join(work, "whole.onnx"), os.path.join(work, "small.onnx")
        onnx.save(model, whole)
        quantization.quantize_static(
            whole,
            small,
            _Calibration(fed),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Clip", "Add"],
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        made = onnx.load(small)
    round_weights(made, model, fed)
    return made


def learned(
    model: onnx.ModelProto, folder: str, chosen: list[split.Photograph]
) -> tuple[Whitening, Whitening]:
    """The whitening of the global and of the local descriptors of a graph without them."""
    session = one_thread_session(model.SerializeToString())
    descriptors, local, rng = [], [], np.random.default_rng(0)
    for fed in inputs(folder, chosen):
        descriptor, rows = session.run(None, fed)
        descriptors.append(descriptor[0])
        if len(local) < LOCAL_PHOTOGRAPHS:
            local.append(rows[rng.permutation(len(rows))[:LOCAL_SAMPLE]])
    return (
        Whitening.learn(np.stack(descriptors), GLOBAL, GLOBAL_SHRINKAGE),
        Whitening.learn(np.concatenate(local), LOCAL, 0.0, LOCAL_POWER),
    )


def main() -> None:
    """Writes transforms/models/embedded.onnx, and float32.onnx beside the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", required=True, help="folder with photos.csv")
    parser.add_argument("--output", required=True, help="folder of the checkpoint, as of training.train")
    parser.add_argument(
        "--tuned", type=float, default=TUNED, help="share of the tuned weights in the average"
    )
    parser.add_argument("--previous", help="an earlier embedded.onnx, averaged with half and half")
    args = parser.parse_args()
    chosen = [p for p in split.read_photographs(args.photographs) if p.part == "train"]
    chosen.sort(key=lambda photograph: split.order("fit", photograph.id))
    arrays = folded(averaged(os.path.join(args.output, "checkpoint.pt"), args.tuned))
    if args.previous:
        previous = unpacked(args.previous)
        arrays = {name: (value + previous[name]) / 2 for name, value in arrays.items()}
    calibration = list(inputs(args.photographs, chosen[:CALIBRATION]))
    raw = quantised(graph.build(arrays), calibration)
    model = graph.build(arrays, *learned(raw, args.photographs, chosen))
    onnx.save(model, os.path.join(args.output, "float32.onnx"))
    onnx.save(quantised(model, calibration), EmbeddedModel.CONSTANTS)
    print(f"{EmbeddedModel.CONSTANTS}: {os.path.getsize(EmbeddedModel.CONSTANTS) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
