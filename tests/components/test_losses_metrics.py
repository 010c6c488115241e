"""Losses and metrics against SciPy and scikit-learn, and their means over an epoch."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as oracle
from sklearn.utils.class_weight import compute_class_weight

from runner.components import losses, metrics
from runner.components.losses import (
    Auto,
    BinaryCrossEntropy,
    CosineSimilarity,
    CrossEntropy,
    Focal,
    Huber,
    MeanSquaredError,
)
from runner.errors import ConfigError

NUM, CLASSES = 200, 7

# Both sides compute in float64, in another order of operations: some roundings of 1.1e-16.
CLOSE: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-14}


def logits(seed: int = 0, columns: int = CLASSES) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).normal(scale=4, size=(NUM, columns))


def labels(seed: int = 1, classes: int = CLASSES) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, classes, NUM)


def cross_entropy(smoothing: float = 0.0) -> CrossEntropy:
    return CrossEntropy(name="cross_entropy", label_smoothing=smoothing, class_weights=None)


def assert_rows(found: np.ndarray, of_outputs: Any, z: np.ndarray, y: np.ndarray) -> None:
    """A value for each row, scikit-learn's for that row alone."""
    np.testing.assert_allclose(found, of_outputs(y.T, z.T, multioutput="raw_values"), **CLOSE)


MEAN_SQUARED_ERROR = MeanSquaredError(name="mean_squared_error")
BINARY = BinaryCrossEntropy(name="binary_cross_entropy", class_weights=None)


def test_cross_entropy_is_scikit_learn_s_log_loss_of_the_softmax() -> None:
    z, y = logits(), labels()
    expected = oracle.log_loss(y, special.softmax(z, axis=1), labels=range(CLASSES))
    np.testing.assert_allclose(cross_entropy().rows(z, y).mean(), expected, **CLOSE)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_cross_entropy_is_that_of_the_mixed_target(smoothing: float) -> None:
    """Szegedy et al. (2016), section 7: q = (1 - s) one_hot + s / C, the loss -sum q log
    softmax."""
    z, y = logits(), labels()
    q = (1 - smoothing) * np.eye(CLASSES)[y] + smoothing / CLASSES
    expected = -(q * special.log_softmax(z, axis=1)).sum(axis=1)
    np.testing.assert_allclose(cross_entropy(smoothing).rows(z, y), expected, **CLOSE)


def test_binary_cross_entropy_is_the_log_loss_of_the_sigmoid() -> None:
    z, y = logits(columns=1), labels(classes=2)[:, None].astype(float)
    expected = oracle.log_loss(y[:, 0], special.expit(z[:, 0]), labels=[0, 1])
    np.testing.assert_allclose(BINARY.rows(z, y).mean(), expected, **CLOSE)


def test_binary_cross_entropy_takes_the_mean_over_outputs_and_targets_between_0_and_1() -> None:
    z, y = logits(columns=3), special.expit(logits(seed=2, columns=3))
    p = special.expit(z)
    expected = (special.xlogy(y, p) + special.xlogy(1 - y, 1 - p)).mean(axis=1)
    # log(1 - p) loses digits where p is near 1: up to 1e-16 / (1 - p) of it, p as large as 1 - 1e-6
    # here.
    np.testing.assert_allclose(BINARY.rows(z, y), -expected, rtol=1e-9)


def test_mean_squared_error_is_scikit_learn_s() -> None:
    z, y = logits(), logits(seed=2)
    assert_rows(MEAN_SQUARED_ERROR.rows(z, y), oracle.mean_squared_error, z, y)


def test_huber_by_hand() -> None:
    """delta 2: squares / 2 up to an error of 2, then 2 (|e| - 1); the mean of the two outputs."""
    huber = Huber(name="huber", delta=2.0)
    z = np.array([[0.0, 0.0], [1.0, -1.0], [2.0, -2.0], [3.0, -5.0]])
    expected = [0.0, 0.5, 2.0, (4.0 + 8.0) / 2]
    np.testing.assert_array_equal(huber.rows(z, np.zeros((4, 2))), expected)


