"""The losses, computed from the network's raw outputs. These are in NumPy float64, for evaluation;
tests compare the backends' native losses with them.

z  # outputs [N, C]
y  # labels int[N], or targets float[N, C]

Each loss returns the value of every row, float64[N], and the loss of a batch is their mean. Labels
int[N, T] have outputs [N, T, C], and a row's value is the mean over its T positions, or over those
whose label is not -1. With
`class_weights` the value of a row is multiplied by the weight of its class, and the mean is still
over the number of rows, as in Keras; torch divides by the sum of the weights instead.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Union

import numpy as np

from runner import user_code
from runner.components.alignment import negative_log_likelihood
from runner.components.outputs import Outputs
from runner.errors import ConfigError
from runner.section import (
    Count,
    Fraction,
    NonNegative,
    OneOf,
    OwnCode,
    Positive,
    Probability,
    Section,
)

Array = np.ndarray


class _Weighted(Section):
    """A loss of labels. `class_weights` has the weight of each class, in the order of data.json;
    `balanced` is N / (C num_c) for num_c of N training rows (scikit-learn's `balanced`)."""

    class_weights: Literal["balanced"] | list[NonNegative] | None

    def weighted(self, y: Array, num_classes: int) -> "_Weighted":
        """Return this loss with numbers as weights, for training labels y."""
        weights = self.class_weights
        if weights is None:
            return self
        if y.dtype.kind != "i":
            raise ConfigError("loss.class_weights needs labels, and this data has targets")
        if weights == "balanced":
            y = y[:]  # labels in a file are read
            y = y[y >= 0]
            counts = np.bincount(y, minlength=num_classes)
            if not counts.all():
                raise ConfigError(
                    f"loss.class_weights=balanced needs training rows of each class, got none of "
                    f"class number {int(np.flatnonzero(counts == 0)[0])}"
                )
            weights = (y.size / (num_classes * counts)).tolist()
        if len(weights) != num_classes or not any(weights):
            raise ConfigError(
                f"loss.class_weights must have a weight for each of {num_classes} classes, at "
                f"least one above 0, got {len(weights)}: {weights}"
            )
        return self.model_copy(update={"class_weights": weights})

    def row_weights(self, y: Array) -> Array | float:
        """Return the weight of each label.  # float64[N, ...], or 1 for all"""
        if self.class_weights is None:
            return 1.0
        return np.array(self.class_weights)[y.astype(int)]


class CrossEntropy(_Weighted):
    """-log softmax(z)_y; with `label_smoothing` s the target is (1 - s) one_hot(y) + s / C. Szegedy
    et al. (2016)."""

    name: Literal["cross_entropy"]
    label_smoothing: Fraction

    def rows(self, z: Array, y: Array) -> Array:
        log_p = log_softmax(z)
        of_label = np.take_along_axis(log_p, np.maximum(y, 0)[..., None], axis=-1)[..., 0]
        rows = -of_label
        if self.label_smoothing:
            rows = (1 - self.label_smoothing) * rows - self.label_smoothing * log_p.mean(axis=-1)
        return by_row(rows * self.row_weights(y), y)


class BinaryCrossEntropy(_Weighted):
    """The mean over outputs of max(z, 0) - z y + log(1 + exp(-|z|)); z are logits, y in [0, 1]."""

    name: Literal["binary_cross_entropy"]

    def rows(self, z: Array, y: Array) -> Array:
        z = z.astype(np.float64)
        rows = np.mean(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))), axis=1)
        return rows * self.row_weights(y.reshape(-1))


class Focal(_Weighted):
    """-alpha (1 - p)^gamma log p, where p is the probability of the label: softmax(z)_y. For
    several labels of 0 or 1, the mean over outputs, where p is sigmoid(z) and the factor alpha for
    a 1, and 1 - sigmoid(z) and 1 - alpha for a 0. `alpha: null` is a factor of 1.

    Lin et al. (2017), equation 5; keras.losses.CategoricalFocalCrossentropy, and for several labels
    torchvision.ops.sigmoid_focal_loss. log(1 - p) is computed from the logits, so the loss is exact
    and has a gradient where p rounds to 1, for any gamma >= 0.
    """

    name: Literal["focal"]
    alpha: Probability | None
    gamma: NonNegative

    def rows(self, z: Array, y: Array) -> Array:
        if y.dtype.kind != "i":  # several labels
            t = (2 * y - 1) * z.astype(np.float64)
            factors = 1 if self.alpha is None else np.where(y > 0, self.alpha, 1 - self.alpha)
            rows = factors * np.exp(-self.gamma * np.logaddexp(0, t)) * np.logaddexp(0, -t)
            return np.mean(rows, axis=1)
        log_p = log_softmax(z)
        is_label = np.arange(z.shape[-1]) == np.maximum(y, 0)[..., None]
        log_others = np.logaddexp.reduce(np.where(is_label, -np.inf, log_p), axis=-1)
        rows = -np.exp(self.gamma * log_others) * np.sum(log_p, axis=-1, where=is_label)
        return by_row((1 if self.alpha is None else self.alpha) * rows * self.row_weights(y), y)


