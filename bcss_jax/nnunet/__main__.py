"""Commands of nnU-Net's method other than training: predict, export, plan.

Training is `python -m bcss_jax.main --config=configs/nnunet.py`.

    python -m bcss_jax.nnunet predict --model=runs/nnunet --images=FOLDER --out=FOLDER
    python -m bcss_jax.nnunet export --model=runs/nnunet --out=FOLDER
    python -m bcss_jax.nnunet plan --raw=FOLDER --out=plans.json [--preset=ResEncM]

A model is the folder of a run, or a result folder of nnU-Net v2 (plans.json, dataset.json,
fold_0/checkpoint_final.pth). Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage.
"""

import argparse
import contextlib
import logging
import os
import sys
from pathlib import Path

from PIL import Image

from bcss_jax import errors
from bcss_jax.common import command, figures
from bcss_jax.common.files import locked, png_of, storage_errors, whole_file
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.json_files import as_json
from bcss_jax.common.outputs import written_files
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.progress import ProgressLine
from bcss_jax.common.ranges import COUNT, Range
from bcss_jax.common.regular_file import check_regular_file, real_path
from bcss_jax.common.startup import compilation_cache
from bcss_jax.data import image_files
from bcss_jax.data.discovery import DataSettings, read_folders
from bcss_jax.data.image_folder import LeftOut, comparable, list_images
from bcss_jax.errors import ConfigError, DataError, NumericalError
from bcss_jax.labels import SCHEMES
from bcss_jax.models.apply import split_model
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.nnunet import cases, ensemble, plan_file, postprocess, result_folder, store, unfinished_predictions
from bcss_jax.nnunet.plan import PRESETS, make_plan
from bcss_jax.nnunet.predict import make_predictor, predicted_labels
from bcss_jax.nnunet.preprocess import preprocess
from bcss_jax.nnunet.trained import load_trained_folds
from bcss_jax.nnunet.unfinished_predictions import UnfinishedPredictions
from bcss_jax.training.summary import params_sha256

# Flags of training, which errors mention -> flags of this command.
FLAGS = {
    "--config.data.dir": "--raw",
    "--config.data.prepared_dir": "--prepared_dir",
    "--config.data.allow_missing": "--allow_missing",
}
OVERLAY_SIDE = 2048  # largest number of pixels of the longer side of an overlay


