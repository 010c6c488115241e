"""Who is measured, on what, and what each of them does: everything a reader needs to judge the comparison."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.data.embedded import Digits

_OURS_DOES = (
    "the real command line, defaults unchanged: trace.csv of every update (rate read back, loss), training and "
    "validation loss and accuracy an epoch, a synced and hashed checkpoint an epoch, curves.png after training. "
    "Training phase: seconds.train of result.json, from the first chunk asked for to the end of the backend's training."
)


@dataclass(frozen=True)
class Model:
    name: str  # mlp, cnn
    num_epochs: int
    overrides: tuple[str, ...]  # what the command line says to get it
    title: str


@dataclass(frozen=True)
class Contestant:
    """`module` is a peer's script; without one it is our command line with `backend`."""

    name: str
    framework: str  # torch, tensorflow
    does: str
    backend: str | None = None
    module: str | None = None
    peers: tuple[str, ...] = ()  # ours only: who it is measured against, the idiomatic script first

    def command(self, model: Model, rows: Path, folder: Path) -> list[str]:
        if self.backend is not None:
            return [sys.executable, "-m", "runner", f"backend={self.backend}", *_overrides(model, folder)]
        arguments = ["--model", model.name, "--epochs", str(model.num_epochs)]
        return [sys.executable, "-m", str(self.module), *arguments, "--rows", str(rows), "--folder", str(folder)]


CONTESTANTS = (
    Contestant(
        "twinrun lightning", "torch", _OURS_DOES, backend="lightning", peers=("Lightning, idiomatic", "torch loop")
    ),
    Contestant("twinrun keras", "tensorflow", _OURS_DOES, backend="keras", peers=("keras.fit",)),
    Contestant(
        "Lightning, idiomatic",
        "torch",
        "LightningModule with self.log, DataLoader over a shuffled TensorDataset, ExponentialLR moved every step, "
        "CSVLogger, validation and the default checkpoint an epoch; no bar, no training accuracy. "
        "Training phase: from the start of the first training batch to the end of fit, without the sanity check.",
        module="benchmarks.peers.lightning_idiomatic",
    ),
    Contestant(
        "keras.fit",
        "tensorflow",
        "compile with Adam(ExponentialDecay) and accuracy, fit on arrays with validation_data and a ModelCheckpoint "
        "an epoch, verbose=0, jit_compile as Keras chooses; no log file. "
        "Training phase: from the start of the first training batch to the end of fit.",
        module="benchmarks.peers.keras_fit",
    ),
    Contestant(
        "torch loop",
        "torch",
        "hand-written: fused Adam and a table of rates, rows gathered by a permutation; no validation, metrics, "
        "checkpoints or logs. Training phase: the loop over the epochs.",
        module="benchmarks.peers.torch_loop",
    ),
)


def models(num_epochs: int, num_cnn_epochs: int) -> tuple[Model, ...]:
    return (
        Model("mlp", num_epochs, ("model=mlp",), "small: MLP 64-128-10, ReLU"),
        Model("cnn", num_cnn_epochs, ("model=cnn", "data.images=true"), "mid-size: CNN 16-32, batch norm, dropout"),
    )


def write_rows(model: Model, folder: Path) -> Path:
    """The rows of Twinrun's own split, in float32, for the peers."""
    data = Digits(name="digits", images="data.images=true" in model.overrides).load()
    path, splits = folder / f"{model.name}.npz", {"train": data.train, "val": data.val}
    x = {f"x_{name}": split.x.astype(np.float32) for name, split in splits.items()}
    y = {f"y_{name}": split.y for name, split in splits.items()}
    np.savez(path, **x, **y)  # type: ignore[arg-type]
    return path


def environment(num_threads: int) -> Mapping[str, str]:
    """Environment variables set alike for every contestant; the processor's cores are left to the system."""
    threads = ("OMP", "MKL", "OPENBLAS")
    return {
        **{f"{library}_NUM_THREADS": str(num_threads) for library in threads},
        "TF_NUM_INTRAOP_THREADS": str(num_threads),
        "TF_NUM_INTEROP_THREADS": str(num_threads),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
    }


def _overrides(model: Model, folder: Path) -> list[str]:
    return [
        *model.overrides,
        "device=cpu",
        "schedule=exponential",
        "schedule.decay_rate=0.999",
        "schedule.decay_steps=1",
        f"trainer.max_epochs={model.num_epochs}",
        f"output.root={folder}",
    ]
