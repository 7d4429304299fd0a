"""DINO's step in PyTorch, for `pretraining_step.py`: the twin of `bcss_jax.pretraining.distillation` with its names."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional

EPS = 1e-6


class Attention(nn.Module):
    """Self-attention by PyTorch's fused operation."""

    def __init__(self, width: int, heads: int):
        """Builds the layer."""
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> the same shape."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, width: int, hidden: int):
        """Builds the layers."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> the same shape."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and dense layers with residuals."""

    def __init__(self, width: int, heads: int, hidden: int):
        """Builds the block."""
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=EPS), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=EPS), Mlp(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Patches as tokens."""

    def __init__(self, width: int, patch: int):
        """Builds the layer."""
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, T, C)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A plain vision transformer whose table is resized with antialiasing, as timm does."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, hidden: int, table: int):
        """Builds the network."""
        super().__init__()
        self.table = table
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + table**2, width))
        self.patch_embed = PatchEmbedding(width, patch)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> features of the class token (N, C)."""
        x = self.patch_embed(x)
        side = math.isqrt(x.shape[1])
        positions = self.pos_embed[:, 1:]
        if side != self.table:
            grid = positions.reshape(1, self.table, self.table, -1).permute(0, 3, 1, 2)
            grid = functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
            positions = grid.flatten(2).transpose(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, x + positions], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class Head(nn.Module):
    """DINO's head with prototypes of length one."""

    def __init__(self, inputs: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256):
        """Builds the layers."""
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last_layer = nn.Module()
        self.last_layer.weight_v = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C) -> scores (N, prototypes)."""
        x = functional.normalize(self.mlp(x), dim=-1)
        return functional.linear(x, functional.normalize(self.last_layer.weight_v, dim=-1))


class Dino(nn.Module):
    """Encoder and head."""

    def __init__(self, prototypes: int, **form):
        """Builds both; `form` is that of the encoder."""
        super().__init__()
        self.backbone, self.head = VisionTransformer(**form), Head(form["width"], prototypes)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        """Batches of views (N, 3, H, W), one for each size -> scores of all of them (views * N, prototypes)."""
        return self.head(torch.cat([self.backbone(x) for x in views]))


class Step:
    """A step of DINO: teacher, student, loss, clipping by tensor, AdamW, and the teacher's average."""

    def __init__(self, student: Dino, *, learning_rate: float, weight_decay: float, momentum: float, clip: float = 3.0):
        """Copies the student as the teacher."""
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)
        decayed = [p for p in student.parameters() if p.ndim > 1]
        others = [p for p in student.parameters() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, foreach=True)
        self.momentum, self.clip = momentum, clip
        device = next(student.parameters()).device
        self.center = torch.zeros(1, student.head.last_layer.weight_v.shape[0], device=device)

    def __call__(
        self, global_views: torch.Tensor, local_views: torch.Tensor, teacher_temperature: float
    ) -> torch.Tensor:
        """Takes a step on views (2 N, 3, G, G) and (L N, 3, l, l), view by view. Returns the loss."""
        with torch.no_grad():
            taught = self.teacher([global_views])
            targets = ((taught - self.center) / teacher_temperature).softmax(-1).chunk(2)
        scores = self.student([global_views, local_views])
        count = len(targets[0])
        predicted = (scores / 0.1).log_softmax(-1).split(count)
        terms = [-(t * p).sum(-1).mean() for i, t in enumerate(targets) for j, p in enumerate(predicted) if i != j]
        loss = torch.stack(terms).mean()
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            grads = [p.grad for p in self.student.parameters()]
            norms = torch.stack(torch._foreach_norm(grads))
            factors = (self.clip / (norms + 1e-6)).clamp(max=1)
            torch._foreach_mul_(grads, list(factors))
            self.optimizer.step()
            teacher, student = list(self.teacher.parameters()), list(self.student.parameters())
            torch._foreach_mul_(teacher, self.momentum)
            torch._foreach_add_(teacher, student, alpha=1 - self.momentum)
            self.center = 0.9 * self.center + 0.1 * taught.mean(0, keepdim=True)
        return loss.detach()
