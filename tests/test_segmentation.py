"""The claim: a network labels each pixel of images, on both backends and in exact mode."""

from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

import runner
from runner.components import metrics
from runner.errors import ConfigError
from tests.exact.test_same_bits import BACKENDS, assert_all_the_same
from tests.parity.test_parity import assert_parity, in_float64
from tests.rows import long_but, slow_but
from tests.training import prepare

# down by a strided convolution, up by a transposed one, with a shortcut at the full size
LAYERS = (
    "model.layers=[{layer: conv2d, filters: 8, kernel_size: 3},{layer: activation, function: relu},"
    "{layer: residual, layers: [{layer: conv2d, filters: 12, kernel_size: 3, stride: 2},"
    "{layer: activation, function: relu},{layer: conv2d, filters: 12, kernel_size: 3, dilation: 2},"
    "{layer: activation, function: relu},{layer: conv2d_transpose, filters: 8, kernel_size: 2, "
    "stride: 2}]},{layer: activation, function: relu},"
    "{layer: conv2d, filters: outputs, kernel_size: 1}]"
)


def shapes(num: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images [N, 12, 16, 1] of a bright disc and a dark square, and the labels of their
    pixels, 1 and 2; the background is 0."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:12, :16]
    y = np.zeros((num, 12, 16), np.uint8)
    for labels in y:
        top, left, middle, centre = rng.integers((0, 0, 2, 2), (8, 12, 10, 14))
        labels[top : top + 4, left : left + 4] = 2
        labels[(rows - middle) ** 2 + (columns - centre) ** 2 <= rng.integers(3, 10)] = 1
    x = rng.normal(0, 0.3, y.shape) + np.array([0.0, 1.0, -1.0])[y]
    return x[..., None].astype(np.float32), y


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """The overrides of a run on these images."""
    x, y = shapes()
    np.savez(tmp_path / "shapes.npz", x=x, y=y)
    path = f"data.path={tmp_path / 'shapes.npz'}"
    return ["data=npz", path, "data.standardize=false", LAYERS]


@pytest.mark.parametrize("num_updates", long_but([40, 300], slow=[40]))
def test_parity_in_float64(num_updates: int, data: list[str]) -> None:
    smoothing = ["loss=cross_entropy", "loss.label_smoothing=0.1", "optimizer.lr=0.01"]
    assert_parity([*data, *smoothing, *in_float64(num_updates)])


@pytest.mark.slow
def test_the_same_bits_in_exact_mode(data: list[str]) -> None:
    assert_all_the_same([*data, "trainer.max_steps=4"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_metrics_over_all_pixels_of_an_epoch(
    backend: str, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are measured in blocks, and equal scikit-learn's on all pixels at once: the counts are
    whole numbers. After 6 epochs the network has found the shapes."""
    monkeypatch.setattr("runner.plan._CHUNK_BYTES", 1)
    few = ["trainer.batch_size=4", "optimizer.lr=0.01", "trainer.max_epochs=6"]
    run = runner.train([*data, *few, f"backend={backend}", f"output.root={tmp_path}"], quiet=True)
    val = run.plan.data.val
    found, labels = run.predict(val.x).argmax(-1).ravel(), val.y.ravel()
    iou = jaccard_score(labels, found, average="macro")
    assert run.metrics["val/mean_iou"][-1] == iou
    # a mean of 48 means of 192 pixels each, rounded at each division
    accuracy = accuracy_score(labels, found)
    assert run.metrics["val/accuracy"][-1] == pytest.approx(accuracy, abs=1e-15)
    assert iou > 0.9
    assert run.evaluate()["test/mean_iou"] > 0.9


def in_blocks(name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return labels, outputs, and the metric of both from two blocks of rows."""
    rng = np.random.default_rng(1)
    y, z = rng.integers(0, 3, (7, 4, 6)), rng.normal(size=(7, 4, 6, 5))
    z[..., 4] = -10.0
    (metric,) = metrics.choose([name], "classification", 5, y).values()
    assert metric.of_counts is not None
    counts = metric.function(z[:3], y[:3]) + metric.function(z[3:], y[3:])
    return y, z, metric.of_counts(counts)


def test_a_class_without_pixels_does_not_count() -> None:
    """Keras has the same value. Of 5 classes, 3 is only in the outputs, and 4 in neither."""
    y, z, found = in_blocks("mean_iou")
    theirs = keras.metrics.MeanIoU(5)
    theirs.update_state(y, z.argmax(-1))
    # Keras's quotients are float32, and their sum
    assert found == pytest.approx(float(theirs.result()), rel=1e-6)


def test_f1_macro_is_scikit_learn_s_over_all_positions() -> None:
    """The rows come in blocks. Of 5 classes, 3 is only in the outputs, and 4 in neither; the mean
    is a sum of 4 quotients."""
    y, z, found = in_blocks("f1_macro")
    expected = f1_score(y.ravel(), z.argmax(-1).ravel(), average="macro")
    assert found == pytest.approx(expected, rel=1e-15)


def test_arrays_in_python_are_the_same_run(data: list[str], tmp_path: Path) -> None:
    """Labels at pixels that are passed in Python need no file."""
    short = ["trainer.max_steps=3", f"output.root={tmp_path}"]
    of_file = runner.train([*data, *short], quiet=True)
    settings = [*data[3:], *short, "data.standardize=false"]
    of_arrays = runner.train(settings, data=shapes(), quiet=True)
    assert of_arrays.trace["loss"].tolist() == of_file.trace["loss"].tolist()


def test_labels_move_with_the_pixels_of_augmented_images(tmp_path: Path) -> None:
    """Here a pixel's label says whether it is positive."""
    x = np.random.default_rng(0).normal(size=(30, 12, 16, 1)).astype(np.float32)
    np.savez(tmp_path / "signs.npz", x=x, y=(x[..., 0] > 0).astype(np.int64))
    path = [f"data.path={tmp_path / 'signs.npz'}", "data=npz", "data.standardize=false", LAYERS]
    prepared = prepare([*path, "data.augment.flip=true", "data.augment.shift=3"])
    rows = np.arange(10)
    batch = prepared._read(rows, epoch=1)
    np.testing.assert_array_equal(batch["y"], batch["x"][..., 0] > 0)
    assert not np.array_equal(batch["x"], prepared.data.train.x[rows])


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_training_on_augmented_images(backend: str, data: list[str], tmp_path: Path) -> None:
    changes = ["data.augment.flip=true", "data.augment.shift=2", "trainer.max_epochs=8"]
    settings = [*changes, "trainer.batch_size=8", "optimizer.lr=0.01", f"backend={backend}"]
    run = runner.train([*data, *settings, f"output.root={tmp_path}"], quiet=True)
    assert run.metrics["val/mean_iou"][-1] > 0.9


@pytest.mark.parametrize(
    ("overrides", "labels", "message"),
    [
        (
            ["data.augment.crop=2"],
            shapes(20)[1],
            "data.augment.crop must be 0 for labels at pixels, because black pixels have no "
            "label, got 2; use data.augment.shift",
        ),
        (
            ["data.augment.flip=true"],
            shapes(20)[1][:, :, 0],
            "data.augment needs one label per image or one per pixel, got [12] labels of images "
            "of 12 x 16 pixels",
        ),
        (
            [],
            shapes(20)[1][..., None],
            "{path}: y must be labels, integers of shape [N], got uint8 of shape [20, 12, 16, 1]; "
            "labels at pixels have the shape [N, H, W]",
        ),
        (
            ["metrics=[mean_iu]"],
            shapes(20)[1],
            "metrics must be auto or a list of accuracy, bits_per_token, top_5_accuracy, "
            "perplexity, mean_iou, f1_macro for labels at positions, got mean_iu; did you mean "
            "mean_iou?",
        ),
        (
            ["model=cnn"],
            shapes(20)[1],
            "model.layers must end in the shape [12, 16, 3] for this data, got [3]",
        ),
    ],
)
def test_what_does_not_fit_labels_at_pixels(
    overrides: list[str], labels: np.ndarray, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "shapes.npz"
    np.savez(path, x=shapes(20)[0], y=labels)
    given = ["data=npz", f"data.path={path}", "data.standardize=false"]
    model = [] if "model=cnn" in overrides else [LAYERS]
    with pytest.raises(ConfigError) as error:
        prepare([*given, *model, *overrides])
    assert str(error.value) == message.format(path=path)
