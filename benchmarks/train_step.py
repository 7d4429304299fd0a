"""Times the project's training step and forward pass, alone or against the same network in PyTorch.

    python benchmarks/train_step.py --model=unet --width=32 --batch=8 --size=224
    python benchmarks/train_step.py --width=32 --versus=torch --steps=3 --rounds=3
    python benchmarks/train_step.py --model=transunet --batch=4 --versus=torch

nnU-Net's networks are trained with deep supervision on both sides, all others without.

With `--versus=torch` both run in turn, A B A B, so that changes in the machine's speed affect both. The ratio is
PyTorch's time divided by this project's (above 1: this project is faster), one per round, printed as median [min, max].

On Linux CPUs set GLIBC_TUNABLES=glibc.malloc.hugetlb=1: XLA allocates its buffers at every step, and with pages of
4 KiB the kernel spends a large part of the step on clearing them.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from bcss_jax import losses, models  # noqa: E402
from bcss_jax.errors import UserError  # noqa: E402
from bcss_jax.losses import Objective  # noqa: E402
from bcss_jax.models.apply import ModelFunction  # noqa: E402
from bcss_jax.models.cost import forward_flops  # noqa: E402
from bcss_jax.models.image_normalization import IMAGENET  # noqa: E402
from bcss_jax.training import sharding, step  # noqa: E402
from bcss_jax.training.loss_scale import loss_scale_for  # noqa: E402
from bcss_jax.training.optimizer import Plateau, adamw  # noqa: E402

NUM_CLASSES, IGNORED, EVALUATED = 3, 0, (1, 2)
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-4

# Dense peak of the matrix units in TFLOP/s: (part of device_kind, bfloat16, float32 as JAX multiplies by default, which
# is TF32 on these GPUs and bfloat16 passes on TPUs). The first match counts. The numbers are recalled from the vendors'
# data sheets and were not checked.
PEAK_TFLOPS = (
    ("H200", 989.0, 494.0),
    ("H100 PCIe", 756.0, 378.0),
    ("H100", 989.0, 494.0),
    ("A100", 312.0, 156.0),
    ("L40S", 362.0, 183.0),
    ("L4", 121.0, 60.0),
    ("TPU v6", 918.0, 918.0),
    ("TPU v5p", 459.0, 459.0),
    ("TPU v5 lite", 197.0, 197.0),
    ("TPU v4", 275.0, 275.0),
)


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="unet")
    parser.add_argument("--width", type=int, help="only for models that have one")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--versus", choices=("torch",))
    return parser.parse_args()


class Jax:
    """The project's training step, and the forward pass of the same model in evaluation mode."""

    def __init__(self, model: Any, dtype: str, images: np.ndarray, labels: np.ndarray):
        """Compiles both; `compile_s` and `compile_forward_s` are the compile times in seconds.

        Args:
          model: network of `bcss_jax.models` that computes in `dtype`.
          dtype: "float32", "bfloat16" or "float16".
          images: uint8 [N, H, W, 3].
          labels: uint8 [N, H, W].
        """
        mesh = sharding.make_mesh()
        sharding.check_batch_size("batch", len(images), 1, mesh)
        tx = adamw(LEARNING_RATE, WEIGHT_DECAY)
        heads = losses.deep_supervision_weights(model.num_scales) if hasattr(model, "all_logits") else ()
        train = step.make_train_step(
            model,
            tx,
            mesh,
            Objective(NUM_CLASSES, IGNORED, EVALUATED, deep_supervision=heads),
        )
        run = ModelFunction(model)
        forward = jax.jit(lambda params, model_state, images: run(params, model_state, images, train=False)[0])
        state = step.TrainState.create(model, tx, Plateau(0.5, 5), loss_scale_for(dtype))
        self.parameters = sum(p.size for p in jax.tree.leaves(state.params))
        # A copy, because the step overwrites its state, and the arrays belong to the model.
        self.state = jax.device_put(jax.tree.map(jnp.copy, state), sharding.replicated(mesh))
        batch = sharding.place_batch({"images": images, "labels": labels}, mesh)
        self.images, self.labels = batch["images"], batch["labels"]

        start = time.perf_counter()
        self.train_program = train.lower(self.state, self.images, self.labels).compile()
        self.compile_s = time.perf_counter() - start
        start = time.perf_counter()
        self.forward_program = forward.lower(self.state.params, self.state.model_state, self.images).compile()
        self.compile_forward_s = time.perf_counter() - start
        # The forward pass, the gradient of the maps and that of the weights take about the same number of operations.
        self.step_flops = 3 * forward_flops(run, self.state.params, self.state.model_state, self.images)

    def train(self, steps: int) -> float:
        """Returns the seconds per training step."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, report = self.train_program(self.state, self.images, self.labels)
        jax.block_until_ready((self.state, report))
        return (time.perf_counter() - start) / steps

    def forward(self, steps: int) -> float:
        """Returns the seconds per forward pass."""
        start = time.perf_counter()
        for _ in range(steps):
            logits = self._logits()
        jax.block_until_ready(logits)
        return (time.perf_counter() - start) / steps

    def logits(self) -> np.ndarray:
        """Returns the logits of the batch in evaluation mode, float32 [N, H, W, C]."""
        return np.asarray(self._logits())

    def _logits(self):
        return self.forward_program(self.state.params, self.state.model_state, self.images)


class Torch:
    """The same layers, loss and optimizer in PyTorch, channels last."""

    def __init__(self, model: Any, dtype: str, images: np.ndarray, labels: np.ndarray):
        """Places model and batch on the GPU if PyTorch has one.

        Args:
          model: PyTorch network that returns logits (N, C, H, W), or those of all heads.
          dtype: "float32", or the type of the autocast.
          images: uint8 [N, H, W, 3].
          labels: uint8 [N, H, W].
        """
        import torch

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # TF32, which is JAX's default on GPUs, and cuDNN's tuning, for a fair comparison.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
        self.scaler = torch.amp.GradScaler(self.device, enabled=dtype == "float16")
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
        x = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        self.images, self.mean, self.std = x.contiguous(memory_format=torch.channels_last), mean, std
        self.labels = torch.from_numpy(labels).to(self.device, torch.int64)

    def _logits(self):
        x = (self.images.float() - 255 * self.mean) / (255 * self.std)
        with self.torch.autocast(self.device, self.half, enabled=self.half is not None):
            return self.model(x)

    def _loss(self, logits):
        if not isinstance(logits, list | tuple):
            return self._one_loss(logits.float(), self.labels)
        interpolate, labels = self.torch.nn.functional.interpolate, self.labels.unsqueeze(1).float()
        return sum(
            weight
            * self._one_loss(head.float(), interpolate(labels, head.shape[2:], mode="nearest-exact")[:, 0].long())
            for weight, head in zip(losses.deep_supervision_weights(len(logits)), logits, strict=True)
            if weight
        )

    def _one_loss(self, logits, labels):
        functional = self.torch.nn.functional
        counts = (labels != IGNORED).unsqueeze(1)
        cross_entropy = functional.cross_entropy(logits, labels, ignore_index=IGNORED)
        truth = functional.one_hot(labels, NUM_CLASSES).permute(0, 3, 1, 2) * counts
        p = logits.softmax(1) * counts
        both, either = (p * truth).sum((0, 2, 3)), (p + truth).sum((0, 2, 3))
        return cross_entropy + (1 - (2 * both + 1e-5) / (either + 1e-5))[list(EVALUATED)].mean()

    def _synchronize(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def train(self, steps: int) -> float:
        """Returns the seconds per training step."""
        self.model.train()
        start = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(self._loss(self._logits())).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self._synchronize()
        return (time.perf_counter() - start) / steps

    def forward(self, steps: int) -> float:
        """Returns the seconds per forward pass."""
        self.model.eval()
        start = time.perf_counter()
        with self.torch.inference_mode():
            for _ in range(steps):
                self._logits()
        self._synchronize()
        return (time.perf_counter() - start) / steps

    def logits(self) -> np.ndarray:
        """Returns the logits of the batch in evaluation mode, float32 [N, H, W, C]."""
        self.model.eval()
        with self.torch.inference_mode():
            logits = self._logits()
        logits = logits[0] if isinstance(logits, list | tuple) else logits
        return logits.float().permute(0, 2, 3, 1).cpu().numpy()


def random_batch(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images uint8 [batch, size, size, 3] and labels uint8 [batch, size, size], always the same."""
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (batch, size, size, 3), np.uint8)
    return images, random.randint(0, NUM_CLASSES, (batch, size, size), np.uint8)


