"""The TransUNet of `bcss_jax.models.transunet` in PyTorch, with the official names, to compare values and speed."""

import torch
from torch import nn
from torch.nn import functional


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns TensorFlow's padding before and after an axis of a given size."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def same_pad(x, kernel: int, stride: int, value: float = 0):
    """Pads height and width as TensorFlow's "SAME" does."""
    return functional.pad(x, same(x.shape[3], kernel, stride) + same(x.shape[2], kernel, stride), value=value)


class StdConv2d(nn.Conv2d):
    """Convolution with a standardized kernel."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, google: bool):
        """Channels in and out, size of the kernel, stride, and whether to use Google's arithmetic."""
        super().__init__(inputs, outputs, size, stride, 0 if google else size // 2, bias=False)
        self.google = google

    def forward(self, x):
        """(N, C, H, W) -> (N, outputs, H', W')."""
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
        deviation = var.sqrt() + 1e-5 if self.google else (var + 1e-5).sqrt()
        if self.google:
            x = same_pad(x, self.kernel_size[0], self.stride[0])
        return functional.conv2d(x, (self.weight - mean) / deviation, None, self.stride, self.padding)


class PreActBottleneck(nn.Module):
    """A unit of the ResNet."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, google: bool):
        """Channels of the input, inside and of the result, stride, and whether to use Google's arithmetic."""
        super().__init__()
        self.conv1 = StdConv2d(inputs, middle, 1, 1, google)
        self.gn1 = nn.GroupNorm(32, middle, 1e-6)
        self.conv2 = StdConv2d(middle, middle, 3, stride, google)
        self.gn2 = nn.GroupNorm(32, middle, 1e-6)
        self.conv3 = StdConv2d(middle, outputs, 1, 1, google)
        self.gn3 = nn.GroupNorm(32, outputs, 1e-6)
        if stride != 1 or inputs != outputs:
            self.downsample = StdConv2d(inputs, outputs, 1, stride, google)
            self.gn_proj = nn.GroupNorm(32, outputs, 1e-6) if google else nn.GroupNorm(outputs, outputs)

    def forward(self, x):
        """(N, C, H, W) -> (N, outputs, H', W')."""
        residual = self.gn_proj(self.downsample(x)) if hasattr(self, "downsample") else x
        x = functional.relu(self.gn1(self.conv1(x)))
        x = functional.relu(self.gn2(self.conv2(x)))
        return functional.relu(residual + self.gn3(self.conv3(x)))


class ResNetV2(nn.Module):
    """The hybrid ResNet."""

    def __init__(self, in_channels: int, width: int, layers: tuple[int, ...], google: bool):
        """Channels of the images and after the root, units of each block, and whether to use Google's arithmetic."""
        super().__init__()
        self.google = google
        self.root = nn.Sequential()
        self.root.add_module("conv", StdConv2d(in_channels, width, 7, 2, google))
        self.root.add_module("gn", nn.GroupNorm(32, width, 1e-6))
        self.root.add_module("relu", nn.ReLU())
        self.body = nn.Sequential()
        inputs = width
        for block, units in enumerate(layers):
            made = nn.Sequential()
            for unit in range(units):
                middle, stride = width * 2**block, 2 if block and not unit else 1
                made.add_module(f"unit{unit + 1}", PreActBottleneck(inputs, middle, 4 * middle, stride, google))
                inputs = 4 * middle
            self.body.add_module(f"block{block + 1}", made)

    def forward(self, x):
        """(N, C, H, W) -> (N, 16 * width, H/16, W/16), and the skips, deepest first."""
        height, width = x.shape[2:]
        x = self.root(x)
        skips = [x]
        x = functional.max_pool2d(same_pad(x, 3, 2, float("-inf")) if self.google else x, 3, 2)
        for i, block in enumerate(self.body):
            x = block(x)
            below, right = height // 4 // (i + 1) - x.shape[2], width // 4 // (i + 1) - x.shape[3]
            if i < len(self.body) - 1:
                skips.append(functional.pad(x, (0, right, 0, below)))
        return x, skips[::-1]


class Attention(nn.Module):
    """Self-attention with several heads."""

    def __init__(self, features: int, heads: int):
        """Features of a token, and heads."""
        super().__init__()
        self.heads = heads
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(features, features))

    def forward(self, x):
        """(N, T, features) -> the same shape."""
        split = [part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        return self.out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two dense layers."""

    def __init__(self, features: int, middle: int, google: bool, dropout: float):
        """Features outside and inside, whether to use Google's arithmetic, and the probability of dropout."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(features, middle), nn.Linear(middle, features)
        self.gelu, self.dropout = nn.GELU("tanh" if google else "none"), nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x):
        """(N, T, features) -> the same shape."""
        return self.dropout(self.fc2(self.dropout(self.gelu(self.fc1(x)))))


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, features: int, heads: int, mlp: int, google: bool, dropout: float):
        """Features of a token, heads, features of the MLP, whether to use Google's arithmetic, dropout probability."""
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(features, 1e-6), nn.LayerNorm(features, 1e-6)
        self.ffn = Mlp(features, mlp, google, dropout)
        self.attn = Attention(features, heads)
        self.attention_dropout = nn.Dropout(dropout if google else 0)

    def forward(self, x):
        """(N, T, features) -> the same shape."""
        x = x + self.attention_dropout(self.attn(self.attention_norm(x)))
        return x + self.ffn(self.ffn_norm(x))


