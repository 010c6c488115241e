"""Shared parts of the peers, without a framework: the arguments, the rows, the printed line."""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LEARNING_RATE = 1e-3
DECAY_RATE = 0.999  # per step
VAL_BATCH_SIZE = 256


@dataclass(frozen=True)
class Rows:
    x: np.ndarray  # float32[N, 64], or images float32[N, H, W, C]
    y: np.ndarray  # int64[N]


@dataclass(frozen=True)
class Job:
    model: str  # mlp, cnn, resnet, transformer, cnn_1m, mlp_4m
    num_epochs: int
    batch_size: int
    folder: Path  # for checkpoints and logs
    train: Rows
    val: Rows

    @property
    def num_steps(self) -> int:
        return self.num_epochs * -(-len(self.train.x) // self.batch_size)

    def rates(self) -> list[float]:
        """Return the learning rate of every update."""
        return [LEARNING_RATE * DECAY_RATE**step for step in range(self.num_steps)]


def read() -> Job:
    """Read the job from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--model",
        choices=["mlp", "cnn", "resnet", "transformer", "cnn_1m", "mlp_4m"],
        required=True,
    )
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument(
        "--rows", type=Path, required=True, help="an .npz with x_train, y_train, x_val, y_val"
    )
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints and logs go")
    arguments = parser.parse_args()
    with np.load(arguments.rows) as rows:
        train, val = (Rows(rows[f"x_{split}"], rows[f"y_{split}"]) for split in ("train", "val"))
    return Job(
        arguments.model, arguments.epochs, arguments.batch_size, arguments.folder, train, val
    )


def accuracy(rows: Rows, predict: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the accuracy. `predict` returns the outputs of a batch."""
    batches = [rows.x[i : i + VAL_BATCH_SIZE] for i in range(0, len(rows.x), VAL_BATCH_SIZE)]
    outputs = np.concatenate([predict(batch) for batch in batches])
    return float((outputs.argmax(1) == rows.y).mean())


class Records:
    """Records of a training as Twinrun keeps them: a row per update, a row per epoch, and synced
    checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.num_steps = folder, 0
        self._trace = (folder / "trace.csv").open("w")
        self._metrics = (folder / "metrics.csv").open("w")

    def end_epoch(
        self, rates: Iterable[float], losses: np.ndarray, metrics: Iterable[float]
    ) -> None:
        """Append the rows of an epoch."""
        for rate, loss in zip(rates, losses, strict=True):
            self._trace.write(f"{self.num_steps},{rate},{loss}\n")
            self.num_steps += 1
        self._metrics.write(",".join(map(str, [self.num_steps, *metrics])) + "\n")
        for file in (self._trace, self._metrics):
            file.flush()
            os.fsync(file.fileno())

    def save(self, suffix: str, write: Callable[[Path], object]) -> None:
        """Save a checkpoint, and remove the one before."""
        temporary, path = self.folder / f".last{suffix}", self.folder / f"last{suffix}"
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


@dataclass
class Clock:
    """Records the times of the training phase, as Unix time. Each is recorded once."""

    began: float | None = None  # at the first batch
    after_first_epoch: float | None = None

    def begin(self) -> None:
        self.began = self.began or time.time()

    def end_epoch(self) -> None:
        self.after_first_epoch = self.after_first_epoch or time.time()

    def print_result(self, num_steps: int, val_accuracy: float, ended: float | None = None) -> None:
        """Print the last line of the output, which the benchmark reads. `ended` is now by
        default."""
        ended = ended or time.time()
        assert self.began is not None
        assert self.after_first_epoch is not None
        spans = {
            "train_seconds": ended - self.began,
            "later_seconds": ended - self.after_first_epoch,
            "began": self.began,
        }
        print(json.dumps({**spans, "steps": num_steps, "val_accuracy": val_accuracy}), flush=True)
