"""The table of rates as torch's scheduler."""

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class TableLR(LRScheduler):
    """The rate of update t is rates[t], cast once to the run's dtype; past the end the last value holds."""

    def __init__(self, optimizer: Optimizer, rates: np.ndarray, dtype: np.dtype, step: int) -> None:
        self._rates = rates.astype(dtype).tolist()
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        super().__init__(optimizer, last_epoch=step - 1)

    def get_lr(self) -> list[float | np.ndarray]:  # type: ignore[override]
        rate = self._rates[min(self.last_epoch, len(self._rates) - 1)]
        return [rate] * len(self.optimizer.param_groups)
