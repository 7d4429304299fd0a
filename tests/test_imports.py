"""The compute core imports on hosts that lack the data and logging libraries; the layers of the package hold."""

import subprocess
import sys

import pytest
from helpers.absent_modules import without_modules
from helpers.paths import ROOT

ABSENT = ("tensorflow", "tensorflow_datasets", "albumentations", "clu", "tensorboard")
# What reads data through TensorFlow, or logs for TensorBoard. Everything else is compute core.
NEEDS_THEM = {
    "bcss_jax.data.augmentation.on_host",
    "bcss_jax.data.host_tensorflow",
    "bcss_jax.data.input_pipeline",
    "bcss_jax.data.sampling.code_counts",
    "bcss_jax.data.sampling.folded_data",
    "bcss_jax.data.stain.training_stain",
    "bcss_jax.data.tfrecords",
    "bcss_jax.training.loop",
    "bcss_jax.training.tensorboard",
    "bcss_jax.tuning.loop",
    "benchmarks.input_pipeline",
    "benchmarks.input_rates",
    "benchmarks.slides_memory",
}
NEEDS_OTHERS = {  # beside this package, PyTorch or TIAToolbox
    "benchmarks.pretraining_step",
    "benchmarks.tiatoolbox_side",
    "benchmarks.torch_dense_unet",
    "benchmarks.torch_dino",
    "benchmarks.torch_inference",
    "benchmarks.torch_sam",
    "benchmarks.torch_transunet",
    "benchmarks.torch_twins",
    "benchmarks.torch_unet",
    "benchmarks.vit_features",
}

IMPORT_ALL = """
import importlib

for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        sys.exit(f"{name}: {error}")
"""


def modules(*folders):
    paths = [path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    names = (".".join(path.with_suffix("").parts) for path in paths)
    return [name.removesuffix(".__init__") for name in names]


def imports(*names):
    return subprocess.run(
        [sys.executable, "-c", without_modules(ABSENT) + IMPORT_ALL, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_compute_core_imports_without_the_data_and_logging_libraries():
    core = [name for name in modules("bcss_jax", "benchmarks") if name not in NEEDS_THEM | NEEDS_OTHERS]
    assert len(core) > 150
    result = imports(*core)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["bcss_jax.data.tfrecords", "bcss_jax.data.augmentation.on_host"])
def test_the_block_blocks(name):
    assert f"{name}: No module named " in imports(name).stderr
