"""The metrics, and means over an epoch that do not depend on the batches.

z  # outputs [N, C], or [N, T, C] for a label at each of T positions, [N, H, W, C] at each pixel
y  # labels int[N], int[N, T] or int[N, H, W], sequences of labels int[N, L], or targets float[N, C]

Both are in the data's units, also if training uses standardized targets. A function that returns
the value of every row, float64[N], is averaged over the rows of an epoch. A function that returns
one number for all rows, such as an F1 score, is measured on the validation and test rows only: for
the training rows, a checkpoint would have to contain the outputs of the epoch so far. One with
`of_counts` needs only counts that add up over the rows, so it takes blocks of them. With labels
at positions, all metrics are measured on these rows only: it would take longer to copy and measure
the outputs of every update than to train a small model.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from runner import user_code
from runner.components import alignment
from runner.components.losses import by_row, log_softmax
from runner.components.outputs import Outputs
from runner.errors import ConfigError, RunError, nearest, one_line
from runner.section import OwnCode

Array = np.ndarray
Rows = Callable[[Array, Array], Array]


class CustomMetric(OwnCode):
    """A function of the user's own, f(z, y), or a class whose instances are such functions. The
    keys of the section are additional arguments. `name` is the name of its column."""

    name: str | None = None

    @property
    def column(self) -> str:
        return self.name or self.code.rpartition(".")[2]


class Sequences(NamedTuple):
    """Sequences of labels: the names of the labels, what is between two of them in a text, and the
    number of steps of the outputs."""

    classes: Sequence[str]
    separator: str
    num_steps: int


@dataclass(frozen=True)
class Metric:
    """A metric; `by_row` says if it returns the value of every row. `of_mean` is applied to the
    mean over all rows. With `of_counts` it returns whole numbers for some rows, and `of_counts` is
    applied to their sums over all rows."""

    function: Callable[..., Any]
    by_row: bool = True
    of_mean: Callable[[float], float] = float
    takes_weights: bool = False  # whether a function of all rows has the weights as argument
    of_counts: Callable[[Array], float] | None = None


def accuracy(z: Array, y: Array) -> Array:
    """1 if the largest output (the first one of equals) is that of the label, else 0; the mean over
    the positions of a row. With a single output: 1 if z > 0 agrees with y > 1/2."""
    if z.shape[1:] == (1,):
        return ((z[:, 0] > 0) == (y.reshape(-1) > 0.5)).astype(np.float64)
    return by_row((np.argmax(z, axis=-1) == y).astype(np.float64), y)


def label_accuracy(z: Array, y: Array) -> Array:
    """The share of a row's labels of 0 or 1 that its outputs have: z > 0 agrees with y > 1/2.
    keras.metrics.BinaryAccuracy; 1 less the Hamming loss."""
    found: Array = np.mean((z > 0) == (y > 0.5), axis=1)
    return found


def top_k_accuracy(k: int) -> Rows:
    """1 if fewer than k outputs are larger than that of the label, else 0."""

    def rows(z: Array, y: Array) -> Array:
        of_label = np.take_along_axis(z, np.maximum(y, 0)[..., None], axis=-1)
        return by_row(((z > of_label).sum(axis=-1) < k).astype(np.float64), y)

    return rows


def bits_per_token(z: Array, y: Array) -> Array:
    """-log2 softmax(z)_y, the mean over the positions of a row: the cross-entropy in bits. Shannon
    (1951). For a tokenizer of characters, these are bits per character."""
    log_p = np.take_along_axis(log_softmax(z), np.maximum(y, 0)[..., None], axis=-1)[..., 0]
    return by_row(-log_p / math.log(2), y)


def perplexity(bits: float) -> float:
    """2 to the power of the mean of `bits_per_token` over all rows. Jelinek et al. (1977)."""
    with np.errstate(over="ignore"):
        return float(np.exp2(bits))


def overlaps(z: Array, y: Array) -> Array:
    """Count, for each class, the positions that have it in the labels and in the outputs, and those
    that have it in at least one of them. The largest output (the first one of equals) is the class.
    # int64[2, C]"""
    num_classes, has_label = z.shape[-1], y >= 0
    labels, found = y[has_label], z.argmax(axis=-1)[has_label]
    both = np.bincount(labels[labels == found], minlength=num_classes)
    sizes = [np.bincount(classes, minlength=num_classes) for classes in (labels, found)]
    return np.stack([both, sizes[0] + sizes[1] - both])


def mean_iou(counts: Array) -> float:
    """The mean over classes of intersection / union, from the sums of `overlaps`: TP / (TP + FP +
    FN) over all positions. A class that is neither in the labels nor in the outputs does not
    count. Jaccard (1912); keras.metrics.MeanIoU; Everingham et al. (2010), section 4.4."""
    intersection, union = counts[:, counts[1] > 0]
    return float(np.mean(intersection / union)) if len(union) else math.nan


