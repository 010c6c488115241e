"""A torch scheduler that reads the tables of learning rates and other scheduled values."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from runner.components.optimizers import LEARNING_RATE
from runner.spec import RunSpec, Tables

# hyperparameter -> (key of torch's parameter group, index in that key's tuple)
_NAMES: dict[str, tuple[str, int | None]] = {
    "momentum": ("momentum", None),
    "beta1": ("betas", 0),
    "beta2": ("betas", 1),
    "beta3": ("betas", 2),
    "alpha": ("alpha", None),
    "rho": ("alpha", None),
}


class TableLR(LRScheduler):
    """Sets the learning rate of each parameter group in update t to the value of its table, `rate`,
    which is rounded once to the run's dtype. Past the end of the table, the last value stays."""

    def __init__(self, optimizer: Optimizer, run: RunSpec, step: int) -> None:
        self._tables, self._scheduled = run.tables, list(run.scheduled)
        self._names = [group["rate"] for group in optimizer.param_groups]
        # table name -> the first group that uses it
        self._group_of = dict(
            zip(reversed(self._names), reversed(optimizer.param_groups), strict=True)
        )
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        super().__init__(optimizer, last_epoch=step - 1)

    def step(self, epoch: int | None = None) -> None:
        """Advance by one update. Skips LRScheduler's checks of the call order, which take longer
        than the optimizer's kernel."""
        self.last_epoch += 1
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def use(self, tables: Tables) -> None:
        """Replace the tables by others with the same names, from the next update on."""
        self._tables = tables
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float | Any]:
        for name in self._scheduled:
            for group in self.optimizer.param_groups:
                _set(group, name, self._at(name))
        return [self._at(name) for name in self._names]

    def _at(self, name: str) -> float:
        values = self._tables[name]
        return float(values[min(self.last_epoch, len(values) - 1)])

    def read(self) -> list[float]:
        """Read the optimizer's current settings, in the order of RunSpec.tables."""
        return [self._read(name) for name in self._tables]

    def _read(self, name: str) -> float:
        """Read a setting. A rate that no group has, such as that of frozen weights, is the
        table's."""
        if name in self._group_of:
            return float(self._group_of[name]["lr"])
        if name.startswith(LEARNING_RATE):
            return self._at(name)
        return read(self.optimizer.param_groups[0], name)


def hyperparameters(spec: Any) -> dict[str, Any]:
    """Return the schedulable hyperparameters in the form of a torch parameter group."""
    group: dict[str, Any] = {"betas": (0.0, 0.0), "decay_key": "weight_decay", "decay_factor": 1.0}
    for name in spec.schedulable:
        _set(group, name, getattr(spec, name))
    return group


def _set(group: dict[str, Any], name: str, value: float) -> None:
    if name == "weight_decay":
        group[group["decay_key"]] = value * group["decay_factor"]
        return
    native, index = _NAMES[name]
    if index is None:
        group[native] = value
    else:
        group[native] = (*group[native][:index], value, *group[native][index + 1 :])


def read(group: dict[str, Any], name: str) -> float:
    """Read a hyperparameter from a parameter group with decay_factor 1, such as the first one."""
    if name == "weight_decay":
        return float(group[group["decay_key"]])
    native, index = _NAMES[name]
    return float(group[native] if index is None else group[native][index])
