"""The optimizers: their hyperparameters, their memory, and the update each one makes.

Symbols: p = a parameter; g = its gradient (clipped, and with `weight_decay` added when that is coupled); lr = eta(t);
t' = t + 1, the number of this update counted from 1. Slots are the memory an update needs, by standard names.

Weight decay lambda: `coupled` is an L2 penalty, g + lambda p, before anything else (torch's usual `weight_decay`);
`decoupled` shrinks p by (1 - lr lambda) before the update (AdamW; Loshchilov and Hutter 2019). `decay_exclude: bias_and_norm`
spares every bias and every scale and offset of a norm.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

import numpy as np
from pydantic import Field

from runner.layers import Network
from runner.section import Fraction, NonNegative, Positive, Section


class _Optimizer(Section):
    lr: Positive
    weight_decay: NonNegative
    weight_decay_mode: Literal["coupled", "decoupled"]
    decay_exclude: Literal["none", "bias_and_norm"]

    def slots(self) -> dict[str, float]:
        """Slot name -> the value it starts with."""
        return {}

    def scalars(self, step: int) -> dict[str, float]:
        """Memory that is a number and a pure function of the applied updates."""
        return {}

    def initial_slots(self, weights: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        return {
            slot: {name: np.full(w.shape, value, dtype=w.dtype) for name, w in weights.items()}
            for slot, value in self.slots().items()
        }


class SGD(_Optimizer):
    """b = momentum b + g; p -= lr b, or with `nesterov` p -= lr (g + momentum b). Without momentum p -= lr g.

    torch.optim.SGD. Keras keeps lr inside its buffer, so that it differs as soon as lr changes.
    """

    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool

    def slots(self) -> dict[str, float]:
        return {"momentum": 0.0} if self.momentum else {}


class _Adam(_Optimizer):
    beta1: Fraction
    beta2: Fraction
    eps: Positive


class Adam(_Adam):
    """m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; p -= lr mhat / (sqrt(vhat) + eps),
    mhat = m / (1 - beta1^t'), vhat = v / (1 - beta2^t'); with `amsgrad` v is its largest value so far.

    Kingma and Ba (2015), algorithm 1; torch.optim.Adam. Keras puts eps beside the uncorrected root.
    """

    name: Literal["adam"]
    amsgrad: bool

    def slots(self) -> dict[str, float]:
        slots = {"first_moment": 0.0, "second_moment": 0.0}
        return {**slots, "max_second_moment": 0.0} if self.amsgrad else slots


class AdamW(Adam):
    """Adam with decoupled weight decay as its default. Loshchilov and Hutter (2019), algorithm 2; torch.optim.AdamW."""

    name: Literal["adamw"]  # type: ignore[assignment]


class Adamax(_Adam):
    """m as in Adam; u = max(beta2 u, |g| + eps); p -= lr / (1 - beta1^t') m / u.

    Kingma and Ba (2015), algorithm 2; torch.optim.Adamax. Keras adds eps to u instead.
    """

    name: Literal["adamax"]

    def slots(self) -> dict[str, float]:
        return {"first_moment": 0.0, "infinity_norm": 0.0}


class NAdam(_Adam):
    """m, v as in Adam; mu_t' = beta1 (1 - 0.5 * 0.96^(t' momentum_decay)), P = product of mu_1 ... mu_t';
    p -= lr [(1 - mu_t') g / (1 - P) + mu_(t'+1) m / (1 - P mu_(t'+1))] / (sqrt(vhat) + eps).

    Dozat (2016); torch.optim.NAdam. Keras is the same with momentum_decay = 1.
    """

    name: Literal["nadam"]
    momentum_decay: NonNegative

    def slots(self) -> dict[str, float]:
        return {"first_moment": 0.0, "second_moment": 0.0}

    def scalars(self, step: int) -> dict[str, float]:
        t = np.arange(1, step + 1)
        return {"mu_product": float(np.prod(self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))))}


class RMSprop(_Optimizer):
    """v = rho v + (1 - rho) g^2; d = g / (sqrt(v) + eps); p -= lr d, or with momentum b = momentum b + d; p -= lr b.
    `centered`: a = rho a + (1 - rho) g and v - a^2 under the root.

    Tieleman and Hinton (2012), Graves (2013) for centered; torch.optim.RMSprop. Keras: eps inside the root, lr in b.
    """

    name: Literal["rmsprop"]
    rho: Fraction
    eps: Positive
    momentum: Fraction
    centered: bool

    def slots(self) -> dict[str, float]:
        slots = {"square_average": 0.0}
        if self.centered:
            slots["gradient_average"] = 0.0
        if self.momentum:
            slots["momentum"] = 0.0
        return slots


class Adagrad(_Optimizer):
    """s = s + g^2; p -= lr g / (sqrt(s) + eps). Duchi et al. (2011); torch.optim.Adagrad. Keras: eps inside the root."""

    name: Literal["adagrad"]
    eps: Positive
    initial_accumulator: NonNegative

    def slots(self) -> dict[str, float]:
        return {"accumulator": self.initial_accumulator}


class Adadelta(_Optimizer):
    """v = rho v + (1 - rho) g^2; d = sqrt(a + eps) / sqrt(v + eps) g; a = rho a + (1 - rho) d^2; p -= lr d.

    Zeiler (2012), algorithm 1; torch.optim.Adadelta and Keras alike, given the same rho and eps.
    """

    name: Literal["adadelta"]
    rho: Fraction
    eps: Positive

    def slots(self) -> dict[str, float]:
        return {"square_average": 0.0, "delta_average": 0.0}


class Lion(_Optimizer):
    """p -= lr sign(beta1 m + (1 - beta1) g); then m = beta2 m + (1 - beta2) g. Chen et al. (2023), algorithm 2."""

    name: Literal["lion"]
    beta1: Fraction
    beta2: Fraction

    def slots(self) -> dict[str, float]:
        return {"first_moment": 0.0}


Optimizer = Annotated[
    Union[SGD, Adam, AdamW, Adamax, NAdam, RMSprop, Adagrad, Adadelta, Lion], Field(discriminator="name")
]


def decaying(optimizer: Any, network: Network) -> list[str]:
    """The weights that weight decay touches: all, or with `bias_and_norm` excluded the kernels."""
    everything = optimizer.decay_exclude == "none"
    return [name for name, v in network.variables().items() if v.trainable and (everything or v.decays)]
