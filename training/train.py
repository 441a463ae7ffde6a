"""Fine-tunes the backbone: `python -m training.train --photographs FOLDER --output FOLDER`. Started again, it
goes on from its last checkpoint.
"""

import argparse
import math
import os
import time

import numpy as np
import torch

from training import correspondences, losses, photographs, split
from training.batches import Batch, Batches
from training.network import Network, pretrained
from transforms.arrays.whitening import Whitening

SIDE = 288  # px of a view
PAIRS = 35  # of views, a step
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-4
WARM_UP = 20  # steps
DIMENSIONS, SHRINKAGE = 256, 0.05  # of the whitening under the loss
CHECKPOINT_SECONDS = 180


class Trainer:
    """The network, AdamW (Loshchilov and Hutter 2019), the whitening of untuned descriptors under the loss.

    Whitened, descriptors of different things are at right angles from the start, and the loss asks for no
    more than telling apart what still looks alike.
    """

    def __init__(self, network: Network, whitening: Whitening):
        self.network = network
        self.mean, self.projection = (
            torch.from_numpy(array) for array in (whitening.mean, whitening.projection)
        )
        self.optimizer = torch.optim.AdamW(
            network.tuned(), LEARNING_RATE, (0.9, 0.98), weight_decay=WEIGHT_DECAY
        )

    def save(self, path: str, step: int) -> None:
        """Writes a checkpoint, whole or not at all."""
        state = {"step": step, "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, path + ".new")
        os.replace(path + ".new", path)

    def restore(self, path: str) -> int:
        """Reads a checkpoint and returns its number of steps."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        return state["step"]

    def train(self, batch: Batch, step: int, steps: int) -> float:
        """One step; returns the loss."""
        for group in self.optimizer.param_groups:
            warm = min(1.0, (step + 1) / WARM_UP)
            group["lr"] = LEARNING_RATE * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        pooled = torch.nn.functional.normalize(self.network(torch.from_numpy(batch.views)))
        descriptors = torch.nn.functional.normalize((pooled - self.mean) @ self.projection)
        loss = losses.supervised_contrastive(
            descriptors, torch.from_numpy(batch.classes), torch.from_numpy(batch.places)
        )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.tuned(), 5.0)
        self.optimizer.step()
        return loss.item()


def main() -> None:
    """Trains, from the last checkpoint where there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", required=True, help="folder with photos.csv")
    parser.add_argument(
        "--output", required=True, help="folder of descriptors, correspondences and checkpoints"
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    chosen = [p for p in split.read_photographs(args.photographs) if p.part == "train"]
    pixels = photographs.cached(args.photographs, chosen, os.path.join(args.output, "pixels.npy"))
    network = pretrained()
    untuned, pairs, checkpoint = (
        os.path.join(args.output, name) for name in ("untuned.npy", "correspondences.npz", "checkpoint.pt")
    )
    if not os.path.exists(untuned):
        np.save(untuned, np.stack([network.describe(image) for image in pixels]))
    pooled = np.load(untuned)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    whitening = Whitening.learn(pooled, DIMENSIONS, SHRINKAGE)
    descriptors = whitening(pooled)
    if not os.path.exists(pairs):
        correspondences.save(pairs, correspondences.find(chosen, pixels, descriptors))
    found = correspondences.load(pairs)
    batches = Batches(chosen, pixels, found, descriptors, args.seed)
    trainer = Trainer(network, whitening)
    step = trainer.restore(checkpoint) if os.path.exists(checkpoint) else 0
    print(f"{len(chosen)} photographs, {len(found)} verified pairs, step {step} of {args.steps}", flush=True)
    saved = started = time.monotonic()
    watched = []
    for batch in batches.stream(step, args.steps, PAIRS, SIDE):
        watched.append(trainer.train(batch, step, args.steps))
        step += 1
        if step % 10 == 0:
            seconds = (time.monotonic() - started) / len(watched)
            print(f"step {step} loss {np.mean(watched[-10:]):.3f} seconds a step {seconds:.1f}", flush=True)
        if time.monotonic() - saved > CHECKPOINT_SECONDS or step == args.steps:
            trainer.save(checkpoint, step)
            saved = time.monotonic()


if __name__ == "__main__":
    main()
