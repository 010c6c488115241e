"""The tables of rates, and of what else is scheduled, as torch's scheduler."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from runner.spec import RunSpec, Tables, rate_name

# hyperparameter -> torch's name for it, and where in it
_NAMES: dict[str, tuple[str, int | None]] = {
    "momentum": ("momentum", None),
    "beta1": ("betas", 0),
    "beta2": ("betas", 1),
    "rho": ("alpha", None),
}


class TableLR(LRScheduler):
    """The rate of update t is rates[t], of a group lr_factor rates[t], cast once to the run's
    dtype; past the end the last value holds. A group of the optimizer says its `lr_factor` and
    `decay_factor`."""

    def __init__(self, optimizer: Optimizer, run: RunSpec, step: int) -> None:
        self._tables, self._scheduled = run.tables, list(run.scheduled)
        self._names = [rate_name(group["lr_factor"]) for group in optimizer.param_groups]
        # group of each
        self._first = dict(
            zip(reversed(self._names), reversed(optimizer.param_groups), strict=True)
        )
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        super().__init__(optimizer, last_epoch=step - 1)

    def step(self, epoch: int | None = None) -> None:
        """LRScheduler's, without its checks of the order of calls, which take longer than an
        update's kernel."""
        self.last_epoch += 1
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def use(self, tables: Tables) -> None:
        """Take other tables of the same names, from the next update on."""
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
        """Read what the optimizer is set to, in the order of RunSpec.tables."""
        groups, first = self._first, self.optimizer.param_groups[0]
        return [
            groups[name]["lr"] if name in groups else read(first, name) for name in self._tables
        ]


def hyperparameters(spec: Any) -> dict[str, Any]:
    """Those that can be scheduled, as a group of a torch optimizer has them."""
    group: dict[str, Any] = {"betas": (0.0, 0.0), "decays_by": "weight_decay", "decay_factor": 1.0}
    for name in spec.schedulable:
        _set(group, name, getattr(spec, name))
    return group


def _set(group: dict[str, Any], name: str, value: float) -> None:
    if name == "weight_decay":
        group[group["decays_by"]] = value * group["decay_factor"]
        return
    native, index = _NAMES[name]
    if index is None:
        group[native] = value
    else:
        group[native] = (*group[native][:index], value, *group[native][index + 1 :])


def read(group: dict[str, Any], name: str) -> float:
    """Read a hyperparameter from the first group, whose decay_factor is 1."""
    if name == "weight_decay":
        return float(group[group["decays_by"]])
    native, index = _NAMES[name]
    return float(group[native] if index is None else group[native][index])
