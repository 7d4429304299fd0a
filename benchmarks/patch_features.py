"""What the patch features of an encoder know before any training: the class of the tissue, or only whose slide it is.

    python benchmarks/patch_features.py --encoder=runs/dino/encoder.safetensors [--tiles=8,16] [--seeds=5]

A pretraining can lower its loss by learning the stain and the scanner of each patient, which tells views of different
tiles apart and says nothing of tissue. On the built-in data set, for the encoder, for the same form with random
weights, and for mean and deviation of the colors in each patch, this prints:

- class: share of the patches whose nearest patch of another patient is of the same class (tumor, stroma);
- patient: share of the patches whose nearest patch of another tile is of the same patient;
- Dice of a logistic regression on the patches of a few labeled tiles, over 16 other patients: mean [min, max] of the
  choices of tiles that `label_efficiency.py` makes.

Nearest is by cosine of the centered features. Only patches that are nearly of one class count for the first two.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from scipy.optimize import minimize

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from label_efficiency import CLASSES, SIDE, TEST_SEED, Tile, chosen, sample_tiles  # noqa: E402

from bcss_jax.data import synthetic  # noqa: E402
from bcss_jax.inference.frozen_encoder import encoder_of_file  # noqa: E402
from bcss_jax.models.apply import normalize  # noqa: E402
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture  # noqa: E402
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer  # noqa: E402
from bcss_jax.models.image_normalization import IMAGENET  # noqa: E402
from bcss_jax.training.sharding import make_mesh  # noqa: E402

BATCH = 16
COMPARED = 3000  # patches, drawn evenly
PURE = 0.9  # share of a patch's pixels that are of one class
PENALTY = 0.01  # of the squared weights of the regression
Features = Callable[[list[Tile]], np.ndarray]  # tiles -> float32 [tiles, rows, columns, values]


def of_encoder(apply: Callable, arrays, patch: int) -> Features:
    """Returns the features of the patches by `apply` (arrays, uint8 images) -> `Features`."""
    patches = jax.jit(lambda arrays, images: apply(arrays, images).patches)
    side = SIDE // patch * patch

    def features(tiles: list[Tile]) -> np.ndarray:
        images = np.stack([tile.image[:side, :side] for tile in tiles])
        fill = -len(images) % BATCH
        images = np.concatenate([images, np.repeat(images[:1], fill, axis=0)])
        found = [patches(arrays, images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        return np.concatenate(found).astype(np.float32)[: len(tiles)]

    return features


def of_random_weights(form: Architecture) -> Features:
    """Returns the features of the patches by random weights of a form."""
    graph, state = nnx.split(VisionTransformer(form, rngs=nnx.Rngs(0)))

    def apply(state, images):
        network = nnx.merge(graph, state)
        network.eval()
        return network(normalize(images, IMAGENET))

    return of_encoder(apply, state, form.patch)


def of_colors(patch: int) -> Features:
    """Returns mean and deviation of the colors of each patch."""

    def features(tiles: list[Tile]) -> np.ndarray:
        pixels = _in_patches(np.stack([tile.image for tile in tiles]).astype(np.float32) / 255, patch)
        return np.concatenate([pixels.mean(3), pixels.std(3)], axis=-1)

    return features


def shares(tiles: list[Tile], patch: int) -> np.ndarray:
    """Returns the share of each class in each patch, float [tiles, rows, columns, 2]; the rest is ignored."""
    labels = _in_patches(np.stack([tile.labels for tile in tiles])[..., None], patch)[..., 0]
    return np.stack([(labels == label).mean(3) for label in CLASSES], axis=-1)


def _in_patches(images: np.ndarray, patch: int) -> np.ndarray:
    """[N, H, W, C] -> [N, rows, columns, patch * patch, C]; what is left over is cut off."""
    n, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    images = images[:, : rows * patch, : columns * patch].reshape(n, rows, patch, columns, patch, channels)
    return images.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, patch * patch, channels)


def nearest(features: np.ndarray, tiles: list[Tile], of_class: np.ndarray) -> tuple[float, float]:
    """Returns the shares `class` and `patient` of the module's docstring."""
    per_tile = features[0, ..., 0].size
    patients = np.repeat([tile.patient for tile in tiles], per_tile)
    numbers = np.repeat(np.arange(len(tiles)), per_tile)
    one_class = np.flatnonzero(of_class.reshape(-1, 2).max(1) > PURE)
    picked = np.random.default_rng(0).permutation(one_class)[:COMPARED]
    is_tumor = of_class.reshape(-1, 2)[picked].argmax(1)
    patients, numbers = patients[picked], numbers[picked]
    vectors = features.reshape(-1, features.shape[-1])
    vectors = vectors[picked] - vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    by_class = np.where(patients[:, None] == patients, -2, similarity).argmax(1)
    by_patient = np.where(numbers[:, None] == numbers, -2, similarity).argmax(1)
    return float((is_tumor[by_class] == is_tumor).mean()), float((patients[by_patient] == patients).mean())