def main(argv: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("absl").setLevel(logging.ERROR)

    def parse_and_do():
        args = _parser().parse_args(argv)
        args.action(args)

    return command.run(parse_and_do, debug="--debug" in argv, flags=FLAGS)


def _parser():
    parser = command.parser("python -m bcss_jax.nnunet", __doc__)
    command.add_debug(parser)
    actions = parser.add_subparsers(required=True, metavar="predict | export | plan")

    predict_parser = actions.add_parser("predict", help="segment whole images")
    predict_parser.set_defaults(action=predict)
    predict_parser.add_argument(
        "--model", action="append", required=True, type=Path, help="repeat this flag for an ensemble of configurations"
    )
    predict_parser.add_argument("--images", required=True, type=Path, help="folder of RGB images, or one image")
    predict_parser.add_argument(
        "--out", required=True, type=Path, help="folder for NAME.png (labels) and overlays/NAME.jpg"
    )
    predict_parser.add_argument("--folds", nargs="+", help="names such as 0 1; default: all folds")
    predict_parser.add_argument("--no-mirror", action="store_true", help="four times faster, slightly less accurate")
    predict_parser.add_argument(
        "--step", type=Range(0.05, 1).parse, default=0.5, help="distance between windows as a share of the patch"
    )
    predict_parser.add_argument("--batch", type=COUNT.parse, default=4, help="number of windows per batch")
    predict_parser.add_argument("--overwrite", action="store_true", help="replace existing predictions")

    export_parser = actions.add_parser("export", help="write a result folder with which nnU-Net can predict")
    export_parser.set_defaults(action=export)
    export_parser.add_argument("--model", required=True, type=Path)
    export_parser.add_argument("--out", required=True, type=Path)
    export_parser.add_argument("--folds", nargs="+", help="names such as 0 1; default: all folds")

    plan_parser = actions.add_parser("plan", help="make a plan for a raw data folder of nnU-Net, to inspect or edit")
    plan_parser.set_defaults(action=plan)
    plan_parser.add_argument("--raw", required=True, type=Path, help="folder with dataset.json, imagesTr and labelsTr")
    plan_parser.add_argument("--out", required=True, type=Path, help="file to write, for --config.plan=FILE")
    plan_parser.add_argument("--preset", choices=PRESETS, default="nnUNetPlans")
    plan_parser.add_argument("--rule-before-2.3.1", action="store_true", dest="old_rule")
    plan_parser.add_argument(
        "--allow_missing",
        action="store_true",
        help="leave out images without a mask and masks without an image",
    )
    plan_parser.add_argument("--prepared_dir", type=Path, default=Path("~/.cache/bcss_jax"))
    return parser


def predict(args: argparse.Namespace) -> None:
    """Segments images. Folds are averaged as logits, models as probabilities."""
    images = _images(args.images)
    targets = [args.out / f"{path.stem}.png" for path in images]
    _check_output(args, targets)
    compilation_cache.enable()
    with locked(args.out):
        _predict(args, images, targets)


def _predict(args: argparse.Namespace, images: list[Path], targets: list[Path]) -> None:
    models = [load_trained_folds(folder, args.folds) for folder in args.model]
    if any(model.dataset["labels"] != models[0].dataset["labels"] for model in models):
        raise DataError("the models have different labels; only models with the same labels can be averaged")
    written = UnfinishedPredictions(args.out, _identity(args, models, images))
    written.refuse_others(targets, args.overwrite)
    predictors = [
        make_predictor(
            list(model.models.values()),
            model.patch_size,
            mirror=() if args.no_mirror else model.mirror_axes,
            batch=args.batch,
            step=args.step,
        )
        for model in models
    ]
    for folder, model in zip(args.model, models, strict=True):
        print(f"{folder}: fold(s) {', '.join(model.models)}, windows of {model.patch_size[0]}x{model.patch_size[1]}")
    scheme = cases.scheme_of(models[0].dataset, models[0].project_scheme)
    decisions = [model.postprocessing for model in models if model.postprocessing and len(models) == 1]
    with storage_errors(args.out):
        (args.out / "overlays").mkdir(parents=True, exist_ok=True)
    with contextlib.closing(ProgressLine("predicting", len(images))) as line:
        for done, (path, target) in enumerate(zip(images, targets, strict=True), 1):
            safe_point("stopped between two images; the same command goes on from there")
            if written.has(target):
                continue
            image = image_files.read_image(path)
            labels = _labels(image, path, models, predictors)
            for decision in decisions:
                labels = postprocess.apply_postprocessing(labels, decision)
            _write_overlay(args.out / "overlays" / f"{path.stem}.jpg", figures.overlay(image, labels, scheme))
            written.write(target, png_of(labels))  # last: it is what counts as done
            line.update(done)
    written.end()
    if decisions:
        print(f"postprocessing of the run: kept the largest component of {decisions[0]['keep_largest'] or 'nothing'}")
    meaning = ", ".join(f"{label} {name}" for label, name in enumerate(scheme.class_names))
    print(f"{len(images)} image(s) segmented into {args.out}: {meaning}; overlays: {args.out / 'overlays'}")


def _check_output(args: argparse.Namespace, targets: list[Path]) -> None:
    """Raises ConfigError if a prediction would replace an input, or the file of something else."""
    inputs = [("--images", args.images), *(("--model", folder) for folder in args.model)]
    overlays = args.out / "overlays"
    pictures = [overlays / f"{path.stem}.jpg" for path in targets]
    images_folder = [("--images", args.images)] if args.images.is_dir() else []
    refuse_inputs("--out", args.out, inputs, parts=[overlays, *targets, *pictures], data_folders=images_folder)
    written_files.check_folders(overlays)
    written_files.check((*targets, *pictures, args.out / unfinished_predictions.NAME))


def _identity(args, models, images) -> dict:
    """Returns everything that the predictions depend on, as JSON."""
    weights = [
        {name: [params_sha256(tree) for tree in split_model(network)[1:]] for name, network in model.models.items()}
        for model in models
    ]
    files = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in images]
    options = [args.no_mirror, args.step, args.batch]
    decisions = [[model.plan, model.postprocessing] for model in models]
    return as_json({"weights": weights, "images": files, "options": options, "decisions": decisions})


