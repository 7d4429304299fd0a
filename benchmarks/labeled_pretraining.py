"""What a pretraining of so many steps can be hoped to give: the same network trained with labels of all its tiles.

    python benchmarks/labeled_pretraining.py --steps=1500 --output=runs/labeled
    python benchmarks/patch_features.py --encoder=runs/labeled/encoder.safetensors
    python benchmarks/label_efficiency.py --encoder=runs/labeled/encoder.safetensors --output=label_efficiency_labeled

A vision transformer and a linear layer learn the tissue of patches (tumor, stroma, all else) in crops of 2,048 tiles of
256 patients of the built-in data set, none of which the other two scripts draw. A pretraining without labels can
hardly learn tissue in fewer steps than this. So where the encoder written here gives no gain, a pretraining of that
length cannot be expected to.
"""

import argparse
import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from label_efficiency import CLASSES, EVERY_PATIENT, IGNORED, SIDE

from bcss_jax.data import synthetic
from bcss_jax.models.apply import normalize
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import preset_of
from bcss_jax.pretraining.encoder_file import write_encoder

SEEDS = range(2000, 2016)  # of the built-in data set, 128 tiles each
OTHER = 3  # all tissue that is neither tumor nor stroma, and glass; what lies outside the region is ignored
DENSITIES = (0.8, 1.25)  # smallest and largest factor on the optical density of a channel
PURE = 0.6  # share of a patch that its class must have; other patches are ignored
WEIGHT_DECAY = 0.05
REPORTED = 50  # steps


class Labeler(nnx.Module):
    """An encoder, and the scores of three classes for each of its patches."""

    def __init__(self, form: str):
        """Builds the network with random weights."""
        self.encoder = VisionTransformer(preset_of(form).architecture, rngs=nnx.Rngs(0))
        self.linear = nnx.Linear(self.encoder.architecture.width, 1 + len(CLASSES), rngs=nnx.Rngs(1))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Normalized images (N, H, W, 3) -> (N, rows, columns, classes)."""
        return self.linear(self.encoder(images).patches)


def all_tiles() -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [N, 224, 224, 3] and labels uint8 [N, 224, 224]: ignored, a class, or `OTHER`."""
    every = itertools.product(SEEDS, EVERY_PATIENT, range(len(synthetic.PLANS)))
    patches = [synthetic.draw_patch(patient, number, seed) for seed, patient, number in every]
    masks = np.stack([patch.mask for patch in patches])
    labels = np.where(np.isin(masks, CLASSES), masks, np.where(masks == synthetic.OUTSIDE, IGNORED, OTHER))
    return np.stack([patch.image for patch in patches]), labels.astype(np.uint8)


def batch_of(images: np.ndarray, labels: np.ndarray, step: int, count: int, side: int, patch: int):
    """Returns crops float32 [N, S, S, 3], and the class of each patch [N, rows, columns], -1 where it is mixed."""
    rng = np.random.default_rng((0, step))
    crops, classes = [], []
    for number in rng.integers(0, len(images), count):
        y, x = rng.integers(0, SIDE - side + 1, 2)
        turn, flipped = rng.integers(0, 4), rng.integers(0, 2)
        image, label = (np.rot90(a[number, y : y + side, x : x + side], turn) for a in (images, labels))
        if flipped:
            image, label = image[:, ::-1], label[:, ::-1]
        light = (image.astype(np.float32) + 1) / 256
        crops.append(256 * light ** rng.uniform(*DENSITIES, 3).astype(np.float32) - 1)
        parts = label.reshape(side // patch, patch, side // patch, patch)
        shares = np.stack([(parts == each).mean((1, 3)) for each in (*CLASSES, OTHER)], axis=-1)
        classes.append(np.where(shares.max(-1) > PURE, shares.argmax(-1), -1))
    return np.stack(crops), np.stack(classes)


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", default="vit_tiny16", help="form of the encoder")
    parser.add_argument("--output", type=Path, required=True, help="folder for encoder.safetensors")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=128, help="of the crops")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    return parser.parse_args()


def main() -> None:
    """Trains, and writes the encoder."""
    args = arguments()
    preset = preset_of(args.form)
    images, labels = all_tiles()
    network = Labeler(args.form)
    graph, params, rest = nnx.split(network, nnx.Param, ...)
    schedule = optax.warmup_cosine_decay_schedule(0, args.rate, args.steps // 10, args.steps)
    optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)

    @jax.jit
    def step(params, state, crops, classes):
        def loss(params):
            scores = nnx.merge(graph, params, rest)(normalize(crops, preset.statistics))
            counted = classes >= 0
            each = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(classes, 0))
            right = (scores.argmax(-1) == classes) & counted
            return jnp.sum(each * counted) / counted.sum(), right.sum() / counted.sum()

        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value, accuracy

    state, accuracies, start = optimizer.init(params), [], time.perf_counter()
    for number in range(args.steps):
        batch = batch_of(images, labels, number, args.batch, args.side, preset.architecture.patch)
        params, state, value, accuracy = step(params, state, *batch)
        accuracies.append(float(accuracy))
        if (number + 1) % REPORTED == 0:
            mean, seconds = np.mean(accuracies[-REPORTED:]), time.perf_counter() - start
            left = seconds / (number + 1) * (args.steps - number - 1)
            print(f"step {number + 1}: loss {value:.3f}, accuracy {mean:.3f}, {left / 60:.0f} min left", flush=True)
    encoder = nnx.merge(graph, params, rest).encoder
    args.output.mkdir(parents=True, exist_ok=True)
    about = {"trained_with": f"labels of {len(images)} tiles, {args.steps} steps"}
    write_encoder(args.output / "encoder.safetensors", encoder, args.form, preset.statistics, synthetic.MPP, about)


if __name__ == "__main__":
    main()
