"""What hosts that only compute have is enough for the compute core."""

import subprocess
import sys

from helpers.paths import ROOT

ABSENT = ("tensorflow", "tensorflow_datasets", "albumentations", "clu", "tensorboard")
CORE = (
    "bcss_jax.models", "bcss_jax.losses", "bcss_jax.metrics", "bcss_jax.training.step", "bcss_jax.training.optimizer",
    "bcss_jax.training.sharding", "bcss_jax.training.checkpoint", "bcss_jax.models.weights.pretrained", "bcss_jax.labels", "bcss_jax.errors",
    "bcss_jax.config", "bcss_jax.training.summary", "bcss_jax.models.apply", "bcss_jax.models.weights.files",
    "bcss_jax.evaluation.statistics.surface_distance", "bcss_jax.evaluation.statistics.calibration", "bcss_jax.evaluation.statistics.bootstrap",
    "bcss_jax.evaluation.scores", "bcss_jax.evaluation.per_image", "bcss_jax.evaluation.reporting.tables",
    "bcss_jax.evaluation.reporting.figures", "bcss_jax.evaluation.reporting.caveats", "bcss_jax.evaluation.reporting.report",
    "bcss_jax.evaluation.reporting.model_card", "bcss_jax.inference.predict", "bcss_jax.evaluation.run",
    "bcss_jax.evaluation.target", "bcss_jax.inference.trained_run", "bcss_jax.evaluation.results_folder",
    "bcss_jax.evaluation.reporting.gallery", "bcss_jax.evaluate", "bcss_jax.slides.store.tile_store", "bcss_jax.slides.outputs.label_pyramid",
    "bcss_jax.slides.regions.corners", "bcss_jax.slides.regions.rings", "bcss_jax.slides.regions.open_region", "bcss_jax.slides.regions.spill",
    "bcss_jax.slides.regions.polygons", "bcss_jax.slides.outputs.geojson",
    "bcss_jax.slides.store.probability_store", "bcss_jax.slides.outputs.overlay",
    "benchmarks.slide_outputs", "bcss_jax.data.__main__", "bcss_jax.nnunet", "bcss_jax.nnunet.run",
    "bcss_jax.nnunet.__main__", "bcss_jax.slides.reading.pool", "bcss_jax.slides.reading.process",
    "bcss_jax.slides.reading.openslide_backend", "bcss_jax.slides.reading.tiffslide_backend", "bcss_jax.slides.reading.resolution",
    "bcss_jax.slides.tissue.domain", "bcss_jax.export", "bcss_jax.inference.exported_model", "bcss_jax.segment",
    "bcss_jax.view", "bcss_jax.viewer.server", "bcss_jax.models.__main__", "benchmarks.train_step",
    "benchmarks.sample_difficulty", "bcss_jax.evaluation.nnunet_run", "bcss_jax.evaluation.nnunet_folds",
    "benchmarks.inference", "bcss_jax.slides.stitching.labelling", "bcss_jax.slides.batch.segment_slide", "benchmarks.slide_scale",
    "benchmarks.slide_reading", "bcss_jax.common.command", "bcss_jax.slides.batch.overwrite_journal", "bcss_jax.slides.batch.stage_clock",
    "bcss_jax.slides.batch.runner",
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
    assert "No module named 'tensorflow" in imports("bcss_jax.data.tfrecords").stderr