def _labels(image, path, models, predictors):
    scores = []
    for model, predictor in zip(models, predictors, strict=True):
        try:
            case = preprocess(image, None, model.plan, model.dataset)
            scores.append(predictor(case.data))
        except (DataError, NumericalError) as error:
            raise type(error)(f"{errors.printable(path)}: {error}") from error
    # All plans crop in the same way, so the scores have the same size.
    return predicted_labels(scores[0] if len(scores) == 1 else ensemble.mean_of_configurations(scores), case.properties)


def _images(where):
    if not where.is_dir():
        check_regular_file(where, "an image or a folder of images", "check the path")
        return [where]
    left_out, by_name = LeftOut(), {}
    for path in list_images(where, left_out):
        check_regular_file(path, "an image file", "remove it, or restore what the link leads to")
        other = by_name.setdefault(comparable(path.stem), path)
        if other is not path:
            raise DataError(
                f"{errors.printable(path)}: expected one image of that name, found {errors.printable(other.name)} too; "
                "rename or remove one of them"
            )
    line = left_out.line()
    if not by_name:
        raise DataError(
            f"{errors.printable(where)}: expected images ({', '.join(image_files.SUFFIXES)}), found none"
            f"{f' (left out: {line})' if line else ''}; name another folder"
        )
    print(f"{errors.printable(where)}: {len(by_name)} image(s){f'; left out: {line}' if line else ''}")
    return list(by_name.values())


def _write_overlay(path, picture):
    small = Image.fromarray(picture)
    small.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
    with whole_file(path) as unfinished:
        small.save(unfinished, format="JPEG", quality=90)


def export(args: argparse.Namespace) -> None:
    """Writes the folds of a model to a result folder of nnU-Net."""
    refuse_inputs("--out", args.out, [("--model", args.model)])
    model = load_trained_folds(args.model, args.folds)
    folds = {int(name) if name.isdecimal() else name: to_torch_state(each) for name, each in model.models.items()}
    result_folder.write_result_folder(args.out, model.plan, model.dataset, folds, mirror_axes=model.mirror_axes)
    names = " ".join(model.models)
    print(f"wrote fold(s) {names}; to predict with nnU-Net:")
    print(f"nnUNetv2_predict_from_modelfolder -m {args.out} -f {names} -i IMAGES -o OUT")


def plan(args: argparse.Namespace) -> None:
    """Extracts the fingerprint of a raw data folder and makes a plan for it."""
    raw = read_folders("--raw", args.raw)
    refuse_inputs("--out", args.out, [raw[0], ("--raw/dataset.json", args.raw / "dataset.json")], data_folders=raw[1:])
    refuse_inputs("--prepared_dir", args.prepared_dir.expanduser(), raw[:1], data_folders=raw[1:])
    if os.path.lexists(args.out):
        raise ConfigError(
            f"--out={args.out}: this file already exists, and plans may be edited; name another file, or delete it"
        )
    settings = DataSettings(cases.RAW, args.raw, allow_missing=args.allow_missing)
    found = cases.find(settings, prepared_dir=args.prepared_dir, scheme=SCHEMES["tumor_stroma"])
    print(found.line)
    fingerprint = store.fingerprint_of(found)
    decided = make_plan(
        fingerprint, found.dataset, args.preset, rule_before_2_3_1=args.old_rule, dataset_name=real_path(args.raw).name
    )
    print(plan_file.plan_table(decided, fingerprint, found.dataset, rule_before_2_3_1=args.old_rule))
    plan_file.write_plan(args.out, decided)
    print(f"plan: {args.out}")


if __name__ == "__main__":
    command.start(main)
