"""Measures the images per second of an evaluation, compared with the same work in PyTorch.

    python benchmarks/inference.py --model=unet_resnet101 --batch=4 --images=16
    python benchmarks/inference.py --data_dir=FOLDER --rounds=5

The project's side is the code of `python -m bcss_jax.evaluate`: batches, `ImageCounter`, `accumulate`. The PyTorch side
is a loop over a DataLoader with PIL, the same network (segmentation_models_pytorch for ResNet and DenseNet encoders,
otherwise the network of `torch_twins.py`) and the same counts in PyTorch. Both sides compute outlines (HD95, NSD) with
the same function, on threads, while the next batch is computed. The JAX network gets PyTorch's weights through
`bcss_jax.models.weights.pretrained`, with batch statistics of these images. Probabilities and counts must agree before
anything is timed.

Four tasks are timed alternately, A B A B, after a warm-up round: `together`, and its components `input` (PNG files to
batches), `compute` (images to probabilities) and `metrics` (probabilities to counts and outlines). The ratio is
PyTorch's time divided by the project's time, so that above 1 the project is faster. There is one ratio per round. The
output has the median and [minimum, maximum].

FOLDER has the layout kaggle224. Its validation tiles are repeated to give `--images`. Without FOLDER, random images in
memory are used, no input is timed, and TensorFlow is not needed. On Linux CPUs set
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, as `launch/local.sh` does.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import os
import pathlib
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]

from bcss_jax import models  # noqa: E402
from bcss_jax.common.interruption import Interruption  # noqa: E402
from bcss_jax.data import discovery  # noqa: E402
from bcss_jax.errors import ConfigError, UserError  # noqa: E402
from bcss_jax.evaluation import accumulate, image_counts  # noqa: E402
from bcss_jax.evaluation.statistics.surface_distance import SurfaceScore, surface_scores  # noqa: E402
from bcss_jax.inference import predict  # noqa: E402
from bcss_jax.labels import SCHEMES, lookup_table  # noqa: E402
from bcss_jax.models.apply import ModelFunction, split_model  # noqa: E402
from bcss_jax.models.image_normalization import IMAGENET  # noqa: E402
from bcss_jax.models.weights import pretrained  # noqa: E402
from bcss_jax.training import sharding  # noqa: E402

SCHEME = SCHEMES["tumor_stroma"]
TABLE = lookup_table(SCHEME, "kaggle3")
MPP = 0.25
READ = 480  # fewest tiles when only reading is timed, because the start takes little of an evaluation
SAMPLED = 256  # pixels of an image whose logits are kept to fit the temperature
# For float32 on a CPU, and for the lower precision of multiplications on GPUs.
TOLERANCE = {True: 1e-3, False: 5e-2}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="unet_resnet101")
    parser.add_argument("--width", type=int, help="width of the network, for models that have this argument")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", type=int, default=16, help="images per round")
    parser.add_argument("--size", type=int, default=224, help="size of random images")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--data_dir", type=pathlib.Path, help="folder with the layout kaggle224; default: random images"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads or processes that read tiles")
    return parser.parse_args()


class Images:
    """The images that both sides evaluate, in memory, and in files if there is a data folder.

    Attributes:
      images: uint8 [N, H, W, 3].
      labels: uint8 [N, H, W].
      paths: paths of the images and of the masks; None for random images.
      more_paths: the same paths repeated, to time the input alone.
    """

    def __init__(self, args: argparse.Namespace):
        """Reads the images, or draws random ones."""
        if args.images % args.batch or args.images < 1:
            raise ConfigError(f"--images={args.images} must be a multiple of --batch={args.batch}")
        self.paths = self.more_paths = None
        if args.data_dir:
            tiles = [
                tile
                for tile in discovery.find_tiles(discovery.DataSettings("kaggle224", args.data_dir))
                if tile.split == "val"
            ]
            tiles = [tiles[n % len(tiles)] for n in range(args.images)]
            self.paths = [str(tile.image) for tile in tiles], [str(tile.mask) for tile in tiles]
            self.more_paths = [paths * -(-READ // args.images) for paths in self.paths]
            self.images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in self.paths[0]])
            self.labels = np.stack([TABLE[np.asarray(Image.open(path))] for path in self.paths[1]])
            return
        draws, blocks = np.random.default_rng(0), -(-args.size // 16)
        labels = np.kron(draws.integers(0, 3, (args.images, blocks, blocks)), np.ones((1, 16, 16), int))
        self.labels = labels[:, : args.size, : args.size].astype(np.uint8)
        noise = draws.integers(0, 64, (*self.labels.shape, 3))
        self.images = (
            noise + np.array([[200, 180, 190], [120, 60, 140], [220, 130, 180]])[self.labels] * 3 // 4
        ).astype(np.uint8)


class Jax:
    """The evaluation of this project."""

    def __init__(self, args: argparse.Namespace, data: Images, model):
        """Puts the model on all devices."""
        self.mesh = sharding.make_mesh()
        sharding.check_batch_size("--batch", args.batch, 1, self.mesh)
        _, params, model_state = split_model(model)
        weights = jax.device_put((params, model_state), sharding.replicated(self.mesh))
        self.member = functools.partial(
            predict.log_probabilities, ModelFunction(model, IMAGENET), SCHEME, False, *weights
        )
        self.counter = image_counts.ImageCounter([self.member], SCHEME, self.mesh)
        self.data, self.batch, self.workers = data, args.batch, args.workers
        positions = np.random.default_rng(1).integers(0, data.labels[0].size, (len(data.labels), SAMPLED))
        self.positions = positions.astype(np.int32)
        self.split = accumulate.EvaluationSplit(
            "val", {}, [{"mpp": MPP}] * len(data.labels), self.batches, lambda indices: iter(())
        )
        self._kept = None

    def batches(self, first: int = 0):
        """Returns batches as the evaluation gets them, from files through tf.data or as slices of images in memory."""
        assert first == 0
        if self.data.paths:
            return self._read(self.data.paths)
        return ({**batch, "valid": np.ones(self.batch, bool)} for batch in self._in_memory())

    def _read(self, paths):
        from bcss_jax.data import input_pipeline  # imported here because it needs TensorFlow

        return input_pipeline.eval_batches(
            input_pipeline.encoded_from_png(*paths),
            len(paths[0]),
            table=TABLE,
            ignore_index=SCHEME.ignore_index,
            batch_size=self.batch,
            threads=self.workers,
        )

    def _in_memory(self):
        for start in range(0, len(self.data.labels), self.batch):
            chosen = slice(start, start + self.batch)
            index = np.arange(start, start + self.batch)
            yield {"image": self.data.images[chosen], "label": self.data.labels[chosen], "index": index}

    def together(self) -> dict:
        """Returns counts and outlines of each image."""
        with Interruption() as interruption, contextlib.redirect_stdout(io.StringIO()):
            interruption.begin()
            return accumulate.accumulate(
                self.counter,
                self.split,
                accumulate.EvaluationSeconds(),
                saved={},
                save=lambda arrays: None,
                interruption=interruption,
                label="",
            )

    def input(self) -> None:
        """Reads batches only."""
        for _ in self._read(self.data.more_paths):
            pass

    def compute(self) -> list[jax.Array]:
        """Returns the logarithms of the probabilities [N, H, W, C] of each batch."""
        found = []
        for batch in self._in_memory():
            placed = sharding.place_batch({"images": batch["image"]}, self.mesh)
            found.append(self.member(placed["images"]).block_until_ready())
        return found

    def metrics(self) -> None:
        """Computes counts and outlines from known probabilities."""
        self._kept = self._kept or self.compute()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            futures = []
            for batch, known in zip(self._in_memory(), self._kept, strict=True):
                values = {"labels": batch["label"], "positions": self.positions[batch["index"]]}
                placed = sharding.place_batch(values, self.mesh)
                counts = jax.device_get(image_counts.count_pixels(SCHEME, known, placed["labels"], placed["positions"]))
                futures.append(pool.map(outlines, batch["label"], counts["predictions"]))
            for each in futures:
                list(each)


def outlines(truth: np.ndarray, prediction: np.ndarray) -> SurfaceScore:
    """Returns HD95 and NSD of an image, each [K]. Both sides compute them on the host."""
    return surface_scores(
        truth, prediction, SCHEME.evaluated, SCHEME.ignore_index, mpp=MPP, tolerance_um=accumulate.TOLERANCE_UM
    )


def check_agreement(ours: Jax, theirs, exact: bool) -> float:
    """Returns the largest difference of a probability between both sides.

    Raises:
      AssertionError: The probabilities or the counts differ by more than rounding explains.
    """
    limit = TOLERANCE[exact]
    classes = list(SCHEME.evaluated)
    here = np.concatenate([np.exp(np.asarray(each)[..., classes]) for each in ours.compute()])
    there = np.concatenate([each.exp().float().cpu().numpy() for each in theirs.compute()]).transpose(0, 2, 3, 1)
    largest = float(np.abs(here - there).max())
    assert largest < limit, f"probabilities differ by {largest:.2g}"
    a, b = ours.together(), theirs.together()
    pixels = int((ours.data.labels != SCHEME.ignore_index).sum())
    for name in ("confusion", "pixels"):  # a pixel with another prediction changes two counts
        assert int(a[name].sum()) == int(b[name].sum()) == pixels, name
        assert np.abs(a[name].astype(int) - b[name]).sum() <= 2 * limit * pixels, name
    np.testing.assert_allclose(a["confidence"].sum(), b["confidence"].sum(), rtol=limit)
    np.testing.assert_allclose(np.nanmean(a["nsd"]), np.nanmean(b["nsd"]), atol=limit)
    return largest


def in_turn(contestants: list, what: str, rounds: int) -> list[list[float]]:
    """Returns the seconds of each contestant in each round, after a warm-up round."""
    rows = []
    for _ in range(rounds + 1):
        row = []
        for contestant in contestants:
            start = time.perf_counter()
            getattr(contestant, what)()
            row.append(time.perf_counter() - start)
        rows.append(row)
    return [list(column) for column in zip(*rows[1:], strict=True)]


def measure(args: argparse.Namespace) -> None:
    """Runs all measurements and prints them.

    Raises:
      UserError: An argument or the data are invalid.
      ModuleNotFoundError: The PyTorch network needs a package that is not installed.
    """
    from torch_inference import Torch, version

    data = Images(args)
    theirs = Torch(args, data, outlines, SCHEME, SAMPLED)
    kwargs = {} if args.width is None else {"width": args.width}
    model = models.create(args.model, num_classes=SCHEME.num_classes, dtype=jnp.dtype(args.dtype), **kwargs)
    ours = Jax(args, data, pretrained.load_torch_state(model, theirs.state()))
    exact = args.dtype == "float32" and jax.devices()[0].platform == "cpu"
    largest = check_agreement(ours, theirs, exact)
    height, width = data.labels.shape[1:]
    print(
        f"{args.model}: batch {args.batch}, {args.images} images of {height}x{width} a round, {args.dtype}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPUs, jax {jax.__version__}, PyTorch "
        f"{version}; largest difference of a probability {largest:.1e}"
    )
    for what in ("together", *(["input"] if data.paths else []), "compute", "metrics"):
        seconds = in_turn([ours, theirs], what, args.rounds)
        images = len(data.more_paths[0]) if what == "input" and data.more_paths else args.images
        here, there = (statistics.median(column) / images for column in seconds)
        ratios = [b / a for a, b in zip(*seconds, strict=True)]
        print(
            f"{what}: {1 / here:.2f} images/s, {1e3 * here:.1f} ms each; PyTorch {1 / there:.2f} images/s, "
            f"{1e3 * there:.1f} ms each; speed against PyTorch {statistics.median(ratios):.2f}x [{min(ratios):.2f}, "
            f"{max(ratios):.2f}]",
            flush=True,
        )


def main() -> int:
    """Runs the benchmark. Returns the exit code."""
    args = arguments()
    missing = functools.partial(print, file=sys.stderr)
    if importlib.util.find_spec("torch") is None:
        missing("this benchmark needs PyTorch: pip install -e '.[benchmark]'")
        return 2
    try:
        measure(args)
    except ModuleNotFoundError as error:
        missing(f"the PyTorch version of {args.model}, or reading tiles, needs {error.name}: pip install it")
        return 2
    except UserError as error:
        missing(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