def peak_flops(dtype: str) -> tuple[float, str]:
    """Returns the peak FLOP/s of all devices together, and its source: the table, or a measured matrix product."""
    kind = jax.devices()[0].device_kind
    for name, half, float32 in PEAK_TFLOPS:
        if name.lower() in kind.lower():
            return 1e12 * (float32 if dtype == "float32" else half) * jax.device_count(), f"data sheet of {name}"
    size = 2048
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds), f"measured on a {size}x{size} {dtype} matrix product; {kind} is not in the table"


def in_turn(contestants: list, method: str, steps: int, rounds: int) -> list[list[float]]:
    """Returns the seconds of each contestant in each round, after one warm-up round."""
    for contestant in contestants:
        getattr(contestant, method)(1)
    rows = [[getattr(contestant, method)(steps) for contestant in contestants] for _ in range(rounds)]
    return [list(column) for column in zip(*rows, strict=True)]


def main() -> int:
    """Measures and prints."""
    args = arguments()
    if args.versus == "torch":
        if importlib.util.find_spec("torch") is None:
            print("--versus=torch needs PyTorch: pip install -e '.[benchmark]'", file=sys.stderr)
            return 2
    batch = random_batch(args.batch, args.size)
    kwargs = {} if args.width is None else {"width": args.width}
    try:
        model = models.create(args.model, num_classes=NUM_CLASSES, dtype=jnp.dtype(args.dtype), **kwargs)
        ours = Jax(model, args.dtype, *batch)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    contestants = [ours]
    if args.versus == "torch":
        import torch_twins

        try:
            contestants.append(Torch(torch_twins.build(args.model, NUM_CLASSES, **kwargs), args.dtype, *batch))
        except ModuleNotFoundError as error:
            print(f"the PyTorch twin of {args.model} needs {error.name}: pip install it", file=sys.stderr)
            return 2
        assert contestants[1].parameters == ours.parameters
    print(
        f"{args.model}: {ours.parameters:,} parameters, batch {args.batch}, {args.size}x{args.size}, {args.dtype}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    print(f"compile: {ours.compile_s:.1f} s training step, {ours.compile_forward_s:.1f} s forward pass")
    for method, name in (("train", "training step"), ("forward", "forward pass")):
        seconds = in_turn(contestants, method, args.steps, args.rounds)
        median = statistics.median(seconds[0])
        print(f"{name}: {median:.4f} s, {args.batch / median:.2f} images/s")
        if method == "train":
            flops, (peak, origin) = ours.step_flops, peak_flops(args.dtype)
            print(f"share of peak FLOP/s: {flops / median / peak:.1%} ({flops / median:.3g} of {peak:.3g}, {origin})")
        if len(seconds) == 2:
            theirs = statistics.median(seconds[1])
            ratios = [b / a for a, b in zip(*seconds, strict=True)]
            print(
                f"  PyTorch {contestants[1].torch.__version__}: {theirs:.4f} s, {args.batch / theirs:.2f} images/s; "
                f"speed against PyTorch {statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
