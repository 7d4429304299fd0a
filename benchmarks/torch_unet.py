"""The U-Net of `bcss_jax.models.unet` in PyTorch, with milesial's module names, to compare values and speed."""

import torch
from torch import nn
from torch.nn import functional


class DoubleConv(nn.Module):
    """Two blocks of 3x3 convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, middle: int, outputs: int):
        """Channels before, between and after the convolutions."""
        super().__init__()
        layers = []
        for a, b in ((inputs, middle), (middle, outputs)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x):
        """(N, C, H, W) -> (N, outputs, H, W)."""
        return self.double_conv(x)


class Down(nn.Module):
    """Max pooling and a double convolution."""

    def __init__(self, inputs: int, outputs: int):
        """Channels in and out."""
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs, outputs))

    def forward(self, x):
        """(N, C, H, W) -> (N, outputs, H // 2, W // 2)."""
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Upsampling, concatenation after the skip, and a double convolution."""

    def __init__(self, inputs: int, outputs: int, bilinear: bool):
        """Channels of both maps together, channels of the result, and whether upsampling is bilinear."""
        super().__init__()
        self.up = nn.UpsamplingBilinear2d(scale_factor=2) if bilinear else nn.ConvTranspose2d(inputs, inputs // 2, 2, 2)
        self.conv = DoubleConv(inputs, inputs // 2 if bilinear else outputs, outputs)

    def forward(self, x, skip):
        """The smaller map and the skip (N, C, H, W) -> (N, outputs, H, W)."""
        x = self.up(x)
        height, width = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return self.conv(torch.cat((skip, x), 1))


class Out(nn.Module):
    """The 1x1 convolution to logits."""

    def __init__(self, inputs: int, classes: int):
        """Channels in and out."""
        super().__init__()
        self.conv = nn.Conv2d(inputs, classes, 1)

    def forward(self, x):
        """(N, C, H, W) -> (N, classes, H, W)."""
        return self.conv(x)


class UNet(nn.Module):
    """The network, with the arguments of `bcss_jax.models.unet.UNet`."""

    def __init__(
        self, num_classes: int, *, in_channels: int = 3, width: int = 64, depth: int = 4, bilinear: bool = False
    ):
        """See the class."""
        super().__init__()
        self.depth = depth
        widths = [width * 2**level for level in range(depth + 1)]
        factor = 2 if bilinear else 1
        self.inc = DoubleConv(in_channels, width, width)
        for level in range(1, depth + 1):
            setattr(self, f"down{level}", Down(widths[level - 1], widths[level] // (factor if level == depth else 1)))
        for step in range(1, depth + 1):
            outputs = widths[depth - step] // (factor if step < depth else 1)
            setattr(self, f"up{step}", Up(widths[depth + 1 - step], outputs, bilinear))
        self.outc = Out(width, num_classes)

    def forward(self, x):
        """(N, in_channels, H, W) -> logits (N, num_classes, H, W)."""
        maps = [self.inc(x)]
        for level in range(1, self.depth + 1):
            maps.append(getattr(self, f"down{level}")(maps[-1]))
        x = maps.pop()
        for step in range(1, self.depth + 1):
            x = getattr(self, f"up{step}")(x, maps.pop())
        return self.outc(x)
