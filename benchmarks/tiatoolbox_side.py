"""Segments one slide with TIAToolbox's SemanticSegmentor; `slide.py` starts it in an environment that has TIAToolbox.

    python benchmarks/tiatoolbox_side.py JOB.json

Writes the seconds that it took to the report, and the labels to the file, that the job names.
"""

import json
import sys
import time
from pathlib import Path

began = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch_twins  # noqa: E402

torch_twins.define_torchvision_operators()

import tiatoolbox  # noqa: E402
import zarr  # noqa: E402
from tiatoolbox.models.engine.io_config import IOSegmentorConfig  # noqa: E402
from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor  # noqa: E402
from tiatoolbox.models.models_abc import ModelABC  # noqa: E402
from tiatoolbox.utils.misc import dict_to_store_semantic_segmentor  # noqa: E402


class Network(ModelABC):
    """The PyTorch twin of a network with its weights and normalization. It measures the time spent in the network."""

    def __init__(self, job: dict):
        """Builds the network and loads its weights."""
        super().__init__()
        if job["network"] == "colour":
            self.network = torch.nn.Conv2d(3, job["num_classes"], 1)
        else:
            self.network = torch_twins.build(job["network"], job["num_classes"], **job["arguments"])
        with np.load(job["weights"], allow_pickle=False) as weights:
            state = {name: torch.from_numpy(weights[name]) for name in weights.files}
        missing, unknown = self.network.load_state_dict(state, strict=False)
        wrong = [name for name in [*missing, *unknown] if not name.endswith("num_batches_tracked")]
        if wrong:
            raise SystemExit(f"error: the weights do not fit the twin of {job['network']}: {', '.join(wrong[:5])}")
        self.network.eval().to(memory_format=torch.channels_last)
        self.evaluated, self.seconds, self.windows = job["evaluated"], 0.0, 0
        statistics = (torch.tensor(job[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
        self.mean, self.std = (255 * values for values in statistics)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, H, W, 3] -> probabilities of the evaluated classes [N, H, W, K]."""
        x = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self.network(x)[:, self.evaluated].softmax(1).permute(0, 2, 3, 1)

    @staticmethod
    def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, *, device: str) -> np.ndarray:
        """Computes a batch; called by the engine."""
        start = time.perf_counter()
        with torch.inference_mode():
            result = model(batch_data.to(device)).cpu().numpy()
        model.seconds += time.perf_counter() - start
        model.windows += len(batch_data)
        return result

    def postproc(self, image: np.ndarray) -> np.ndarray:
        """Returns the class with the highest probability: [..., K] -> [...]."""
        return image.argmax(axis=-1)


def main() -> None:
    """Segments the slide and writes the report."""
    job = json.loads(Path(sys.argv[1]).read_text())
    imported = time.perf_counter()
    torch.set_num_threads(job["cores"])
    model, (window, stride) = Network(job), (job["window"], job["stride"])
    engine = SemanticSegmentor(model=model, batch_size=job["batch_size"], num_workers=job["cores"], verbose=False)
    resolution = [{"units": "mpp", "resolution": job["mpp"]}]
    ioconfig = IOSegmentorConfig(
        input_resolutions=resolution, output_resolutions=resolution, save_resolution=resolution[0], ignore_index=None,
        patch_input_shape=(window, window), patch_output_shape=(window, window), stride_shape=(stride, stride),
    )  # fmt: skip
    built = time.perf_counter()
    found = engine.run(
        [Path(job["slide"])],
        masks=None if job["tissue"] is None else [Path(job["tissue"])],
        auto_get_mask=False,
        ioconfig=ioconfig,
        patch_mode=False,
        save_dir=Path(job["output"]),
        output_type="zarr",
        wsireader_kwargs={"mpp": (job["slide_mpp"],) * 2, "power": None},
    )
    labeled = time.perf_counter()
    (result,) = found.values()
    labels, regions = zarr.open(str(result), mode="r"), Path(job["output"]) / "regions.json"
    # The same as output_type="qupath", which removes the labels afterwards.
    dict_to_store_semantic_segmentor(
        labels, (1.0, 1.0), "qupath", dict(enumerate(job["classes"])), regions, ignore_index=None, verbose=False
    )
    ended = time.perf_counter()
    np.save(job["labels"], labels["predictions"][:].astype(np.uint8) + 1)  # for the comparison, not measured
    report = {
        "start": imported - began,
        "build": built - imported,
        "slide": ended - built,
        "labels": labeled - built,
        "network": model.seconds,
        "windows": model.windows,
        "versions": f"TIAToolbox {tiatoolbox.__version__}, PyTorch {torch.__version__}",
    }
    Path(job["report"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
