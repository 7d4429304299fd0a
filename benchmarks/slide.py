"""Measures seconds per mm2 and peak memory of whole slides, here and with TIAToolbox's SemanticSegmentor.

    python benchmarks/slide.py --checkpoint=RUN [--slide=FILE] [--network=checkpoint,colour] [--side=8000] [--mm2=2]
        [--tiatoolbox_python=PYTHON] [--rounds=3] [--cores=2] [--folder=FOLDER]

The slide of `--slide` is segmented whole; a synthetic slide (that of `slide_scale.py`) is segmented within a tissue
mask. The two sides run in turn in separate processes: `python -m bcss_jax.segment` with everything that it writes, and
`tiatoolbox_side.py`, which writes labels (zarr) and then regions (QuPath). Both use the same windows, stride, mask and
cores, and the weights of the checkpoint (TIAToolbox in the PyTorch twin of the network). `--network=colour` replaces
the network by a 1x1 convolution on both sides, so that nearly all of the time is spent outside the network.

TIAToolbox merges windows without weights, starts its windows at the edge of the slide and pads with white; bcss_jax
weights windows with a Gaussian and reflects the edges. The labels of both are compared. TIAToolbox writes no pyramid
and no overlay.

slide    from the opened file to the last result, compilation included
labels   until the labels are finished: a zarr array for TIAToolbox, a tiled pyramid here
process  the whole command, with imports and weights
cpu      seconds of all cores for the process, which a busy machine changes least
peak     memory of the process and its children, sampled every 0.2 s; shared pages are counted once

Ratios are TIAToolbox's time divided by ours (above 1: ours is faster), one per round, as median [minimum, maximum].
"""

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tifffile
from flax import nnx
from PIL import Image
from slide_scale import TILE, tissue_tiles, write_slide

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bcss_jax import models  # noqa: E402
from bcss_jax.commands.export import artifact_of  # noqa: E402
from bcss_jax.inference import trained_run  # noqa: E402
from bcss_jax.inference.slide_model import LAYOUT_WINDOWS, SlideModel  # noqa: E402
from bcss_jax.models.apply import normalize  # noqa: E402
from bcss_jax.models.image_normalization import IMAGENET  # noqa: E402
from bcss_jax.models.weights import pretrained  # noqa: E402
from bcss_jax.slides.windows import windows_of  # noqa: E402
from bcss_jax.training.sharding import make_mesh  # noqa: E402

TIMES = ("slide", "labels", "process", "cpu")
# Stages of a summary. The regions are traced while pyramid and overlay are made, and rows are written during all
# stages.
WRITING = ("writing", "pyramid", "tracing", "overlay")
# Hematoxylin is blue and dark, eosin is pink: the sign tells which one a color is nearer to; the factor 4 makes it
# clear.
COLOR = 4 * np.array([[-1.0, 0.2, 0.6], [1.0, -0.2, -0.6]], np.float32)


class Side:
    """A network for both sides: a file for `bcss_jax.segment`, and a job for `tiatoolbox_side.py`."""

    def __init__(self, name: str, checkpoint: Path, folder: Path):
        """Writes the weights; `name` is "checkpoint" or "colour"."""
        self.name, mesh = name, make_mesh(jax.local_devices()[:1])
        run = trained_run.read_trained_run(checkpoint, mesh, "best")
        config, scheme, evaluated = run.config, run.scheme, list(run.scheme.evaluated)
        self.mpp = float(config["data"]["mpp"])
        self.window = LAYOUT_WINDOWS.get(config["data"]["layout"], config["data"]["patch_size"])
        self.job = {
            "network": name, "num_classes": scheme.num_classes, "evaluated": evaluated, "arguments": {},
            "mpp": self.mpp, "classes": list(scheme.evaluated_names), "window": self.window,
            "weights": str(folder / f"{name}.npz"),
        }  # fmt: skip
        if name == "colour":
            kernel = np.zeros((scheme.num_classes, 3), np.float32)
            kernel[evaluated] = np.resize(COLOR, (len(evaluated), 3))
            self.checkpoint = folder / "color.jaxexport"
            self.checkpoint.write_bytes(artifact_of(_color_model(scheme, self.mpp, self.window, kernel)))
            state = {"weight": kernel[:, :, None, None], "bias": np.zeros(scheme.num_classes, np.float32)}
            self.job |= {"image_mean": IMAGENET.mean, "image_std": IMAGENET.std}
        else:
            self.checkpoint = checkpoint
            arguments = {key: value for key, value in config["model"].items() if key != "name"}
            model = models.create(config["model"]["name"], num_classes=scheme.num_classes, **arguments)
            params, model_state = run.weights(mesh)
            nnx.update(
                model, nnx.merge_state(_state(model, nnx.Param, params), _state(model, nnx.Not(nnx.Param), model_state))
            )
            state = pretrained.to_torch_state(model)
            self.job |= {"network": config["model"]["name"], "arguments": arguments}
            self.job |= {key: config[key] for key in ("image_mean", "image_std")}
        np.savez(self.job["weights"], **state)


