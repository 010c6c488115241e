"""The claim: a network learns sequences of labels without their places, on both backends, and the
errors of a split do not depend on the batches."""

import re
from itertools import groupby, product
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import soundfile
import torch

import runner
from runner import dispatcher
from runner.components import alignment
from runner.components.losses import CTC, log_softmax
from runner.components.metrics import Metric, Sequences, choose
from runner.errors import ConfigError
from tests.command_line import forked
from tests.parity.test_parity import assert_parity, in_float64
from tests.rows import long_but, slow_but
from tests.training import difference, first, prepare, train

LAYERS = (
    "model.layers=[{layer: masking},{layer: conv1d, filters: 12, kernel_size: 3},{layer: "
    "activation, function: tanh},{layer: gru, units: 12, return_sequences: true, bidirectional: "
    "true},{layer: dense, units: outputs},{layer: blank_padding}]"
)
NUM, LONGEST = 160, 4


def sequences(steps: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, T, 5] of 1 to 4 noisy signals one after another, padded with 0, and the numbers 3 to
    5 of the signals, padded with -7."""
    rng = np.random.default_rng(0)
    signals, x, y = rng.normal(size=(3, 5)), np.zeros((NUM, steps, 5)), np.full((NUM, LONGEST), -7)
    for row, labels in zip(x, y, strict=True):
        num, step = rng.integers(1, LONGEST + 1), 0
        labels[:num] = rng.integers(3, 6, num)
        for label in labels[:num]:
            length = rng.integers(2, 4)
            row[step : step + length] = signals[label - 3] + rng.normal(0, 0.2, (length, 5))
            row[step + length] = rng.normal(0, 0.2, 5)
            step += length + 1
    return x, y


def keys(folder: Path, steps: int = 16, layers: str = LAYERS, **more: Any) -> list[str]:
    x, y = sequences(steps)
    np.savez(folder / f"{steps}.npz", **{"x": x, "y": y, **more})
    path = f"data.path={folder / f'{steps}.npz'}"
    return ["data=npz", path, "data.task=transcription", "data.no_label=-7", layers]


def test_the_likelihood_is_the_sum_over_all_paths() -> None:
    """Every path of 5 steps over 2 classes and the blank. 1e-12: sums in another order."""
    rng = np.random.default_rng(0)
    wanted = [[0], [1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    y = np.array([labels + [-1] * (4 - len(labels)) for labels in wanted])
    log_p = log_softmax(rng.normal(size=(len(y), 5, 3)))
    expected = np.zeros(len(y))
    for path in product(range(3), repeat=5):
        labels = [label for label, _ in groupby(path) if label != 2]
        of_path = np.exp(log_p[:, range(5), path].sum(axis=1))
        expected += [labels == row for row in wanted] * of_path
    with np.errstate(divide="ignore"):  # [0, 0, 0, 0] needs 7 steps
        np.testing.assert_allclose(
            alignment.negative_log_likelihood(log_p, y), -np.log(expected), rtol=1e-12
        )
    assert alignment.fewest_steps(y).tolist() == [1, 3, 4, 5, 4, 7]
    certain = np.full((len(y), 3, 3), -1e30)  # the blank of padding
    certain[..., 2] = 0
    z = np.concatenate([log_p, certain], axis=1)[:3]
    np.testing.assert_array_equal(
        CTC(name="ctc").rows(z, y[:3]), CTC(name="ctc").rows(log_p[:3], y[:3])
    )


def levenshtein(a: list[Any], b: list[Any]) -> int:
    """The textbook recursion."""
    if not a or not b:
        return len(a) + len(b)
    substituted = levenshtein(a[1:], b[1:]) + (a[0] != b[0])
    return min(substituted, levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1)


def test_error_rates_are_edit_distances_by_labels_whatever_the_blocks() -> None:
    rng = np.random.default_rng(1)
    names, num = ("a", "b", " "), 60
    z = rng.normal(size=(num, 6, 4))
    y = rng.integers(0, 3, (num, 5))
    y[np.arange(5) >= rng.integers(1, 6, num)[:, None]] = -1
    found = [[k for k, _ in groupby(row) if k != 3] for row in z.argmax(axis=2).tolist()]
    wanted = [[k for k in row if k >= 0] for row in y.tolist()]
    texts = [["".join(names[k] for k in row).split() for row in rows] for rows in (found, wanted)]
    chosen = choose(
        ["token_error_rate", "word_error_rate"], "transcription", 4, y, None,
        Sequences(names, "", 6),
    )  # fmt: skip
    for metric, pair in zip(chosen.values(), ((found, wanted), texts), strict=True):
        errors = sum(map(levenshtein, *pair))
        expected = errors / sum(map(len, pair[1]))
        assert rate(metric, z, y, num) == rate(metric, z, y, 7) == expected


def rate(metric: Metric, z: np.ndarray, y: np.ndarray, size: int) -> float:
    """The metric from counts of blocks."""
    assert metric.of_counts is not None
    blocks = [metric.function(z[i : i + size], y[i : i + size]) for i in range(0, len(z), size)]
    return metric.of_counts(sum(blocks))


@pytest.mark.parametrize("num_updates", long_but([20, 300], slow=[], quick=[20]))
def test_parity_in_float64(num_updates: int, tmp_path: Path) -> None:
    assert_parity([*keys(tmp_path), "optimizer.lr=0.01", *in_float64(num_updates)])


@pytest.mark.slow
def test_parity_of_other_lengths_and_weights(tmp_path: Path) -> None:
    """Without a mask, a stride, weights of rows and micro-batches."""
    layers = (
        "model.layers=[{layer: conv1d, filters: 12, kernel_size: 3, stride: 2},{layer: activation, "
        "function: tanh},{layer: dense, units: outputs}]"
    )
    data = keys(tmp_path, 20, layers, w=np.arange(NUM) % 3)
    more = [
        "data.weight=w",
        "trainer.accumulate_grad_batches=3",
        "trainer.max_steps=300",
        "metrics=[]",
    ]
    assert_parity([*data, *more, "trainer.precision=float64", "trainer.batch_size=8"])


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
def test_longer_padding_changes_nothing(backend: str, tmp_path: Path) -> None:
    """1e-12 in float64."""
    more = ["trainer.precision=float64", "trainer.max_steps=9"]
    runs = [train(backend, [*keys(tmp_path, steps), *more]) for steps in (16, 23)]
    assert difference(*(run.state.weights for run in runs)) < 1e-12
    assert np.abs(runs[0].losses - runs[1].losses).max() < 1e-12


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
def test_a_run_learns_and_writes_texts(backend: str, tmp_path: Path) -> None:
    run = (*keys(tmp_path), "optimizer.lr=0.03", "trainer.max_epochs=15", f"backend={backend}")
    (done,) = forked(tmp_path, run)
    assert done.status == 0
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    found = runner.load_run(folder)
    assert found.metrics["val/token_error_rate"][-1] < 0.1
    assert found.evaluate().keys() == {"test/loss", "test/token_error_rate"}
    (predicted,) = forked(
        tmp_path, ("task=predict", f"run={folder}", f"data.path={tmp_path / '16.npz'}")
    )
    assert predicted.status == 0
    labels = np.load(folder / "predictions.npz")["label"]
    wanted = [" ".join(map(str, row[row > 0])) for row in sequences()[1]]
    assert np.mean(labels == wanted) > 0.8


def test_the_labels_of_recordings_are_characters_or_words(tmp_path: Path) -> None:
    """New recordings have the classes of the training, also those with another text."""
    texts, rng = ["no go", "go", "on no go", "go go"], np.random.default_rng(0)
    for i in range(len(texts)):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, 8000), 8000)
    table = tmp_path / "labels.csv"
    lines = [f"{i}.wav,{text}" for i, text in enumerate(texts)]
    table.write_text("\n".join(["path,label", *lines]))
    common = [
        "data=audio_folder", f"data.path={tmp_path}", f"data.table={table}",
        "data.task=transcription", "data.sample_rate=8000", "model=ctc_gru",
        "data.val_fraction=0.25", "data.test_fraction=0.25",
    ]  # fmt: skip
    for kind, classes, between in (
        ("characters", (" ", "g", "n", "o"), ""),
        ("words", ("go", "no", "on"), " "),
    ):
        prepared = prepare([*common, f"data.target_tokenizer={kind}"])
        data, section = prepared.data, prepared.config.data
        assert data.classes == classes
        assert prepared.network.output_shape == (13, len(classes) + 1)
        found = [
            text for part in (data.train, data.val, data.test) for text in data.text_of(part.y)
        ]
        assert sorted(found) == sorted(texts)
        new = tmp_path / "new.csv"
        new.write_text("path,label\n0.wav,go no\n1.wav,on\n")
        rows, _ = section.labelled_rows(str(new), data.description())
        assert rows.text_of(rows.test.y) == ["go no", "on"]
        assert (rows.task, rows.separator) == ("transcription", between)
        new.write_text("path,label\n0.wav,stop\n")
        with pytest.raises(
            ConfigError, match=f"has labels with the {kind} '.*', which the run was"
        ):
            section.labelled_rows(str(new), data.description())


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "suffix"), [("lightning", "pt2"), ("keras", "keras")])
def test_an_export_gives_padding_the_blank(backend: str, suffix: str, tmp_path: Path) -> None:
    """1e-5: float32 from kernels that sum in another order; -1e30 is the same number."""
    prepared, engine = prepare(keys(tmp_path)), dispatcher.load(backend)
    state, path = first(prepared), tmp_path / f"model.{suffix}"
    x = prepared.data.train.x[:5].astype(np.float32)
    expected = engine.predict(prepared.model, state, {"x": x})
    engine.export(prepared.model, state, path)
    if suffix == "pt2":
        found = torch.export.load(path).module()(torch.from_numpy(x)).detach().numpy()
    else:
        found = np.asarray(keras.models.load_model(path)(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    is_padding = np.flip(np.cumsum(np.flip(x.any(axis=2), 1), 1), 1) == 0
    assert is_padding.any()
    assert (found[is_padding] == np.float32([-1e30, -1e30, -1e30, 0])).all()


PLAIN = "model.layers=[{layer: conv1d, filters: outputs, kernel_size: 3, stride: 4}]"


@pytest.mark.parametrize(
    ("more", "change", "words"),
    [
        (
            [],
            {"layers": PLAIN},
            "data: # of 96 training rows have more labels than steps of the outputs; row # has 4 "
            "steps, and its 4 labels need #, one for each, and a blank between equal neighbours; "
            "leave them out, or use a smaller stride",
        ),
        (
            [],
            {"x": np.eye(16, 5)[None].repeat(NUM, 0) * (np.arange(16) < 1)[:, None]},
            "data: # of 96 training rows have more labels than steps of the outputs; row # has 1 "
            "steps, and its # labels need #, one for each, and a blank between equal neighbours; "
            "leave them out, or use a smaller stride",
        ),
        (
            [],
            {"y": np.full((NUM, 2), [-7, 3])},
            "PATH: row 0 of y has a label after data.no_label=-7, which ends a row's labels",
        ),
        ([], {"y": np.full((NUM, 2), -7)}, "PATH: row 0 of y has no label; leave it out"),
        (
            [],
            {"y": np.arange(NUM)},
            "PATH: y must be sequences of labels for data.task=transcription, integers of shape "
            "[N, L] with data.no_label after the last label of a row, got int64 of shape [160]",
        ),
        (
            ["trainer.precision=exact"],
            {},
            "model.layers=blank_padding has no exact form; trainer.precision=exact takes ...",
        ),
        (
            ["trainer.precision=exact"],
            {"layers": PLAIN.replace(", stride: 4", "")},
            "loss=ctc has no exact form; trainer.precision=exact takes ...",
        ),
        (
            ["loss=cross_entropy"],
            {},
            "loss=cross_entropy does not fit this data, which has sequences of labels",
        ),
        (
            ["metrics=[accuracy]"],
            {},
            "metrics must be auto or a list of token_error_rate, word_error_rate for sequences of "
            "labels, got accuracy",
        ),
        (
            [],
            {"layers": LAYERS.replace(",{layer: blank_padding}", "")},
            "model.layers must end the mask with {layer: blank_padding}, so that the padding has "
            "no labels of a sequence",
        ),
        (
            [],
            {"layers": LAYERS.replace("{layer: masking},", "")},
            "model.layers[4] (blank_padding): the sequence has no mask, so no padding to replace; "
            "remove it, or begin with masking or mask_zero",
        ),
        (
            [],
            {"layers": LAYERS.replace("[", "[{layer: dense, units: 5},", 1)},
            "loss=ctc needs masking or mask_zero in the first of model.layers, where the steps of "
            "each row are counted before the training",
        ),
        (
            [],
            {"layers": "model.layers=[{layer: flatten},{layer: dense, units: outputs}]"},
            "model.layers must end in the shape [steps, 4] for this data, got [4]",
        ),
    ],
)
def test_what_has_no_likelihood_is_refused(
    more: list[str], change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    pattern = re.escape(words.replace("PATH", str(tmp_path / "16.npz")))
    pattern = pattern.replace(r"\#", r"\d+").replace(r"\.\.\.", ".*")
    with pytest.raises(ConfigError, match=f"^{pattern}$"):
        prepare([*keys(tmp_path, **change), *more])
