"""Compare the speed of a model of the user's own with that of the built-in model.

    python -m benchmarks.own                      # two minutes on two cores
    python -m benchmarks.own --rounds 15 --epochs 100

The model is `model=mlp` on the digits, and the same layers as an nn.Module and a keras.Model. Both
take turns in one process for each backend, so that a slow minute of the machine affects both. The
time of an update in a run is that of the fastest tenth of the epochs after the first, since other
programs can only make an epoch slower. The figure is the median of the rounds' ratios: built-in
time / own time. The first round is a warm-up.
"""

import argparse
import os
import tempfile
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from benchmarks.contestants import environment
from benchmarks.measure import in_new_process
from benchmarks.report import layout
from runner.run.run_folder import read_columns

BACKENDS = ("lightning", "keras")


def torch_model() -> Any:
    """Make the layers of `model=mlp` as a user writes them."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.last = nn.Linear(64, 128), nn.Linear(128, 10)

        def forward(self, x: Any) -> Any:
            return self.last(self.hidden(x).relu())

    return Net()


def keras_model() -> Any:
    """Make the layers of `model=mlp` as a user writes them."""
    import keras

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = keras.layers.Dense(128, activation="relu")
            self.last = keras.layers.Dense(10)

        def call(self, x: Any) -> Any:
            return self.last(self.hidden(x))

    return Net()


def measure(backend: str, rounds: int, epochs: int) -> list[tuple[float, float]]:
    """Return the seconds of an update of the built-in and of the own model, for each round."""
    import runner

    make = torch_model if backend == "lightning" else keras_model
    with tempfile.TemporaryDirectory() as folder:
        line = f"backend={backend} device=cpu trainer.threads=1 trainer.max_epochs={epochs}"
        train = partial(runner.train, f"{line} output.root={folder}", quiet=True)

        def seconds(**model: Any) -> float:
            columns = read_columns(train(**model).folder / "metrics.csv")
            each = np.diff(columns["seconds"]) / np.diff(columns["step"])
            return float(np.quantile(each, 0.1))

        pairs = [(seconds(), seconds(model=make)) for _ in range(rounds + 1)]
    return pairs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=60)
    given = parser.parse_args()
    os.environ |= environment(1)
    rows = [("backend", "built-in us", "own us", "built-in / own", "lowest", "highest")]
    for backend in BACKENDS:
        pairs = in_new_process(measure, backend, given.rounds, given.epochs)
        ratios = [built_in / own for built_in, own in pairs]
        times = [f"{median(side) * 1e6:.0f}" for side in zip(*pairs, strict=True)]
        numbers = (median(ratios), min(ratios), max(ratios))
        rows.append((backend, *times, *(f"{number:.2f}" for number in numbers)))
    print(layout(rows, markdown=False))


if __name__ == "__main__":
    main()