def _state(model, kind, values):
    state = nnx.state(model, kind)
    nnx.replace_by_pure_dict(state, values)
    return state


def _color_model(scheme, mpp, window, kernel) -> SlideModel:
    """A 1x1 convolution of normalized colors."""

    def probabilities(arrays, images):
        (kernel,) = arrays
        logits = jnp.einsum("nhwc,kc->nhwk", normalize(images), kernel)
        return jax.nn.softmax(logits[..., np.asarray(scheme.evaluated)])

    metadata = {
        "network": "colour", "tta": False, "params_sha256": hashlib.sha256(kernel.tobytes()).hexdigest(),
        "checkpoint": {"which": "best", "step": 0, "epoch": None},
    }  # fmt: skip
    return SlideModel("colour", scheme, mpp, window, {}, metadata, (kernel,), probabilities)


def watched(command: list[str]) -> dict:
    """Runs a command.

    Returns its seconds (process), the seconds of all cores (cpu), and its peak memory in bytes (peak).
    """
    begin, before, peak = time.perf_counter(), os.times(), 0
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)}
        ) as process,
    ):
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.2)
        seconds, after = time.perf_counter() - begin, os.times()
        if process.returncode:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-3000:])
            raise SystemExit(f"error: {' '.join(command[:4])} ... ended with {process.returncode}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"process": seconds, "cpu": cpu, "peak": peak}


def memory_of(process: int) -> int:
    """Returns the bytes of a process and its children; shared pages are counted once."""
    total, waiting = 0, [process]
    while waiting:
        number = waiting.pop()
        with contextlib.suppress(OSError, IndexError):  # the process has ended
            rollup = Path(f"/proc/{number}/smaps_rollup").read_text()
            total += int(rollup.partition("\nPss:")[2].split()[0]) * 1024
            for task in Path(f"/proc/{number}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return total


def ours(side: Side, slide: Path, tissue: Path | None, folder: Path, args) -> dict:
    """Runs `python -m bcss_jax.segment` and returns what it took."""
    output = folder / f"ours-{side.name}"
    taken = watched(
        [
            sys.executable, "-m", "bcss_jax.segment", f"--checkpoint={side.checkpoint}", f"--slide={slide}",
            "--overwrite", f"--output={output}", f"--overlap={args.overlap}", f"--tissue={tissue or 'all'}",
            f"--readers={args.cores}",
        ],
    )  # fmt: skip
    summary = json.loads((output / slide.stem / "summary.json").read_text())
    seconds = summary["seconds"]
    labels = seconds["thumbnail_and_tissue"] + seconds["labelling"] + seconds["pyramid"]
    return taken | {"slide": seconds["total"], "labels": labels, "summary": summary}


def theirs(side: Side, slide: Path, slide_mpp: float, tissue: Path | None, folder: Path, args) -> dict:
    """Runs `tiatoolbox_side.py` and returns what it took."""
    stride = windows_of(side.window, side.window, side.window, args.overlap).stride
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        job = side.job | {
            "slide": str(slide), "slide_mpp": slide_mpp, "tissue": tissue and str(tissue), "output": f"{inside}/out",
            "report": f"{inside}/report.json", "labels": str(folder / f"theirs-{side.name}.npy"), "batch_size": 8,
            "stride": stride, "cores": args.cores,
        }  # fmt: skip
        path = Path(inside) / "job.json"
        path.write_text(json.dumps(job))
        command = [str(args.tiatoolbox_python), str(ROOT / "benchmarks/tiatoolbox_side.py"), str(path)]
        return watched(command) | json.loads((Path(inside) / "report.json").read_text())


def spread(values: list[float], digits: int = 2) -> str:
    """Returns the text median [minimum, maximum]."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def report(side: Side, slide: Path, here: list[dict], there: list[dict], folder: Path) -> None:
    """Prints the results of all rounds of a slide with a network."""
    summary = here[-1]["summary"]
    area = summary["tissue_area_mm2"]
    print(f"\n{slide.name}, {side.name} ({side.job['network']}): {area:.3f} mm2, {len(here)} rounds")
    for runs in filter(None, (here, there)):
        windows, name = (summary["windows"]["computed"], "here") if runs is here else (there[-1]["windows"], "there")
        texts = [f"{what} {spread([run[what] / area for run in runs])}" for what in TIMES]
        peak = spread([run["peak"] / 2**20 for run in runs], 0)
        print(f"  {name}, {windows} windows: s/mm2 {', '.join(texts)}; peak {peak} MiB")
    if there:
        pairs = list(zip(here, there, strict=True))
        print("  speed against " + there[-1]["versions"] + ": " + ", ".join(
            f"{what} {spread([b[what] / a[what] for a, b in pairs])}x" for what in TIMES
        ))  # fmt: skip
        outside = [run["slide"] - run["network"] for run in there]
        print(f"  there outside the network: {spread([seconds / area for seconds in outside])} s/mm2 of slide")
    parts = [run["summary"]["seconds"] for run in here]
    names = [name for name in parts[0] if name not in ("total", "labelling")]
    print("  share of the slide's time here: " + ", ".join(
        f"{name} {statistics.median(each[name] / each['total'] for each in parts):.1%}" for name in names
    ))  # fmt: skip
    shares = [sum(each[name] for name in WRITING) / each["total"] for each in parts]
    print(f"  {' + '.join(WRITING)}: {spread(shares)} of it; at most 0.25: {'yes' if max(shares) <= 0.25 else 'NO'}")
    if there:
        mine = tifffile.imread(folder / f"ours-{side.name}" / slide.stem / "labels.ome.tif")
        print("  " + agreement(mine, np.load(folder / f"theirs-{side.name}.npy")))
    sys.stdout.flush()


def agreement(mine: np.ndarray, other: np.ndarray) -> str:
    """Returns how well two label maps agree where this side has a class."""
    height, width = (min(a, b) for a, b in zip(mine.shape, other.shape, strict=True))
    mine, other = mine[:height, :width], other[:height, :width]
    known = (mine > 0) & (mine < 255)
    shares = [float((labels[known] == 1).mean()) for labels in (mine, other)]
    return (
        f"labels equal on {(mine == other)[known].mean():.2%} of {known.sum()} pixels "
        f"(class 1 on {shares[0]:.1%} here, {shares[1]:.1%} there)"
    )


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=lambda path: Path(path).resolve(), required=True, help="folder of a run")
    add("--slide", type=lambda path: Path(path).resolve(), help="slide that is full of tissue")
    add("--network", default="checkpoint,colour", help="checkpoint, colour, or both")
    add("--side", type=int, default=8000, help="side of the synthetic slide in pixels; 0: none")
    add("--mm2", type=float, default=2.0, help="mm2 of tissue on the synthetic slide")
    add("--overlap", type=float, default=0.25)
    add("--tiatoolbox_python", type=Path, help="Python of an environment that has TIAToolbox")
    add("--rounds", type=int, default=3)
    add("--cores", type=int, default=len(os.sched_getaffinity(0)))
    add("--folder", type=Path, help="folder for slides and results (default: a temporary one)")
    return parser.parse_args()


def main() -> None:
    """Makes the slides, runs both sides in turn and prints the results."""
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        slides = [] if args.slide is None else [(args.slide, None)]
        if args.side:
            slides.append((folder / f"synthetic-{args.side}.tif", folder / f"synthetic-{args.side}.png"))
            tissue = tissue_tiles(args.side, args.mm2)
            write_slide(slides[-1][0], args.side, args.side, tissue)
            # One pixel of the mask for 64 of the slide: the mask has the proportions of the slide if the side is a
            # multiple of 64.
            mask = np.kron(tissue, np.full((TILE // 64,) * 2, 255, np.uint8))
            Image.fromarray(mask[: args.side // 64, : args.side // 64]).save(slides[-1][1])
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # child processes inherit it
        print(f"{args.cores} cores, load of the last minutes {os.getloadavg()}")
        if args.tiatoolbox_python is None:
            print("TIAToolbox is not run: name an environment that has it with --tiatoolbox_python=PYTHON")
        for name in args.network.split(","):
            side = Side(name, args.checkpoint, folder)
            for slide, tissue in slides:
                here, there = [], []
                for _ in range(args.rounds):
                    here.append(ours(side, slide, tissue, folder, args))
                    if args.tiatoolbox_python:
                        mpp = here[-1]["summary"]["slide"]["mpp"][0]
                        there.append(theirs(side, slide, mpp, tissue, folder, args))
                report(side, slide, here, there, folder)


if __name__ == "__main__":
    main()
