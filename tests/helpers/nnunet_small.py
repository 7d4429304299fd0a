"""A small data set, plan and trained network of nnU-Net, for tests of prediction and of result folders."""

import copy
import functools
import json
import os
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from PIL import Image


class CaseInMemory(NamedTuple):
    """A `patches.PatchSource` whose arrays are in memory."""

    data: np.ndarray
    labels: np.ndarray
    class_locations: dict


DATASET = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "tumor": 1, "stroma": 2, "ignore": 3},
    "numTraining": 1,
    "file_ending": ".png",
}
_RESAMPLING = {
    f"resampling_fn_{what}{suffix}": value
    for what, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1))
    for suffix, value in (
        ("", "resample_data_or_seg_to_shape"),
        ("_kwargs", {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}),
    )
}
_NETWORK = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3, "features_per_stage": [8, 16, 32], "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [2, 2]], "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d", "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}  # fmt: skip
PATCH = (64, 64)
PLAN = {
    "dataset_name": "Dataset001_Small",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
    "original_median_shape_after_transp": [1, 150, 170],
    "image_reader_writer": "NaturalImage2DIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(PATCH),
            "median_image_size_in_voxels": [150.0, 170.0],
            "spacing": [1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"] * 3,
            "use_mask_for_norm": [False] * 3,
            **_RESAMPLING,
            "architecture": _NETWORK,
            "batch_dice": True,
        }
    },
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {
        str(c): {
            "max": 255.0, "mean": 128.0, "median": 128.0, "min": 0.0, "percentile_00_5": 1.0, "percentile_99_5": 254.0,
            "std": 50.0,
        }
        for c in range(3)
    },
}  # fmt: skip


@functools.cache
def case():
    """Returns an RGB image of smooth stains, uint8 [150, 170, 3], and its labels 0, 1, 2."""
    rows, columns = np.mgrid[:150, :170] / 20
    height = np.sin(rows) + np.cos(1.3 * columns) + np.sin(0.7 * rows + columns)
    labels = np.digitize(height, (-0.5, 0.8))
    noise = np.random.RandomState(0).normal(0, 15, (150, 170, 3))
    colors = np.array([[230, 225, 235], [120, 60, 150], [220, 130, 180]])
    return np.clip(colors[labels] + noise, 1, 255).astype(np.uint8), labels


def preprocessed(image):
    """Returns float32 with mean 0 and standard deviation 1 per channel, as the plan preprocesses such images."""
    image = image.astype(np.float32)
    return (image - image.mean((0, 1))) / image.std((0, 1))


@functools.cache
def trained_network(seed=0, steps=40):
    """Returns nnU-Net's network after a few training steps on the case; needs nnunetv2."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    torch.manual_seed(seed)
    arguments = (_NETWORK["network_class_name"], _NETWORK["arch_kwargs"], _NETWORK["_kw_requires_import"], 3, 3)
    network = get_network_from_plans(*arguments, deep_supervision=False)
    with torch.no_grad():
        for parameter in network.parameters():  # so that biases and norms differ from their initial values
            parameter += 0.05 * torch.randn_like(parameter)
    image, labels = case()
    image = torch.from_numpy(preprocessed(image).transpose(2, 0, 1)[None])
    labels = torch.from_numpy(labels[None])
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(steps):
        y, x = 86 * step // steps, (37 * step) % 106
        window = (slice(None), slice(y, y + 64), slice(x, x + 64))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(image[:, *window]), labels[window]).backward()
        optimizer.step()
    return network


def nnunets_folder(folder, folds=(0,), dataset=DATASET):
    """Returns a result folder as nnU-Net's trainer writes it, with checkpoints that the trainer saved."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    folder = Path(folder)
    for fold in folds:
        (folder / f"fold_{fold}").mkdir(parents=True)
        plan = copy.deepcopy(PLAN) | {"continue_training": False}
        with mock.patch.dict(os.environ, {"nnUNet_results": str(folder / "results")}):
            trainer = nnUNetTrainer(plan, "2d", fold, dataset, torch.device("cpu"))
        trainer.network = trained_network(0 if fold == "all" else fold)
        trainer.optimizer, _ = trainer.configure_optimizers()
        trainer.inference_allowed_mirroring_axes = (0, 1)
        trainer._best_ema = np.float64(0.5)  # like all of its scores, a NumPy scalar
        for epoch in range(2):
            trainer.logger.log("mean_fg_dice", np.float64(0.25), epoch)
            trainer.logger.log("dice_per_class_or_region", [np.float64(0.25), np.float64("nan")], epoch)
            trainer.logger.log("train_losses", np.float32(-0.5), epoch)
        trainer.save_checkpoint(str(folder / f"fold_{fold}" / "checkpoint_final.pth"))
    (folder / "plans.json").write_text(json.dumps(PLAN))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def predictor(folder, folds=None, mirror=True):
    """Returns nnU-Net's predictor for a result folder."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    made = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(folder), folds)
    return made


def reference_logits(folder, image, single=False, **kwargs):
    """Returns nnU-Net's logits [H, W, K] of a preprocessed image [H, W, C]; `single`: sums in float32."""
    import torch
    from nnunetv2.inference import predict_from_raw_data as module

    data = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[:, None]))
    used = predictor(folder, **kwargs)
    if not single:
        logits = used.predict_logits_from_preprocessed_data(data)
    else:
        weights = functools.partial(module.compute_gaussian, dtype=torch.float32)
        with mock.patch.object(torch, "half", torch.float32), mock.patch.object(module, "compute_gaussian", weights):
            logits = used.predict_logits_from_preprocessed_data(data)
    return logits.float().numpy()[:, 0].transpose(1, 2, 0)


def real_region(shared):
    """Returns image uint8 [H, W, 3] and mask uint8 [H, W] of a region of real tissue; skips the test without one."""
    folder = shared / "data" / "bcss_roi"
    files = sorted((folder / "images").glob("*")) if folder.is_dir() else []
    if not files:
        pytest.skip(f"no regions: {folder.name} is missing")
    mask = next((folder / "masks").glob(f"{files[0].stem}*"))
    return tuple(np.asarray(Image.open(path)) for path in (files[0], mask))


def reference_labels(folder, image):
    """Returns nnU-Net's labels [H, W] of an unprocessed image [H, W, 3]."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)[:, None]).astype(np.float32)
    return predictor(folder).predict_single_npy_array(planes, {"spacing": [999, 1, 1]})[0]
