"""The Dense U-Net of `bcss_jax.models.dense_unet` in PyTorch, to compare values and speed.

The names in the state dict are those of `torch_entries` there.
"""

import torch
from torch import nn
from torch.nn import functional


class NormConv(nn.Module):
    """BatchNorm, ReLU and a convolution."""

    def __init__(self, inputs: int, outputs: int, size: int = 3):
        """Channels in and out, size of the kernel."""
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)

    def forward(self, x):
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return self.conv(functional.relu(self.norm(x), inplace=True))


class DenseBlock(nn.ModuleDict):
    """A sequence of layers, each of which reads all maps before it."""

    def __init__(self, inputs: int, growth: int, num_layers: int):
        """Channels in, channels each layer adds, number of layers."""
        super().__init__({f"denselayer{i + 1}": NormConv(inputs + i * growth, growth) for i in range(num_layers)})
        self.outputs = inputs + num_layers * growth

    def forward(self, x):
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        for layer in self.values():
            x = torch.cat((x, layer(x)), 1)
        return x


class Down(nn.Module):
    """Dense block and transition."""

    def __init__(self, inputs: int, growth: int, num_layers: int, compression: float):
        """Channels of the input; see `DenseUNet` for the other arguments."""
        super().__init__()
        self.block = DenseBlock(inputs, growth, num_layers)
        self.outputs = max(1, int(compression * self.block.outputs))
        self.transition = NormConv(self.block.outputs, self.outputs, 1)

    def forward(self, x):
        """(N, inputs, H, W) -> the skip (N, C, H, W) and (N, outputs, H // 2, W // 2)."""
        skip = self.block(x)
        return skip, functional.avg_pool2d(self.transition(skip), 2)


class Up(nn.Module):
    """Upsampling, concatenation before the skip, dense block and transition."""

    def __init__(self, inputs: int, skip: int, growth: int, num_layers: int, compression: float):
        """Channels of the input and of the skip; see `DenseUNet` for the other arguments."""
        super().__init__()
        self.upsample = nn.ConvTranspose2d(inputs, max(1, inputs // 2), 2, 2, bias=False)
        self.block = DenseBlock(max(1, inputs // 2) + skip, growth, num_layers)
        self.outputs = max(1, int(compression * self.block.outputs))
        self.transition = NormConv(self.block.outputs, self.outputs, 1)

    def forward(self, x, skip):
        """The smaller map and the skip (N, C, H, W) -> (N, outputs, H, W)."""
        x = self.upsample(x)
        height, width = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return self.transition(self.block(torch.cat((x, skip), 1)))


class DenseUNet(nn.Module):
    """The network, with the arguments of `bcss_jax.models.dense_unet.DenseUNet`."""

    def __init__(
        self, num_classes, *, growth=32, layers=(4, 4, 4, 4), bottleneck_layers=4, init_width=64, compression=0.5,
        in_channels=3,
    ):  # fmt: skip
        """See the class."""
        super().__init__()
        self.depth = len(layers)
        self.stem = nn.Conv2d(in_channels, init_width, 3, padding=1, bias=False)
        inputs, skips = init_width, []
        for level, count in enumerate(layers, 1):
            down = Down(inputs, growth, count, compression)
            setattr(self, f"down{level}", down)
            skips.append(down.block.outputs)
            inputs = down.outputs
        self.bottleneck = DenseBlock(inputs, growth, bottleneck_layers)
        inputs = self.bottleneck.outputs
        for step, count in enumerate(reversed(layers), 1):
            up = Up(inputs, skips.pop(), growth, count, compression)
            setattr(self, f"up{step}", up)
            inputs = up.outputs
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Conv2d(inputs, num_classes, 1)

    def forward(self, x):
        """(N, in_channels, H, W) -> logits (N, num_classes, H, W)."""
        x, skips = self.stem(x), []
        for level in range(1, self.depth + 1):
            skip, x = getattr(self, f"down{level}")(x)
            skips.append(skip)
        x = self.bottleneck(x)
        for step in range(1, self.depth + 1):
            x = getattr(self, f"up{step}")(x, skips.pop())
        return self.head(functional.relu(self.norm(x)))
