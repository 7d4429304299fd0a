"""Checks this installation and machine on one screen: `bcss-jax doctor`, or `python -m bcss_jax.doctor [--json]`.

Where something is not right, the line below says what mends it. A bug report should contain what `--json` prints.
Exit codes: 0 everything needed works, 2 something does not.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bcss_jax import __version__
from bcss_jax.common import command, files
from bcss_jax.errors import UserError, first_line

DISK_WANTED = 10e9  # bytes; an estimate for BCSS in tiles
PREPARED = Path("~/.cache/bcss_jax")  # the default of --config.data.prepared_dir
SIDE, CHANNELS = 2048, 64  # of the matrix product; of the convolution
MEASURED_SECONDS = 0.5  # of each of the two


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the screen.

    Attributes:
      name: what was looked at.
      found: what was found.
      remedy: what mends it; empty if it is as it should be.
      needed: whether nothing works without it.
    """

    name: str
    found: str
    remedy: str = ""
    needed: bool = True


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and prints the findings. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv

    def check():
        args = _parser().parse_args(argv)
        findings = examine()
        if args.json:
            print(json.dumps({"findings": [dataclasses.asdict(finding) for finding in findings]}, indent=2))
        else:
            print("\n".join(line for finding in findings for line in _lines(finding)))
        return findings

    findings: list[Finding] = []
    code = command.run(lambda: findings.extend(check()), debug="--debug" in argv)
    return code or (2 if any(finding.remedy and finding.needed for finding in findings) else 0)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("python -m bcss_jax.doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, for a report of a bug")
    command.add_debug(parser)
    return parser


def _lines(finding: Finding) -> list[str]:
    mark = "ok " if not finding.remedy else "BAD" if finding.needed else "-- "
    remedy = [f"{'':16} -> {finding.remedy}"] if finding.remedy else []
    return [f"{mark} {finding.name:12} {finding.found}", *remedy]


def examine() -> list[Finding]:
    """Returns what was found of the installation and the machine. A check that fails is a finding too."""
    found: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            found += check()
        except Exception as error:  # a check exists to show whatever is wrong
            found.append(Finding(name, first_line(error), "put this line into a report of a bug"))
    return found


def _python() -> list[Finding]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    where = f"{platform.python_version()} at {sys.prefix}, {platform.platform()}, {os.cpu_count()} CPUs"
    return [
        Finding("bcss_jax", f"{__version__} at {Path(__file__).parents[1]}"),
        Finding("python", where, "" if supported else "use Python 3.11, 3.12 or 3.13, the versions that are tested"),
    ]


def _versions() -> list[Finding]:
    """Returns a finding for every requirement of the package that is missing or of a version out of its range."""
    from packaging.requirements import Requirement

    wrong = []
    for text in importlib.metadata.requires("bcss_jax") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    remedy = "python -m pip install --upgrade bcss_jax" if wrong else ""
    return [Finding("packages", "; ".join(wrong) or "all that segmenting needs", remedy)]


def _devices() -> list[Finding]:
    import jax

    found = [Finding("jax", f"{jax.__version__}, jaxlib {importlib.metadata.version('jaxlib')}")]
    if shutil.which("nvidia-smi") and jax.default_backend() == "cpu":
        remedy = 'python -m pip install "bcss_jax[cuda]", or look at the driver with nvidia-smi'
        found.append(Finding("gpu", "there is nvidia-smi, but JAX computes on the CPU", remedy, needed=False))
    for device in jax.local_devices():
        memory = (device.memory_stats() or {}).get("bytes_limit")
        size = f"{memory / 1e9:.1f} GB for JAX, " if memory else ""
        product, convolution = _rates(device)
        rates = f"matrix product {product:.2f}, convolution {convolution:.2f} TFLOP/s (float32)"
        found.append(Finding(f"{device.platform} {device.id}", f"{device.device_kind}: {size}{rates}"))
    return found


def _rates(device) -> tuple[float, float]:
    """Returns the operations per second of a matrix product and of a 3x3 convolution on a device, in 1e12."""
    import jax
    import jax.numpy as jnp

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    square = jax.device_put(jnp.ones((SIDE, SIDE)), device)
    images = jax.device_put(jnp.ones((4, 128, 128, CHANNELS)), device)
    kernel = jax.device_put(jnp.ones((3, 3, CHANNELS, CHANNELS)), device)
    product = _calls_per_second(jax.jit(jnp.matmul), square, square) * 2 * SIDE**3
    convolution = _calls_per_second(jax.jit(convolve), images, kernel) * 2 * images.size * 9 * CHANNELS
    return product / 1e12, convolution / 1e12