def test_huber_is_scipy_s() -> None:
    z, y = logits(columns=1), logits(seed=2, columns=1)
    np.testing.assert_allclose(
        Huber(name="huber", delta=1.5).rows(z, y), special.huber(1.5, (z - y)[:, 0]), **CLOSE
    )


def focal(alpha: float | None = 0.25, gamma: float = 2.0) -> Focal:
    return Focal(name="focal", alpha=alpha, gamma=gamma, class_weights=None)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_the_paper_s(gamma: float) -> None:
    """Lin et al. (2017), equation 5. 1e-9: here 1 - p loses digits where p is near 1."""
    z, y = logits(), labels()
    p = special.softmax(z, axis=1)[np.arange(NUM), y]
    expected = -0.25 * (1 - p) ** gamma * np.log(p)
    np.testing.assert_allclose(focal(gamma=gamma).rows(z, y), expected, rtol=1e-9, atol=1e-15)
    weighted = focal(None, gamma).model_copy(update={"class_weights": [3.0, *[1.0] * 6]})
    expected = 4 * expected * np.where(y == 0, 3, 1)
    np.testing.assert_allclose(weighted.rows(z, y), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_several_labels_is_that_of_each(gamma: float) -> None:
    """The loss is that of torchvision's sigmoid_focal_loss: p_t = p y + (1 - p) (1 - y), alpha_t
    alike."""
    z = logits(columns=3) / 4
    y = labels(classes=2, seed=3)[:, None] ^ np.array([[0, 1, 1]])
    p = special.expit(z)
    p_t, alpha_t = np.where(y, p, 1 - p), np.where(y, 0.25, 0.75)
    expected = (-alpha_t * (1 - p_t) ** gamma * np.log(p_t)).mean(axis=1)
    # for 1 - p as above
    np.testing.assert_allclose(focal(gamma=gamma).rows(z, y.astype(float)), expected, rtol=1e-9)


def test_focal_loss_of_saturated_logits_is_finite() -> None:
    z, y = np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 0])
    np.testing.assert_allclose(focal(1.0, 0.5).rows(z, y), [0.0, 2e4], rtol=1e-15)
    np.testing.assert_allclose(focal(1.0, 0.5).rows(z[:, :1], 1.0 - y[:, None]), [0.0, 1e4])


def test_cosine_similarity_is_torch_s_cosine_embedding_loss_of_pairs_that_belong_together() -> None:
    import torch

    z, y = logits(), logits(seed=2)
    z[3] = 0
    theirs = torch.nn.CosineEmbeddingLoss(reduction="none")
    expected = theirs(torch.from_numpy(z), torch.from_numpy(y), torch.ones(NUM)).numpy()
    found = CosineSimilarity(name="cosine_similarity").rows(z, y)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("loss", [cross_entropy(), cross_entropy(0.1), BINARY])
def test_a_loss_from_logits_is_finite_and_right_for_very_large_ones(loss: Any) -> None:
    z = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype=np.float32)
    y = np.array([0, 0]) if loss.name == "cross_entropy" else np.array([[1.0, 0.0], [1.0, 0.0]])
    found = loss.rows(z, y)
    smoothing = getattr(loss, "label_smoothing", 0.0)
    size = 2e4 if loss.name == "cross_entropy" else 1e4
    np.testing.assert_allclose(
        found, [size * smoothing / 2, size * (1 - smoothing / 2)], rtol=1e-15
    )


@pytest.mark.parametrize(
    "loss", [cross_entropy(), BINARY, MEAN_SQUARED_ERROR, Huber(name="huber", delta=1.0)]
)
def test_a_loss_of_float32_outputs_is_computed_in_float64(loss: Any) -> None:
    z = logits(columns=3).astype(np.float32)
    y = (
        labels(classes=3)
        if loss.name == "cross_entropy"
        else special.expit(logits(seed=2, columns=3))
    )
    found = loss.rows(z, y)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, loss.rows(z.astype(np.float64), y))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_multiply_the_rows_values(smoothing: float) -> None:
    """`balanced` is scikit-learn's compute_class_weight; the mean is over the number of rows."""
    z, y = logits(), labels()
    balanced = CrossEntropy(
        name="cross_entropy", label_smoothing=smoothing, class_weights="balanced"
    ).weighted(y, CLASSES)
    expected = compute_class_weight("balanced", classes=np.arange(CLASSES), y=y)
    np.testing.assert_allclose(balanced.class_weights, expected, **CLOSE)
    rows = cross_entropy(smoothing).rows(z, y) * expected[y]
    np.testing.assert_allclose(balanced.rows(z, y), rows, **CLOSE)


