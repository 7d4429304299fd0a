"""The evaluation in PyTorch that `inference.py` compares with: DataLoader, network, counts and outlines."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch_twins
from PIL import Image

from bcss_jax.evaluation.statistics.calibration import BINS
from bcss_jax.labels import LabelScheme, lookup_table
from bcss_jax.models.image_normalization import IMAGENET

version = torch.__version__


class Tiles(torch.utils.data.Dataset):
    """PNG files as (image uint8 [H, W, 3], label uint8 [H, W], index)."""

    def __init__(self, images: list[str], masks: list[str], table: np.ndarray):
        """Stores the paths of images and masks, and the look-up table from codes to labels."""
        self.images, self.masks, self.table = images, masks, table

    def __len__(self) -> int:
        """Returns the number of tiles."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Reads and decodes a tile."""
        with Image.open(self.images[index]) as image, Image.open(self.masks[index]) as mask:
            return np.array(image.convert("RGB")), self.table[np.asarray(mask)], index


class Torch:
    """The same work as `inference.Jax`, on a GPU if PyTorch finds one, with channels last."""

    def __init__(self, args, data, outlines: Callable, scheme: LabelScheme, sampled: int):
        """Builds the network with random weights and the batch statistics of the first images.

        Args:
          args: arguments of `inference.py`.
          data: its `Images`.
          outlines: function of an image's ground truth and prediction, on the host.
          scheme: the label scheme.
          sampled: number of pixels of an image whose logits are kept.
        """
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(args.dtype)
        kwargs = {} if args.width is None else {"width": args.width}
        model = torch_twins.build(args.model, scheme.num_classes, **kwargs)
        if hasattr(model, "decoder") and hasattr(model.decoder, "deep_supervision"):
            model.decoder.deep_supervision = False  # the additional outputs are only for training
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.data, self.batch, self.outlines, self.scheme = data, args.batch, outlines, scheme
        self.mean, self.std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std)
        )
        draws = np.random.default_rng(1).integers(0, data.labels[0].size, (len(data.labels), sampled))
        self.positions = torch.from_numpy(draws)
        self.loader = self._loader(data.paths, args.workers) if data.paths else None
        self._more = self._loader(data.more_paths, args.workers) if data.paths else None
        self._kept = None
        self._set_statistics()

    def _loader(self, paths, workers):
        return torch.utils.data.DataLoader(
            Tiles(*paths, lookup_table(self.scheme, "kaggle3")),
            self.batch,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,  # forking a process with threads can hang
        )

    def _set_statistics(self):
        """Sets batch statistics of the images.

        With the initial ones, deep networks predict probabilities of 0 and 1 only.
        """
        norms = [each for each in self.model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        self.model.train()
        with torch.no_grad():
            self._logits(torch.from_numpy(self.data.images[: self.batch]))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.model.eval()

    def state(self) -> dict[str, np.ndarray]:
        """Returns the weights, for `pretrained.load_torch_state`."""
        return {name: value.cpu().numpy() for name, value in self.model.state_dict().items()}

    def _logits(self, images):
        x = images.to(self.device).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        x = (x.float() - 255 * self.mean) / (255 * self.std)
        with torch.autocast(self.device, self.half, enabled=self.half is not None):
            return self.model(x)

    def _log_probabilities(self, images):
        """Returns log-probabilities [N, K, H, W] of the K evaluated classes."""
        return self._logits(images)[:, list(self.scheme.evaluated)].float().log_softmax(1)

    def _counts(self, known, labels, positions):
        """Returns the result of `bcss_jax.evaluation.image_counts.count_pixels`, on the host."""
        n, size = len(labels), self.scheme.num_classes**2
        labels, positions = labels.to(self.device, torch.int64), positions.to(self.device)
        best, place = known.max(1)
        predictions = torch.tensor(self.scheme.evaluated, device=self.device)[place]
        counted = labels != self.scheme.ignore_index
        image = torch.arange(n, device=self.device).view(n, 1, 1).expand(labels.shape)[counted]
        pairs = image * size + (labels * self.scheme.num_classes + predictions)[counted]
        confidence = best.exp()[counted]
        bins = image * BINS + ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        correct = (predictions == labels)[counted].double()
        found = {
            "predictions": predictions.to(torch.uint8),
            "confusion": pairs.bincount(minlength=n * size).view(n, -1),
            "pixels": bins.bincount(minlength=n * BINS).view(n, -1),
            "correct": bins.bincount(correct, minlength=n * BINS).view(n, -1),
            "confidence": bins.bincount(confidence.double(), minlength=n * BINS).view(n, -1),
            "logits": known.flatten(2).gather(2, positions.unsqueeze(1).expand(-1, known.shape[1], -1)),
            "labels": labels.flatten(1).gather(1, positions),
        }
        return {name: value.cpu().numpy() for name, value in found.items()}

    def _batches(self):
        return self._in_memory() if self.loader is None else self.loader

    def _in_memory(self):
        for start in range(0, len(self.data.labels), self.batch):
            chosen = slice(start, start + self.batch)
            yield (
                torch.from_numpy(self.data.images[chosen]),
                torch.from_numpy(self.data.labels[chosen]),
                torch.arange(start, start + self.batch),
            )

    @torch.inference_mode()
    def together(self) -> dict[str, np.ndarray]:
        """Returns counts and outlines of each image."""
        found, futures = [], []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for images, labels, index in self._batches():
                found.append(self._counts(self._log_probabilities(images), labels, self.positions[index]))
                futures.append(pool.map(self.outlines, labels.numpy(), found[-1].pop("predictions")))
            hd95, nsd = zip(*(each for batch in futures for each in batch), strict=True)
        joined = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        size = self.scheme.num_classes
        return joined | {
            "confusion": joined["confusion"].reshape(-1, size, size), "hd95_um": np.stack(hd95), "nsd": np.stack(nsd)
        }  # fmt: skip

    def input(self) -> None:
        """Reads batches only."""
        for _ in self._more:
            pass

    @torch.inference_mode()
    def compute(self) -> list[torch.Tensor]:
        """Returns the logarithms of the probabilities of each batch, [N, K, H, W]."""
        found = [self._log_probabilities(images) for images, *_ in self._in_memory()]
        if self.device == "cuda":
            torch.cuda.synchronize()
        return found

    @torch.inference_mode()
    def metrics(self) -> None:
        """Computes counts and outlines from known probabilities."""
        self._kept = self._kept or self.compute()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            futures = []
            for (_, labels, index), known in zip(self._in_memory(), self._kept, strict=True):
                counts = self._counts(known, labels, self.positions[index])
                futures.append(pool.map(self.outlines, labels.numpy(), counts["predictions"]))
            for each in futures:
                list(each)
