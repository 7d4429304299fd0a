"""Measures how hard the built-in sample data are: the Dice that the color of single pixels achieves on them.

    python benchmarks/sample_difficulty.py [--run=DIR] [--seed=0]

A binary logistic regression (tumor or stroma) sees one pixel without its neighbors. It is fitted to maximum likelihood
by Newton's method on every labeled pixel of the training patches, and predicts the more probable class of the
validation patches. The label scheme is `tumor_stroma`; all other pixels are dropped. The Dice of a class is
2 TP / (2 TP + FP + FN) with TP, FP and FN counted over all validation pixels together; "macro" is the mean of both.

`RGB`: the three channels and a bias. `RGB, quadratic`: also the six products of two channels, for information.
With `--run`, the score of a finished run on the sample data (`summary.json`: `dice_global`, `macro`) is printed too.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

from bcss_jax import labels  # noqa: E402
from bcss_jax.data import synthetic  # noqa: E402

SCHEME = labels.SCHEMES["tumor_stroma"]


def labeled_pixels(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns for each split the colors of tumor and stroma, uint8 [n, 3], and which pixels are tumor, bool [n]."""
    table = labels.lookup_table(SCHEME, "bcss22")
    found = {"train": [], "val": []}
    for patch in synthetic.draw(seed):
        truth = table[patch.mask]
        kept = truth != SCHEME.ignore_index
        found[patch.split].append((patch.image[kept], truth[kept] == SCHEME.class_names.index("tumor")))
    return {
        split: (np.concatenate([colors for colors, _ in each]), np.concatenate([tumor for _, tumor in each]))
        for split, each in found.items()
    }


def features(colors: np.ndarray, quadratic: bool) -> np.ndarray:
    """Returns the features, float64 [n, 4 or 10]: bias, channels scaled to -1..1, and their products if `quadratic`."""
    scaled = colors / 127.5 - 1
    columns = [np.ones(len(scaled)), *scaled.T]
    if quadratic:
        columns += [scaled[:, a] * scaled[:, b] for a in range(3) for b in range(a, 3)]
    return np.stack(columns, -1)


def fit(colors: np.ndarray, tumor: np.ndarray, quadratic: bool, chunk: int = 1 << 19) -> np.ndarray:
    """Returns the weights of the most likely logistic regression, by Newton's method.

    Raises:
      ArithmeticError: no convergence in 50 steps.
    """
    weights = np.zeros(10 if quadratic else 4)
    for _ in range(50):
        gradient, hessian = np.zeros_like(weights), 1e-9 * np.eye(len(weights))
        for start in range(0, len(colors), chunk):  # in chunks, to save memory
            x = features(colors[start : start + chunk], quadratic)
            p = 1 / (1 + np.exp(-(x @ weights)))
            gradient += x.T @ (tumor[start : start + chunk] - p) / len(colors)
            hessian += (x.T * (p * (1 - p))) @ x / len(colors)
        step = np.linalg.solve(hessian, gradient)
        weights += step
        if np.abs(step).max() < 1e-8 * max(1.0, np.abs(weights).max()):
            return weights
    raise ArithmeticError("the logistic regression did not converge in 50 Newton steps")


def dice(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Returns the Dice of both classes and their mean; the arguments are bool [n], whether each pixel is tumor."""
    scores = {}
    for name, p, t in (("tumor", predicted, truth), ("stroma", ~predicted, ~truth)):
        scores[name] = float(2 * np.sum(p & t) / (np.sum(p) + np.sum(t)))
    return {"macro": sum(scores.values()) / 2, **scores}


def color_dice(seed: int = 0, quadratic: bool = False, pixels=None) -> dict[str, float]:
    """Fits on the training patches and scores on the validation patches of a sample data set.

    Args:
      seed: which sample data set.
      quadratic: whether the products of channels are features too.
      pixels: as `labeled_pixels` returns them; None: they are drawn.
    """
    pixels = pixels or labeled_pixels(seed)
    weights = fit(*pixels["train"], quadratic)
    colors, truth = pixels["val"]
    return dice(features(colors, quadratic) @ weights > 0, truth)


def run_dice(directory: pathlib.Path) -> dict[str, float]:
    """Returns the global Dice in the `summary.json` of a finished run: macro, and those of its classes."""
    return json.loads((directory / "summary.json").read_text())["dice_global"]


def main() -> int:
    """Prints the table. Returns exit code 2 if the run has no readable summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, help="folder of a finished run on the sample data")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample data")
    arguments = parser.parse_args()

    rows = []
    if arguments.run:
        try:
            rows.append((f"run {arguments.run.name}", run_dice(arguments.run)))
            float(rows[-1][1]["macro"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"error: no dice_global in {arguments.run / 'summary.json'}: {error!r}", file=sys.stderr)
            return 2
    pixels = labeled_pixels(arguments.seed)
    for name, quadratic in (("RGB, quadratic", True), ("RGB", False)):
        rows.insert(0, (name, color_dice(quadratic=quadratic, pixels=pixels)))

    share = {split: np.mean(tumor) for split, (_, tumor) in pixels.items()}
    print(f"labeled pixels: train {len(pixels['train'][1])}, val {len(pixels['val'][1])}; ", end="")
    print(f"tumor among them: train {share['train']:.3f}, val {share['val']:.3f}")
    print(f"{'global Dice, validation':<28}{'macro':>8}{'tumor':>8}{'stroma':>8}")
    for name, scores in rows:
        cells = [f"{scores[key]:8.4f}" if key in scores else f"{'-':>8}" for key in ("macro", "tumor", "stroma")]
        print(f"{name:<28}{''.join(cells)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
