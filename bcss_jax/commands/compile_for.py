"""Compiles the steps of a network for an accelerator, on any machine, and prints what they need there.

    python -m bcss_jax.compile_for --target=h100 --model=unet --batch=128 --dtype=bfloat16 [--devices=8]
    python -m bcss_jax.compile_for --target=h100 --pretrain=vit_small16 --batch=256
    python -m bcss_jax.compile_for --target=h100 --sam=sam_vit_b [--batch=4 --steps=tune_frozen]
    python -m bcss_jax.compile_for --target=h100 --all [--write=rows.json]

For training, evaluation and windows of a slide it prints the memory beside the device's, what moves between the device
and its memory, the arithmetic, the least time that both take (no program is faster; kernels that miss the peaks are
slower), the largest instructions with their place in the source, and warnings. With --sam it does so for Segment
Anything: encoding an image, decoding clicks on it, and the training with prompts (tune; tune_frozen: on features of a
frozen encoder). With --all it prints a Markdown table of the training steps of all networks, each in as few
micro-batches as fit. With --write the rows are kept in a file as they come, with the memory of all steps, and a command
that was stopped goes on. Nothing is run. The compilers come with
pip install 'bcss_jax[compile-cuda]' (GPUs) and 'bcss_jax[compile-tpu]' (TPUs). Exit codes: 0 done, 2 settings or the
compiler refuses, 3 the file is not of this program, 75 stopped on request.
"""

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bcss_jax import models
from bcss_jax.accelerators import computed_steps
from bcss_jax.accelerators.hlo_text import read_program
from bcss_jax.accelerators.network_table import print_table
from bcss_jax.accelerators.report import report_lines
from bcss_jax.accelerators.steps import STEPS, CompiledStep, DoesNotFit, compile_lowered, compile_step, recipe
from bcss_jax.accelerators.targets import TARGETS, describe_devices, find_target
from bcss_jax.accelerators.traffic import account
from bcss_jax.common import command
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.ranges import COUNT, WINDOW
from bcss_jax.config import DTYPES
from bcss_jax.errors import ConfigError
from bcss_jax.labels import find_scheme
from bcss_jax.pretraining import config as pretraining_config
from bcss_jax.pretraining.lowered_step import lower_step
from bcss_jax.prompting import lowered_steps as prompting_steps
from bcss_jax.training.sharding import make_mesh
from bcss_jax.tuning import lowered_steps as tuning_steps

SAM_STEPS = (*prompting_steps.STEPS, *tuning_steps.STEPS)
# Name of each step, what its batch consists of, and a function that compiles it.
Traced = Iterator[tuple[str, str, Callable[[], CompiledStep]]]


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, compiles and prints. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("absl").setLevel(logging.ERROR)
    return command.run(lambda: _run(_parser().parse_args(argv)), debug="--debug" in argv)