class Embeddings(nn.Module):
    """The ResNet, and tokens with position embeddings from its last map."""

    def __init__(self, tokens: int, hidden_size: int, dropout: float, in_channels: int, width: int, layers, google):
        """Number of tokens, their features, and probability of dropout; see `ResNetV2` for the other arguments."""
        super().__init__()
        self.hybrid_model = ResNetV2(in_channels, width, layers, google)
        self.patch_embeddings = nn.Conv2d(16 * width, hidden_size, 1)
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, hidden_size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        """(N, C, H, W) -> tokens (N, T, hidden_size), and the skips."""
        x, skips = self.hybrid_model(x)
        x = self.patch_embeddings(x).flatten(2).transpose(1, 2)
        return self.dropout(x + self.position_embeddings), skips


class Encoder(nn.Module):
    """Transformer blocks and a LayerNorm."""

    def __init__(self, features: int, heads: int, mlp: int, layers: int, google: bool, dropout: float):
        """See `Block`; `layers` is the number of blocks."""
        super().__init__()
        self.layer = nn.ModuleList(Block(features, heads, mlp, google, dropout) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(features, 1e-6)

    def forward(self, x):
        """(N, T, features) -> the same shape."""
        for block in self.layer:
            x = block(x)
        return self.encoder_norm(x)


class Transformer(nn.Module):
    """Embeddings and encoder."""

    def __init__(self, embeddings: Embeddings, encoder: Encoder):
        """The parts."""
        super().__init__()
        self.embeddings, self.encoder = embeddings, encoder

    def forward(self, x):
        """(N, C, H, W) -> tokens (N, T, hidden_size), and the skips."""
        x, skips = self.embeddings(x)
        return self.encoder(x), skips


def conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class DecoderBlock(nn.Module):
    """Upsampling, concatenation before the skip, and two convolutions."""

    def __init__(self, inputs: int, outputs: int, skip: int):
        """Channels of the smaller map, of the result, and of the skip."""
        super().__init__()
        self.conv1, self.conv2 = conv_norm(inputs + skip, outputs), conv_norm(outputs, outputs)
        self.up = nn.UpsamplingBilinear2d(scale_factor=2)

    def forward(self, x, skip=None):
        """(N, C, H, W) and, optionally, a skip of twice the size -> (N, outputs, 2H, 2W)."""
        x = self.up(x)
        return self.conv2(self.conv1(x if skip is None else torch.cat((x, skip), 1)))


class DecoderCup(nn.Module):
    """The decoder."""

    def __init__(self, hidden_size: int, grid: tuple[int, int], channels, skip_channels):
        """Features of a token, rows and columns of tokens, channels of the blocks and of their skips."""
        super().__init__()
        self.grid, self.skip_channels = grid, skip_channels
        self.conv_more = conv_norm(hidden_size, 512)
        inputs = (512, *channels[:-1])
        self.blocks = nn.ModuleList(DecoderBlock(*sizes) for sizes in zip(inputs, channels, skip_channels, strict=True))

    def forward(self, x, skips):
        """Tokens (N, T, hidden_size) and the skips, deepest first -> (N, channels[-1], H, W)."""
        x = self.conv_more(x.transpose(1, 2).unflatten(2, self.grid))
        for i, block in enumerate(self.blocks):
            x = block(x, skips[i]) if self.skip_channels[i] else block(x)
        return x


class TransUNet(nn.Module):
    """The network, with the arguments of `bcss_jax.models.transunet.TransUNet`."""

    def __init__(
        self, num_classes, *, image_size=224, width_factor=1, resnet_layers=(3, 4, 9), hidden_size=768, mlp_size=3072,
        num_heads=12, num_layers=12, decoder_channels=(256, 128, 64, 16), skip_channels=(512, 256, 64, 0),
        in_channels=3, compat="transunet", dropout=0.1,
    ):  # fmt: skip
        """See the class."""
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        grid, google = (height // 16, width // 16), compat == "google"
        self.transformer = Transformer(
            Embeddings(
                grid[0] * grid[1], hidden_size, dropout, in_channels, int(64 * width_factor), resnet_layers, google
            ),
            Encoder(hidden_size, num_heads, mlp_size, num_layers, google, dropout),
        )
        self.decoder = DecoderCup(hidden_size, grid, decoder_channels, skip_channels)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels[-1], num_classes, 3, padding=1))

    def forward(self, x):
        """(N, in_channels, H, W) -> logits (N, num_classes, H, W)."""
        return self.segmentation_head(self.decoder(*self.transformer(x)))
