"""Compare experiments of conf/experiment with plain scripts of the same frameworks, five seeds.

    REAL_DATA=FOLDER python -m benchmarks.experiments          # all of them; an hour
    REAL_DATA=FOLDER python -m benchmarks.experiments --names speech_vowels --contestants keras

FOLDER has the packages of tests/real_data.txt; espeak-ng speaks the words of speech_digits and the
numbers of speech_transcription.
A script has the same layers, rows, optimizer, rates and length, with the framework's own first
weights, its own order of the rows, and the usual loop: in torch by hand, in Keras `fit`. The score
is that of the test rows. "no worse": the mean over the seeds is no worse than the script's by more
than two standard errors of the difference, or a hundredth.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import environment
from benchmarks.measure import execute
from benchmarks.report import layout
from runner.components.metrics import token_errors

PEERS = {"lightning": "torch", "keras": "tensorflow"}
CONTESTANTS = ("torch", "lightning", "tensorflow", "keras")
SEEDS = 5
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = ("m1", "m2", "m3", "m4", "f1", "f2", "f3", "f4")
NUMBER_VOICES = ("en+m3", "en+f2", "en-us")

Rate = Callable[[float], float]


@dataclass(frozen=True)
class Case:
    """An experiment and what its script needs to know.

    Attributes:
        metric: the column of test.json; a larger one is better if `sign` is 1.
        optimizer: the name in a script, with its arguments in torch's terms.
        rate: the factor of the base rate after a share u of the run.
        keys: more keys of the command line.
    """

    metric: str
    sign: int
    optimizer: tuple[str, dict[str, float]]
    rate: Rate
    keys: tuple[str, ...] = ()


def _tenths(first: float, second: float) -> Rate:
    return lambda u: 1.0 if u < first else 0.1 if u < second else 0.01


CASES = {
    "image_mnist": Case(
        "accuracy", 1, ("sgd", {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}),
        _tenths(0.5, 0.75),
    ),
    "language_lstm": Case(
        "bits_per_token", -1, ("rmsprop", {"lr": 2e-3, "alpha": 0.95}), lambda u: 1 - u,
        ("trainer.max_steps=600",),
    ),
    "speech_vowels": Case(
        "accuracy", 1, ("adam", {"lr": 5e-3}), lambda u: min(u / 0.1, (1 - u) / 0.9)
    ),
    "speech_digits": Case(
        "accuracy", 1, ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}),
        _tenths(0.334, 0.667), ("data.path=spoken", "data.table=spoken.csv", "data.split=grouped"),
    ),
    "speech_transcription": Case(
        "token_error_rate", -1, ("adam", {"lr": 6e-3}),
        lambda u: min(u / 0.05, (1 + math.cos(math.pi * (u - 0.05) / 0.95)) / 2),
        ("data.path=numbers", "data.table=numbers.csv"),
    ),
    "table_mixed": Case(
        "mean_absolute_error", -1, ("adam", {"lr": 5e-3}),
        lambda u: (1 + math.cos(math.pi * u)) / 2,
    ),
}  # fmt: skip


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.run is not None:
        print(json.dumps(_scores(*arguments.run)))
        return 0
    rows: list[Sequence[str]] = [
        ("experiment", "score", "contestant", "mean", "deviation", "no worse than its script")
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, speak in (
            ("speech_digits", speak_words),
            ("speech_transcription", speak_numbers),
        ):
            if name in arguments.names:
                speak(Path(folder))
        for name in arguments.names:
            found: dict[str, np.ndarray] = {}
            for contestant in arguments.contestants:
                found[contestant] = np.array(_in_new_process(name, contestant, folder))
                rows.append(_row(name, contestant, found))
                print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    print(layout(rows, arguments.markdown))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments", description="Experiments against plain scripts."
    )
    parser.add_argument("--names", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    return parser


def speak_words(folder: Path) -> None:
    """Write spoken/WORD/VOICE_PITCH.wav, ten digits by eight voices at three pitches, and a table
    with the voices as groups."""
    lines = ["path,label,group"]
    for word in WORDS:
        (folder / "spoken" / word).mkdir(parents=True)
        for voice in VOICES:
            for pitch in ("35", "50", "65"):
                path = f"{word}/{voice}_{pitch}.wav"
                _speak(folder / "spoken" / path, word, "-v", f"en+{voice}", "-p", pitch)
                lines.append(f"{path},{word},{voice}")
    (folder / "spoken.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def speak_numbers(folder: Path) -> None:
    """Write numbers/ROW.wav, 400 recordings of one to four digits in three voices of many pitches
    and speeds, and a table with what is said."""
    (folder / "numbers").mkdir()
    lines, rng = ["path,label"], np.random.default_rng(0)
    for row in range(400):
        digits = "".join(map(str, rng.integers(0, 10, rng.integers(1, 5))))
        voice, pitch, speed = NUMBER_VOICES[row % 3], rng.integers(30, 70), rng.integers(140, 200)
        keys = ("-v", voice, "-p", str(pitch), "-s", str(speed))
        _speak(folder / "numbers" / f"{row}.wav", " ".join(digits), *keys)
        lines.append(f"{row}.wav,{digits}")
    (folder / "numbers.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _speak(path: Path, text: str, *keys: str) -> None:
    subprocess.run(["espeak-ng", *keys, "-w", str(path), text], check=True, timeout=60)


def _row(name: str, contestant: str, found: dict[str, np.ndarray]) -> Sequence[str]:
    ours, case, verdict = found[contestant], CASES[name], ""
    if PEERS.get(contestant) in found:
        theirs = found[PEERS[contestant]]
        error = math.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / SEEDS)
        allowed = max(2 * error, 0.01 * abs(theirs.mean()))
        lead = case.sign * (ours.mean() - theirs.mean())
        verdict = f"{'yes' if lead >= -allowed else 'NO'} ({lead:+.4g}, error {error:.2g})"
    numbers = (f"{ours.mean():.4g}", f"{ours.std(ddof=1):.2g}")
    return (name, case.metric, contestant, *numbers, verdict)


def _in_new_process(name: str, contestant: str, folder: str) -> list[float]:
    root = os.environ.get("REAL_DATA", "")
    paths = [os.path.abspath(root), os.environ.get("PYTHONPATH", "")] if root else []
    variables = {**os.environ, **environment(1)}
    if paths:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    own = ["-m", "benchmarks.experiments", "--run", name, contestant, folder]
    *_, output = execute([sys.executable, *own], variables)
    result: list[float] = json.loads(output.splitlines()[-1])
    return result


def _scores(name: str, contestant: str, folder: str) -> list[float]:
    """Train with each seed; return the scores of the test rows."""
    os.chdir(folder)
    case = CASES[name]
    keys = f"experiment={name} device=cpu trainer.threads=1 {' '.join(case.keys)}"
    if contestant in PEERS:
        return [_ours(f"{keys} backend={contestant} seed={seed}", case) for seed in range(SEEDS)]
    from runner.cli.compose import compose
    from runner.config.schema import parse

    config: Any = parse(compose(keys.split()))
    data, size = config.data.load(), config.trainer.batch_size
    if name == "image_mnist":
        data = data.as_images()
    per_epoch = math.ceil(len(data.train) / size)
    num_updates = config.trainer.max_steps or config.trainer.max_epochs * per_epoch
    train = {"torch": _torch, "tensorflow": _keras}[contestant]
    return [
        _measured(case, data, train(name, data, seed, num_updates, size)) for seed in range(SEEDS)
    ]


def _ours(keys: str, case: Case) -> float:
    import runner

    return runner.train(f"{keys} output.root=ours", quiet=True).evaluate()[f"test/{case.metric}"]


def _measured(case: Case, data: Any, z: np.ndarray) -> float:
    """The score of the outputs of the test rows."""
    y, z = data.test.y, z.astype(np.float64)
    if case.metric == "accuracy":
        return float(np.mean(z.argmax(-1) == y))
    if case.metric == "mean_absolute_error":
        return float(np.abs(data.y_scaling.invert(z) - data.y_scaling.invert(y)).mean())
    if case.metric == "token_error_rate":
        errors, labels = token_errors(np.roll(z, -1, axis=-1), y)  # a script's blank is class 0
        return float(errors / labels)
    shifted = z - z.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return float(-np.take_along_axis(log_p, y[..., None], -1).mean() / math.log(2))


def _columns(data: Any) -> list[list[int]]:
    """The columns of the numbers of a diamond, of its cut, its color and its clarity."""
    names = [str(name) for name in data.features]
    parts = {"cut": 1, "color": 2, "clarity": 3}
    found: list[list[int]] = [[], [], [], []]
    for i, name in enumerate(names):
        found[parts.get(name.partition("=")[0], 0)].append(i)
    return found


def _torch(name: str, data: Any, seed: int, num_updates: int, size: int) -> np.ndarray:
    """Train by a loop in torch; return the outputs of the test rows."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    case = CASES[name]
    model = _torch_model(name, data)
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
    kind, arguments = case.optimizer
    optimizer = make[kind](model.parameters(), **arguments)
    x = torch.from_numpy(np.array(data.train.x))
    x = x.float() if x.is_floating_point() else x.long()
    y = torch.from_numpy(np.array(data.train.y))
    rows = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(rows, size, shuffle=True)
    step = 0
    model.train()
    while step < num_updates:
        for batch, labels in loader:
            if step == num_updates:
                break
            for group in optimizer.param_groups:
                group["lr"] = arguments["lr"] * case.rate((step + 0.5) / num_updates)
            optimizer.zero_grad()
            _torch_loss(data.task, model(batch), labels).backward()
            if kind == "rmsprop":
                torch.nn.utils.clip_grad_value_(model.parameters(), 5.0)
            optimizer.step()
            step += 1
    model.eval()
    test = torch.from_numpy(np.array(data.test.x))
    test = test.float() if test.is_floating_point() else test.long()
    with torch.inference_mode():
        return np.concatenate([model(part).numpy() for part in test.split(256)])