class CosineSimilarity(Section):
    """1 - cos(z, y), cos(z, y) = z . y / sqrt((z . z + eps) (y . y + eps)), eps = 1e-12: the loss
    of torch.nn.CosineEmbeddingLoss for pairs that belong together. keras.losses.CosineSimilarity
    is 1 less."""

    name: Literal["cosine_similarity"]

    def rows(self, z: Array, y: Array) -> Array:
        z, y = z.astype(np.float64), y.astype(np.float64)
        sizes = (np.sum(z * z, axis=1) + COSINE_EPS) * (np.sum(y * y, axis=1) + COSINE_EPS)
        return 1 - np.sum(z * y, axis=1) / np.sqrt(sizes)


COSINE_EPS = 1e-12


class CTC(Section):
    """-ln p(y), y the labels of a row in their order, without their places: the sum over all paths
    of C classes and blanks that become y (runner.components.alignment). z [N, T, C + 1] has the
    blank last; y int[N, L] has -1 after the last label. Connectionist temporal classification,
    Graves et al. (2006); torch.nn.CTCLoss divides by the number of labels besides."""

    name: Literal["ctc"]

    def rows(self, z: Array, y: Array) -> Array:
        return negative_log_likelihood(log_softmax(z), y)


class Contrastive(Section):
    """l_i = -1 / |P(i)| sum_{p in P(i)} ln(exp(u_i . u_p / t) / sum_{a != i} exp(u_i . u_a / t)),
    where u = z / sqrt(z . z + eps), eps = 1e-12, t is `temperature`, a are the rows of the batch,
    and P(i) are those other than i with its label. A row without such rows has the loss 0. z [N,
    `features`] are vectors, y the labels.

    Supervised contrastive learning, Khosla et al. (2020), equation 2. With two views of each image
    in place of labels, it would be NT-Xent, Chen et al. (2020), equation 1.
    """

    name: Literal["contrastive"]
    features: Count
    temperature: Positive

    def rows(self, z: Array, y: Array) -> Array:
        """Return the loss of the rows of one batch."""
        z = z.astype(np.float64)
        u = z / np.sqrt(np.sum(z * z, axis=1, keepdims=True) + COSINE_EPS)
        similarity, is_other = u @ u.T / self.temperature, ~np.eye(len(z), dtype=bool)
        total = np.logaddexp.reduce(np.where(is_other, similarity, -np.inf), axis=1, keepdims=True)
        has_label = (y[:, None] == y) & is_other
        sums = np.sum(total - similarity, axis=1, where=has_label)
        found: Array = sums / np.maximum(has_label.sum(axis=1), 1)
        return found


def values(loss: Any, z: Array, y: Array, batch_size: int) -> Array:
    """Return the loss of each row; if it depends on the other rows of a batch, in batches of
    `batch_size` rows in their order.  # float64[N]"""
    if not couples_rows(loss):
        found: Array = loss.rows(z, y)
        return found
    starts = range(0, len(z), batch_size)
    parts = [loss.rows(z[i : i + batch_size], y[i : i + batch_size]) for i in starts]
    return np.concatenate([np.empty(0), *parts])


def couples_rows(loss: Any) -> bool:
    """Return whether the loss of a row depends on the other rows of its batch."""
    return isinstance(loss, Contrastive)


class MaskedTokens(Section):
    """-log softmax(z)_y at the positions of a row that have a label, their mean; y = -1 at all
    others. Every row has as many labels, so the mean over rows is that over the labels of a batch.
    The loss of BERT, Devlin et al. (2019). A config has cross_entropy for it, with
    data.mask_rate."""

    name: Literal["masked_tokens"]

    def rows(self, z: Array, y: Array) -> Array:
        log_p = np.take_along_axis(log_softmax(z), np.maximum(y, 0)[..., None], axis=-1)[..., 0]
        return by_row(-log_p, y)


class SoftCrossEntropy(Section):
    """- sum_c t_c log softmax(z)_c for targets t float[N, C] of `soft_targets`: the cross-entropy
    of training rows that are mixed. A config has cross_entropy for it, with data.mixup or
    data.cutmix."""

    name: Literal["soft_cross_entropy"]

    def rows(self, z: Array, y: Array) -> Array:
        rows: Array = -np.sum(y * log_softmax(z), axis=-1)
        return rows


