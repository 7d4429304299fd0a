"""The networks of `bcss_jax.models` in PyTorch, from the packages of their authors or from this folder."""

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # its operators exist as long as this object


def build(model: str, num_classes: int, **kwargs) -> torch.nn.Module:
    """Returns the PyTorch twin of `bcss_jax.models.create(model, num_classes=num_classes, **kwargs)`.

    It has random weights.

    Raises:
      ModuleNotFoundError: the package with the network is not installed (segmentation_models_pytorch for ResNet and
        DenseNet encoders, dynamic_network_architectures for nnU-Net's networks, tiatoolbox for its U-Net).
    """
    if model == "unet":
        from torch_unet import UNet

        return UNet(num_classes, **kwargs)
    if model == "transunet":
        from torch_transunet import TransUNet

        return TransUNet(num_classes, **kwargs)
    if model == "dense_unet":
        from torch_dense_unet import DenseUNet

        return DenseUNet(num_classes, **kwargs)
    if model in ("nnunet", "nnunet_resenc"):
        return _nnunet(model, num_classes)
    if model == "tiatoolbox_unet":
        from tiatoolbox.models.architecture.unet import UNetModel

        return UNetModel(3, num_classes, encoder="resnet50", decoder_block=(3, 3))
    return _smp(model, num_classes)


def _nnunet(model: str, num_classes: int) -> torch.nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    settings = {
        "input_channels": 3,
        "num_classes": num_classes,
        "n_stages": 6,
        "features_per_stage": (32, 64, 128, 256, 512, 512),
        "conv_op": torch.nn.Conv2d,
        "kernel_sizes": 3,
        "strides": (1, 2, 2, 2, 2, 2),
        "conv_bias": True,
        "norm_op": torch.nn.InstanceNorm2d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": torch.nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    if model == "nnunet":
        return PlainConvUNet(**settings, n_conv_per_stage=2, n_conv_per_stage_decoder=2)
    return ResidualEncoderUNet(**settings, n_blocks_per_stage=(1, 3, 4, 6, 6, 6), n_conv_per_stage_decoder=1)


def _smp(model: str, num_classes: int) -> torch.nn.Module:
    define_torchvision_operators()
    import segmentation_models_pytorch as smp

    encoder = "densenet121" if model == "dense_unet_121" else model.removeprefix("unet_")
    return smp.Unet(encoder, encoder_weights=None, classes=num_classes)


def define_torchvision_operators() -> None:
    """Defines the operators that a GPU build of torchvision needs to be imported beside a CPU build of PyTorch."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
