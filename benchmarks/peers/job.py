"""What the peers have in common, without a framework: their arguments, the rows, the line they print."""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BATCH_SIZE = 32
LEARNING_RATE = 1e-3
DECAY_RATE = 0.999  # per step


@dataclass(frozen=True)
class Rows:
    x: np.ndarray  # float32[N, 64], or float32[N, 8, 8, 1] for the CNN
    y: np.ndarray  # int64[N]


@dataclass(frozen=True)
class Job:
    model: str  # mlp, cnn
    num_epochs: int
    folder: Path  # for what the script leaves: checkpoints, logs
    train: Rows
    val: Rows

    @property
    def num_steps(self) -> int:
        return self.num_epochs * -(-len(self.train.x) // BATCH_SIZE)


def read() -> Job:
    """The job that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["mlp", "cnn"], required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="an .npz with x_train, y_train, x_val, y_val")
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints and logs go")
    said = parser.parse_args()
    with np.load(said.rows) as rows:
        train, val = (Rows(rows[f"x_{split}"], rows[f"y_{split}"]) for split in ("train", "val"))
    return Job(said.model, said.epochs, said.folder, train, val)


@dataclass
class Clock:
    """Marks the training phase, in seconds of time.perf_counter(); each mark is made once."""

    began: float | None = None  # the first batch
    after_first_epoch: float | None = None

    def begin(self) -> None:
        self.began = self.began or time.perf_counter()

    def end_epoch(self) -> None:
        self.after_first_epoch = self.after_first_epoch or time.perf_counter()

    def tell(self, num_steps: int, val_accuracy: float, ended: float | None = None) -> None:
        """The last line of the output, which the benchmark reads; `ended`: now, if nothing else is said."""
        ended = ended or time.perf_counter()
        assert self.began is not None
        assert self.after_first_epoch is not None
        spans = {"train_seconds": ended - self.began, "later_seconds": ended - self.after_first_epoch}
        print(json.dumps({**spans, "steps": num_steps, "val_accuracy": val_accuracy}), flush=True)
