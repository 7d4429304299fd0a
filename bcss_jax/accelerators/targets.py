"""The accelerators that steps can be compiled for, and descriptions of such devices for the compiler.

Sources: XLA's descriptions of H100, A100 and V100 (xla/backends/gpu/target_config/specs in its repository); for L4 and
T4 the tables of compute capabilities in NVIDIA's CUDA C++ programming guide; NVIDIA's data sheets for the peaks, which
are those without sparsity; Google's pages of the Cloud TPU versions. L4 and T4 lower their clock under load and do not
reach their peaks in long computations.
"""

import dataclasses
import os
from typing import Any

import jax
from jax.experimental import topologies

from bcss_jax.errors import ConfigError, first_line

GPU_SHARE = 0.75  # of a GPU's memory is what JAX allocates, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of accelerator.

    Attributes:
      name: as it is given on the command line.
      device: name of the device.
      platform: "cuda" or "tpu".
      memory: bytes of a device (of a core, where a chip has two).
      usable: bytes that a program may take.
      bandwidth: bytes per second between the device and its memory.
      peaks: floating-point operations per second of convolutions and matrix products by the type of their inputs, with
        JAX's default precision: float32 is computed in TF32 on GPUs that have it, in bfloat16 on TPUs.
      axes: of TPUs, along which the chips of a slice are connected.
      gpu: fields of XLA's description of a GPU.
    """

    name: str
    device: str
    platform: str
    memory: float
    bandwidth: float
    peaks: dict[str, float]
    usable: float
    axes: int = 0
    gpu: dict[str, float] = dataclasses.field(default_factory=dict)


def _gpu(
    name: str,
    device: str,
    *,
    memory: int,
    bandwidth: float,
    tera_flops: tuple[float, float, float],
    capability: tuple[int, int],
    cores: int,
    clock_ghz: float,
    l2: int,
    shared_kib: int,
    threads: int,
) -> Target:
    """Returns a GPU.

    Args:
      name: see `Target`.
      device: see `Target`.
      memory: bytes that CUDA reports.
      bandwidth: see `Target`.
      tera_flops: peaks for float16, bfloat16 and float32, in 1e12 per second.
      capability: compute capability.
      cores: streaming multiprocessors.
      clock_ghz: boost clock.
      l2: bytes of the second-level cache.
      shared_kib: shared memory of a multiprocessor, KiB.
      threads: that a multiprocessor runs at once.
    """
    # One KiB of a block's shared memory is reserved from compute capability 8 on.
    block = shared_kib * 1024 - (1024 if capability[0] >= 8 else 0)
    described = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared_kib * 1024,
        "shared_memory_per_block_optin": block,
        "threads_per_core_limit": threads,
        "core_count": cores,
        "fpus_per_core": 128 if capability in ((8, 9), (9, 0)) else 64,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(bandwidth),
        "l2_cache_size": l2,
        "clock_rate_ghz": clock_ghz,
        "device_memory_size": memory,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "major": capability[0],
        "minor": capability[1],
    }
    float16, bfloat16, float32 = (1e12 * peak for peak in tera_flops)
    peaks: dict[str, float] = {"float16": float16, "bfloat16": bfloat16, "float32": float32}
    return Target(name, device, "cuda", memory, bandwidth, peaks, GPU_SHARE * memory, gpu=described)


def _tpu(name: str, device: str, *, gib: float, bandwidth: float, tera_flops: float, axes: int) -> Target:
    """Returns a TPU; `gib` is the memory of a chip, of which the compiler leaves 1.6 % to the runtime."""
    peaks: dict[str, float] = dict.fromkeys(("float16", "bfloat16", "float32"), 1e12 * tera_flops)
    return Target(name, device, "tpu", gib * 2**30, bandwidth, peaks, gib * 2**30 * 63 / 64, axes=axes)


_TARGETS = (
    _gpu(
        "h100", "NVIDIA H100 80GB HBM3", memory=84942979072, bandwidth=3.35232e12, tera_flops=(989, 989, 494.7),
        capability=(9, 0), cores=132, clock_ghz=1.98, l2=52428800, shared_kib=228, threads=2048,
    ),
    _gpu(
        "a100", "NVIDIA A100-SXM4-80GB", memory=85100068864, bandwidth=2.03904e12, tera_flops=(312, 312, 156),
        capability=(8, 0), cores=108, clock_ghz=1.41, l2=41943040, shared_kib=164, threads=2048,
    ),
    _gpu(
        "l4", "NVIDIA L4", memory=23580639232, bandwidth=3.00096e11, tera_flops=(121, 121, 60.5),
        capability=(8, 9), cores=58, clock_ghz=2.04, l2=50331648, shared_kib=100, threads=1536,
    ),
    _gpu(
        "t4", "Tesla T4", memory=15655829504, bandwidth=3.20064e11, tera_flops=(65, 8.1, 8.1),
        capability=(7, 5), cores=40, clock_ghz=1.59, l2=4194304, shared_kib=64, threads=1024,
    ),
    _gpu(
        "v100", "Tesla V100-SXM2-16GB", memory=16935682048, bandwidth=8.98048e11, tera_flops=(125, 15.7, 15.7),
        capability=(7, 0), cores=80, clock_ghz=1.53, l2=6291456, shared_kib=96, threads=2048,
    ),
    _tpu("v5e", "TPU v5e", gib=16, bandwidth=8.1e11, tera_flops=197, axes=2),
    _tpu("v5p", "TPU v5p", gib=95, bandwidth=2.765e12, tera_flops=459, axes=3),
    _tpu("v6e", "TPU v6e", gib=32, bandwidth=1.64e12, tera_flops=918, axes=2),
)  # fmt: skip
TARGETS = {target.name: target for target in _TARGETS}
EXTRAS = {"cuda": "compile-cuda", "tpu": "compile-tpu"}
# Slices of so many chips, by the number of axes.
SLICES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"},
    3: {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"},
}


def find_target(text: str) -> tuple[Target, int]:
    """Returns a target and the number of devices that the text asks for, 0 if it names none.

    Args:
      text: a name of `TARGETS`, for TPUs with a slice after a colon if wanted, such as "v5e:2x2".

    Raises:
      ConfigError: there is no such target or slice.
    """
    name, colon, of_slice = text.partition(":")
    target = TARGETS.get(name)
    if target is None:
        raise ConfigError(f"--target={text[:40]}: there is no such target; the targets are {', '.join(TARGETS)}")
    if not colon:
        return target, 0
    if target.platform != "tpu":
        raise ConfigError(f"--target={text[:40]}: only TPUs have slices; use --target={name} --devices=NUMBER")
    slices = {topology: count for count, topology in SLICES[target.axes].items()}
    if of_slice not in slices:
        raise ConfigError(f"--target={text[:40]}: the slice must be one of {', '.join(slices)}")
    return target, slices[of_slice]


def describe_devices(target: Target, count: int) -> list[Any]:
    """Returns descriptions of devices, which programs can be compiled for but not run on.

    Args:
      target: their kind.
      count: their number; of TPUs, that of a slice.

    Raises:
      ConfigError: the compiler for the target is not installed, or there is no such slice.
    """
    if target.platform == "tpu" and count not in SLICES[target.axes]:
        numbers = ", ".join(map(str, SLICES[target.axes]))
        raise ConfigError(f"--devices={count}: slices of {target.device} have one of {numbers} chips")
    try:
        return list((_describe_tpus if target.platform == "tpu" else _describe_gpus)(target, count).devices)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ConfigError(
            f"--target={target.name}: its compiler is not there, or not the one of jaxlib {jax.__version__} "
            f"({first_line(error)[:80]}); pip install 'bcss_jax[{EXTRAS[target.platform]}]'"
        ) from error


def _describe_tpus(target: Target, count: int) -> topologies.TopologyDescription:
    # Otherwise the library asks the network for the TPU that this machine belongs to, and loads in one process only.
    settings = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # fmt: skip
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    topology = SLICES[target.axes][count]
    alone = {"chips_per_host_bounds": [1, 1, 1]} if count == 1 else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=f"{target.name}:{topology}", **alone)


def _describe_gpus(target: Target, count: int) -> topologies.TopologyDescription:
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=target.name,
        target_config=_gpu_description(target),
        topology=f"1x1x{count}",
    )


def _gpu_description(target: Target) -> str:
    """Returns XLA's GpuTargetConfig as protobuf text."""
    fields = dict(target.gpu)
    capability = f"cuda_compute_capability {{ major: {fields.pop('major')} minor: {fields.pop('minor')} }}"
    device = " ".join(f"{name}: {value}" for name, value in fields.items())
    return (
        f'gpu_device_info {{ {device} {capability} }} platform_name: "CUDA" '
        f'dnn_version_info {{ major: 9 minor: 10 patch: 0 }} device_description_str: "{target.device}"'
    )