def f1_macro(counts: Array) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN), from the sums of `overlaps`, over all
    positions. A class that is neither in the labels nor in the outputs does not count.
    sklearn.metrics.f1_score with average="macro"."""
    intersection, union = counts[:, counts[1] > 0]
    return float(np.mean(2 * intersection / (union + intersection))) if len(union) else math.nan


def token_errors(z: Array, y: Array) -> Array:
    """Count the errors of the greedily decoded sequences, and the labels: [sum of edit distances,
    number of labels].  # int64[2]"""
    errors = alignment.edit_distances(alignment.greedy(z), y)
    return np.array([errors.sum(), alignment.lengths(y).sum()])


def word_errors(classes: Sequence[str], separator: str) -> Callable[[Array, Array], Array]:
    """Make the function that counts as `token_errors` does, over the words between white space of
    the text of each row: the names of its labels, joined by `separator`."""

    def count(z: Array, y: Array) -> Array:
        numbers: dict[str, int] = {}

        def words(labels: Array) -> Array:
            """Number the words of each row.  # int64[N, W]"""
            rows = [text.split() for text in alignment.texts_of(labels, classes, separator)]
            found = np.full((len(rows), max(map(len, rows), default=0)), alignment.NO_LABEL)
            for row, these in zip(found, rows, strict=True):
                row[: len(these)] = [numbers.setdefault(word, len(numbers)) for word in these]
            return found

        wanted = words(y)
        errors = alignment.edit_distances(words(alignment.greedy(z)), wanted)
        return np.array([errors.sum(), alignment.lengths(wanted).sum()])

    return count


def error_rate(counts: Array) -> float:
    """The edit distances of all rows by their number of tokens or words, which may be above 1:
    (S + D + I) / N. Also called label, character or word error rate; Graves et al. (2006), section
    2.1, and jiwer.wer."""
    errors, num = counts
    return float(errors / num) if num else math.nan


def mean_absolute_error(z: Array, y: Array) -> Array:
    """The mean over outputs of |z - y|."""
    return np.mean(np.abs(z.astype(np.float64) - y), axis=1)


_OF_OVERLAPS = {"mean_iou": mean_iou, "f1_macro": f1_macro}
_OURS = ("accuracy", "mean_absolute_error")  # each for one of the two tasks


def choose(
    asked: Sequence[str | CustomMetric] | str,
    task: str,
    num_outputs: int,
    y: Array,
    several: Outputs | None = None,
    sequences: Sequences | None = None,
) -> dict[str, Metric]:
    """Choose metrics by name. `auto` is accuracy for classification, and none for regression, where
    the loss is enough. For labels at steps it is bits_per_token, at pixels accuracy and mean_iou,
    for sequences of labels, which `sequences` describes, token_error_rate.
    `y` has targets on which the metrics that are not ours are tried, with random outputs, so that
    an error ends the run before the training. `several` describes several outputs."""
    if asked == "auto":
        usual = {1: ["accuracy"], 2: ["bits_per_token"]}.get(y.ndim, ["accuracy", "mean_iou"])
        asked = usual if task == "classification" else []
        asked = ["token_error_rate"] if task == "transcription" else asked
    chosen: dict[str, Metric] = {}
    for i, metric in enumerate(asked):
        name = metric.column if isinstance(metric, CustomMetric) else metric
        if name in chosen or name == "loss":
            raise ConfigError(f"metrics must have different names and not loss, got {name} twice")
        if isinstance(metric, CustomMetric):
            trial = _trial(y, num_outputs, sequences) if several is None else several.trial(len(y))
            chosen[name] = _own(metric, f"metrics[{i}].", trial, y)
        elif several is not None:
            raise ConfigError(
                f"metrics: {name} needs one output, and {several.model} returns "
                f"{', '.join(several.names)}; name a function of yours, "
                f"{{_target_: MODULE.FUNCTION}}"
            )
        elif sequences is not None:
            chosen[name] = _of_sequences(metric, sequences)
        else:
            chosen[name] = _find(metric, task, num_outputs, y)
    return chosen


def _of_sequences(name: str, sequences: Sequences) -> Metric:
    """Find a metric of sequences of labels."""
    of_words = word_errors(sequences.classes, sequences.separator)
    fitting = {"token_error_rate": token_errors, "word_error_rate": of_words}
    if name not in fitting:
        raise ConfigError(
            f"metrics must be auto or a list of {', '.join(fitting)} for sequences of labels, got "
            f"{name}{nearest(name, [*fitting])}"
        )
    return Metric(fitting[name], by_row=False, of_counts=error_rate)