def _torch_loss(task: str, z: Any, labels: Any) -> Any:
    """The loss of a batch, of sequences that of a row, whose padding of labels is -1."""
    import torch
    import torch.nn.functional as F

    if task == "regression":
        return F.mse_loss(z, labels.float())
    if task == "transcription":
        num_steps, num_labels = torch.full((len(z),), z.shape[1]), (labels >= 0).sum(1)
        log_p = F.log_softmax(z, -1).transpose(0, 1)
        return F.ctc_loss(log_p, labels + 1, num_steps, num_labels, reduction="sum") / len(z)
    return F.cross_entropy(z.flatten(0, -2), labels.flatten().long())


def _torch_model(name: str, data: Any) -> Any:
    import torch
    from torch import Tensor, nn

    class Residual(nn.Module):
        def __init__(self, body: Any, shortcut: Any) -> None:
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.body(x) + self.shortcut(x))

    class Swap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.movedim(-1, 1)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(12, 64, batch_first=True), nn.Linear(64, 9)

        def forward(self, x: Tensor) -> Tensor:
            lengths = (x != 0).any(-1).sum(1)
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
            return self.head(self.gru(packed)[1][0])

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(data.num_tokens, 128)
            self.lstm = nn.LSTM(128, 128, 2, batch_first=True)
            self.head = nn.Linear(128, data.num_tokens)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(self.embedding(x))[0])

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = _columns(data)
            widths = (3, 4, 4)
            self.vectors = nn.ModuleList(
                nn.Linear(len(part), width, bias=False)
                for part, width in zip(self.parts[1:], widths, strict=True)
            )
            size = len(self.parts[0]) + sum(widths)
            hidden = (nn.Linear(size, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU())
            self.rest = nn.Sequential(*hidden, nn.Linear(50, 1))

        def forward(self, x: Tensor) -> Tensor:
            vectors = [v(x[:, p]) for v, p in zip(self.vectors, self.parts[1:], strict=True)]
            return self.rest(torch.cat([x[:, self.parts[0]], *vectors], 1))

    def spoken() -> Any:
        def conv(inputs: int, outputs: int, width: int, stride: int = 1) -> Any:
            return nn.Conv1d(inputs, outputs, width, stride, width // 2, bias=False)

        def block(i: int, o: int) -> Any:
            body = (conv(i, o, 9, 2), nn.BatchNorm1d(o), nn.ReLU(), conv(o, o, 9))
            shortcut = nn.Sequential(conv(i, o, 1, 2), nn.BatchNorm1d(o), nn.ReLU())
            return Residual(nn.Sequential(*body, nn.BatchNorm1d(o)), shortcut)

        blocks = (conv(40, 16, 3), block(16, 24), block(24, 32), block(32, 48))
        pool = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 10))
        return nn.Sequential(Swap(), *blocks, *pool)

    class Transcribed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv1d(i, 64, 5, 2, 2) for i in (40, 64))
            self.norms = nn.ModuleList((nn.LayerNorm(64), nn.LayerNorm(64)))
            self.gru = nn.GRU(64, 64, batch_first=True, bidirectional=True)
            self.head = nn.Linear(128, len(data.classes) + 1)

        def forward(self, x: Tensor) -> Tensor:
            for conv, norm in zip((self.first, self.second), self.norms, strict=True):
                x = torch.relu(norm(conv(x.mT).mT))
            return self.head(self.gru(x)[0])

    def pictured() -> Any:
        def conv(inputs: int, outputs: int, width: int, stride: int = 1) -> Any:
            return nn.Conv2d(inputs, outputs, width, stride, width // 2, bias=False)

        def body(i: int, o: int, stride: int) -> Any:
            first = (conv(i, o, 3, stride), nn.BatchNorm2d(o), nn.ReLU())
            return nn.Sequential(*first, conv(o, o, 3), nn.BatchNorm2d(o))

        shortcut = nn.Sequential(conv(16, 32, 1, 2), nn.BatchNorm2d(32))
        return nn.Sequential(
            Swap(), conv(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
            Residual(body(16, 16, 1), nn.Identity()), Residual(body(16, 32, 2), shortcut),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    return {
        "image_mnist": pictured, "language_lstm": Steps, "speech_vowels": Last,
        "speech_digits": spoken, "speech_transcription": Transcribed, "table_mixed": Mixed,
    }[name]()  # fmt: skip


def _keras(name: str, data: Any, seed: int, num_updates: int, size: int) -> np.ndarray:
    """Train by keras.Model.fit; return the outputs of the test rows."""
    import keras

    keras.utils.set_random_seed(seed)
    case = CASES[name]
    model = _keras_model(name, data)
    kind, arguments = case.optimizer
    base = arguments["lr"]

    class Rates(keras.callbacks.Callback):
        step = 0

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            factor = case.rate((self.step + 0.5) / num_updates)
            self.model.optimizer.learning_rate.assign(base * factor)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.step += 1
            self.model.stop_training = self.step >= num_updates

    others = {"alpha": "rho"}
    arguments = {others.get(k, k): v for k, v in arguments.items() if k != "lr"}
    if kind == "rmsprop":
        arguments["clipvalue"] = 5.0
    make = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
    optimizer = make.get(kind, keras.optimizers.RMSprop)(base, **arguments)
    losses = {
        "classification": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "transcription": keras.losses.CTC(),
    }
    model.compile(optimizer, losses.get(data.task, "mse"))
    left, x, y = num_updates, np.array(data.train.x), np.array(data.train.y)
    y = y + 1 if data.task == "transcription" else y  # 0 is the blank, and the padding
    per_epoch = math.ceil(len(x) / size)
    rates = Rates()
    while left > 0:  # the last epoch may be a part of one
        steps = min(left, per_epoch)
        order = np.random.permutation(len(x))[: steps * size]
        model.fit(x[order], y[order], size, callbacks=[rates], verbose=0)
        left -= steps
    return np.asarray(model.predict(np.array(data.test.x), verbose=0))


def _keras_model(name: str, data: Any) -> Any:
    from keras import Model, Sequential
    from keras import layers as k

    def norm() -> Any:
        return k.BatchNormalization(momentum=0.9)  # 0.99 suits more than some hundred updates

    def residual(x: Any, conv: Any, filters: int, width: int, stride: int, relu: bool) -> Any:
        keys = {"padding": "same", "use_bias": False}
        y = k.ReLU()(norm()(conv(filters, width, stride, **keys)(x)))
        y = norm()(conv(filters, width, **keys)(y))
        if stride > 1:
            x = norm()(conv(filters, 1, stride, **keys)(x))
            x = k.ReLU()(x) if relu else x
        return k.ReLU()(x + y)

    def pictured() -> Any:
        x = inputs = k.Input((28, 28, 1))
        x = k.Conv2D(16, 3, padding="same", use_bias=False)(x)
        x = residual(k.ReLU()(norm()(x)), k.Conv2D, 16, 3, 1, False)
        x = residual(x, k.Conv2D, 32, 3, 2, False)
        return Model(inputs, k.Dense(10)(k.GlobalAveragePooling2D()(x)))

    def spoken() -> Any:
        x = inputs = k.Input(data.input_shape)
        x = k.Conv1D(16, 3, padding="same", use_bias=False)(x)
        for filters in (24, 32, 48):
            x = residual(x, k.Conv1D, filters, 9, 2, True)
        return Model(inputs, k.Dense(10)(k.Dropout(0.5)(k.GlobalAveragePooling1D()(x))))

    def transcribed() -> Any:
        x = inputs = k.Input(data.input_shape)
        for _ in range(2):
            x = k.ReLU()(k.LayerNormalization()(k.Conv1D(64, 5, 2, padding="same")(x)))
        x = k.Bidirectional(k.GRU(64, return_sequences=True))(x)
        return Model(inputs, k.Dense(len(data.classes) + 1)(x))

    def mixed() -> Any:
        inputs = k.Input(data.input_shape)
        numbers, *others = _columns(data)
        cut = [inputs[:, min(part) : max(part) + 1] for part in others]
        vectors = [k.Dense(n, use_bias=False)(c) for n, c in zip((3, 4, 4), cut, strict=True)]
        first = [inputs[:, i : i + 1] for i in numbers]
        x = k.Concatenate()([*first, *vectors])
        x = k.Dense(50, "relu")(k.Dense(100, "relu")(x))
        return Model(inputs, k.Dense(1)(x))

    sequence = (k.LSTM(128, return_sequences=True), k.LSTM(128, return_sequences=True))
    models: dict[str, Callable[[], Any]] = {
        "image_mnist": pictured,
        "language_lstm": lambda: Sequential(
            [k.Embedding(data.num_tokens, 128), *sequence, k.Dense(data.num_tokens)]
        ),
        "speech_vowels": lambda: Sequential([k.Masking(), k.GRU(64), k.Dense(9)]),
        "speech_digits": spoken,
        "speech_transcription": transcribed,
        "table_mixed": mixed,
    }
    return models[name]()


if __name__ == "__main__":
    sys.exit(main())
