"""Trains nnU-Net and this project's implementation on the same real tissue with the same plan and iterations.

    python benchmarks/nnunet_versus.py --data_dir=../shared/data/bcss_roi --work=runs/versus --labels=ignore
    --iterations=100

The left two thirds of the region TCGA-A2-A0D2 are cut into tiles, on which both train. The right third is the test
image, which both predict with sliding windows. Both read the same raw data folder and make their own plan; the plans
are compared. nnU-Net must be installed (`pip install -e '.[reference]'`). Each side uses `--cores` threads. To run both
at the same time on different cores, start this script twice, with `--only=ours` and with `--only=theirs`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from bcss_jax import metrics  # noqa: E402
from bcss_jax.nnunet.cases import scheme_of  # noqa: E402
from bcss_jax.nnunet.validate import confusion  # noqa: E402

REGION, TILE, DATASET = "TCGA-A2-A0D2", 224, "Dataset001_ROI"
# BCSS codes of this region: 1 tumor, 2 stroma, 4 necrosis, 7 exclude; 3 is `ignore`, 0 the background.
TO_LABEL = {"background": {1: 1, 2: 2, 4: 0, 7: 3, 0: 3}, "ignore": {1: 1, 2: 2, 4: 3, 7: 3, 0: 3}}

# nnU-Net's trainer has no option for the number of epochs and iterations; normally, this needs a subclass in nnU-Net's
# own package folder. This script instead replaces methods of the trainer in its process.
TRAIN_THEIRS = """
import sys, torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
epochs, iterations, seed, threads = map(int, sys.argv[1:5])
torch.manual_seed(seed)
torch.set_num_threads(threads)
before = nnUNetTrainer.initialize
def shorter(self):
    self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = epochs, iterations, 1
    self.save_every = 10**9
    before(self)
