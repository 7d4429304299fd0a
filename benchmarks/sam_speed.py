"""Times SAM's encoder and decoder against those of Hugging Face's transformers with the same weights, in turn.

    python benchmarks/sam_speed.py --output=sam_vit_b.json
    python benchmarks/sam_speed.py --network=sam_vit_h --rounds=3 --output=sam_vit_h.json
    python benchmarks/sam_speed.py --network=sam2.1_hiera_t
    python benchmarks/sam_speed.py --image_size=256 --rounds=2

The weights are drawn. The encoder gets one image; the decoder gets the embedding of it and --prompts clicks, each a
prompt by itself, and gives three masks and scores of each. The script ends with an error if embeddings, masks or scores
differ by 3e-4 of their standard deviation or more. Both compute in float32 on the CPU, with all cores that the process
may use. The ratio is the median of transformers' times divided by that of this project's (above 1: this project is
faster); in brackets the smallest and the largest ratio of a round. The ratio of CPU seconds says more than that of the
times where other work keeps the cores busy; PyTorch's threads wait for each other then. It needs PyTorch and
transformers.

On Linux CPUs set GLIBC_TUNABLES=glibc.malloc.hugetlb=1, as for `train_step.py`.
"""

import argparse
import dataclasses
import functools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from bcss_jax.errors import UserError  # noqa: E402
from bcss_jax.models.sam.architecture import ViTForm  # noqa: E402
from bcss_jax.models.sam.presets import PRESETS  # noqa: E402
from bcss_jax.models.sam.sam import Sam  # noqa: E402
from bcss_jax.models.sam.sam2 import Sam2  # noqa: E402
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state  # noqa: E402
from bcss_jax.prompting import Predictor  # noqa: E402

BAR = 3e-4  # largest difference, in standard deviations
TABLES = ("rel_pos_h", "rel_pos_w", "pos_embed", "pos_embed_window", "no_mem_embed")  # a new network has zeros there


class Differ(Exception):
    """Raised when the two networks give different results."""


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=tuple(PRESETS), default="sam_vit_b")
    parser.add_argument("--image_size", type=int, default=1024, help="pixels, also of the tables of positions")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 16], help="numbers of clicks that are decoded")
    parser.add_argument("--decodes", type=int, default=5, help="of a round; the encoder runs once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    return parser.parse_args()


def drawn_network(name: str, image_size: int) -> tuple[Sam | Sam2, dict[str, np.ndarray]]:
    """Returns a network with drawn weights, none of which is zero for all places, and the weights."""
    form = PRESETS[name]
    if isinstance(form, ViTForm):  # as if it had been trained at this size: transformers does not resize its tables
        model = Sam(dataclasses.replace(form, table=image_size // form.patch), image_size=image_size)
    else:
        model = Sam2(form, image_size=image_size)
    random, state = np.random.default_rng(0), to_torch_state(model)
    for key in state:
        if key.endswith(TABLES):
            state[key] = 0.1 * random.standard_normal(state[key].shape, np.float32)
    return load_torch_state(model, state), state


def checked(name: str, **pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Returns how much results differ in standard deviations. Raises Differ if that is too much."""
    found = {what: float(np.abs(own - other).max() / other.std()) for what, (own, other) in pairs.items()}
    parts = ", ".join(f"{what} {difference:.1e}" for what, difference in found.items())
    print(f"{name}: largest difference in standard deviations: {parts}", flush=True)
    if not all(difference < BAR for difference in found.values()):
        raise Differ(f"{name}: the results are not those of transformers; expected differences below {BAR}")
    return found


def in_turn(what: str, own: Callable[[], Any], other: Callable[[], Any], times: int, rounds: int) -> dict[str, Any]:
    """Returns the seconds of both, which have run once before, and their ratio; prints them."""
    names = ("here", "transformers")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, run in zip(names, (own, other), strict=True):
            begin, begin_cpu = time.perf_counter(), time.process_time()
            for _ in range(times):
                run()
            seconds[name].append((time.perf_counter() - begin) / times)
            cpu[name].append((time.process_time() - begin_cpu) / times)
    here, there = (statistics.median(seconds[name]) for name in names)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    cpu_here, cpu_there = (statistics.median(cpu[name]) for name in names)
    print(
        f"{what}: {here:.4g} s, transformers {there:.4g} s; ratio {there / here:.2f} [{min(ratios):.2f}, "
        f"{max(ratios):.2f}]; of CPU seconds {cpu_there / cpu_here:.2f} ({cpu_here:.4g}, {cpu_there:.4g})",
        flush=True,
    )
    return {"seconds": seconds, "cpu_seconds": cpu, "ratio": there / here, "ratios": ratios}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Returns differences and times of encoder and decoder. Raises Differ if the networks give different results."""
    import torch
    from torch_sam import Twin

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    size, random = args.image_size, np.random.default_rng(1)
    model, state = drawn_network(args.network, size)
    twin = Twin(PRESETS[args.network], size, state)
    graph, variables = nnx.split(model)
    encode = jax.jit(lambda variables, images: nnx.merge(graph, variables).encode(images))
    images = random.standard_normal((1, size, size, 3), np.float32)
    ours, theirs = jax.device_put(images), torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    features, maps = encode(variables, ours), twin.encode(theirs)
    own_maps = [np.asarray(x).transpose(0, 3, 1, 2) for x in (*features.finer, features.embedding)]
    names = ("finest", "finer", "embedding")[-len(maps) :]
    pairs = {name: (own, other.numpy()) for name, own, other in zip(names, own_maps, maps, strict=True)}
    found: dict[str, Any] = {"encoder": {"differences": checked("encoder", **pairs)}}
    found["encoder"] |= in_turn(
        "encoder, one image",
        lambda: jax.block_until_ready(encode(variables, ours)),
        lambda: twin.encode(theirs),
        1,
        args.rounds,
    )
    predictor = Predictor(model)
    predictor.set_features(features, size, size)
    for count in args.prompts:
        points = random.uniform(0.1 * size, 0.9 * size, (count, 2)).astype(np.float32)
        own = functools.partial(predictor.low_resolution, points, np.ones(count, int), count)
        other = functools.partial(twin.decode, maps, torch.from_numpy(points))
        name = f"decoder, {count} click{'s' if count > 1 else ''}"
        pairs = dict(zip(("masks", "scores"), zip(own(), other(), strict=True), strict=True))
        found[name] = {"differences": checked(name, **pairs)} | in_turn(name, own, other, args.decodes, args.rounds)
    return found


def main() -> int:
    """Compares values, then times. Returns the exit code."""
    args = arguments()
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        print(f"error: this needs {error.name}: pip install torch transformers", file=sys.stderr)
        return 2
    jax.config.update("jax_platforms", "cpu")
    cores = len(os.sched_getaffinity(0))
    versions = {each.__name__: each.__version__ for each in (jax, torch, transformers)}
    print(f"{args.network}, {args.image_size} pixels, float32, {cores} cores; {versions}", flush=True)
    try:
        found = measured(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Differ as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory of the process, both networks: {peak / 1e9:.1f} GB")
    if args.output:
        about = {"command": sys.argv, "versions": versions, "cores": cores, "peak_bytes": peak}
        args.output.write_text(json.dumps(about | {"results": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
