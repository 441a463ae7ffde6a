"""Makes the product's model of a checkpoint: `python -m training.fit --photographs FOLDER --output FOLDER`.

Folds the normalisation into the convolutions, learns the vocabulary and the whitening of the global descriptor from the photographs that
the network was trained on, and writes all of it to the product's file of constants.
"""

from __future__ import annotations

import argparse
import os

import cv2
import numpy as np
import tensorflow as tf

from training import photographs, split
from training.network import folded
from transforms.delg import small_delg

CENTROIDS = 12  # with 128 dimensions each: what the embedding leaves of 2048
SAMPLE = 300  # local descriptors of a photograph for the vocabulary
AXES = {"embedding": 128, "vlad": 128}  # leading principal axes that are shrunk
SHARE = 0.5  # of the embedding


def plain_weights(checkpoint: str) -> dict[str, np.ndarray]:
    """The averaged weights of a checkpoint, without normalisation."""
    with np.load(checkpoint) as data:
        groups: dict[str, dict[str, np.ndarray]] = {}
        for key in data.files:
            group, _, name = key.partition(":")
            groups.setdefault(group, {})[name] = data[key]
    name = small_delg.EMBEDDING[0]
    average = groups["average"]
    return {**folded(average, groups["moment"]), name: average[name], f"{name}/bias": average[f"{name}/bias"]}


class Levels:
    """What the network says of the pyramid of a photograph."""

    def __init__(self, weights: dict[str, np.ndarray]):
        def convolve(x, layer):
            return tf.nn.conv2d(x, weights[layer.name], layer.stride, "SAME") + weights[f"{layer.name}/bias"]

        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float32)])
        def run(image):
            pooled, maps, logits = small_delg.forward(tf, (image[None] - 128.0) / 64.0, convolve)
            embedding = tf.math.l2_normalize(tf.matmul(pooled, weights["embedding"]) + weights["embedding/bias"], 1)[0]
            return embedding, tf.math.l2_normalize(tf.reshape(maps, [-1, small_delg.LOCAL_DIMENSIONS]), 1), tf.sigmoid(tf.reshape(logits, [-1, 1]))

        self._run = run

    def of(self, pixels: np.ndarray, scales: tuple[float, ...]):
        """For each scale: embedding [512], local descriptors [N, 128], attention [N, 1]; tensors."""
        for scale in scales:
            height, width = (max(2, round(side * scale / small_delg.SIDE_MULTIPLE)) * small_delg.SIDE_MULTIPLE for side in pixels.shape[:2])
            resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            yield self._run(resized.astype(np.float32))


def fit(weights: dict[str, np.ndarray], images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Learns vocabulary and whitening; returns every constant of small_delg, as it is stored."""
    levels, rng = Levels(weights), np.random.default_rng(0)
    scales = small_delg.SETTINGS.global_scales
    sample, embeddings = [], []
    for pixels in images:
        for embedding, rows, attention in levels.of(pixels, scales):
            weight = attention.numpy()[:, 0]
            chosen = rng.choice(len(weight), min(SAMPLE // len(scales), len(weight)), p=weight / weight.sum())
            sample.append(rows.numpy()[chosen])
            embeddings.append(embedding.numpy())
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, 30, 0)
    centroids = cv2.kmeans(np.concatenate(sample), CENTROIDS, None, criteria, 1, cv2.KMEANS_PP_CENTERS)[2]
    vlads = [small_delg.vlad(tf, rows, attention, centroids).numpy()[0]
             for pixels in images for _, rows, attention in levels.of(pixels, scales)]
    constants = {**weights, "vlad/centroids": centroids, "share": np.float32(SHARE)}
    for name, rows in (("embedding", np.stack(embeddings)), ("vlad", np.stack(vlads))):
        constants |= {f"{name}/{key}": value for key, value in _whitening(rows, AXES[name]).items()}
    return {name: value.astype(np.float16) if value.dtype == np.float32 and value.ndim > 0 else value for name, value in constants.items()}


def _whitening(rows: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """The mean of rows, their leading principal axes, and the loss that leaves none with more variance than the last."""
    mean = rows.mean(0)
    _, deviations, axes = np.linalg.svd(rows - mean, full_matrices=False)
    loss = 1 - deviations[count - 1] / deviations[:count]
    return {"mean": mean, "axes": np.round(axes[:count] / np.abs(axes[:count]).max(1, keepdims=True) * 127).astype(np.int8), "loss": loss}


def main() -> None:
    """Writes transforms/delg/small_delg.npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", required=True, help="folder with photos.csv")
    parser.add_argument("--output", required=True, help="folder of the checkpoint, as of training.train")
    parser.add_argument("--count", type=int, default=1500, help="photographs to learn from")
    args = parser.parse_args()
    chosen = [photograph for photograph in split.read_photographs(args.photographs) if photograph.part == "train"]
    chosen = sorted(chosen, key=lambda photograph: split.order("fit", photograph.id))[:args.count]
    images = photographs.load(args.photographs, chosen, small_delg.SETTINGS.max_image_side)
    constants = fit(plain_weights(os.path.join(args.output, "checkpoint.npz")), images)
    np.savez_compressed(small_delg.CONSTANTS, **constants)
    print(f"{small_delg.CONSTANTS}: {os.path.getsize(small_delg.CONSTANTS) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
