"""Makes a run of weights that another program trained.

    python -m bcss_jax.import_model --format=tiatoolbox --weights=fcn_resnet50_unet-bcss.pth --output=runs/NAME
    python -m bcss_jax.import_model --format=smp --weights=unet.pth --labels=my_labels.toml --mpp=0.5 --output=runs/NAME
    python -m bcss_jax.import_model --format=nnunet --weights=FOLDER --labels=tumor_stroma --mpp=0.25 --output=runs/NAME
    python -m bcss_jax.import_model --format=torch --weights=unet.pth --model=unet --arguments='{"width": 32}'
        --labels=tumor_stroma --mpp=0.25 --output=runs/NAME

`segment`, `evaluate`, `export` and `--config.pretrained` take the run like one that was trained here. Files are .pth
(with PyTorch 2.10 or newer, whose weights-only loader runs no code in them), .safetensors or .npz. Every tensor of the
file is loaded or named. Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from bcss_jax import labels
from bcss_jax.common import command
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.ranges import WINDOW
from bcss_jax.data.resolution.check import check_mpp
from bcss_jax.errors import ConfigError, printable

# For each format, the options that it needs and those that it takes besides.
OPTIONS = {
    "tiatoolbox": ((), ("labels", "mpp", "window")),
    "smp": (("labels", "mpp"), ("window",)),
    "nnunet": (("labels", "mpp"), ("window", "fold")),
    "torch": (("labels", "mpp", "model"), ("window", "arguments")),
}


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and imports. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("absl").setLevel(logging.ERROR)
    return command.run(lambda: _run(_parser().parse_args(argv)), debug="--debug" in argv)


def _parser():
    parser = command.parser("python -m bcss_jax.import_model", __doc__)
    add = parser.add_argument
    add("--format", required=True, choices=tuple(OPTIONS), help="what wrote the weights")
    add("--weights", required=True, type=Path, help="file of weights; nnunet: result folder of nnU-Net v2")
    add("--output", required=True, type=Path, help="folder of the run")
    add(
        "--labels",
        help=f"what the outputs mean: {', '.join(labels.SCHEMES)}, or a TOML file; known for tiatoolbox's BCSS",
    )
    add("--mpp", type=float, help="um per pixel of the images that it was trained on; known for tiatoolbox's BCSS")
    add("--window", type=WINDOW.parse, help="side of the windows of slides in pixels (default: that of the format)")
    add("--fold", help="nnunet: number of the fold, or all")
    add("--model", help="torch: name of the network, as in python -m bcss_jax.models")
    add("--arguments", help="torch: arguments of the network as JSON, such as '{\"width\": 32}'")
    add("--overwrite", action="store_true", help="replace the run in --output")
    command.add_debug(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    _check_options(args)
    scheme = None if args.labels is None else labels.find_scheme(args.labels, "--labels")
    if args.mpp is not None:
        check_mpp(args.mpp, f"--mpp={args.mpp:g}", remedy="give the um per pixel of the training images")
    arguments = _arguments(args.arguments)
    refuse_inputs("--output", args.output, [("--weights", args.weights)], parts=[args.output / "checkpoints"])
    from bcss_jax.inference.imported import run_folder  # JAX takes seconds to import; a typo should show before that

    run_folder.check_output(args.output, args.overwrite)
    network = _read(args, scheme, arguments)
    run_folder.write_run(args.output, network, args.overwrite)
    _print(args.output, network)


def _check_options(args: argparse.Namespace) -> None:
    """Raises ConfigError for an option that the format lacks or does not take."""
    needed, taken = OPTIONS[args.format]
    for name in ("labels", "mpp", "window", "fold", "model", "arguments"):
        value = getattr(args, name)
        if value is None and name in needed:
            raise ConfigError(f"--format={args.format}: the file does not say it, so --{name} is needed")
        if value is not None and name not in (*needed, *taken):
            raise ConfigError(f"--{name}={value}: --format={args.format} does not take it; leave it out")


def _arguments(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"--arguments={ascii(text[:80])}: expected a JSON object, such as '{{\"width\": 32}}'")
    reserved = sorted({"num_classes", "dtype", "seed", "name"} & values.keys())
    if reserved:
        raise ConfigError(f"--arguments: {reserved[0]} cannot be given; the label scheme and the file decide it")
    return values


def _read(args: argparse.Namespace, scheme: labels.LabelScheme | None, arguments: dict[str, Any]) -> Any:
    """Returns the `ImportedNetwork`."""
    from bcss_jax.inference.imported import nnunet_folder, smp, tiatoolbox, torch_file

    if args.format == "tiatoolbox":
        return tiatoolbox.read(args.weights, scheme=scheme, mpp=args.mpp, window=args.window)
    assert scheme is not None  # `_check_options`
    common: dict[str, Any] = {"scheme": scheme, "mpp": args.mpp, "window": args.window}
    if args.format == "smp":
        return smp.read(args.weights, **common)
    if args.format == "nnunet":
        return nnunet_folder.read(args.weights, fold=args.fold, **common)
    return torch_file.read(args.weights, name=args.model, arguments=arguments, **common)


def _print(folder: Path, network: Any) -> None:
    passed_over = f"; not needed and left out: {', '.join(network.passed_over)}" if network.passed_over else ""
    origin = network.origin
    print(f"{printable(network.file)}: {network.tensors} tensors into {network.name}{passed_over}")
    print(f"outputs:   {', '.join(network.scheme.class_names)} (label scheme {network.scheme.name})")
    print(f"images:    RGB at {network.mpp:g} um/px; {_values(network.statistics)}")
    print(f"slides:    windows of {network.window} pixels, overlap {network.overlap:g}, blended by {network.blend}")
    print(f"license:   {origin.license or 'not known; look at the source of the weights'}")
    print(f"run:       {printable(folder)}  (python -m bcss_jax.segment --checkpoint={printable(folder)} --slide=...)")


def _values(statistics: Any) -> str:
    """Returns which values of pixels the network gets."""
    mean, deviation = statistics.mean, statistics.std
    if not any(mean) and all(abs(255 * each - 1) < 1e-6 for each in deviation):
        return "values from 0 to 255"
    if not any(mean) and set(deviation) == {1.0}:
        return "values from 0 to 1"
    return f"values from 0 to 1, minus {_three(mean)}, divided by {_three(deviation)}"


def _three(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