def test_class_weights_of_two_classes() -> None:
    z, y = logits(columns=1), labels(classes=2)
    loss = BinaryCrossEntropy(name="binary_cross_entropy", class_weights=[0.5, 3.0])
    expected = BINARY.rows(z, y[:, None].astype(float)) * np.where(y, 3.0, 0.5)
    np.testing.assert_allclose(loss.rows(z, y[:, None].astype(float)), expected, **CLOSE)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "must have a weight for each of 7 classes"),
        ([0.0] * 7, "at least one above 0"),
    ],
)
def test_class_weights_that_do_not_fit_the_data(weights: list[float], message: str) -> None:
    loss = CrossEntropy(name="cross_entropy", label_smoothing=0.0, class_weights=weights)
    with pytest.raises(ConfigError, match=message):
        loss.weighted(labels(), CLASSES)


def choose(name: str, z: np.ndarray, y: np.ndarray, task: str = "classification") -> float:
    metric = metrics.choose([name], task, z.shape[1], y)[name]
    assert not metric.by_row
    return float(metric.function(z, y))


def test_scorers_are_scikit_learn_s() -> None:
    """The predictions are the largest outputs, the probabilities their softmax."""
    z, y = logits(), labels()
    predicted, p = z.argmax(axis=1), special.softmax(z, axis=1)
    assert choose("f1_macro", z, y) == oracle.f1_score(y, predicted, average="macro")
    assert choose("balanced_accuracy", z, y) == oracle.balanced_accuracy_score(y, predicted)
    np.testing.assert_allclose(
        choose("roc_auc_ovr", z, y), oracle.roc_auc_score(y, p, multi_class="ovr"), **CLOSE
    )
    np.testing.assert_allclose(
        choose("neg_log_loss", z, y), -oracle.log_loss(y, p, labels=range(CLASSES)), **CLOSE
    )


@pytest.mark.parametrize("columns", [1, 2])
def test_scorers_of_two_classes(columns: int) -> None:
    """The score of class 1 is the only output, or the difference of two outputs."""
    z, y = logits(columns=columns), labels(classes=2)
    score = z[:, 0] if columns == 1 else z[:, 1] - z[:, 0]
    assert choose("roc_auc", z, y) == oracle.roc_auc_score(y, score)
    assert choose("average_precision", z, y) == oracle.average_precision_score(y, score)
    assert choose("f1", z, y) == oracle.f1_score(y, score > 0)


@pytest.mark.parametrize("columns", [1, 3])
def test_scorers_of_targets(columns: int) -> None:
    z, y = logits(columns=columns), logits(seed=2, columns=columns)
    assert choose("r2", z, y, "regression") == oracle.r2_score(y, z)
    expected = -oracle.mean_absolute_error(y, z)
    assert choose("neg_mean_absolute_error", z, y, "regression") == expected


