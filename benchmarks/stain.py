"""Scores runs on patients of other laboratories: tumor Dice as they are, and normalized to the stain of the training.

    python benchmarks/stain.py --data=../shared/data runs/plain-0 runs/plain-1 runs/robust-0

TCGA-A2-A3XX is scanned at the um/px of the training tiles; TCGA-A1-A0SK, from screenshots at 0.53 um per pixel, is
enlarged. Each is cut into tiles of 224 pixels, every pixel counts, and what is not tumor is one class. Runs whose names
differ in the number at the end are seeds of one recipe, of which mean and standard deviation are printed.
"""

import argparse
import collections
import re
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from bcss_jax.data.stain.measured_stain import measure
from bcss_jax.data.stain.stain_change import change_of, changed, factors_of, reference_white
from bcss_jax.inference.slide_model import SlideModel, model_of_run
from bcss_jax.inference.trained_run import read_trained_run
from bcss_jax.slides.tissue.tissue_by_color import glass_of
from bcss_jax.training.sharding import make_mesh

SIDE = 224
SCREENSHOT_MPP = 0.53
TUMOR_CODES = (1, 19, 20)  # tumor, angioinvasion, DCIS
BATCH = 10
Image.MAX_IMAGE_PIXELS = None


def patients(data: Path, mpp: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the tiles of each patient, uint8 [N, SIDE, SIDE, 3], and where they show tumor, bool [N, SIDE, SIDE]."""
    region = next((data / "bcss_roi" / "images").glob("TCGA-A2-A3XX*"))
    mask = next((data / "bcss_roi" / "tumor_masks").glob("TCGA-A2-A3XX*"))
    found = {"TCGA-A2-A3XX": _tiles([(_rgb(region), np.asarray(Image.open(mask).convert("L")) > 0)])}
    folder, pairs = data / "more" / "bcss_A1-A0SK", []
    for path in sorted((folder / "images").iterdir()):
        image = Image.open(path).convert("RGB")
        size = round(image.width * SCREENSHOT_MPP / mpp), round(image.height * SCREENSHOT_MPP / mpp)
        codes = Image.open(next((folder / "masks").glob(f"{path.stem}*"))).resize(size, Image.Resampling.NEAREST)
        pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
        pairs.append((pixels, np.isin(np.asarray(codes), TUMOR_CODES)))
    return found | {"TCGA-A1-A0SK": _tiles(pairs)}


def _rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _tiles(pairs) -> tuple[np.ndarray, np.ndarray]:
    images, masks = [], []
    for image, mask in pairs:
        for y in range(0, mask.shape[0] - SIDE + 1, SIDE):
            for x in range(0, mask.shape[1] - SIDE + 1, SIDE):
                images.append(image[y : y + SIDE, x : x + SIDE])
                masks.append(mask[y : y + SIDE, x : x + SIDE])
    return np.stack(images), np.stack(masks)


def normalized(images: np.ndarray, model: SlideModel) -> np.ndarray:
    """Returns the tiles of a patient in the stain of the model's training images."""
    assert model.stain is not None, f"{model.name} does not state the stain of its training images"
    pixels = images[:, ::2, ::2].reshape(-1, 3)
    glass = glass_of(pixels[:, None], np.ones((len(pixels), 1), bool))
    stain = measure(pixels, reference_white(model.stain, glass))
    factors = factors_of(stain, model.stain)
    print(f"  factors: hematoxylin {factors[0]:.2f}, eosin {factors[1]:.2f}")
    return np.concatenate([changed(each, change_of(stain, model.stain)) for each in np.array_split(images, 10)])


def tumor_dice(model: SlideModel, images: np.ndarray, tumor: np.ndarray) -> float:
    """Returns Dice of tumor over all pixels of a patient's tiles."""
    compute, value = jax.jit(model.probabilities), model.scheme.evaluated_names.index("tumor")
    both = total = 0
    for first in range(0, len(images), BATCH):
        batch, truth = images[first : first + BATCH], tumor[first : first + BATCH]
        padded = np.pad(batch, [(0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)])
        found = np.asarray(compute(model.arrays, padded))[: len(batch)].argmax(-1) == value
        both += int((found & truth).sum())
        total += int(found.sum() + truth.sum())
    return 2 * both / total


def scores(model: SlideModel, data: Path) -> dict[tuple[str, str], float]:
    """Returns the Dice of each patient, as it is and normalized."""
    found = {}
    for patient, (images, tumor) in patients(data, model.mpp).items():
        found[patient, "keep"] = tumor_dice(model, images, tumor)
        found[patient, "normalize"] = tumor_dice(model, normalized(images, model), tumor)
        print(f"{model.name}, {patient}: keep {found[patient, 'keep']:.3f}, normalize", end=" ")
        print(f"{found[patient, 'normalize']:.3f}", flush=True)
    return found


def print_table(of_runs: dict[str, dict[tuple[str, str], float]]) -> None:
    """Prints mean and standard deviation over the seeds of each recipe."""
    recipes = collections.defaultdict(list)
    for name, found in of_runs.items():
        recipes[re.sub(r"-?\d+$", "", name)].append(found)
    for recipe, seeds in recipes.items():
        for patient, option in seeds[0]:
            values = [each[patient, option] for each in seeds]
            spread = f"{np.std(values, ddof=1):.3f}" if len(values) > 1 else "unknown"
            print(f"{recipe}, {patient}, {option}: {np.mean(values):.3f}, deviation {spread}, {len(values)} seeds")


def main() -> None:
    """Scores the runs that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bcss_roi and more/bcss_A1-A0SK")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    args = parser.parse_args()
    mesh, found = make_mesh(jax.local_devices()[:1]), {}
    for path in args.runs:
        model = model_of_run(read_trained_run(path, mesh, "best"), mesh, tta=False)
        found[model.name] = scores(model, args.data)
    print_table(found)


if __name__ == "__main__":
    main()