def _find(name: str, task: str, num_outputs: int, y: Array) -> Metric:
    fitting: Mapping[str, Rows] = (
        {"accuracy": accuracy}
        if task == "classification"
        else {"accuracy": label_accuracy}
        if task == "multilabel"
        else {"mean_absolute_error": mean_absolute_error}
    )
    if task == "classification" and y.ndim > 1:
        fitting = {**fitting, "bits_per_token": bits_per_token}
        if name == "perplexity":
            return Metric(bits_per_token, of_mean=perplexity)
        if name in _OF_OVERLAPS:
            return Metric(overlaps, by_row=False, of_counts=_OF_OVERLAPS[name])
    if name in fitting:
        return Metric(fitting[name])
    match = re.fullmatch(r"top_([1-9]\d*)_accuracy", name)
    ranks = task == "classification" and num_outputs > 1
    if match and ranks:
        return Metric(top_k_accuracy(int(match[1])))
    from sklearn.metrics import get_scorer_names

    allowed = [*fitting, *(["top_5_accuracy"] if ranks else [])]
    if task == "classification" and y.ndim > 1:
        allowed += ["perplexity", *_OF_OVERLAPS]
        raise ConfigError(
            f"metrics must be auto or a list of {', '.join(allowed)} for labels at positions, got "
            f"{name}{nearest(name, allowed)}"
        )
    if name in get_scorer_names() and name not in _OURS:
        return _scorer(name, task, num_outputs, y)
    hint = nearest(name, allowed) or nearest(name, get_scorer_names())
    raise ConfigError(
        f"metrics must be auto or a list of {', '.join(allowed)} ({task}) and names of "
        f"scikit-learn's scorers, got {name}{'' if name in _OURS else hint}"
    )


def _trial(y: Array, num_outputs: int, sequences: Sequences | None = None) -> Array:
    """Return random outputs for the rows of y."""
    positions = y.shape[1:] if y.dtype.kind == "i" else ()
    positions = positions if sequences is None else (sequences.num_steps,)
    return np.random.default_rng(0).normal(size=(len(y), *positions, num_outputs))


def _own(metric: CustomMetric, key: str, z: Any, y: Array) -> Metric:
    """Make a metric of the user's function; z are outputs to try it on."""
    try:
        function = metric.given or user_code.function(metric.section)
    except ValueError as error:
        raise ConfigError(f"{key}{error}") from error
    try:
        value = np.asarray(function(z, y), dtype=np.float64)
    except Exception as error:
        reason = user_code.blame(error, metric.code)
        raise ConfigError(f"{key}_target_ {metric.code} raised {reason}") from error
    if value.shape not in ((), y.shape[:1]):
        raise ConfigError(
            f"{key}_target_ {metric.code} must return a number, or one for each of {len(y)} rows, "
            f"got an array of shape {list(value.shape)}"
        )
    return Metric(function, by_row=value.shape != ())


def check_weights(chosen: Mapping[str, Metric], num_outputs: int, y: Array) -> None:
    """Raise ConfigError if a metric cannot take the weights of the rows."""
    for name, metric in chosen.items():
        if metric.by_row:
            continue
        if metric.takes_weights:
            try:
                metric.function(_trial(y, num_outputs), y, np.ones(len(y)))
                continue
            except Exception:  # scikit-learn says which functions take no sample_weight
                pass
        raise ConfigError(
            f"metrics: {name} takes no weights of rows, and this data has weights; choose a metric "
            f"that is a mean over rows, or leave the weights out"
        )


def measure(name: str, metric: Metric, z: Any, y: Array, weights: Array | None = None) -> Any:
    """Call a metric, one of all rows with their weights. Raise RunError if it raises an error."""
    try:
        return metric.function(z, y) if weights is None else metric.function(z, y, weights)
    except Exception as error:
        raise RunError(f"the metric {name} raised {type(error).__name__}: {error}") from error


class _Outputs:
    """The network's outputs as a fitted estimator of scikit-learn: X are the outputs. With
    `several`, each is that of a label of 0 or 1."""

    def __init__(self, is_classifier: bool, num_outputs: int, several: bool = False) -> None:
        self._estimator_type = "classifier" if is_classifier else "regressor"
        self.several = several
        self.classes_ = np.arange(max(num_outputs, 2))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags

        return Tags(self._estimator_type, TargetTags(required=True))

    def fit(self, *_: Any) -> "_Outputs":
        return self

    def predict(self, z: Array) -> Array:
        if self._estimator_type == "regressor":
            return z[:, 0] if z.shape[1] == 1 else z
        if self.several:
            return (z > 0).astype(int)
        return (z[:, 0] > 0).astype(int) if z.shape[1] == 1 else np.argmax(z, axis=1)

    def decision_function(self, z: Array) -> Array:
        """The score of the second of two classes, or the scores of all classes or labels."""
        if self.several:
            return z
        if z.shape[1] == 1:
            return z[:, 0]
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z

    def predict_proba(self, z: Array) -> Array:
        return label_probabilities(z) if self.several else probabilities(z)


