"""Measures what tuning SAM is worth: class tokens beside a U-Net; clicks, boxes and masks fed back on held-out tiles.

    python benchmarks/sam_tuning.py --output=sam_tuning --encoder_file=runs/dino/encoder.safetensors
    python benchmarks/sam_tuning.py --output=sam_tuning --encoder_file=runs/dino/encoder.safetensors \
        --layout=kaggle224 --data=../shared/data/bcss_kaggle224
    python benchmarks/sam_tuning.py --output=/tmp/try --try

On the built-in sample, or with --layout and --data on real tiles, a U-Net (configs/unet_w32.py), SAM with class tokens
and SAM with prompts are trained and scored on the validation split. --encoder_file is the encoder of a pretraining that
class tokens start from; without it weights are random. The training with prompts starts from that with class tokens.
Both SAMs have --class_epochs and --prompt_epochs, and a learning rate that falls to zero; the U-Net is as its config
has it. The targets of the work on prompts are checked:

* Dice does not fall from click to click, and gains at least 0.05 from one to five
* a box beats one click, and feeding the mask back beats not: intervals above 0
* mean IoU of at least 0.80 after five clicks (the sample)
* class tokens within 0.03 Dice of the U-Net

results.json and the printed table say which hold. Runs that are there are not trained again; --try trains one epoch.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import bcss_jax
from bcss_jax.errors import UserError

GAIN, IOU, BEHIND = 0.05, 0.80, 0.03


def trained(args: argparse.Namespace, config: str, name: str, *more: str, **changes: Any) -> bcss_jax.Run:
    """Returns a run of a config with the recipe for few tiles and `more`, trained if it is not there yet."""
    if args.data:
        changes["data.dir"] = str(args.data)
    if args.short:
        changes["epochs"] = 1
    recipes = [args.layout, *([] if args.layout == "sample" or config == "unet_w32" else ["few"]), *more]
    return bcss_jax.train(bcss_jax.load_config(f"{config}:{','.join(recipes)}", changes), args.output / name)


def targets(clicks: dict[str, Any], dice: dict[str, float], sample: bool) -> list[tuple[str, float, bool]]:
    """Returns name, value and whether it holds, of each target."""
    curve = [each["value"] for each in clicks["dice_curve"]]
    gain = clicks["dice_five_clicks_minus_one"]["value"]
    box, fed = clicks["dice_box_minus_one_click"], clicks["dice_mask_fed_back_minus_not"]["5"]
    smallest = min(after - before for before, after in zip(curve, curve[1:], strict=False))
    found = [
        ("smallest gain of Dice from one click to the next", smallest, smallest >= 0),
        ("gain of Dice from one click to five", gain, gain >= GAIN),
        ("Dice of a box minus one click, lower end", box["low"], (box["low"] or -1) > 0),
        ("Dice after five clicks, mask fed back minus not, lower end", fed["low"], (fed["low"] or -1) > 0),
        ("Dice of class tokens minus U-Net", dice["sam"] - dice["unet"], dice["sam"] >= dice["unet"] - BEHIND),
    ]
    iou = clicks["iou_after"]["5"]["value"]
    return [*found, ("mean IoU after five clicks", iou, iou >= IOU)] if sample else found


def main() -> int:
    """Trains, scores and prints. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--encoder_file", default="")
    parser.add_argument("--encoder", default="vit_tiny16")
    parser.add_argument("--layout", default="sample")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--class_epochs", type=int, default=160)
    parser.add_argument("--prompt_epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of both SAMs")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--clicks", type=int, default=2, help="points after the first prompt, in training")
    parser.add_argument("--enlarge", type=int, default=1, help="of class tokens, see configs/sam.py")
    parser.add_argument("--try", dest="short", action="store_true", help="one epoch each")
    args = parser.parse_args()
    args.output = args.output.resolve()
    both = {"encoder": args.encoder, "schedule": "poly", "optimizer.learning_rate": args.rate}
    classes = both | {"pretrained": args.encoder_file, "epochs": args.class_epochs, "model.enlarge": args.enlarge}
    prompts = both | {
        "pretrained": str(args.output / "sam"),
        "image_size": args.image_size,
        "prompts.objects": args.objects,
        "prompts.clicks": args.clicks,
        "epochs": args.prompt_epochs,
    }
    dice = {
        name: run.summary["dice_global"]["macro"]
        for name, run in (
            ("unet", trained(args, "unet_w32", "unet")),
            ("sam", trained(args, "sam", "sam", **classes)),
        )
    }
    run = trained(args, "sam", "sam_prompts", "prompts", **prompts)
    clicks = bcss_jax.evaluate_clicks(run.folder, output=args.output / "clicks", overwrite=True)["models"][
        "sam_prompts"
    ]
    found = targets(clicks, dice, args.layout == "sample")
    document = {
        "command": sys.argv,
        "dice": dice,
        "targets": [{"name": name, "value": value, "holds": holds} for name, value, holds in found],
        "clicks": clicks,
    }
    (args.output / "results.json").write_text(json.dumps(document, indent=2, default=str) + "\n")
    print(f"\nDice of classes: U-Net {dice['unet']:.3f}, SAM with class tokens {dice['sam']:.3f}")
    for name, value, holds in found:
        print(f"{'holds' if holds else 'FAILS':6} {name}: {'no interval' if value is None else f'{value:.3f}'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