nnUNetTrainer.initialize = shorter
nnUNetTrainer.perform_actual_validation = lambda self, *args, **kwargs: None  # only the test image counts
run_training.run_training("1", "2d", "all", device=torch.device("cpu"))
"""


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with images and masks of whole regions")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--labels", choices=TO_LABEL, default="ignore", help="label of all other codes")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20, help="per epoch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=("ours", "theirs"))
    return parser.parse_args()


def cut(args: argparse.Namespace) -> Path:
    """Writes the raw data folder: tiles of the left two thirds, and the right third. Returns the folder."""
    (image_file,), (mask_file,) = ((args.data_dir / kind).glob(f"{REGION}*.png") for kind in ("images", "masks"))
    table = np.full(256, 3, np.uint8)
    for code, label in TO_LABEL[args.labels].items():
        table[code] = label
    image, mask = np.asarray(Image.open(image_file).convert("RGB")), table[np.asarray(Image.open(mask_file))]
    root, third = args.work / "raw" / DATASET, image.shape[1] * 2 // 3
    for folder in ("imagesTr", "labelsTr", "held_back", "held_back_truth"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    tiles = [(y, x) for y in range(0, image.shape[0] - TILE + 1, TILE) for x in range(0, third - TILE + 1, TILE)]
    for y, x in tiles:
        at, name = np.s_[y : y + TILE, x : x + TILE], f"{REGION}_{y:04d}_{x:04d}"
        Image.fromarray(image[at]).save(root / "imagesTr" / f"{name}_0000.png")
        Image.fromarray(mask[at]).save(root / "labelsTr" / f"{name}.png")
    Image.fromarray(image[:, third:]).save(root / "held_back" / "third_0000.png")
    Image.fromarray(mask[:, third:]).save(root / "held_back_truth" / "third.png")
    dataset = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "tumor": 1, "stroma": 2, "ignore": 3},
        "numTraining": len(tiles),
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(dataset))
    print(f"{len(tiles)} training tiles of {TILE}x{TILE}, a test image of {image.shape[0]}x{image.shape[1] - third}")
    return root


def ours(args: argparse.Namespace, root: Path) -> Path:
    """Trains and predicts with this project. Returns the file of the prediction."""
    run, out = args.work / f"ours_{args.labels}", args.work / f"ours_{args.labels}_out"
    start = time.perf_counter()
    call(
        args,
        [
            sys.executable, "-m", "bcss_jax.main", "--config=configs/nnunet.py:nnunet", f"--config.data.dir={root}",
            f"--config.data.prepared_dir={args.work / 'prepared'}", f"--workdir={run}", "--config.fold=all",
            f"--config.epochs={args.epochs}", f"--config.iterations={args.iterations}", "--config.val_iterations=1",
            f"--config.seed={args.seed}",
        ],
    )  # fmt: skip
    print(f"ours: trained in {time.perf_counter() - start:.0f} s")
    predict = [sys.executable, "-m", "bcss_jax.nnunet", "predict", f"--model={run}", f"--images={root / 'held_back'}"]
    start = time.perf_counter()
    call(args, [*predict, f"--out={out}", "--overwrite"])
    print(f"ours: predicted in {time.perf_counter() - start:.0f} s")
    return out / "third_0000.png"


def theirs(args: argparse.Namespace, root: Path) -> Path:
    """Trains and predicts with nnU-Net. Returns the file of the prediction."""
    preprocessed, results = args.work / "nnunet_preprocessed", args.work / f"nnunet_results_{args.labels}"
    out, bin_folder = args.work / f"theirs_{args.labels}_out", Path(sys.executable).parent
    more = {"nnUNet_raw": root.parent, "nnUNet_preprocessed": preprocessed, "nnUNet_results": results}
    more |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    plan = [bin_folder / "nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "2d", "-np", "1", "-npfp", "1"]
    call(args, plan, more)
    start = time.perf_counter()
    numbers = [str(number) for number in (args.epochs, args.iterations, args.seed, args.cores)]
    call(args, [sys.executable, "-c", TRAIN_THEIRS, *numbers], more)
    print(f"theirs: trained in {time.perf_counter() - start:.0f} s")
    start = time.perf_counter()
    model = results / DATASET / "nnUNetTrainer__nnUNetPlans__2d"
    predict = [
        bin_folder / "nnUNetv2_predict_from_modelfolder",
        "-i",
        root / "held_back",
        "-o",
        out,
        "-m",
        model,
        "-f",
        "all",
    ]
    call(args, [*predict, "-device", "cpu", "-npp", "1", "-nps", "1"], more)
    print(f"theirs: predicted in {time.perf_counter() - start:.0f} s")
    return out / "third.png"


def call(args: argparse.Namespace, command: list, more: dict | None = None) -> None:
    """Runs a command and shows its output; stops if the command fails."""
    threads = {"OMP_NUM_THREADS": str(args.cores)}
    environment = os.environ | threads | {name: str(value) for name, value in (more or {}).items()}
    subprocess.run([str(part) for part in command], check=True, env=environment, cwd=Path(__file__).parents[1])


def main() -> None:
    """Runs both, or one, and prints the Dice."""
    args = arguments()
    args.work, args.data_dir = args.work.resolve(), args.data_dir.resolve()
    root = cut(args)
    truth, scheme = (
        np.asarray(Image.open(root / "held_back_truth" / "third.png")),
        scheme_of(json.loads((root / "dataset.json").read_text())),
    )
    for name, side in (("ours", ours), ("theirs", theirs)):
        if args.only in (None, name):
            counts = confusion(np.asarray(Image.open(side(args, root))), truth, scheme)
            dice = metrics.dice(counts, scheme.evaluated)
            values = ", ".join(f"{each} {value:.4f}" for each, value in zip(scheme.evaluated_names, dice, strict=True))
            print(
                f"{name}, everything else {args.labels}: Dice on the held-back third: {values}, mean {dice.mean():.4f}"
            )


if __name__ == "__main__":
    main()
