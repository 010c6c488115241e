"""The optimizers: their hyperparameters, their slots, and their updates.

Symbols: p = a parameter; g = its gradient (clipped, plus the weight decay if that is coupled); lr =
eta(t); t' = t + 1, the number of this update counted from 1. Slots are the arrays that an optimizer
keeps between updates (torch: state), by standard names.

Weight decay lambda: `coupled` is an L2 penalty, g + lambda p, added first (torch's usual
`weight_decay`). `decoupled` multiplies p by (1 - lr lambda) before the update (AdamW; Loshchilov
and Hutter 2019). `decay_exclude: bias_and_norm` exempts all biases, the scale and offset of norms,
and position embeddings.

Groups of weights: each entry of `groups` has factors of lr and lambda for the weights with matching
names; the first matching entry applies. Weights with lr_factor 0 are frozen: they get no gradient,
their slots keep the initial values, and the global norm for clipping does not include them.
`layer_decay` d multiplies lr by d^(L - 1 - i) in the i-th of L layers with weights (one with
branches counts as one), as in Clark et al., ELECTRA (2020), and timm's layer_decay. `schedule` of
an entry takes the place of eta(t) for its weights, with the same base rate; a plateau does not
lower it. `gradient_clip_norm` of an entry takes the place of the trainer's clipping for its weights
(runner.components.clipping).

`schedules` changes other hyperparameters than lr over the run, with the same schedules. The base is
then the value of the hyperparameter, and keys that end in `_lr` are values of it. Bias corrections
use the current value, as in torch.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal, Union

import numpy as np
from pydantic import Field, model_validator

from runner import user_code
from runner.components import width
from runner.components.custom import CustomNetwork, layer_of
from runner.components.layers import Network, Variable
from runner.errors import ConfigError, listed, nearest, show
from runner.schedules import AnyCurve, Clock, Curve, table
from runner.schedules.units import Length
from runner.section import (
    MOST,
    OR_AUTO,
    Count,
    Fraction,
    NonNegative,
    OneOf,
    OwnCode,
    Positive,
    Section,
)

NUMBERS = "numbers"  # a slot with an optimizer's own numbers in place of arrays by weight
BASE_WEIGHTS = "base_weights"  # the slot with z of a schedule-free optimizer
# The slot with the weights that training continues from, if those for evaluation are others
TRAINING_WEIGHTS = "training_weights"
LEARNING_RATE = "learning_rate"  # the table of eta(t)
AVERAGE_WEIGHTS = "average_weights"  # the slot with the average of the weights: averages.py
EARLIER_WEIGHTS = "earlier_weights_"  # of slots with weights that are in the average

# A command or a file may also have auto (runner.tasks.auto_lr), for which a number stands in
Rate = Annotated[Positive, OR_AUTO]

# the share of the old average in a new one
Decay = Annotated[float, Field(gt=0, lt=1)]


class Matching(Section):
    """An entry of `groups`: factors, and possibly a schedule and a limit of the gradient's norm,
    for the weights with a name, or a layer name, that matches the pattern `match`."""

    match: Annotated[str, Field(min_length=1)]  # dense_0/kernel, dense_*, */bias
    lr_factor: NonNegative = 1.0
    weight_decay_factor: NonNegative = 1.0
    schedule: AnyCurve | None = None
    gradient_clip_norm: Positive | None = None

    @model_validator(mode="after")
    def _can_be_clipped(self) -> "Matching":
        if self.gradient_clip_norm is not None and self.lr_factor == 0:
            raise ValueError("lr_factor above 0 with gradient_clip_norm, got 0")
        return self

    @model_validator(mode="after")
    def _can_be_scheduled(self) -> "Matching":
        if self.schedule is not None and self.lr_factor == 0:
            raise ValueError("lr_factor above 0 with a schedule, got 0")
        if self.schedule is not None and re.search(r'[,"\s]', self.match):
            raise ValueError(
                f"a match without commas, quotes and spaces with a schedule, since it names a "
                f"column of trace.csv, got {show(self.match)}"
            )
        return self

    def fits(self, name: str) -> bool:
        return fnmatchcase(name, self.match) or fnmatchcase(layer_of(name), self.match)


class MuonMatching(Matching):
    """An entry of Muon's `groups`: also the update of the weights, if not the default one."""

    method: Literal["muon", "adamw"] | None = None


@dataclass(frozen=True)
class Group:
    """Weights with the same rate, lr_factor eta(t) or lr_factor times the group's own schedule, the
    same weight decay, decay_factor lambda, and the same limit of their gradients."""

    names: tuple[str, ...]
    lr_factor: float = 1.0
    decay_factor: float = 1.0
    # which of the optimizer's updates, if it has several: "" is the first one
    kind: str = ""
    # `match` of the entry of optimizer.groups whose schedule it has; "" has the run's schedule
    scheduled_by: str = ""
    # `match` of the entry that limits the norm of the gradients of all its weights, which may be in
    # several groups, and the limit; "" and None: the trainer's
    clipped_by: str = ""
    clip_norm: float | None = None

    @property
    def rate(self) -> str:
        """The name of the table with the group's rates: learning_rate*FACTOR/MATCH."""
        factor = "" if self.lr_factor == 1 else f"*{self.lr_factor!r}"
        return f"{LEARNING_RATE}{factor}{'/' if self.scheduled_by else ''}{self.scheduled_by}"

    @property
    def is_frozen(self) -> bool:
        """True with lr_factor 0: the weights never change, so they need no gradient."""
        return self.lr_factor == 0