def _calls_per_second(function: Callable, *arguments) -> float:
    function(*arguments).block_until_ready()  # compiles
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MEASURED_SECONDS:
        function(*arguments).block_until_ready()
        calls += 1
    return calls / elapsed


def _tensorflow() -> list[Finding]:
    if not importlib.util.find_spec("tensorflow"):
        remedy = 'for training: python -m pip install "bcss_jax[train]"'
        return [Finding("tensorflow", "absent: everything but training works", remedy, needed=False)]
    from bcss_jax.data.host_tensorflow import tf

    visible = tf.config.get_visible_devices("GPU")
    remedy = "report a bug: TensorFlow must not take a GPU's memory from JAX" if visible else ""
    found = [Finding("tensorflow", f"{tf.__version__}, sees {len(visible)} GPUs", remedy)]
    missing = [name for name in command.TRAINING_MODULES if not importlib.util.find_spec(name)]
    if missing:
        remedy = 'for training: python -m pip install "bcss_jax[train-on-notebook-host]"'
        found.append(Finding("training", f"{', '.join(missing)} absent", remedy, needed=False))
    return found


def _openslide() -> list[Finding]:
    """Reads slides that are written here, because a library may load without being able to decode."""
    import numpy as np
    import openslide
    import tifffile

    pixels = np.full((256, 256, 3), 200, np.uint8)
    aperio = dict(description="Aperio Image Library\n256x256|MPP = 0.5", metadata=None)
    formats: dict[str, dict[str, Any]] = {
        "Deflate": dict(compression="deflate"),
        "JPEG": dict(compression="jpeg"),
        "JPEG 2000": dict(compression=33005, **aperio),
    }
    unread = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in formats.items():
            path = Path(folder, f"{name}.tiff")
            try:
                tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", **options)
                with openslide.OpenSlide(path) as slide:
                    region = np.asarray(slide.read_region((0, 0), 0, (256, 256)))[..., :3]
                if np.abs(region.astype(int) - 200).max() > 3:
                    unread.append(f"{name} wrongly")
            except Exception as error:
                unread.append(f"{name} ({first_line(error)})")
    found = f"{openslide.__library_version__}"
    if unread:
        return [Finding("openslide", f"{found} does not read {', '.join(unread)}", "install openslide-bin")]
    return [Finding("openslide", f"{found}, reads {', '.join(formats)}")]


def _disk() -> list[Finding]:
    folder = PREPARED.expanduser()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    remedy = (
        "" if free > DISK_WANTED else "for training on BCSS choose a larger disk: --config.data.prepared_dir=FOLDER"
    )
    return [Finding("disk", f"{free / 1e9:.0f} GB free where data are prepared ({folder})", remedy, needed=False)]


def _compiled() -> list[Finding]:
    import jax

    from bcss_jax.common.startup import compilation_cache

    kept_in = compilation_cache.enable()
    if kept_in:
        return [Finding("compiled", f"programs are kept in {kept_in}")]
    if sys.platform != "linux":
        return [Finding("compiled", "programs are kept on Linux only")]
    if not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return [Finding("compiled", "programs are not kept, because JAX_ENABLE_COMPILATION_CACHE is off")]
    remedy = f"make {compilation_cache.root()} a folder that you, and nobody else, can write"
    return [Finding("compiled", "programs are not kept, so every start compiles", remedy, needed=False)]


def _locks() -> list[Finding]:
    """Locks a folder within the current one, as a run does."""
    try:
        with tempfile.TemporaryDirectory(prefix=".bcss_jax_doctor_", dir=".") as folder:
            with files.locked(Path(folder, "run")):
                pass
    except (OSError, UserError) as error:
        remedy = "run from, or write to, a folder that can be written and locked"
        return [Finding("locks", f"{Path.cwd()}: {first_line(error)}", remedy)]
    return [Finding("locks", f"{Path.cwd()} can be written and locked")]


CHECKS: dict[str, Callable[[], list[Finding]]] = {
    "python": _python,
    "packages": _versions,
    "jax": _devices,
    "tensorflow": _tensorflow,
    "openslide": _openslide,
    "disk": _disk,
    "compiled": _compiled,
    "locks": _locks,
}
