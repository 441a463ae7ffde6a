"""Trains the network: `python -m training.train --photographs FOLDER --output FOLDER`. Started again, it goes
on from its last checkpoint.
"""

import argparse
import os
import time

import numpy as np
import tensorflow as tf

from training import correspondences, losses, photographs, split
from training.batches import Batch, Batches
from training.network import ATTENTION, BATCH_NORM_MOMENTUM, Network
from transforms.models import small_delg

# (share of the steps, side of the views in px): small views first, for more passes over the photographs in
# the same time.
SIDES = ((0.3, 128), (0.75, 160), (1.0, 224))
PAIRS = {128: 112, 160: 80, 224: 48}
WEIGHT_DECAY = 0.05
LEARNING_RATE = 1.5e-3
WARM_UP = 100  # steps
AVERAGE = 0.997  # of the moving average of the weights, which is what is kept
LOCAL_WEIGHT, ATTENTION_WEIGHT = 0.5, 0.3
CHECKPOINT_SECONDS = 240


class Trainer:
    """The network, AdamW (Loshchilov and Hutter 2019) and a moving average of the weights."""

    def __init__(self, seed: int):
        self.network = Network(seed)
        rng = np.random.default_rng(seed + 1)
        name, inputs, outputs = small_delg.EMBEDDING
        self.network.weights[name] = tf.Variable(
            (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        )
        self.network.weights[f"{name}/bias"] = tf.Variable(np.zeros(outputs, np.float32))
        weights = self.network.weights
        self.first = {key: tf.Variable(tf.zeros_like(value)) for key, value in weights.items()}
        self.second = {key: tf.Variable(tf.zeros_like(value)) for key, value in weights.items()}
        self.average = {key: tf.Variable(value) for key, value in weights.items()}
        self._step = tf.function(self._train_step)

    def state(self) -> dict[str, tf.Variable]:
        """Every variable, by a name of its own."""
        groups = {
            "weight": self.network.weights,
            "moment": self.network.moments,
            "first": self.first,
            "second": self.second,
            "average": self.average,
        }
        return {
            f"{group}:{name}": variable
            for group, members in groups.items()
            for name, variable in members.items()
        }

    def save(self, path: str, step: int) -> None:
        """Writes a checkpoint, whole or not at all."""
        with open(path + ".new", "wb") as file:
            np.savez(file, step=step, **{name: variable.numpy() for name, variable in self.state().items()})
        os.replace(path + ".new", path)

    def restore(self, path: str) -> int:
        """Reads a checkpoint and returns its number of steps."""
        with np.load(path) as data:
            for name, variable in self.state().items():
                variable.assign(data[name])
            return int(data["step"])

    def train(self, batch: Batch, step: int, steps: int) -> dict[str, tf.Tensor]:
        """One step; returns what is worth watching."""
        rate = (
            LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * np.cos(np.pi * step / steps)) + 1e-6
        )
        return self._step(
            *(
                tf.constant(value)
                for value in (batch.views, batch.classes, batch.places, batch.points, batch.valid)
            ),
            tf.constant(rate, tf.float32),
            tf.constant(step + 1.0, tf.float32),
        )

    def _train_step(self, views, classes, places, points, valid, rate, step):
        updates = []
        pairs = points.shape[0]
        with tf.GradientTape() as tape:
            image = tf.cast((tf.cast(views, tf.float32) - 128.0) / 64.0, tf.bfloat16)
            convolve = self.network.convolution(updates)
            pooled, local, hidden = small_delg.forward(tf, image, convolve)
            attention = convolve(hidden, ATTENTION)
            name = small_delg.EMBEDDING[0]
            embedding = tf.matmul(pooled, self.network.weights[name]) + self.network.weights[f"{name}/bias"]
            global_loss = losses.supervised_contrastive(tf.math.l2_normalize(embedding, 1), classes, places)
            both = tf.concat([points[..., :2], points[..., 2:]], 0)
            maps = tf.concat([tf.cast(local, tf.float32), tf.cast(attention, tf.float32)], 3)
            sampled = small_delg.sample(tf, maps, both)
            descriptors = tf.math.l2_normalize(sampled[..., :-1], 2)
            local_loss, right = losses.matching(
                descriptors[:pairs], descriptors[pairs:], points, valid, places[:pairs]
            )
            attention_loss = losses.matchability(
                sampled[..., -1], tf.concat([right, right], 0), tf.concat([valid, valid], 0)
            )
            loss = global_loss + LOCAL_WEIGHT * local_loss + ATTENTION_WEIGHT * attention_loss
        names = list(self.network.weights)
        gradients = tape.gradient(loss, [self.network.weights[key] for key in names])
        gradients, _ = tf.clip_by_global_norm(gradients, 5.0)
        for key, gradient in zip(names, gradients):
            weight = self.network.weights[key]
            first = self.first[key].assign(0.9 * self.first[key] + 0.1 * gradient)
            second = self.second[key].assign(0.98 * self.second[key] + 0.02 * gradient**2)
            change = (first / (1 - 0.9**step)) / (tf.sqrt(second / (1 - 0.98**step)) + 1e-8)
            if weight.shape.rank > 1:
                change += WEIGHT_DECAY * weight
            weight.assign_sub(rate * change)
            self.average[key].assign_sub(
                (1 - tf.minimum(AVERAGE, step / (step + 10.0))) * (self.average[key] - weight)
            )
        for moment, new in updates:
            moment.assign_sub((1 - BATCH_NORM_MOMENTUM) * (moment - new))
        count = tf.reduce_sum(tf.cast(valid, tf.float32)) + 1e-6
        return {
            "global": global_loss,
            "local": local_loss,
            "attention": attention_loss,
            "matched": tf.reduce_sum(tf.cast(right, tf.float32)) / count,
        }