def _parser():
    parser = command.parser("python -m bcss_jax.compile_for", __doc__)
    add = parser.add_argument
    add("--target", required=True, help=f"accelerator: {', '.join(TARGETS)}; of TPUs also a slice, as v5e:2x2")
    add("--model", choices=sorted(models.MODELS), help="network, with its default arguments (default unet)")
    add(
        "--pretrain",
        metavar="ENCODER",
        help="a step of DINO with this encoder, such as vit_small16, in place of a network",
    )
    add("--sam", metavar="ENCODER", help="Segment Anything with this encoder, such as sam_vit_b, in place of a network")
    of_batch = "images in a batch, over all devices (default 128); with --sam images, prompts or tiles (default 1)"
    add("--batch", type=COUNT.parse, help=of_batch)
    add("--micro_batches", type=COUNT.parse, help="parts that a training batch is computed in (default 1)")
    add("--remat", action="store_true", help="with --config.remat=True: keep less for the gradient, compute it again")
    add("--dtype", default="bfloat16", choices=DTYPES, help="type of the computation")
    add("--side", type=WINDOW.parse, help="side of the images in pixels (default 224; with --sam 1024)")
    add("--devices", type=COUNT.parse, help="devices that share a batch (default 1, or the slice's)")
    add("--all", action="store_true", help="print a table of the training steps of all networks")
    add("--write", nargs="?", type=Path, const=computed_steps.FILE,
        help="with --all: keep the rows in this file (default: the one that the package reads)")  # fmt: skip
    add("--steps", help=f"which steps (default {','.join(STEPS)}; with --sam {','.join(prompting_steps.STEPS)}, and "
        f"{', '.join(tuning_steps.STEPS)} if asked for)")  # fmt: skip
    command.add_debug(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    target, of_slice = find_target(args.target)
    if of_slice and args.devices not in (None, of_slice):
        raise ConfigError(f"--target={args.target} has {of_slice} devices; leave out --devices={args.devices}")
    args.batch = args.batch or (1 if args.sam else 128)
    args.side = args.side or (1024 if args.sam else 224)
    devices = args.devices or of_slice or 1
    steps = _checked_steps(args, devices)
    jax.config.update("jax_platforms", "cpu")  # nothing is run on a device of this machine
    mesh = make_mesh(describe_devices(target, devices))
    if args.all:
        print_table(target, devices, args.dtype, args.batch, args.side, args.write)
        return
    title, traced = (_of_pretraining if args.pretrain else _of_sam if args.sam else _of_network)(args, steps, mesh)
    print(f"{title}, for {target.device}", flush=True)
    for name, unit, compiled in traced:
        safe_point()
        try:
            step = compiled()
        except DoesNotFit as error:
            print(f"{name} step: does not fit into {target.memory / 1e9:.3g} GB: {error}", flush=True)
            continue
        done = account(read_program(step.text))
        for line in report_lines(step, done, target, args.batch // devices, devices, unit):
            print(line, flush=True)


def _checked_steps(args: argparse.Namespace, devices: int) -> Sequence[str]:
    """Returns the steps to compile. Raises ConfigError if options do not go together."""
    if args.all:
        for option in ("model", "pretrain", "sam", "micro_batches", "remat", "steps"):
            if getattr(args, option):
                raise ConfigError(f"--all chooses --{option} itself; leave one of the two out")
    elif args.write:
        raise ConfigError("--write keeps the rows of --all; add --all, or leave --write out")
    if args.pretrain:
        for option in ("model", "sam", "remat", "steps"):
            if getattr(args, option):
                raise ConfigError(f"--pretrain has one step and no --{option}; leave one of the two out")
        _pretraining(args)
    of_all, of_default = (SAM_STEPS, prompting_steps.STEPS) if args.sam else (STEPS, STEPS)
    steps = args.steps.split(",") if args.steps else of_default
    if not set(steps) <= set(of_all):
        raise ConfigError(f"--steps={args.steps}: must be some of {', '.join(of_all)}, separated by commas")
    if args.sam:
        _check_sam(args, steps, devices)
    return steps


def _check_sam(args: argparse.Namespace, steps: Sequence[str], devices: int) -> None:
    """Raises ConfigError if options do not go together with --sam, or there is no such encoder or size."""
    if args.model:
        raise ConfigError("--sam has no --model; leave one of the two out")
    prompting_steps.checked_form(args.sam, args.side)
    if set(steps) & set(prompting_steps.STEPS):
        if devices > 1:
            raise ConfigError(f"--sam: {' and '.join(prompting_steps.STEPS)} run on one device, not {devices}")
        for option in ("micro_batches", "remat"):
            if getattr(args, option):
                raise ConfigError(f"--sam: {' and '.join(prompting_steps.STEPS)} have no --{option}; leave it out")


def _of_network(args: argparse.Namespace, steps: Sequence[str], mesh: Mesh) -> tuple[str, Traced]:
    """Returns a title, and the steps of a network."""
    model = args.model or "unet"
    config = recipe(model, args.dtype, args.batch, args.micro_batches or 1, args.side, args.remat)
    scheme = find_scheme(config.labels)
    shared = f", shared by {mesh.size} devices" if mesh.size > 1 else ""
    return (
        f"{model}, {args.dtype}, batch {args.batch}{shared}, {args.side} pixels",
        ((name, "images", functools.partial(compile_step, name, config, scheme, mesh, args.side)) for name in steps),
    )


def _of_sam(args: argparse.Namespace, steps: Sequence[str], mesh: Mesh) -> tuple[str, Traced]:
    """Returns a title, and the steps of Segment Anything."""
    common: dict[str, Any] = dict(image_size=args.side, batch=args.batch, dtype=args.dtype, mesh=mesh)
    units = {"encode": "images", "decode": "prompts"}

    def traced() -> Traced:
        for name in steps:
            if name in prompting_steps.STEPS:
                lowered = prompting_steps.lower_step(name, args.sam, **common)
            else:
                parts = args.micro_batches or 1
                lowered = tuning_steps.lower_step(name, args.sam, micro_batches=parts, remat=args.remat, **common)
            what = f"the {name} step of {args.sam}"
            yield name, units.get(name, "tiles"), functools.partial(compile_lowered, name, lowered, what)

    shared = f", shared by {mesh.size} devices" if mesh.size > 1 else ""
    return f"{args.sam}, {args.dtype}, batch {args.batch}{shared}, {args.side} pixels", traced()


def _pretraining(args: argparse.Namespace) -> Any:
    """Returns the settings of a pretraining. Raises ConfigError if they cannot work."""
    config: Any = pretraining_config.default()
    parts = args.micro_batches or 1
    config.update(encoder=args.pretrain, dtype=args.dtype, batch_size=args.batch, micro_batches=parts)
    pretraining_config.validate(config)
    return config


def _of_pretraining(args: argparse.Namespace, steps: Sequence[str], mesh: Mesh) -> tuple[str, Traced]:
    """Returns a title, and the step of DINO: two views of 224 pixels, eight of 96, 65,536 prototypes."""
    config = _pretraining(args)
    views, what = config.views, f"a step of DINO with {args.pretrain}"
    return (
        f"DINO with {args.pretrain}, {args.dtype}, batch {args.batch}, views of {views.global_size} and "
        f"{views.local_size} pixels, {config.head.prototypes} prototypes",
        iter([("pretrain", "images", lambda: compile_lowered("pretrain", lower_step(config, mesh), what))]),
    )
