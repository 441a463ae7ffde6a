"""Makes the product's model of a checkpoint: `python -m training.fit --photographs FOLDER --output FOLDER`.

Folds the normalisation into the convolutions, learns the vocabulary and the whitening from the photographs
that the network was trained on, and writes all of it to the product's file of constants.
"""

import argparse
import os

import cv2
import numpy as np
import tensorflow as tf

from training import photographs, split
from training.network import folded
from transforms.models import rootsift_vlad, small_delg

CENTROIDS = 12  # with 128 dimensions each: what the embedding leaves of 2048
SAMPLE = 60  # descriptors of a level
AXES = {"embedding": 192, "vlad": 128}  # leading principal axes that are shrunk
LOCAL_DIMENSIONS = {"rootsift": 80, "learned": 48}  # kept
MIN_LENGTH = 0.9  # of a dense descriptor in the vocabulary; flat areas have less


def plain_weights(checkpoint: str) -> dict[str, np.ndarray]:
    """The averaged weights of a checkpoint, without normalisation, kernels rounded as they are stored."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(checkpoint) as data:
        for key in data.files:
            group, _, name = key.partition(":")
            groups.setdefault(group, {})[name] = data[key]
    name, average = small_delg.EMBEDDING[0], groups["average"]
    plain = {
        **folded(average, groups["moment"]),
        name: average[name],
        f"{name}/bias": average[f"{name}/bias"],
    }
    for kernel in [layer.name for layer in small_delg.layers()] + [name]:
        rounded, step = small_delg.quantised(plain[kernel])
        plain[kernel] = rounded * step
    return plain


def levels(weights: dict[str, np.ndarray]):
    """A function of an image float32 [H, W, 3] and a scale: embedding [1, 512], dense RootSIFT [M, 128], and,
    at the corners, RootSIFT and learned descriptors [N, 128]."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float32), tf.TensorSpec([], tf.float32)])
    def level(image, scale):
        settings, gray = small_delg.SETTINGS, rootsift_vlad.grayscale(tf, image)
        boxes, root_sift, _, cells = rootsift_vlad.local_features(
            tf, gray, scale, settings.max_local_features, settings.score_threshold
        )
        pooled, learned = small_delg.at_boxes(tf, image, scale, boxes, weights)
        return (
            small_delg.embed(tf, pooled, weights),
            rootsift_vlad.dense_root_sift(tf, cells),
            root_sift,
            learned,
        )

    return level


def fit(weights: dict[str, np.ndarray], images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Learns vocabulary and whitening; returns every constant of small_delg, as it is stored."""
    level, rng = levels(weights), np.random.default_rng(0)
    embeddings, dense, local = [], [], {"rootsift": [], "learned": []}
    for pixels in images:
        for scale in small_delg.SETTINGS.image_scales:
            embedding, everywhere, root_sift, learned = (
                value.numpy() for value in level(tf.cast(pixels, tf.float32), scale)
            )
            if scale in small_delg.SETTINGS.global_scales:
                embeddings.append(embedding[0])
                dense.append(everywhere)
            corners = rng.permutation(len(root_sift))[:SAMPLE]
            local["rootsift"].append(root_sift[corners])
            local["learned"].append(learned[corners])
    textured = [rows[np.linalg.norm(rows, axis=1) > MIN_LENGTH] for rows in dense]
    sample = np.concatenate([rows[rng.permutation(len(rows))[:SAMPLE]] for rows in textured])
    cv2.setRNGSeed(0)
    centroids = cv2.kmeans(
        sample, CENTROIDS, None, (cv2.TERM_CRITERIA_MAX_ITER, 30, 0), 1, cv2.KMEANS_PP_CENTERS
    )[2]
    vlads = np.concatenate([rootsift_vlad.vlad(tf, rows, centroids).numpy() for rows in dense])
    constants = {**weights, "vlad/centroids": centroids}
    for name, rows in (("embedding", np.stack(embeddings)), ("vlad", vlads)):
        constants |= {f"{name}/{key}": value for key, value in _shrinking(rows, AXES[name]).items()}
    for name, rows in local.items():
        constants |= {
            f"{name}/{key}": value
            for key, value in _projection(np.concatenate(rows), LOCAL_DIMENSIONS[name]).items()
        }
    for name in [layer.name for layer in small_delg.layers()] + [small_delg.EMBEDDING[0]]:
        constants[name], constants[f"{name}/step"] = small_delg.quantised(constants[name])
    return {
        name: value.astype(np.float16) if value.dtype == np.float32 and not name.endswith("/step") else value
        for name, value in constants.items()
    }


def _shrinking(rows: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """The mean of rows, their leading principal axes, and the loss that leaves none with more variance than
    the last.
    """
    mean = rows.mean(0)
    _, deviations, axes = np.linalg.svd(rows - mean, full_matrices=False)
    loss = 1 - deviations[count - 1] / deviations[:count]
    return {
        "mean": mean,
        "axes": np.round(axes[:count] / np.abs(axes[:count]).max(1, keepdims=True) * 127).astype(np.int8),
        "loss": loss,
    }


def _projection(rows: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """The mean of rows, and their leading principal axes, each divided by the fourth root of its variance."""
    mean = rows.mean(0)
    variances, axes = np.linalg.eigh(np.cov((rows - mean).T))
    leading = np.argsort(-variances)[:count]
    return {
        "mean": mean,
        "projection": (axes[:, leading] / np.maximum(variances[leading], 1e-6) ** 0.25).astype(np.float32),
    }


def main() -> None:
    """Writes transforms/delg/small_delg.npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", required=True, help="folder with photos.csv")
    parser.add_argument("--output", required=True, help="folder of the checkpoint, as of training.train")
    parser.add_argument("--count", type=int, default=600, help="photographs to learn from")
    args = parser.parse_args()
    chosen = [
        photograph for photograph in split.read_photographs(args.photographs) if photograph.part == "train"
    ]
    chosen = sorted(chosen, key=lambda photograph: split.order("fit", photograph.id))[: args.count]
    images = photographs.load(args.photographs, chosen, small_delg.SETTINGS.max_image_side)
    np.savez_compressed(
        small_delg.CONSTANTS, **fit(plain_weights(os.path.join(args.output, "checkpoint.npz")), images)
    )
    print(f"{small_delg.CONSTANTS}: {os.path.getsize(small_delg.CONSTANTS) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
