"""The models in torch.nn, for both torch peers: conf/model/mlp.yaml and the models
of benchmarks/conf/model."""

import numpy as np
import torch
from torch import Tensor, nn


def network(model: str) -> nn.Module:
    if model == "mlp":
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    if model == "mlp_4m":
        hidden = [nn.Linear(784, 1650), nn.ReLU(), nn.Linear(1650, 1650), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(1650, 10))
    if model == "cnn":
        head = [nn.Flatten(), nn.Dropout(0.25), nn.Linear(128, 10)]
        return nn.Sequential(*_block(1, 16), *_block(16, 32), *head)
    if model == "resnet":
        stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
        return nn.Sequential(
            *stem, _Residual(16, 16, 1), nn.ReLU(), _Residual(16, 32, 2), nn.ReLU(), *tail
        )
    if model == "transformer":
        body = [_TransformerBlock(32, 4, 64) for _ in range(2)]
        return nn.Sequential(
            _Patches(32, 2, 16), *body, nn.LayerNorm(32), _Mean(), nn.Linear(32, 10)
        )
    blocks = [*_block(3, 32), *_block(32, 64), *_block(64, 128)]
    head = [nn.Flatten(), nn.Linear(2048, 448), nn.ReLU(), nn.Dropout(0.25), nn.Linear(448, 10)]
    return nn.Sequential(*blocks, *head)


class _Residual(nn.Module):
    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, 1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            convolution = nn.Conv2d(channels, filters, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(filters))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)


class _Patches(nn.Module):
    """Images as sequences of patches, with a position embedding."""

    def __init__(self, width: int, size: int, num: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(1, width, size, size)
        self.positions = nn.Parameter(torch.randn(1, num, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2) + self.positions


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, bias=False, batch_first=True)
        self.dense = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.dense(self.second(x))


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _block(channels: int, filters: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]


def inputs(x: np.ndarray) -> Tensor:
    """Convert rows to torch's layout: [N, 64], or [N, H, W, C] -> [N, C, H, W]."""
    return torch.from_numpy(x if x.ndim == 2 else np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
