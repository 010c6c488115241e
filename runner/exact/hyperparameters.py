"""The hyperparameters of one update, and what several forms of updates share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.components.optimizers import Group
from runner.exact.primitives import Primitives, Tensor
from runner.exact.rules import constant, total

Slots = dict[str, Tensor]
Scalars = Mapping[str, Any]


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of one update as 24-bit numbers, constant or scheduled."""

    o: Primitives
    spec: Any
    scheduled: Mapping[str, Any]  # name -> its value in float64
    scalars: Scalars  # this update's entries of `tables`

    def __getitem__(self, name: str) -> Any:
        return (
            self.o.r(self.scheduled[name])
            if name in self.scheduled
            else constant(getattr(self.spec, name))
        )

    def one_minus(self, name: str) -> Any:
        """R(1 - value)"""
        value = self.scheduled.get(name)
        return constant(1 - getattr(self.spec, name)) if value is None else self.o.r(1.0 - value)

    def decay(self, group: Group) -> Any:
        """lambda of a group, or None without weight decay."""
        if not (self.spec.decays and group.decay_factor):
            return None
        value = self.scheduled.get("weight_decay")
        if value is None:
            return constant(self.spec.weight_decay * group.decay_factor)
        return self.o.r(value * group.decay_factor)


def mean(h: Hyperparameters, old: Tensor, new: Tensor, beta: str) -> Tensor:
    """R(beta old + (1 - beta) new): both products are exact."""
    return h.o.r(h.o.plus(old * h[beta], new, h.one_minus(beta)))


def root_eps(o: Primitives, v: Tensor, eps: float, root: Any = None) -> Tensor:
    """sqrt(v) + eps, or sqrt(v) root + eps if `root` is given."""
    sqrt_v = o.r(o.sqrt(v))
    return o.r((sqrt_v if root is None else sqrt_v * root) + constant(eps))


def norm(o: Primitives, x: Tensor, num: int) -> Tensor:
    """R(sqrt(sum of x^2)) of a vector of `num` values; the squares are summed on their grid."""
    return o.r(o.sqrt(total(o, o.r(x * x), (0,), num)))
