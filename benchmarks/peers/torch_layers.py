"""The two models in torch.nn, for both torch peers: the layers of conf/model/mlp.yaml and conf/model/cnn.yaml."""

import numpy as np
import torch
from torch import Tensor, nn


def network(model: str) -> nn.Module:
    return _cnn() if model == "cnn" else nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(128, 10),
    )


def inputs(x: np.ndarray) -> Tensor:
    """Rows as torch wants them: [N, 64], or [N, 8, 8, 1] -> [N, 1, 8, 8]."""
    return torch.from_numpy(x if x.ndim == 2 else np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
