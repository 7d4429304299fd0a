"""Times a step of DINO against the same step in PyTorch, in turn.

    python benchmarks/pretraining_step.py --encoder=vit_small16 --batch=8
    python benchmarks/pretraining_step.py --encoder=vit_tiny16 --batch=32 --global_size=128 --local_size=64

Both take views that are made beforehand, two global and eight local ones of each tile. They begin with the same
weights, and the script ends with an error if their losses differ. The ratio is PyTorch's time divided by this
project's (above 1: this project is faster), one per round, printed as median [min, max].

On Linux CPUs keep freed memory in the process:

    KEPT=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368:glibc.malloc.arena_max=1
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1:$KEPT python benchmarks/pretraining_step.py

Otherwise what one side frees goes back to the system during the turn of the other, and virtual machines that hand free
memory back to their host take seconds to map it again. Two rounds before the timed ones fill that memory.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import torch_dino  # noqa: E402

from bcss_jax.models.apply import split_model  # noqa: E402
from bcss_jax.models.encoders.vision_transformer.presets import preset_of  # noqa: E402
from bcss_jax.models.image_normalization import ImageStatistics  # noqa: E402
from bcss_jax.models.weights.pretrained import load_torch_state  # noqa: E402
from bcss_jax.pretraining.distillation.network import PretrainedNetwork  # noqa: E402
from bcss_jax.pretraining.distillation.optimizer import OptimizerSettings, PretrainingOptimizer  # noqa: E402
from bcss_jax.pretraining.distillation.step import (  # noqa: E402
    DistillationSettings,
    make_pretrain_step,
    new_state,
)
from bcss_jax.pretraining.views.make_views import Views  # noqa: E402
from bcss_jax.training.sharding import make_mesh, place_replicated  # noqa: E402

LOCAL_VIEWS = 8
WARMUP = 2  # rounds
VALUES = {
    name: np.float32(value)
    for name, value in dict(
        learning_rate=1e-4,
        last_layer_learning_rate=1e-4,
        weight_decay=0.04,
        momentum=0.996,
        teacher_temperature=0.04,
        trains_last_layer=1,
    ).items()
}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="vit_small16", help="a plain form of presets.py, such as vit_tiny16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--global_size", type=int, default=224)
    parser.add_argument("--local_size", type=int, default=96)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> int:
    """Compares losses, then times. Returns the exit code."""
    args = arguments()
    form = preset_of(args.encoder).architecture
    student = torch_dino.Dino(
        args.prototypes,
        width=form.width,
        depth=form.depth,
        heads=form.heads,
        patch=form.patch,
        hidden=form.hidden,
        table=form.table,
    )
    torch.manual_seed(0)
    for parameter in student.parameters():
        if parameter.ndim > 1:
            torch.nn.init.trunc_normal_(parameter, std=0.02)
    network = PretrainedNetwork(form, prototypes=args.prototypes)
    load_torch_state(network, {name: value.numpy().copy() for name, value in student.state_dict().items()})
    optimizer = PretrainingOptimizer(OptimizerSettings(), split_model(network)[1])
    mesh = make_mesh(jax.devices()[:1])
    step = make_pretrain_step(
        network,
        optimizer,
        mesh,
        DistillationSettings(),
        lambda views, keys: Views(*(jnp.moveaxis(v, 1, 0) for v in views)),
        statistics=ImageStatistics((0, 0, 0), (1 / 255, 1 / 255, 1 / 255)),
    )
    state = place_replicated(new_state(network, optimizer), mesh)
    rng = np.random.default_rng(0)
    views = [
        rng.standard_normal((args.batch, count, size, size, 3), np.float32)
        for count, size in ((2, args.global_size), (LOCAL_VIEWS, args.local_size))
    ]
    ours = tuple(jax.device_put(v) for v in views)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = [
        torch.from_numpy(v.transpose(1, 0, 4, 2, 3).reshape(-1, 3, *v.shape[2:4]).copy()).to(device) for v in views
    ]
    twin = torch_dino.Step(student.to(device), learning_rate=1e-4, weight_decay=0.04, momentum=0.996)

    start = time.perf_counter()
    state, report = step(state, ours, None, VALUES)
    losses = [float(report["loss"]), float(twin(*theirs, 0.04))]
    print(f"loss of the first step: {losses[0]:.6f}, PyTorch {losses[1]:.6f}; {time.perf_counter() - start:.0f} s")
    if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[1]):
        print("error: the losses differ", file=sys.stderr)
        return 1

    ratios = []
    for number in range(-WARMUP, args.rounds):
        start = time.perf_counter()
        for _ in range(args.steps):
            state, report = step(state, ours, None, VALUES)
        jax.block_until_ready(state)
        middle = time.perf_counter()
        for _ in range(args.steps):
            float(twin(*theirs, 0.04))
        end = time.perf_counter()
        if number < 0:
            continue
        own, other = (middle - start) / args.steps, (end - middle) / args.steps
        ratios.append(other / own)
        print(f"round {number + 1}: {own:.3f} s a step, PyTorch {other:.3f} s, ratio {ratios[-1]:.2f}")
    losses = [float(report["loss"]), float(twin(*theirs, 0.04))]
    print(f"last losses: {losses[0]:.4f}, PyTorch one step later {losses[1]:.4f}")
    print(
        f"{args.encoder}, batch {args.batch}, views of {args.global_size} and {args.local_size}, {args.prototypes} "
        f"prototypes: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