_LARGE = 2**16  # numbers; weights of this size and more stay separate


def joined(group: Group, sizes: Mapping[str, int], joins: Callable[[str], bool]) -> list[list[str]]:
    """Return the weights of a group that are updated together: small ones as one vector, if `joins`
    says that the group's kind of update is elementwise, and each other one by itself. A large one
    would take longer to copy than to update. A frozen group has none."""
    if group.is_frozen:
        return []
    small = [name for name in group.names if joins(group.kind) and sizes[name] < _LARGE]
    return [*([small] if small else []), *([name] for name in group.names if name not in small)]


class _Optimizer(Section):
    lr: Rate
    weight_decay: NonNegative
    weight_decay_mode: Literal["coupled", "decoupled"]
    decay_exclude: Literal["none", "bias_and_norm"]
    groups: list[Matching]
    layer_decay: Positive
    width_base: Count | None
    schedules: dict[str, AnyCurve]
    ema: Decay | None
    swa: Length | None
    lawa: Annotated[int, Field(ge=2, le=MOST)] | None

    schedulable: ClassVar[Sequence[str]] = ("weight_decay",)  # hyperparameters that can change
    # True if the weights for evaluation are an average by the optimizer's definition
    has_own_average: ClassVar[bool] = False
    # False if an update needs norms, means or products of a single weight
    is_elementwise: ClassVar[bool] = True
    # True if an update needs sums over all weights together
    needs_sums: ClassVar[bool] = False
    # slots with other shapes than the weights, in canonical axes; not every weight has them
    reduced_slots: ClassVar[frozenset[str]] = frozenset()
    # True if the update contains the decoupled weight decay too, in place of a factor before it
    has_own_decay: ClassVar[bool] = False
    # True if what is kept for all weights together depends on eta(t)
    needs_one_schedule: ClassVar[bool] = False
    width_rule: ClassVar[width.Rule | None] = None  # how rates depend on the width

    @property
    def numbers(self) -> dict[str, float]:
        """Numbers of the whole run that the optimizer keeps, in float64, before the first update;
        the slot NUMBERS has them."""
        return {}

    def own_tables(self, num_steps: int) -> dict[str, np.ndarray]:
        """Return tables of hyperparameters that change by the optimizer's definition."""
        return {}

    @property
    def decays(self) -> bool:
        """True if there is weight decay at any time."""
        return self.weight_decay > 0 or "weight_decay" in self.schedules

    def slots(self) -> dict[str, float]:
        """Map slot names to their initial values."""
        return {}

    def kind(self, name: str, variable: Variable, is_last: bool, entry: Matching) -> str:
        """Return the kind of update of a weight. `is_last` says whether it is of the last layer
        with weights, `entry` is that of `groups` which matches it."""
        return ""

    def joins(self, kind: str) -> bool:
        """Return whether weights with this kind of update can be one vector: their update is
        elementwise."""
        return self.is_elementwise

    def rate_factor(self, kind: str) -> float:
        """Return the factor of the rate of a kind of update."""
        return 1.0

    def scalars(self, step: int) -> dict[str, float]:
        """State that is a number, computed from the number of applied updates."""
        return {}

    def initial_slots(
        self, weights: Mapping[str, np.ndarray], kinds: Mapping[str, str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return the slots before the first update. `kinds` maps the weights to their `kind`."""

        def filled(value: float, w: np.ndarray) -> np.ndarray:
            # np.zeros takes no memory until it is written to
            return np.full(w.shape, value, w.dtype) if value else np.zeros(w.shape, w.dtype)

        slots = {
            slot: {name: filled(value, w) for name, w in weights.items()}
            for slot, value in self.slots().items()
        }
        numbers = {name: np.array(value) for name, value in self.numbers.items()}
        return {**slots, NUMBERS: numbers} if numbers else slots


class SGD(_Optimizer):
    """b = momentum b + g; p -= lr b, or with `nesterov` p -= lr (g + momentum b). Without momentum
    p -= lr g.

    torch.optim.SGD. Keras multiplies the buffer by lr, so its update differs once lr changes.
    """

    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool

    schedulable: ClassVar[Sequence[str]] = ("momentum", "weight_decay")
    width_rule: ClassVar[width.Rule | None] = "sgd"

    def slots(self) -> dict[str, float]:
        return {"momentum": 0.0} if self.momentum else {}


class _Adam(_Optimizer):
    beta1: Fraction
    beta2: Fraction
    eps: Positive

    schedulable: ClassVar[Sequence[str]] = ("beta1", "beta2", "weight_decay")
    width_rule: ClassVar[width.Rule | None] = "adam"


class Adam(_Adam):
    """m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; p -= lr mhat / (sqrt(vhat) +
    eps), mhat = m / (1 - beta1^t'), vhat = v / (1 - beta2^t'). With `amsgrad`, vhat uses the
    largest v so far.

    Kingma and Ba (2015), algorithm 1; torch.optim.Adam. Keras adds eps to the uncorrected root.
    """

    name: Literal["adam"]
    amsgrad: bool

    def slots(self) -> dict[str, float]:
        slots = {"first_moment": 0.0, "second_moment": 0.0}
        return {**slots, "max_second_moment": 0.0} if self.amsgrad else slots


class AdamW(Adam):
    """Adam with decoupled weight decay by default. Loshchilov and Hutter (2019), algorithm 2;
    torch.optim.AdamW."""

    name: Literal["adamw"]  # type: ignore[assignment]


class Adamax(_Adam):
    """m as in Adam; u = max(beta2 u, |g| + eps); p -= lr / (1 - beta1^t') m / u.

    Kingma and Ba (2015), algorithm 2; torch.optim.Adamax. Keras adds eps to u instead.
    """

    name: Literal["adamax"]

    def slots(self) -> dict[str, float]:
        return {"first_moment": 0.0, "infinity_norm": 0.0}


class NAdam(_Adam):
    """m, v as in Adam; mu_t' = beta1 (1 - 0.5 * 0.96^(t' momentum_decay)), P = product of mu_1 ...
    mu_t'; p -= lr [(1 - mu_t') g / (1 - P) + mu_(t'+1) m / (1 - P mu_(t'+1))] / (sqrt(vhat) + eps).

    Dozat (2016); torch.optim.NAdam. Keras is the same with momentum_decay = 1.
    """

    name: Literal["nadam"]
    momentum_decay: NonNegative

    # beta1 already has its own schedule, mu
    schedulable: ClassVar[Sequence[str]] = ("beta2", "weight_decay")

    def slots(self) -> dict[str, float]:
        return {"first_moment": 0.0, "second_moment": 0.0}

    def scalars(self, step: int) -> dict[str, float]:
        t = np.arange(1, step + 1)
        return {
            "mu_product": float(np.prod(self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))))
        }


class RMSprop(_Optimizer):
    """v = rho v + (1 - rho) g^2; d = g / (sqrt(v) + eps); p -= lr d, or with momentum b = momentum
    b + d; p -= lr b.
    `centered`: a = rho a + (1 - rho) g and v - a^2 under the root.

    Tieleman and Hinton (2012), Graves (2013) for centered; torch.optim.RMSprop. Keras has eps
    inside the root and multiplies b by lr.
    """

    name: Literal["rmsprop"]
    rho: Fraction
    eps: Positive
    momentum: Fraction
    centered: bool

    schedulable: ClassVar[Sequence[str]] = ("momentum", "rho", "weight_decay")
    width_rule: ClassVar[width.Rule | None] = "adam"

    def slots(self) -> dict[str, float]:
        slots = {"square_average": 0.0}
        if self.centered:
            slots["gradient_average"] = 0.0
        if self.momentum:
            slots["momentum"] = 0.0
        return slots


class Adagrad(_Optimizer):
    """s = s + g^2; p -= lr g / (sqrt(s) + eps). Duchi et al. (2011); torch.optim.Adagrad. Keras has
    eps inside the root."""

    name: Literal["adagrad"]
    eps: Positive
    initial_accumulator: NonNegative

    def slots(self) -> dict[str, float]:
        return {"accumulator": self.initial_accumulator}


class Adadelta(_Optimizer):
    """v = rho v + (1 - rho) g^2; d = sqrt(a + eps) / sqrt(v + eps) g; a = rho a + (1 - rho) d^2; p
    -= lr d.

    Zeiler (2012), algorithm 1; equal to torch.optim.Adadelta and Keras for the same rho and eps.
    """

    name: Literal["adadelta"]
    rho: Fraction
    eps: Positive

    def slots(self) -> dict[str, float]:
        return {"square_average": 0.0, "delta_average": 0.0}


class Lion(_Optimizer):
    """p -= lr sign(beta1 m + (1 - beta1) g); then m = beta2 m + (1 - beta2) g. Chen et al. (2023),
    algorithm 2."""

    name: Literal["lion"]
    beta1: Fraction
    beta2: Fraction

    schedulable: ClassVar[Sequence[str]] = ("beta1", "beta2", "weight_decay")
    width_rule: ClassVar[width.Rule | None] = "adam"

    def slots(self) -> dict[str, float]:
        return {"first_moment": 0.0}


class Adafactor(_Optimizer):
    """s = g^2 + eps1; b = 1 - t'^beta2_decay. For a weight [..., I, O]: R = b R + (1 - b) mean of s
    over O; C = b C + (1 - b) mean of s over I; v = R C / (mean of R over I). For a vector v = b v +
    (1 - b) s. u = g / sqrt(v); p -= lr max(eps2, RMS(p)) u / max(1, RMS(u) /
    clip_threshold), without max(eps2, RMS(p)) if `scale_parameter` is false. RMS(p) =
    sqrt(mean of p^2).

    R and C take I + O numbers in place of I O. The axes are the canonical ones: a convolution's
    [height, width, in, out] has R and C for each position of its window, as in Keras; torch factors
    height x width. A model of the user's own has its framework's axes.

    Shazeer and Stern (2018), algorithm 4, without its first moment; equal to torch.optim.Adafactor
    (but for eps1, a lower bound there) and keras.optimizers.Adafactor while eta(t) <= 1 / sqrt(t'):
    these take min(lr, 1 / sqrt(t')). u is computed from the roots of R and C: v itself would be 0
    in float32 for a row without any gradient.
    """

    name: Literal["adafactor"]
    beta2_decay: Annotated[float, Field(ge=-1, lt=0)]
    eps1: Positive
    eps2: NonNegative
    clip_threshold: Positive
    scale_parameter: bool

    is_elementwise: ClassVar[bool] = False
    reduced_slots: ClassVar[frozenset[str]] = frozenset(
        {"row_square_average", "column_square_average", "square_average"}
    )

    def slots(self) -> dict[str, float]:
        """Return no slots: none has the shapes of the weights."""
        return {}

    def initial_slots(
        self, weights: Mapping[str, np.ndarray], kinds: Mapping[str, str]
    ) -> dict[str, dict[str, np.ndarray]]:
        matrices = {name: w for name, w in weights.items() if w.ndim >= 2}
        slots = {
            "row_square_average": {
                name: np.zeros(w.shape[:-1], w.dtype) for name, w in matrices.items()
            },
            "column_square_average": {
                name: np.zeros((*w.shape[:-2], w.shape[-1]), w.dtype)
                for name, w in matrices.items()
            },
            "square_average": {
                name: np.zeros_like(w) for name, w in weights.items() if name not in matrices
            },
        }
        return {slot: values for slot, values in slots.items() if values}


class _Layerwise(_Optimizer):
    """Base class of updates with a step in proportion to the size of each weight tensor.

    A third way of weight decay, `layerwise`, is that of the papers: lambda p inside of the update
    that is scaled. With adapt_exclude=bias_and_norm, the ratio is 1 for the weights that
    `decay_exclude` names.
    """

    weight_decay_mode: Literal["layerwise", "coupled", "decoupled"]  # type: ignore[assignment]
    adapt_exclude: Literal["none", "bias_and_norm"]

    is_elementwise: ClassVar[bool] = False

    def kind(self, name: str, variable: Variable, is_last: bool, entry: Matching) -> str:
        is_plain = self.adapt_exclude == "bias_and_norm" and not variable.decays
        return "plain" if is_plain else ""

    def joins(self, kind: str) -> bool:
        return kind == "plain"


class LAMB(_Layerwise):
    """m, v, mhat, vhat as in Adam; u = mhat / (sqrt(vhat) + eps) + lambda p; p -= lr |p| / |u| u.
    The norms are of one weight tensor; the ratio is 1 if one of them is 0.

    You et al. (2020), algorithm 2, with phi(z) = z. keras.optimizers.Lamb is equal without weight
    decay, which is always decoupled in Keras.
    """

    name: Literal["lamb"]
    beta1: Fraction
    beta2: Fraction
    eps: Positive

    schedulable: ClassVar[Sequence[str]] = ("beta1", "beta2", "weight_decay")

    def slots(self) -> dict[str, float]:
        return {"first_moment": 0.0, "second_moment": 0.0}


class LARS(_Layerwise):
    """a = trust_coefficient |p| / (|g| + lambda |p|); b = momentum b + a (g + lambda p);
    p -= lr b, or with `nesterov` p -= lr (a (g + lambda p) + momentum b). The norms are of one
    weight tensor; a is 1 if |p| or the sum below it is 0.

    You, Gitman and Ginsburg (2017), algorithm 1, with SGD's buffer, which does not contain lr: the
    paper's is the same at a constant rate.
    """

    name: Literal["lars"]
    momentum: Fraction
    nesterov: bool
    trust_coefficient: Positive

    schedulable: ClassVar[Sequence[str]] = ("momentum", "weight_decay")

    def slots(self) -> dict[str, float]:
        return {"momentum": 0.0} if self.momentum else {}


class Muon(_Optimizer):
    """b = momentum b + (1 - momentum) g; d = (1 - momentum) g + momentum b with `nesterov`, else
    b; X = d / max(|d|, eps); then `ns_steps` times X = c0 X + (c1 X X^T + c2 (X X^T)^2) X with
    c = `ns_coefficients` (Newton-Schulz); p -= lr r X. `adjust_lr` gives r: `original`
    sqrt(max(1, O / I)), `match_rms_adamw` 0.2 sqrt(max(O, I)), `none` 1.

    Only hidden matrices have this update: weights [I, O] of at least two axes, except embeddings
    and the last layer. A convolution's kernel [height, width, in, out] is the matrix
    [height width in, out]. All other weights have AdamW's update, with the keys `adamw_*` and the
    rate adamw_lr_factor eta(t). `method` of an entry of `groups` chooses otherwise.

    Jordan et al., Muon (2024); match_rms_adamw: Liu et al. (2025). torch.optim.Muon in the run's
    dtype: torch iterates in bfloat16, and takes only matrices. keras.optimizers.Muon has a buffer
    without (1 - momentum), of which X does not depend, adds eps to |d|, and gives only weights of
    two axes Muon's update, the last layer's too.
    """

    name: Literal["muon"]
    groups: list[MuonMatching]  # type: ignore[assignment]
    momentum: Fraction
    nesterov: bool
    ns_steps: Annotated[int, Field(ge=1, lt=100)]
    ns_coefficients: Annotated[list[float], Field(min_length=3, max_length=3)]
    eps: Positive
    adjust_lr: Literal["original", "match_rms_adamw", "none"]
    adamw_lr_factor: Positive
    adamw_beta1: Fraction
    adamw_beta2: Fraction
    adamw_eps: Positive

    schedulable: ClassVar[Sequence[str]] = ("momentum", "weight_decay")
    is_elementwise: ClassVar[bool] = False

    def kind(self, name: str, variable: Variable, is_last: bool, entry: Matching) -> str:
        method = entry.method if isinstance(entry, MuonMatching) else None
        if method == "muon" and len(variable.shape) < 2:
            raise ConfigError(
                f"optimizer.groups: method must be adamw for weights without two axes, got muon "
                f"for {name}"
            )
        is_hidden = variable.decays and not is_last and "embed" not in name.lower()
        return "" if method == "muon" or (method is None and is_hidden) else "adamw"

    def rate_factor(self, kind: str) -> float:
        return self.adamw_lr_factor if kind == "adamw" else 1.0

    def joins(self, kind: str) -> bool:
        return kind == "adamw"

    def ratio(self, num_in: int, num_out: int) -> float:
        """Return r of a matrix [num_in, num_out]."""
        if self.adjust_lr == "none":
            return 1.0
        if self.adjust_lr == "original":
            return max(1.0, num_out / num_in) ** 0.5
        return 0.2 * max(num_in, num_out) ** 0.5

    def slots(self) -> dict[str, float]:
        """Return the slots of AdamW's update. Hidden matrices have one, the momentum."""
        return {"first_moment": 0.0, "second_moment": 0.0}

    def initial_slots(
        self, weights: Mapping[str, np.ndarray], kinds: Mapping[str, str]
    ) -> dict[str, dict[str, np.ndarray]]:
        kind_of = {"momentum": "", "first_moment": "adamw", "second_moment": "adamw"}
        slots = {
            slot: {name: np.zeros_like(w) for name, w in weights.items() if kinds[name] == kind}
            for slot, kind in kind_of.items()
        }
        return {slot: values for slot, values in slots.items() if values}


class _ScheduleFree(_Optimizer):
    """Base class of the schedule-free optimizers. Gradients are taken at y. With the step d of the
    subclass: z -= lr d; x = (1 - c) x + c z; y = (1 - beta1) z + beta1 x.

    c = w / (sum of w so far), w = t'^r (largest lr so far)^weight_lr_power. Weights for evaluation,
    in checkpoints, files and exports are x; training continues from y. Running statistics of batch
    norm are those of y. Warm-up and other shapes of lr come from the schedule as usual.

    Defazio et al. (2024), and its package schedulefree, which computes x from y and z as here.
    """

    beta1: Annotated[float, Field(gt=0, lt=1)]
    r: NonNegative
    weight_lr_power: NonNegative

    has_own_decay: ClassVar[bool] = True
    needs_one_schedule: ClassVar[bool] = True
    has_own_average: ClassVar[bool] = True

    @property
    def numbers(self) -> dict[str, float]:
        return {"weight_sum": 0.0, "largest_rate": 0.0}

    def initial_slots(
        self, weights: Mapping[str, np.ndarray], kinds: Mapping[str, str]
    ) -> dict[str, dict[str, np.ndarray]]:
        slots = super().initial_slots(weights, kinds)
        return {**slots, BASE_WEIGHTS: dict(weights), TRAINING_WEIGHTS: dict(weights)}

    def averaged(
        self, y: Mapping[str, np.ndarray], z: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return x = y + (1 - 1 / beta1) (z - y), computed in float64 and rounded once."""
        factor = 1 - 1 / self.beta1
        return {
            name: (value + factor * (z[name].astype(np.float64) - value)).astype(value.dtype)
            for name, value in y.items()
        }


class ScheduleFreeSGD(_ScheduleFree):
    """d = g + lambda y, with the averages of schedule-free optimizers; beta1 is the package's
    momentum. Both ways of weight decay are the same. schedulefree.SGDScheduleFree."""

    name: Literal["schedule_free_sgd"]


class ScheduleFreeAdamW(_ScheduleFree):
    """v = beta2 v + (1 - beta2) g^2; d = g / (sqrt(v / (1 - beta2^t')) + eps) + lambda y, with the
    averages of schedule-free optimizers. Coupled weight decay is added to g instead.

    schedulefree.AdamWScheduleFree. keras.optimizers.ScheduleFreeAdamW averages with c = 1 / t', and
    on TensorFlow computes the old x with the new z (Keras 3.15).
    """

    name: Literal["schedule_free_adamw"]
    beta2: Fraction
    eps: Positive

    schedulable: ClassVar[Sequence[str]] = ("beta2", "weight_decay")

    def slots(self) -> dict[str, float]:
        return {"second_moment": 0.0}


class AdEMAMix(_Adam):
    """m, v, mhat, vhat as in Adam; s = beta3 s + (1 - beta3) g; p -= lr (mhat + alpha s) /
    (sqrt(vhat) + eps).

    With `slow_warmup_steps` S, alpha_t = alpha min(1, t' / S), and beta3_t goes from beta1 to beta3
    in S updates with a linear half-life: exp(ln beta1 ln beta3 / ((1 - t' / S) ln beta3 + t' / S ln
    beta1)). `schedules` of alpha and beta3 are other ways.

    Pagliardini, Ablin and Grangier (2024), algorithm 1; neither torch nor Keras has it.
    """

    name: Literal["ademamix"]
    beta1: Annotated[float, Field(gt=0, lt=1)]
    beta3: Annotated[float, Field(gt=0, lt=1)]
    alpha: NonNegative
    slow_warmup_steps: Annotated[int, Field(ge=0, le=MOST)]

    schedulable: ClassVar[Sequence[str]] = ("beta1", "beta2", "beta3", "alpha", "weight_decay")

    def slots(self) -> dict[str, float]:
        return {"first_moment": 0.0, "second_moment": 0.0, "slow_moment": 0.0}

    def own_tables(self, num_steps: int) -> dict[str, np.ndarray]:
        span = self.slow_warmup_steps
        if not span:
            return {}
        for name in ("alpha", "beta3"):
            if name in self.schedules:
                raise ConfigError(
                    f"optimizer.slow_warmup_steps must be 0 with optimizer.schedules.{name}, got "
                    f"{span}"
                )
        share = np.minimum(np.arange(1, num_steps + 1) / span, 1.0)
        a, b = np.log(self.beta1), np.log(self.beta3)
        beta3 = np.exp(a * b / ((1 - share) * b + share * a))
        return {
            "alpha": self.alpha * share,
            "beta3": np.where(share < 1, np.minimum(beta3, self.beta3), self.beta3),
        }


class Prodigy(_Adam):
    """Adam with an estimate d of the distance to the solution as its rate. With D = d eta(t) and
    beta3 = sqrt(beta2), sums over all weights, P the first weights:

    n = beta3 n + d / d0 D sum of g (P - p); s = beta3 s + d / d0 D g;
    m = beta1 m + (1 - beta1) d g; v = beta2 v + (1 - beta2) (d g)^2;
    dhat = d_coef n / (sum of |s|); d = the largest dhat so far, at most growth_rate d;
    p -= D m / (sqrt(v) + d eps), D with the old d.

    `use_bias_correction` multiplies D by sqrt(1 - beta2^t') / (1 - beta1^t').
    `safeguard_warmup` leaves eta(t) out of s. Decoupled weight decay is p -= D lambda p. An update
    at the rate 0 changes nothing. The rate of a group changes its step, not the estimate.

    Mishchenko and Defazio (2023), algorithm 4 and its package prodigyopt. The rate is usually 1,
    with a schedule that ends at 0.
    """

    name: Literal["prodigy"]
    d0: Positive
    d_coef: Positive
    growth_rate: Annotated[float, Field(gt=1)] | None
    use_bias_correction: bool
    safeguard_warmup: bool

    schedulable: ClassVar[Sequence[str]] = ("weight_decay",)
    has_own_decay: ClassVar[bool] = True
    needs_one_schedule: ClassVar[bool] = True
    needs_sums: ClassVar[bool] = True
    width_rule: ClassVar[width.Rule | None] = None

    @property
    def numbers(self) -> dict[str, float]:
        return {"numerator": 0.0, "distance": self.d0, "largest_distance": self.d0}

    def slots(self) -> dict[str, float]:
        return {"first_moment": 0.0, "second_moment": 0.0, "gradient_sum": 0.0}

    def initial_slots(
        self, weights: Mapping[str, np.ndarray], kinds: Mapping[str, str]
    ) -> dict[str, dict[str, np.ndarray]]:
        return {**super().initial_slots(weights, kinds), "first_weights": dict(weights)}


class Custom(OwnCode):
    """The user's own optimizer, `_target_`: a torch.optim.Optimizer on Lightning, a Keras optimizer
    on Keras. Keys that are not listed here are its arguments.

    A class or function for Lightning is called with the parameter groups and `lr`, for Keras with
    `learning_rate`. Its slots are the framework's, known after the first update.
    """

    name: Literal["custom"]
    lr: Rate
    decay_exclude: Literal["none", "bias_and_norm"]
    groups: list[Matching]
    layer_decay: Positive
    width_base: Count | None
    schedules: dict[str, AnyCurve]
    ema: Decay | None
    swa: Length | None
    lawa: Annotated[int, Field(ge=2, le=MOST)] | None

    schedulable: ClassVar[Sequence[str]] = ()
    is_elementwise: ClassVar[bool] = True
    needs_one_schedule: ClassVar[bool] = False
    width_rule: ClassVar[width.Rule | None] = None
    has_own_average: ClassVar[bool] = False

    def make(self, kind: type, kind_name: str, *arguments: Any, **named: Any) -> Any:
        """Call the user's class or function with a backend's arguments and its own. Raises
        ConfigError if the result is not a `kind`; `kind_name` is its name for users."""
        try:
            target = user_code.resolve(self.code)
            factory = user_code.make({**self.section, "_partial_": True})
        except ValueError as error:
            raise ConfigError(f"optimizer.{error}") from error
        made: Any = target
        if not isinstance(target, type) or issubclass(target, kind):
            try:
                made = factory(*arguments, **named)
            except Exception as error:
                raise ConfigError(
                    f"optimizer._target_ {self.code} raised {user_code.blame(error, self.code)}"
                ) from error
        if not isinstance(made, kind):
            found = made if isinstance(made, type) else type(made)
            raise ConfigError(
                f"optimizer._target_ {self.code} must make a {kind_name} for this backend, got "
                f"{found.__module__}.{found.__qualname__}"
            )
        return made

    def kind(self, name: str, variable: Variable, is_last: bool, entry: Matching) -> str:
        """Return the only kind."""
        return ""

    def rate_factor(self, kind: str) -> float:
        """Return 1: there is only one kind of update."""
        return 1.0

    def own_tables(self, num_steps: int) -> dict[str, np.ndarray]:
        """Return no tables."""
        return {}

    def slots(self) -> dict[str, float]:
        """Return no slots: the optimizer makes them."""
        return {}

    def initial_slots(
        self, weights: Mapping[str, np.ndarray], kinds: Mapping[str, str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return no slots: the optimizer makes them."""
        return {}


class OfModule(Custom):
    """The optimizer of the user's LightningModule, from `configure_optimizers`. Each of its
    parameter groups has the rate eta(t) times the ratio of its own rate to that of the first
    group. A scheduler that `configure_optimizers` returns is not used."""

    name: Literal["module"]  # type: ignore[assignment]
    code: str = Field(default="configure_optimizers", alias="_target_", exclude=True)

    def check(self) -> None:
        """Refuse keys that the module's own groups replace, and arguments."""
        defaults = {
            "decay_exclude": "none",
            "groups": [],
            "layer_decay": 1.0,
            "width_base": None,
            "schedules": {},
        }
        for key, value in defaults.items():
            if getattr(self, key) != value:
                raise ConfigError(
                    f"optimizer.{key} must be {show(value)} with optimizer=module, whose parameter "
                    f"groups are the module's, got {show(getattr(self, key))}"
                )
        if self.arguments:
            raise ConfigError(
                f"unknown key optimizer.{next(iter(self.arguments))}; optimizer=module accepts: "
                f"name, lr"
            )


Optimizer = Annotated[
    Union[
        SGD,
        Adam,
        AdamW,
        Adamax,
        NAdam,
        RMSprop,
        Adagrad,
        Adadelta,
        Lion,
        Adafactor,
        LAMB,
        LARS,
        Muon,
        ScheduleFreeSGD,
        ScheduleFreeAdamW,
        AdEMAMix,
        Prodigy,
        Custom,
        OfModule,
    ],
    OneOf("name"),
]


def decaying(optimizer: Any, network: Network) -> list[str]:
    """The weights with weight decay: all, or only kernels with decay_exclude=bias_and_norm."""
    everything = optimizer.decay_exclude == "none"
    return [
        name for name, v in network.variables().items() if v.trainable and (everything or v.decays)
    ]


def groups(optimizer: Any, network: Network) -> tuple[Group, ...]:
    """Group the weights by their factors, schedules and limits of gradients. The first group has
    the factors 1, so its rate is eta(t); it may be empty.

    Raises ConfigError if a pattern matches no weight, if earlier entries take all weights that it
    matches, or if nothing would be trained.
    """
    decay = set(decaying(optimizer, network))
    layers = (
        _module_factors(optimizer, network)
        if isinstance(optimizer, OfModule)
        else _layer_factors(optimizer.layer_decay, network)
    )
    used: set[int] = set()
    by_factors: dict[Any, list[str]] = {(1.0, 1.0, "", "", "", None): []}
    scales = width.scales(optimizer, network)
    variables, last = network.variables(), network.last_weights()
    for name, layer in layers.items():
        i = next((i for i, entry in enumerate(optimizer.groups) if entry.fits(name)), None)
        entry = Matching(match=name) if i is None else optimizer.groups[i]
        used |= {i} if i is not None else set()
        decay_factor = entry.weight_decay_factor if name in decay else 0.0
        kind = optimizer.kind(name, variables[name], name in last, entry)
        lr_factor = layer * entry.lr_factor * optimizer.rate_factor(kind)
        lr_factor *= scales[name].rate if scales else 1.0
        scheduled_by = "" if entry.schedule is None else entry.match
        norm = entry.gradient_clip_norm
        clip = ("" if norm is None else entry.match, norm)
        factors = (lr_factor, decay_factor, kind, scheduled_by, *clip)
        by_factors.setdefault(factors, []).append(name)
    for i, entry in enumerate(optimizer.groups):
        if i not in used:
            raise ConfigError(
                f"optimizer.groups[{i}].match must match a weight of the model "
                f"({listed([*layers])}), got {entry.match}, {_why_unused(entry, [*layers])}"
            )
    if not layers:
        raise ConfigError("model must have at least one weight to train, got none")
    if not any(lr_factor for (lr_factor, *_), names in by_factors.items() if names):
        raise ConfigError(
            "optimizer.groups must leave at least one weight with lr_factor > 0, got 0 for all"
        )
    if isinstance(optimizer, Muon):
        _check_has_matrix(layers, [kind for (_, _, kind, *_), names in by_factors.items() if names])
    return tuple(Group(tuple(names), *factors) for factors, names in by_factors.items())


def _why_unused(entry: Matching, names: list[str]) -> str:
    """Say why an entry of `groups` takes no weight, and which pattern was probably meant."""
    if any(map(entry.fits, names)):
        return "but earlier entries match the same weights"
    inside = entry.model_copy(update={"match": f"*{entry.match.strip('*')}*"})
    if any(map(inside.fits, names)):  # as the weights of a part, whose names begin with the whole
        return f"which matches none; did you mean {inside.match}?"
    close = nearest(entry.match, [*names, *dict.fromkeys(map(layer_of, names))])
    return f"which matches none{close}"


def _check_has_matrix(names: Iterable[str], kinds: Iterable[str]) -> None:
    if "" not in kinds:
        raise ConfigError(
            f"optimizer=muon needs a hidden matrix: a weight of two axes or more that is neither "
            f"an embedding nor of the last layer, got {', '.join(names)}; use optimizer=adamw, or "
            f"name one with optimizer.groups=[{{match: NAME, method: muon}}]"
        )


def kinds(optimizer: Any, network: Network) -> dict[str, str]:
    """Map every weight to the kind of its update."""
    return {name: group.kind for group in groups(optimizer, network) for name in group.names}


def frozen(groups: Iterable[Group]) -> frozenset[str]:
    """The weights with lr_factor 0."""
    return frozenset(name for group in groups if group.is_frozen for name in group.names)


def _layer_factors(decay: float, network: Network) -> dict[str, float]:
    """Map every weight to the factor of its layer, d^(L - 1 - i)."""
    layers = network.layers()
    return {
        name: decay ** (len(layers) - 1 - i) for i, names in enumerate(layers) for name in names
    }


def _module_factors(optimizer: OfModule, network: Network) -> dict[str, float]:
    """Map every weight to the factor of its parameter group in the module's own optimizer; 0 for a
    weight that it does not train."""
    optimizer.check()
    factors = network.built.rate_factors if isinstance(network, CustomNetwork) else None
    if factors is None:
        raise ConfigError(
            "optimizer=module needs a LightningModule with training_step and configure_optimizers "
            "(backend=lightning)"
        )
    return {name: factors.get(name, 0.0) for names in network.layers() for name in names}


def group_rates(optimizer: Any, clock: Clock) -> dict[str, np.ndarray]:
    """Compute the rates of the entries of `groups` that have a schedule, before their factors:
    `match` -> rate at every update.  # float64[T]"""
    rates = {}
    for i, entry in enumerate(optimizer.groups):
        if entry.schedule is None:
            continue
        if optimizer.needs_one_schedule:
            raise ConfigError(
                f"optimizer.groups[{i}].schedule must be null with optimizer={optimizer.name}, "
                f"which needs one schedule for all weights, got {entry.schedule.name}; lr_factor "
                f"is supported"
            )
        try:
            rates[entry.match] = table(entry.schedule, clock, optimizer.lr)
        except ValueError as error:
            raise ConfigError(f"optimizer.groups[{i}].schedule.{error}") from None
    return rates


def hyperparameters(optimizer: Any, clock: Clock) -> dict[str, np.ndarray]:
    """Compute the tables of `schedules` and of what changes by the optimizer's definition: name ->
    value at every update.  # float64[T]"""
    scheduled = {
        name: _hyperparameter(optimizer, name, curve, clock)
        for name, curve in optimizer.schedules.items()
    }
    return {**optimizer.own_tables(clock.total_steps), **scheduled}


def _hyperparameter(optimizer: Any, name: str, curve: Curve, clock: Clock) -> np.ndarray:
    allowed = optimizer.schedulable
    if not allowed:
        raise ConfigError(
            f"optimizer.schedules must be empty for optimizer={optimizer.name}, whose only "
            f"scheduled value is the learning rate, got {name}"
        )
    if name not in allowed:
        raise ConfigError(
            f"unknown key optimizer.schedules.{name}; optimizer={optimizer.name} can schedule: "
            f"{', '.join(allowed)}{nearest(name, allowed)}"
        )
    try:
        values = table(curve, clock, getattr(optimizer, name))
    except ValueError as error:
        raise ConfigError(f"optimizer.schedules.{name}.{error}") from None
    # with momentum 0 there would be no buffer
    fits = (
        np.isfinite(values) & (values >= 0)
        if name in ("weight_decay", "alpha")
        else (values > 0) & (values < 1)
    )
    if not fits.all():
        t = int(np.flatnonzero(~fits)[0])
        words = "finite and >= 0" if name in ("weight_decay", "alpha") else "above 0 and below 1"
        raise ConfigError(
            f"optimizer.schedules.{name} must stay {words}, got {values[t]:.6g} at update {t}"
        )
    return values
