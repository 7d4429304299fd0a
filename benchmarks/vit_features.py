"""Times the features of a vision transformer against timm's network with the same weights, in turn.

    python benchmarks/vit_features.py --encoder=kaiko_vits16
    python benchmarks/vit_features.py --encoder=uni --batch=4

The weights are drawn. The script ends with an error if the class tokens differ. The ratio is timm's time divided by
this project's (above 1: this project is faster), one per round, printed as median [min, max]. It needs PyTorch, timm
and torchvision.

On Linux CPUs set GLIBC_TUNABLES=glibc.malloc.hugetlb=1, as for `train_step.py`.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
import timm
import torch
from flax import nnx

sys.path[:0] = [str(Path(__file__).parents[1])]

from bcss_jax.models.apply import split_model  # noqa: E402
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer  # noqa: E402
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS  # noqa: E402
from bcss_jax.models.weights.pretrained import load_torch_state  # noqa: E402
from bcss_jax.models.weights.vision_transformer_names import canonical  # noqa: E402

# Preset -> timm's name of the form, and its arguments.
FORMS = {
    "kaiko_vits16": ("vit_small_patch16_224", {}),
    "kaiko_vitb16": ("vit_base_patch16_224", {}),
    "uni": ("vit_large_patch16_224", {"init_values": 1e-5}),
}
SIDE = 224
BAR = 3e-4  # largest difference of the class tokens, in their standard deviation


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=tuple(FORMS), default="kaiko_vits16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> int:
    """Compares values, then times. Returns the exit code."""
    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    name, changes = FORMS[args.encoder]
    twin = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **changes).eval()
    arrays, _ = canonical({key: value.numpy().copy() for key, value in twin.state_dict().items()})
    network = VisionTransformer(PRESETS[args.encoder].architecture, rngs=nnx.Rngs(0))
    load_torch_state(network, arrays)
    graph, *state = split_model(network)
    features = jax.jit(lambda state, images: nnx.merge(graph, *state).class_features(images))
    images = np.random.default_rng(0).standard_normal((args.batch, SIDE, SIDE, 3), np.float32)
    state, ours = jax.device_put(state), jax.device_put(images)
    twin, theirs = twin.to(device), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)

    def of_twin() -> np.ndarray:
        with torch.inference_mode():
            return twin.forward_features(theirs)[:, 0].cpu().numpy()

    own, other = np.asarray(features(state, ours)), of_twin()
    difference = np.abs(own - other).max() / other.std()
    print(f"{args.encoder}: class tokens differ by {difference:.1e} of their standard deviation")
    if not difference < BAR:
        print("error: the features differ", file=sys.stderr)
        return 1
    ratios = []
    for number in range(args.rounds):
        start = time.perf_counter()
        for _ in range(args.batches):
            np.asarray(features(state, ours))
        middle = time.perf_counter()
        for _ in range(args.batches):
            of_twin()
        end = time.perf_counter()
        rates = [args.batch * args.batches / seconds for seconds in (middle - start, end - middle)]
        ratios.append(rates[0] / rates[1])
        print(f"round {number + 1}: {rates[0]:.2f} images/s, timm {rates[1]:.2f}, ratio {ratios[-1]:.2f}")
    print(f"{args.encoder}, batch {args.batch}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