@pytest.mark.parametrize("columns", [1, 3])
def test_metrics_of_several_labels_are_scikit_learn_s(columns: int) -> None:
    """A label is 1 where its output is above 0; rankings are those of the outputs."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(40, columns)), rng.integers(0, 2, (40, columns)).astype(np.float32)
    names = ["accuracy", "f1_macro", "roc_auc", "average_precision", "jaccard_macro"]
    chosen = metrics.choose(names, "multilabel", columns, y)
    labels, found = y.astype(int), (z > 0).astype(int)
    assert np.mean(chosen["accuracy"].function(z, y)) == pytest.approx(
        1 - oracle.hamming_loss(labels, found), rel=1e-12
    )
    expected = {
        "f1_macro": oracle.f1_score(labels, found, average="macro"),
        "roc_auc": oracle.roc_auc_score(labels, z),
        "average_precision": oracle.average_precision_score(labels, z),
        "jaccard_macro": oracle.jaccard_score(labels, found, average="macro"),
    }
    for name, metric in chosen.items():
        if name != "accuracy":
            assert metric.function(z, y) == pytest.approx(expected[name], rel=1e-12)
    with pytest.raises(ConfigError, match="got mean_absolute_error"):
        metrics.choose(["mean_absolute_error"], "multilabel", columns, y)


def test_a_scorer_of_a_diverged_run_is_nan() -> None:
    z = logits()
    z[3, 1] = np.nan
    assert np.isnan(choose("f1_macro", z, labels()))


def test_accuracy_is_scikit_learn_s() -> None:
    z, y = logits(), labels()
    assert metrics.accuracy(z, y).mean() == oracle.accuracy_score(y, z.argmax(axis=1))


def test_accuracy_of_one_output_splits_at_0() -> None:
    """Labels of any shape; 0 and a half are class 0, as are small outputs below it and not those
    above."""
    z, y = (
        np.array([[2.0], [-2.0], [0.0], [3.0], [0.5], [0.5], [1.0]]),
        np.array([1, 1, 0, 1, 1, 0, 0.5]),
    )
    expected = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert metrics.accuracy(z, y).tolist() == expected
    assert metrics.accuracy(z, y[:, None]).tolist() == expected


def test_of_equal_outputs_the_first_is_the_answer() -> None:
    z = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert metrics.accuracy(z, np.array([0, 1])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_accuracy_is_scikit_learn_s(k: int) -> None:
    z, y = logits(), labels()
    expected = oracle.top_k_accuracy_score(y, z, k=k, labels=range(CLASSES))
    assert metrics.top_k_accuracy(k)(z, y).mean() == expected


def test_mean_absolute_error_is_scikit_learn_s() -> None:
    z, y = logits(), logits(seed=2)
    assert_rows(metrics.mean_absolute_error(z, y), oracle.mean_absolute_error, z, y)


@pytest.mark.parametrize("batch", [1, 3, 7, 64, NUM])
def test_a_mean_over_an_epoch_is_correctly_rounded_however_the_rows_were_cut(batch: int) -> None:
    values = np.concatenate([logits().reshape(-1)[: NUM - 3], [1e16, 1.0, -1e16]])
    means = metrics.Means()
    for start in range(0, NUM, batch):
        means.add({"loss": values[start : start + batch]})
    exact = sum(map(Fraction, values.tolist()), Fraction(0))
    assert means.result() == {"loss": float(exact) / NUM}


@pytest.mark.parametrize("saves", [1, 2, 5])
def test_a_mean_goes_on_from_its_state_as_if_it_had_never_been_saved(saves: int) -> None:
    """1e16 and 1e-16 need parts that one float64 cannot hold; the exact sum is a fraction's."""
    values = np.array([1e16, 1.0, -1e16, 1e-16, 3.0, 1e-30])
    means = metrics.Means()
    for part in np.split(values, 3):
        means.add({"loss": part})
        for _ in range(saves):
            kept = means.state()["loss"]
            assert sum(map(Fraction, kept[1])) == sum(map(Fraction, values[: kept[0]].tolist()))
            assert len(kept[1]) <= 3  # few numbers, however many rows
            means = metrics.Means({"loss": kept})
    assert means.result() == {"loss": float(sum(map(Fraction, values.tolist()))) / 6}


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_mean_that_is_not_finite_stays_so_across_its_state(value: float) -> None:
    means = metrics.Means()
    means.add({"loss": np.array([1.0, value])})
    np.testing.assert_equal(metrics.Means(means.state()).result(), {"loss": value})


def test_a_mean_that_is_saved_goes_on_itself() -> None:
    means = metrics.Means()
    for value in (1.0, 2.0, 6.0):
        means.add({"loss": np.array([value])})
        means.state()
    assert means.state() == {"loss": (3, [9.0])}
    assert means.result() == {"loss": 3.0}


def test_a_mean_of_no_rows_is_left_out() -> None:
    means = metrics.Means()
    means.add({"loss": np.empty(0)})
    assert means.result() == {}


def test_auto_is_the_usual_loss_and_metric_of_the_task() -> None:
    auto = Auto(name="auto")
    assert losses.choose(auto, "classification", 10) == cross_entropy()
    assert losses.choose(auto, "regression", 0) == MEAN_SQUARED_ERROR
    assert list(metrics.choose("auto", "classification", 10, labels())) == ["accuracy"]
    assert metrics.choose("auto", "regression", 1, logits()) == {}


