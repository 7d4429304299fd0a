"""Images per second of an evaluation, against the same work in PyTorch.

    python benchmarks/inference.py --model=unet_resnet101 --batch=4 --images=16
    python benchmarks/inference.py --data_dir=FOLDER --rounds=5

Here that is the path of `python -m bcss_jax.evaluate`: batches, `ImageCounter`, `accumulate`. There it is a loop over a
DataLoader with PIL, the same network (segmentation_models_pytorch for ResNet and DenseNet encoders, otherwise what
`torch_twins.py` builds) and the same counts in PyTorch; outlines (HD95, NSD) come from the same function on threads, on
both sides while the next batch is computed. The network gets PyTorch's weights through `bcss_jax.models.weights.pretrained`, with batch
statistics of these images, and probabilities and counts must agree before anything is timed.

Four things are timed, each in turn, A B A B, after a round of warming up: `together`, and what it consists of: `input`
(PNG files to batches), `compute` (images to probabilities) and `metrics` (probabilities to counts and outlines). The
ratio is PyTorch's time over ours (above 1: ours is faster), one per round, given as median [least, most].

FOLDER has the layout kaggle224; its validation tiles are repeated to make `--images`. Without it images are random and
lie in memory, there is no input to time, and TensorFlow is not needed. On Linux CPUs set
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
from bcss_jax.evaluation.statistics.surface_distance import surface_scores  # noqa: E402
from bcss_jax.inference import predict  # noqa: E402
from bcss_jax.labels import SCHEMES, lookup_table  # noqa: E402
from bcss_jax.models.apply import IMAGENET, ModelFunction, split_model  # noqa: E402
from bcss_jax.models.weights import pretrained  # noqa: E402
from bcss_jax.training import sharding  # noqa: E402

SCHEME = SCHEMES["tumor_stroma"]
TABLE = lookup_table(SCHEME, "kaggle3")
MPP = 0.25
READ = 480  # tiles that are read at least where reading alone is timed: its start counts little in an evaluation
SAMPLED = 256  # pixels of an image whose logits are kept, for the temperature
# Of float32 on a CPU, and of the shorter numbers that GPUs multiply.
TOLERANCE = {True: 1e-3, False: 5e-2}


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="unet_resnet101")
    parser.add_argument("--width", type=int, help="only for models that have one")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", type=int, default=16, help="in a round")
    parser.add_argument("--size", type=int, default=224, help="of images that are not read from files")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data_dir", type=pathlib.Path, help="tiles in the layout kaggle224; random images if absent")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads or processes that read tiles")
    return parser.parse_args()


class Images:
    """What both sides evaluate: in memory, and in files if a folder is named.

    Attributes:
      images: uint8 [N, H, W, 3].
      labels: uint8 [N, H, W].
      paths: of images and of masks; None if they are in no file.
      more_paths: the same ones repeated, for the input alone.
    """

    def __init__(self, args: argparse.Namespace):
        """Reads or draws them."""
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
    """Evaluation as this project does it."""

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
        """As evaluation gets them: from files through tf.data, or slices of what is in memory."""
        assert first == 0
        if self.data.paths:
            return self._read(self.data.paths)
        return ({**batch, "valid": np.ones(self.batch, bool)} for batch in self._in_memory())

    def _read(self, paths):
        from bcss_jax.data import input_pipeline  # here, because it needs TensorFlow

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
        """Counts and outlines of each image."""
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
        """Batches alone."""
        for _ in self._read(self.data.more_paths):
            pass

    def compute(self) -> list[jax.Array]:
        """Logarithms of the probabilities [N, H, W, C] of each batch."""
        found = []
        for batch in self._in_memory():
            placed = sharding.place_batch({"images": batch["image"]}, self.mesh)
            found.append(self.member(placed["images"]).block_until_ready())
        return found

    def metrics(self) -> None:
        """Counts and outlines, given the probabilities."""
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


def outlines(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(HD95, NSD) of an image, each [K]: both sides' metrics on the host."""
    return surface_scores(
        truth, prediction, SCHEME.evaluated, SCHEME.ignore_index, mpp=MPP, tolerance_um=accumulate.TOLERANCE_UM
    )


def check_agreement(ours: Jax, theirs, exact: bool) -> float:
    """The largest difference of any probability.

    Raises:
      AssertionError: it, or the counts of both sides, are further apart than rounding explains.
    """
    limit = TOLERANCE[exact]
    classes = list(SCHEME.evaluated)
    here = np.concatenate([np.exp(np.asarray(each)[..., classes]) for each in ours.compute()])
    there = np.concatenate([each.exp().float().cpu().numpy() for each in theirs.compute()]).transpose(0, 2, 3, 1)
    largest = float(np.abs(here - there).max())
    assert largest < limit, f"probabilities differ by {largest:.2g}"
    a, b = ours.together(), theirs.together()
    pixels = int((ours.data.labels != SCHEME.ignore_index).sum())
    for name in ("confusion", "pixels"):  # a pixel that falls to the other side is missing here and too much there
        assert int(a[name].sum()) == int(b[name].sum()) == pixels, name
        assert np.abs(a[name].astype(int) - b[name]).sum() <= 2 * limit * pixels, name
    np.testing.assert_allclose(a["confidence"].sum(), b["confidence"].sum(), rtol=limit)
    np.testing.assert_allclose(np.nanmean(a["nsd"]), np.nanmean(b["nsd"]), atol=limit)
    return largest


def in_turn(contestants: list, what: str, rounds: int) -> list[list[float]]:
    """Seconds of each contestant in each round, after one round of warming up."""
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
    """Measures and prints.

    Raises:
      UserError: an argument, or data, that cannot be.
      ModuleNotFoundError: of a package that the network's twin needs.
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
        images = len(data.more_paths[0]) if what == "input" else args.images
        here, there = (statistics.median(column) / images for column in seconds)
        ratios = [b / a for a, b in zip(*seconds, strict=True)]
        print(
            f"{what}: {1 / here:.2f} images/s, {1e3 * here:.1f} ms each; PyTorch {1 / there:.2f} images/s, {1e3 * there:.1f} "
            f"ms each; speed against PyTorch {statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]",
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
        missing(f"the PyTorch twin of {args.model}, or reading tiles, needs {error.name}: pip install it")
        return 2
    except UserError as error:
        missing(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