def dice_of_regression(train: np.ndarray, of_train: np.ndarray, test: np.ndarray, of_test: np.ndarray) -> float:
    """Returns the mean Dice over tumor and stroma in patches of `test`, from features and shares of both."""
    inputs, wanted = train.reshape(-1, train.shape[-1]), of_train.reshape(-1, 2)
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-6
    inputs, weight = (inputs - mean) / deviation, wanted.sum(1)
    tumor = wanted[:, 0] / np.maximum(weight, 1e-6)

    def loss(parameters: np.ndarray):
        scores = inputs @ parameters[:-1] + parameters[-1]
        value = ((np.logaddexp(0, scores) - tumor * scores) * weight).sum() / weight.sum()
        error = (1 / (1 + np.exp(-scores)) - tumor) * weight / weight.sum()
        gradient = np.append(inputs.T @ error + PENALTY * parameters[:-1], error.sum())
        return value + PENALTY / 2 * (parameters[:-1] ** 2).sum(), gradient

    parameters = minimize(loss, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B").x
    is_tumor = (test - mean) / deviation @ parameters[:-1] + parameters[-1] > 0
    found = []
    for number, predicted in enumerate((is_tumor, ~is_tumor)):
        right = (predicted * of_test[..., number]).sum()
        found.append(2 * right / ((predicted * of_test.sum(-1)).sum() + of_test[..., number].sum()))
    return float(np.mean(found))


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="encoder.safetensors of a pretraining")
    parser.add_argument("--tiles", default="8,16", help="numbers of labeled tiles")
    parser.add_argument("--seeds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Prints a line for each kind of features."""
    args = arguments()
    encoder = encoder_of_file(args.encoder, None, make_mesh(jax.devices()[:1]))
    patch = encoder.architecture.patch
    every = range(synthetic.TRAIN_PATIENTS + synthetic.VAL_PATIENTS)
    train, test = sample_tiles(0, range(synthetic.TRAIN_PATIENTS)), sample_tiles(TEST_SEED, every)
    of_test = shares(test, patch)
    kinds = {
        "colors": of_colors(patch),
        "random weights": of_random_weights(encoder.architecture),
        "encoder": of_encoder(encoder.apply, encoder.arrays, patch),
    }
    for name, features in kinds.items():
        tested = features(test)
        same_class, same_patient = nearest(tested, test, of_test)
        line = f"{name}: class {same_class:.3f}, patient {same_patient:.3f}"
        for size in args.tiles.split(","):
            found = []
            for seed in range(args.seeds):
                few = chosen(train, size, seed)
                found.append(dice_of_regression(features(few), shares(few, patch), tested, of_test))
            line += f"; {size} tiles: Dice {np.mean(found):.3f} [{min(found):.3f}, {max(found):.3f}]"
        print(line, flush=True)


if __name__ == "__main__":
    main()