class MeanSquaredError(Section):
    """The mean over outputs of (z - y)^2."""

    name: Literal["mean_squared_error"]

    def rows(self, z: Array, y: Array) -> Array:
        return np.mean((z.astype(np.float64) - y) ** 2, axis=1)


class Huber(Section):
    """The mean over outputs of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), e = z - y.
    Huber (1964)."""

    name: Literal["huber"]
    delta: Positive

    def rows(self, z: Array, y: Array) -> Array:
        size = np.abs(z.astype(np.float64) - y)
        return np.mean(
            np.where(size <= self.delta, size**2 / 2, self.delta * (size - self.delta / 2)), axis=1
        )


class Custom(OwnCode):
    """A function of the user's own, f(outputs, batch), of the framework's tensors. `batch` is the
    tuple (x, y), or (x, y, weight) if the rows have weights: labels int64[B] or targets [B, C]. It
    returns the mean over the batch's rows, or the value of each row [B]. The other keys of the
    section are additional arguments. An instance of a class of torch.nn is called as f(outputs, y),
    one of keras.losses as f(y, outputs); both without weights."""

    name: Literal["custom"]

    def function(self) -> Callable[..., Any]:
        """Return the function, with its arguments. Raise ValueError for the key `_target_`."""
        if self.given is None:
            return user_code.function(self.section)
        given: Callable[..., Any] = self.given
        return partial(given, **self.arguments) if self.arguments else given


class Model(Section):
    """The loss that the user's own model computes, in `training_step` or `compute_loss`. A config
    has `auto` for it."""

    name: Literal["model"]


class Auto(Section):
    """The loss of the user's own model if it computes one; else the usual loss of the data's task:
    cross_entropy for labels, mean_squared_error for targets."""

    name: Literal["auto"]


def log_softmax(z: Array) -> Array:
    """Return z - log sum exp(z), over the last axis.  # float64[..., C]"""
    shifted = z.astype(np.float64)
    shifted -= _largest(shifted)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


_FEW_CLASSES = 32  # NumPy's maximum over a short last axis takes five times as long as this copy


def _largest(z: Array) -> Array:
    """Return the maximum over the last axis.  # [..., 1]"""
    if z.shape[-1] > _FEW_CLASSES:
        return z.max(axis=-1, keepdims=True)
    found: Array = np.ascontiguousarray(np.moveaxis(z, -1, 0)).max(axis=0)[..., None]
    return found


def by_row(values: Array, y: Array | None = None) -> Array:
    """Average the values of each row over its positions, or over those whose label y is not
    negative.  # float64[N, ...] -> [N]"""
    axes = tuple(range(1, values.ndim))
    if y is not None and axes and (y < 0).any():
        total: Array = np.sum(values, axis=axes, where=y >= 0)
        return total / np.sum(y >= 0, axis=axes)
    return values.mean(axis=axes) if axes else values


Loss = Annotated[
    Union[
        CrossEntropy, BinaryCrossEntropy, Focal, CosineSimilarity, CTC, Contrastive,
        MeanSquaredError, Huber, Custom, Auto,
    ],
    OneOf("name"),
]  # fmt: skip


def is_own(loss: Any) -> bool:
    """Return whether code of the user's own computes the loss, so that only the backend can."""
    return isinstance(loss, Custom | Model)


def tried(
    loss: Custom,
    make: Callable[[Custom], Any],
    outputs: Any,
    batch: Any,
    several: Outputs | None = None,
) -> Any:
    """Call the user's loss function, which the backend makes, with tensors of the framework. Raise
    ConfigError if that fails. `several` describes several outputs."""
    try:
        function = make(loss)
    except ValueError as error:
        raise ConfigError(f"loss.{error}") from error
    try:
        return function(outputs, batch)
    except Exception as error:
        shape = f"of shape {list(outputs.shape)}" if several is None else f"{several} of a row"
        raise ConfigError(
            f"loss._target_ {loss.code} raised {user_code.blame(error, loss.code)}, given outputs "
            f"{shape} and y of shape {list(batch[1].shape)}"
        ) from error


def check_value(loss: Custom, value: Any, is_tensor: bool, num_rows: int) -> None:
    """Raise ConfigError if the value of the user's loss function is no tensor of the framework with
    a number, or with one for each row."""
    if not is_tensor or tuple(value.shape) not in ((), (num_rows,)):
        found = list(value.shape) if is_tensor else type(value).__name__
        raise ConfigError(
            f"loss._target_ {loss.code} must return a number, or one for each of {num_rows} rows, "
            f"as a tensor; got {found}"
        )


