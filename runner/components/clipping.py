"""Clipping of gradients: which weights are clipped together, and to what."""

from collections.abc import Iterable
from dataclasses import dataclass

from runner.components.optimizers import Group


@dataclass(frozen=True)
class Clip:
    """A limit for the gradients g of some weights, after the micro-batches are added up.

    By `norm`: g min(1, norm / |g|), |g| = sqrt(sum of g^2 over all these weights);
    torch.nn.utils.clip_grad_norm_ divides by |g| + 1e-6. By `value`: each entry of g is clipped to
    [-value, value], as by torch.nn.utils.clip_grad_value_ and Keras's clipvalue. At most one of the
    two is given; with none, g stays as it is.
    """

    names: tuple[str, ...]
    norm: float | None = None
    value: float | None = None

    @property
    def largest(self) -> float | None:
        return self.norm if self.value is None else self.value

    @property
    def algorithm(self) -> str:
        """The name of the rule in Lightning: norm or value."""
        return "norm" if self.value is None else "value"


def rules(groups: Iterable[Group], norm: float | None, value: float | None) -> tuple[Clip, ...]:
    """Return the limit of the trainer, for all weights without another one, and then that of each
    entry of optimizer.groups with a norm of its own, for all weights that have its factors. Frozen
    weights have no gradient."""
    names: dict[str, list[str]] = {"": []}
    norms: dict[str, float | None] = {}
    for group in groups:
        if not group.is_frozen:
            names.setdefault(group.clipped_by, []).extend(group.names)
            norms[group.clipped_by] = group.clip_norm
    rest = Clip(tuple(names.pop("")), norm, value)
    return (rest, *(Clip(tuple(own), norms[entry]) for entry, own in names.items()))
