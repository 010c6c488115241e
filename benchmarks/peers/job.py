"""What the peers have in common, without a framework: their arguments, the rows, the line they print."""

import argparse
import json
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


def tell(train_seconds: float, num_steps: int, val_accuracy: float) -> None:
    """The last line of the output, which the benchmark reads."""
    print(json.dumps({"train_seconds": train_seconds, "steps": num_steps, "val_accuracy": val_accuracy}), flush=True)