@pytest.mark.parametrize(
    ("loss", "task", "num_classes", "message"),
    [
        (
            cross_entropy(),
            "regression",
            0,
            "loss=cross_entropy does not fit this data, which has targets, not labels",
        ),
        (
            BINARY,
            "classification",
            3,
            "loss=binary_cross_entropy does not fit this data, which has labels of 3 classes",
        ),
        (
            MEAN_SQUARED_ERROR,
            "classification",
            2,
            "loss=mean_squared_error does not fit this data, which has labels of 2",
        ),
    ],
)
def test_a_loss_that_does_not_fit_the_data_is_refused(
    loss: Any, task: str, num_classes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        losses.choose(loss, task, num_classes)


@pytest.mark.parametrize(
    ("loss", "task", "num_classes"),
    [
        (BINARY, "classification", 2),
        (BINARY, "regression", 0),
        (Huber(name="huber", delta=1.0), "regression", 0),
    ],
)
def test_a_loss_that_fits_the_data_is_taken_as_it_is(
    loss: Any, task: str, num_classes: int
) -> None:
    assert losses.choose(loss, task, num_classes) is loss


def test_a_binary_loss_of_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="labels of 1 classes"):
        losses.choose(BINARY, "classification", 1)


def test_labels_are_integers_to_cross_entropy_and_rows_of_numbers_to_other_losses() -> None:
    y = np.array([1, 0, 2], dtype=np.int32)
    assert losses.targets(cross_entropy(), y, np.dtype(np.float32)).dtype == np.int64
    assert losses.targets(cross_entropy(), y, np.dtype(np.float32)).tolist() == [1, 0, 2]
    for loss in (BINARY, MEAN_SQUARED_ERROR, Huber(name="huber", delta=1.0)):
        found = losses.targets(loss, y, np.dtype(np.float32))
        assert (found.dtype, found.tolist()) == (np.float32, [[1.0], [0.0], [2.0]])
    wide = np.arange(12.0).reshape(2, 2, 3)
    found = losses.targets(MEAN_SQUARED_ERROR, wide, np.dtype(np.float64))
    assert found.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert losses.targets(MEAN_SQUARED_ERROR, wide[:0], np.dtype(np.float64)).shape == (0, 6)


def test_the_number_of_outputs_follows_from_loss_and_data() -> None:
    assert losses.num_outputs(cross_entropy(), "classification", 10, 0) == 10
    assert losses.num_outputs(BINARY, "classification", 2, 0) == 1
    assert losses.num_outputs(MEAN_SQUARED_ERROR, "regression", 0, 3) == 3


@pytest.mark.parametrize("name", ["acuracy", "top_0_accuracy", "top_5", "mean_absolute_error", ""])
def test_a_metric_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match="metrics must be auto or a list of accuracy, top_5_accuracy"
    ):
        metrics.choose([name], "classification", 10, labels())


def test_one_output_has_no_top_k() -> None:
    with pytest.raises(
        ConfigError,
        match=r"of accuracy \(classification\) and names of scikit-learn's scorers, got top_2",
    ):
        metrics.choose(["top_2_accuracy"], "classification", 1, labels())


def test_a_metric_is_found_by_its_name() -> None:
    found = metrics.choose(["top_2_accuracy", "accuracy"], "classification", 2, labels())
    assert list(found) == ["top_2_accuracy", "accuracy"]
    z, y = logits(), labels()
    expected = oracle.top_k_accuracy_score(y, z, k=2, labels=range(CLASSES))
    assert found["top_2_accuracy"].function(z, y).mean() == expected
    assert metrics.choose(["mean_absolute_error"], "regression", 1, logits()) == {
        "mean_absolute_error": metrics.Metric(metrics.mean_absolute_error)
    }
    allowed = (
        r"of mean_absolute_error \(regression\) and names of scikit-learn's scorers, got top_2"
    )
    with pytest.raises(ConfigError, match=allowed):
        metrics.choose(["top_2_accuracy"], "regression", 2, logits())