def side_at(step: int, steps: int) -> int:
    """The side of the views of a step, px."""
    return next(side for share, side in SIDES if step < share * steps)


def main() -> None:
    """Trains, from the last checkpoint where there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", required=True, help="folder with photos.csv")
    parser.add_argument("--output", required=True, help="folder of correspondences and checkpoints")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parts", default="train", help="parts of the split to train on, separated by commas"
    )
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    chosen = [
        photograph
        for photograph in split.read_photographs(args.photographs)
        if photograph.part in args.parts.split(",")
    ]
    pairs_path, checkpoint = (
        os.path.join(args.output, name) for name in ("correspondences.npz", "checkpoint.npz")
    )
    if not os.path.exists(pairs_path):
        correspondences.save(pairs_path, correspondences.find(args.photographs, chosen))
    found = correspondences.load(pairs_path)
    batches = Batches(chosen, photographs.load(args.photographs, chosen), found, args.seed)
    trainer = Trainer(args.seed)
    step = trainer.restore(checkpoint) if os.path.exists(checkpoint) else 0
    print(f"{len(chosen)} photographs, {len(found)} verified pairs, step {step} of {args.steps}", flush=True)
    saved = started = time.monotonic()
    views = 0
    while step < args.steps:
        side = side_at(step, args.steps)
        stop = step
        while stop < args.steps and side_at(stop, args.steps) == side:
            stop += 1
        for batch in batches.stream(step, stop, PAIRS[side], side):
            watched = trainer.train(batch, step, args.steps)
            step += 1
            views += len(batch.views)
            if step % 20 == 0:
                text = " ".join(f"{name} {float(value):.3f}" for name, value in watched.items())
                print(
                    f"step {step} side {side} {text} views/s {views / (time.monotonic() - started):.0f}",
                    flush=True,
                )
            if time.monotonic() - saved > CHECKPOINT_SECONDS or step == args.steps:
                trainer.save(checkpoint, step)
                saved = time.monotonic()


if __name__ == "__main__":
    main()
