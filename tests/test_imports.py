"""What hosts that only compute have is enough for the compute core."""

import subprocess
import sys

from conftest import ROOT

ABSENT = ("tensorflow", "tensorflow_datasets", "albumentations", "clu", "tensorboard")
CORE = (
    "bcss_jax.models", "bcss_jax.losses", "bcss_jax.metrics", "bcss_jax.step", "bcss_jax.optimizer",
    "bcss_jax.sharding", "bcss_jax.checkpoint", "bcss_jax.pretrained", "bcss_jax.labels", "bcss_jax.errors",
    "bcss_jax.config", "bcss_jax.summary", "bcss_jax.model_function", "bcss_jax.weight_files",
    "bcss_jax.evaluation.surface_distance", "bcss_jax.evaluation.calibration", "bcss_jax.evaluation.bootstrap",
    "bcss_jax.evaluation.scores", "bcss_jax.evaluation.per_image", "bcss_jax.evaluation.tables",
    "bcss_jax.evaluation.figures", "bcss_jax.evaluation.limits", "bcss_jax.evaluation.report",
    "bcss_jax.evaluation.model_card", "bcss_jax.evaluation.predict", "bcss_jax.evaluation.run",
    "bcss_jax.evaluation.subject", "bcss_jax.evaluation.trained_run", "bcss_jax.evaluation.results_folder",
    "bcss_jax.evaluation.gallery", "bcss_jax.evaluate", "bcss_jax.slides.tile_store", "bcss_jax.slides.label_pyramid",
    "bcss_jax.slides.corners", "bcss_jax.slides.rings", "bcss_jax.slides.open_region", "bcss_jax.slides.spill",
    "bcss_jax.slides.polygons", "bcss_jax.slides.geojson",
    "bcss_jax.slides.probability_store", "bcss_jax.slides.overlay",
    "benchmarks.slide_outputs", "bcss_jax.data.__main__", "bcss_jax.nnunet", "bcss_jax.nnunet.run",
    "bcss_jax.nnunet.__main__", "bcss_jax.slides.reader_pool", "bcss_jax.slides.reader_process",
    "bcss_jax.slides.reader_openslide", "bcss_jax.slides.reader_tiffslide", "bcss_jax.slides.resolution",
    "bcss_jax.slides.domain", "bcss_jax.export", "bcss_jax.slides.exported_model", "bcss_jax.segment",
    "bcss_jax.view", "bcss_jax.viewer.server", "bcss_jax.models.__main__", "benchmarks.train_step",
    "benchmarks.sample_difficulty", "bcss_jax.evaluation.nnunet_run", "bcss_jax.evaluation.nnunet_folds",
    "benchmarks.inference", "bcss_jax.slides.labelling", "bcss_jax.slides.segment_slide", "benchmarks.slide_scale",
    "benchmarks.slide_reading", "bcss_jax.command", "bcss_jax.slides.overwriting", "bcss_jax.slides.stage_clock",
    "bcss_jax.slides.batch",
)  # fmt: skip

BLOCKED = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def imports(*names):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *names], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_the_compute_core_imports_without_the_data_and_logging_libraries():
    result = imports(*CORE)
    assert result.returncode == 0, result.stderr


def test_the_block_blocks():
    assert "No module named 'tensorflow" in imports("bcss_jax.dataset").stderr
