"""The models in torch.nn, for both torch peers: conf/model/mlp.yaml and those of benchmarks/conf/model."""

import numpy as np
import torch
from torch import Tensor, nn


def network(model: str) -> nn.Module:
    if model == "mlp":
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    if model == "mlp_4m":
        hidden = [nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 896), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(896, 10))
    blocks = [*_block(3, 32), *_block(32, 64), *_block(64, 128)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(2048, 448), nn.ReLU(), nn.Dropout(0.25), nn.Linear(448, 10))


def _block(channels: int, filters: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]


def inputs(x: np.ndarray) -> Tensor:
    """Rows as torch wants them: [N, 64], or [N, 32, 32, 3] -> [N, 3, 32, 32]."""
    return torch.from_numpy(x if x.ndim == 2 else np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
