"""Exports a trained network to one file that runs without this package.

    python -m bcss_jax.export --checkpoint=runs/unet --output=unet.jaxexport [--which=best] [--tta]

The file holds a StableHLO program of jax.export that includes weights and preprocessing, and a description as JSON
(`bcss_jax.inference.exported_model` shows how to run it with JAX only). `python -m bcss_jax.segment --checkpoint`
accepts it in place of a run. Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage, 75 stopped on request.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from bcss_jax.common import command
from bcss_jax.common.digests import sha256_of, sha256_of_json
from bcss_jax.common.files import storage_errors, write_bytes
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.startup import compilation_cache
from bcss_jax.errors import ConfigError, NumericalError, printable
from bcss_jax.inference import trained_run
from bcss_jax.inference.exported_model import DIGESTS, FORMAT, MAX_PROGRAM, METADATA, PROGRAM, image_shape
from bcss_jax.inference.predict import NOT_FINITE_REMEDY
from bcss_jax.inference.slide_model import SlideModel, model_of_run
from bcss_jax.training.sharding import make_mesh
from bcss_jax.training.summary import versions

PLATFORMS = ("cpu", "cuda", "tpu")
USE = (
    "Research use only: not for diagnosis, nor for any decision about a patient. The licenses of the data and of "
    "pretrained weights that the network was trained with hold for its weights."
)


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and exports. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("absl").setLevel(logging.ERROR)
    return command.run_interruptible(lambda interruption: _run(_parser().parse_args(argv)), debug="--debug" in argv)


def _parser():
    parser = command.parser("python -m bcss_jax.export", __doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="folder of a run")
    add("--which", choices=("best", "latest"), default="best", help="checkpoint of the run (default best)")
    add("--output", required=True, type=Path, help="file to write; an exported network of that name is replaced")
    add("--tta", action="store_true", help="average the predictions over flips and quarter turns of every image")
    command.add_debug(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.output.is_dir():
        raise ConfigError(
            f"--output={args.output} is a folder; name a file, for example {args.output / 'unet.jaxexport'}"
        )
    checkpoints = [("--checkpoint/checkpoints", args.checkpoint / "checkpoints")]
    refuse_inputs("--output", args.output, [("--checkpoint", args.checkpoint)], data_folders=checkpoints)
    _check_file(args.output)
    compilation_cache.enable()
    mesh = make_mesh(jax.local_devices()[:1])
    model = model_of_run(trained_run.read_trained_run(args.checkpoint, mesh, args.which), mesh, args.tta)
    safe_point()
    _check_output(model)
    content = artifact_of(model)
    safe_point()
    with storage_errors(args.output):
        args.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(args.output, content, private=True)
    print(
        f"{args.output}: {len(content) / 1e6:.3g} MB; uint8 RGB [N, {model.window}, {model.window}, 3] at "
        f"{model.mpp:g} um/px -> probabilities of {', '.join(model.scheme.evaluated_names)}; for {', '.join(PLATFORMS)}"
    )


def _check_file(path: Path) -> None:
    """Raises ConfigError if something stands there that is no exported network."""
    if not os.path.lexists(path):
        return
    own = path.is_file() and not path.is_symlink()
    if own:
        try:
            with zipfile.ZipFile(path) as file:
                own = {METADATA, PROGRAM} <= set(file.namelist())
        except (OSError, zipfile.BadZipFile):
            own = False
    if not own:
        raise ConfigError(
            f"--output={printable(path)}: expected a new file or an exported network, which is replaced, found another "
            "file or a link; choose another name"
        )


def _check_output(model: SlideModel) -> None:
    """Computes one window of noise. Raises NumericalError if the probabilities are not finite."""
    noise = np.random.default_rng(0).integers(0, 256, (1, model.window, model.window, 3), np.uint8)
    if not np.isfinite(jax.jit(model.probabilities)(model.arrays, noise)).all():
        raise NumericalError(f"{model.name}: the output for noise is not finite; {NOT_FINITE_REMEDY}")


def exported(model: SlideModel) -> jax.export.Exported:
    """Returns the network as a program.

    The layers have variants for the CPU (`models.blocks.cpu_convolution`) for their gradients only, so one program
    serves every platform.

    Args:
      model: a network with its weights.

    Returns:
      uint8 [N, window, window, 3] -> float32 [N, window, window, K].
    """
    arrays = jax.tree.map(np.asarray, model.arrays)

    def probabilities(images):
        # Without the barrier XLA folds the weights while it compiles, which takes longer and rounds differently.
        return model.probabilities(jax.lax.optimization_barrier(arrays), images)

    shape = (*jax.export.symbolic_shape("N"), model.window, model.window, 3)
    with _without_local_paths():
        return jax.export.export(jax.jit(probabilities), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8))


def artifact_of(model: SlideModel) -> bytes:
    """Returns the content of the file, which has the same bytes for the same model.

    Args:
      model: of a checkpoint.

    Raises:
      ConfigError: the network is too large for such a file.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.arrays))
    if size > MAX_PROGRAM - (1 << 26):
        raise ConfigError(
            f"{model.name}: its weights have {size / 1e9:.1f} GB, but an exported program holds at most 2 GB"
        )
    metadata = {
        "format": FORMAT,
        "name": model.name,
        "network": model.metadata["network"],
        "label_scheme": model.scheme.to_json(),
        "classes": list(model.scheme.evaluated_names),
        "mpp": model.mpp,
        "window": model.window,
        "overlap": model.overlap,
        "blend": model.blend,
        "image_shape": image_shape(model.window),
        "image_dtype": "uint8",
        "tta": model.metadata["tta"],
        "platforms": PLATFORMS,
        "params_sha256": model.metadata["params_sha256"],
        "checkpoint": {name: model.metadata["checkpoint"][name] for name in ("which", "step", "epoch")},
        "versions": versions(),
        "use": USE,
    }
    program = bytes(exported(model).serialize())
    metadata |= {DIGESTS: {PROGRAM: sha256_of(program), METADATA: sha256_of_json(metadata)}}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, entry in ((METADATA, json.dumps(metadata, indent=1).encode()), (PROGRAM, program)):
            file.writestr(zipfile.ZipInfo(name), entry)  # a ZipInfo without a date
    return content.getvalue()


@contextlib.contextmanager
def _without_local_paths() -> Iterator[None]:
    """Keeps folder names and calling lines out of the source locations that are stored in programs."""
    changed = {
        "jax_hlo_source_file_canonicalization_regex": r"^.*[/\\]",
        "jax_include_full_tracebacks_in_locations": False,
    }
    before = {name: getattr(jax.config, name) for name in changed}
    try:
        for name, value in changed.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