def probabilities(z: Array) -> Array:
    """Return the probability of each class: exp(z_c) / sum exp(z), or with one output
    1 / (1 + exp(z)) and 1 / (1 + exp(-z)).  # float64[N, ..., C]"""
    if z.shape[1:] == (1,):
        z = np.concatenate([np.zeros_like(z), z], axis=1)  # equivalent: logits 0 and z
    shifted = np.exp(z - z.max(axis=-1, keepdims=True, initial=-np.inf))
    total: Array = shifted.sum(axis=-1, keepdims=True)
    return shifted / total


def label_probabilities(z: Array) -> Array:
    """Return the probability of each of several labels: 1 / (1 + exp(-z)).  # float64[N, C]"""
    found: Array = np.exp(-np.logaddexp(0, -z))
    return found


def _scorer(name: str, task: str, num_outputs: int, y: Array) -> Metric:
    """Make a metric of a scorer of scikit-learn (sklearn.metrics.get_scorer), such as f1_macro,
    roc_auc_ovr or r2. Larger values are better for all of them. Outputs that are not finite have
    the value NaN."""
    from sklearn.metrics import get_scorer

    scorer = get_scorer(name)
    is_classifier, several = task != "regression", task == "multilabel" and num_outputs > 1
    estimator: Any = _Outputs(is_classifier, num_outputs, several)

    def score(z: Array, y: Array, weights: Array | None = None) -> float:
        if not np.isfinite(z).all():
            return math.nan
        targets = y.astype(int) if is_classifier else y
        targets = targets.reshape(-1) if is_classifier and not several else targets
        with warnings.catch_warnings():  # for example, a class that was never predicted
            warnings.simplefilter("ignore")
            more = {} if weights is None else {"sample_weight": weights}
            return float(scorer(estimator, z.astype(np.float64), targets, **more))

    try:
        score(_trial(y, num_outputs), y)
    except Exception as error:
        reason, num = one_line(error), len(np.unique(y))
        if task == "classification" and num < num_outputs:
            reason += f" (its rows have {num} of {num_outputs} classes)"
        raise ConfigError(f"metrics: {name} does not fit this data: {reason}") from error
    return Metric(score, by_row=False, takes_weights=True)


_WEIGHT = "/weight"  # the name of the sum of the weights; no metric has a slash


class Means:
    """Means over an epoch: the exact sum of all rows' values, rounded once (math.fsum), divided by
    their number; of rows with weights w, sum(w m) / sum(w), two such sums. The result does not
    depend on the order or on the batches."""

    def __init__(self, state: Mapping[str, tuple[int | None, list[float]]] | None = None) -> None:
        """Start empty, or from a saved state."""
        saved = state or {}
        # the number of rows; None: the divisor is the sum of the weights
        self._num: dict[str, int | None] = {name: num for name, (num, _) in saved.items()}
        self._values: dict[str, list[Array]] = {
            name: [np.array(parts)] for name, (_, parts) in saved.items()
        }

    def add(self, rows: Mapping[str, Array], weights: Array | None = None) -> None:
        """Add the values of rows. Without weights, each counts as 1."""
        for name, values in rows.items():
            num = (self._num.get(name) or 0) + len(values)
            self._num[name] = num if weights is None else None
            values = values if weights is None else values * weights
            self._values.setdefault(name, []).append(values)
        if weights is not None and rows:
            self._num[_WEIGHT] = 0  # it is no mean
            self._values.setdefault(_WEIGHT, []).append(weights)

    def result(self) -> dict[str, float]:
        total = _sum(self._values.get(_WEIGHT, []))
        return {
            name: _sum(self._values[name]) / divisor
            for name, num in self._num.items()
            if (divisor := total if num is None else num)
        }

    def state(self) -> dict[str, tuple[int | None, list[float]]]:
        """The state for a checkpoint: for each mean, the number of rows (None: the sum of the
        weights), and a few numbers that add up exactly to the sum of all values."""
        # replace the values by these numbers, so that they are not added again the next time
        for name, values in self._values.items():
            self._values[name] = [np.array(_expansion(np.concatenate(values)))]
        return {name: (num, self._values[name][0].tolist()) for name, num in self._num.items()}


def _sum(parts: Sequence[Array]) -> float:
    """Return the sum of all values, rounded once. Python's floats are added in half of the time of
    NumPy's."""
    return math.fsum(chain.from_iterable(part.tolist() for part in parts))


def _expansion(values: Array) -> list[float]:
    """The exact sum as a list of numbers that add up to it: the rounded sum, then the rounded
    remainder, and so on."""
    numbers: list[float] = values.tolist()
    parts: list[float] = []
    while part := math.fsum([*numbers, *(-p for p in parts)]):
        parts.append(part)
        if not math.isfinite(part):
            break
    return parts