def choose(loss: Any, task: str, num_classes: int, positions: Sequence[int] = ()) -> Any:
    """Choose the loss for `auto` by the data's task; refuse a loss that does not fit the data. Its
    rows have labels of the shape `positions`."""
    if loss.name == "auto":
        loss = (
            CrossEntropy(name="cross_entropy", label_smoothing=0.0, class_weights=None)
            if task == "classification"
            else BinaryCrossEntropy(name="binary_cross_entropy", class_weights=None)
            if task == "multilabel"
            else CTC(name="ctc")
            if task == "transcription"
            else MeanSquaredError(name="mean_squared_error")
        )
    if isinstance(loss, Custom):
        return loss
    labels, has_sequences = task == "classification", task == "transcription"
    is_binary = not labels or (num_classes == 2 and not positions)
    fits = {
        "cross_entropy": labels,
        "binary_cross_entropy": is_binary,
        "focal": (labels and num_classes > 1) or task == "multilabel",
        "contrastive": labels and not positions,
    }.get(loss.name, not labels)
    if has_sequences or loss.name == "ctc":
        fits = has_sequences and loss.name == "ctc"
    if not fits:
        content = f"labels of {num_classes} classes" if labels else "targets, not labels"
        content = "sequences of labels" if has_sequences else content
        content += f" at each of {list(positions)} positions" if positions else ""
        raise ConfigError(f"loss={loss.name} does not fit this data, which has {content}")
    return loss


def of_masked(loss: Any) -> Any:
    """Return the loss for data whose labels are hidden tokens."""
    is_plain = loss.name == "cross_entropy" and not loss.label_smoothing and not loss.class_weights
    if isinstance(loss, Custom):
        return loss
    if not is_plain:
        raise ConfigError(
            f"loss must be auto, custom, or cross_entropy without label_smoothing and "
            f"class_weights with data.mask_rate, got {loss.name}"
        )
    return MaskedTokens(name="masked_tokens")


def of_mixed(loss: Any) -> Any:
    """Return the loss of training rows that are mixed in pairs, for the targets of
    `soft_targets`."""
    if loss.name == "cross_entropy":
        return SoftCrossEntropy(name="soft_cross_entropy")
    if loss.name in ("focal", "ctc", "contrastive", "custom", "model"):
        own = "a model that computes its own loss" if loss.name == "model" else f"loss={loss.name}"
        raise ConfigError(
            f"data.mixup and data.cutmix must be null for {own}, which takes no mixed targets"
        )
    if getattr(loss, "class_weights", None) is not None:
        raise ConfigError(
            f"loss.class_weights must be null for loss={loss.name} with data.mixup or data.cutmix"
        )
    return loss


def soft_targets(loss: Any, y: Array, num_classes: int, dtype: np.dtype) -> Array:
    """Convert y to numbers of which the loss of `of_mixed` is a linear function, so that the loss
    of a mixed target is the mixed loss.

    For cross_entropy with class weights w and label smoothing s, t_c = w_y ((1 - s) one_hot(y)_c +
    s / C). Other targets are those of the loss.  # dtype[N, C]
    """
    if loss.name != "cross_entropy":
        return targets(loss, y, dtype)
    smoothing = loss.label_smoothing
    one_hot = y[:, None] == np.arange(num_classes)
    rows = (1 - smoothing) * one_hot + smoothing / num_classes
    return (rows * np.reshape(loss.row_weights(y), (-1, 1))).astype(dtype)


def position_weights(y: Array) -> Array:
    """Return the weights with which the sum over positions is the mean over those of a row that
    have a label: 1 / their number, 0 where y is -1.  # int64[N, ...] -> float64[N, ...]"""
    has_label = y >= 0
    num = has_label.reshape(len(y), -1).sum(axis=1)
    weights: Array = has_label / np.maximum(num, 1).reshape(-1, *(1 for _ in y.shape[1:]))
    return weights


def num_outputs(loss: Any, task: str, num_classes: int, num_targets: int) -> int:
    """The number of outputs per row that the network must have."""
    if isinstance(loss, Contrastive):
        return loss.features
    if task == "classification":
        return 1 if loss.name == "binary_cross_entropy" else num_classes
    if task == "transcription":
        return num_classes + 1  # the blank is the last
    if loss.name == "cosine_similarity" and num_targets < 2:
        raise ConfigError("loss=cosine_similarity needs at least 2 targets, got 1")
    return num_targets


def targets(loss: Any, y: Array, dtype: np.dtype) -> Array:
    """Convert y for the loss: labels to int64[N, ...], everything else to dtype[N, C]."""
    is_of_labels = loss.name in ("cross_entropy", "masked_tokens", "ctc", "contrastive")
    may_be = loss.name == "focal" or is_own(loss)
    if is_of_labels or (may_be and y.dtype.kind == "i"):
        return y.astype(np.int64)
    # also for 0 rows, where reshape(0, -1) fails
    return np.ascontiguousarray(y.reshape(len(y), math.prod(y.shape[1:])), dtype=dtype)
