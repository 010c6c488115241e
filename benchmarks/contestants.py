"""The contestants, their models, and what each of them does: everything that a reader needs to
judge the comparison."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from runner.config.conf_folder import defaults
from runner.data import Dataset
from runner.data.embedded import Digits
from runner.data.files import NPZ

CONF = Path(__file__).with_name("conf")
_VAL_FRACTION = 0.125

_OURS_DOES = (
    "the command line with its defaults: trace.csv of every update (rate read back, loss); per "
    "epoch the loss and accuracy of training and validation, and a synced and hashed checkpoint; "
    "curves.png after training. "
    "Training phase: seconds.train of result.json, from the request of the first chunk to the end "
    "of the backend's training."
)
_RECORDS = (
    "with what Twinrun writes: the loss and accuracy of training and validation, the rate and loss "
    "of every update, and a synced checkpoint of weights and optimizer per epoch."
)


@dataclass(frozen=True)
class Model:
    name: str
    title: str
    num_epochs: int
    batch_size: int
    num_threads: int
    network: str  # its name in the peers' scripts
    rows: str  # "digits", "digits as images", or the number and shape of images
    by_default: bool = True
    more: tuple[str, ...] = ()  # overrides for Twinrun only

    def overrides(self, rows: Path) -> list[str]:
        """Return the command-line overrides; rows other than the digits are read from a file."""
        if not self.rows.startswith("digits"):
            data = [
                "data=npz",
                f"data.path={images(rows)}",
                f"data.val_fraction={_VAL_FRACTION}",
                "data.test_fraction=0",
            ]
            return ["--config-dir", str(CONF), f"model={self.network}", *data, *self.more]
        return [
            f"model={self.network}",
            f"data.images={str(self.rows != 'digits').lower()}",
            *self.more,
        ]


@dataclass(frozen=True)
class Contestant:
    """A peer's script `module`, or without one, Twinrun's command line with `backend`."""

    name: str
    framework: str  # torch, tensorflow, jax
    does: str
    backend: str | None = None
    module: str | None = None
    peers: tuple[str, ...] = ()  # of Twinrun: its peers, the idiomatic script first
    only: str | None = None  # pattern of the names of the models that it takes part in

    def command(self, model: Model, rows: Path, folder: Path) -> list[str]:
        if self.backend is not None:
            return [
                sys.executable,
                "-m",
                "runner",
                *_overrides(model, rows, folder),
                f"backend={self.backend}",
            ]
        arguments = [
            "--model",
            model.network,
            "--epochs",
            str(model.num_epochs),
            "--batch-size",
            str(model.batch_size),
        ]
        return [
            sys.executable,
            "-m",
            str(self.module),
            *arguments,
            "--rows",
            str(rows),
            "--folder",
            str(folder),
        ]


CONTESTANTS = (
    Contestant(
        "twinrun lightning",
        "torch",
        _OURS_DOES,
        backend="lightning",
        peers=(
            *("Lightning, idiomatic", "torch loop", "torch loop with records"),
            *("torch loop, plain", "JAX scan"),
        ),
    ),
    Contestant(
        "twinrun keras",
        "tensorflow",
        _OURS_DOES,
        backend="keras",
        peers=(
            *("keras.fit", "TensorFlow loop", "TensorFlow loop with records"),
            *("TensorFlow loop, plain", "JAX scan"),
        ),
    ),
    Contestant(
        "Lightning, idiomatic",
        "torch",
        "LightningModule with self.log, DataLoader over a shuffled TensorDataset, "
        "ExponentialLR stepped every update, "
        "CSVLogger, validation and the default checkpoint per epoch; no progress bar, no training "
        "accuracy. "
        "Training phase: from the start of the first training batch to the end of fit, "
        "without the sanity check.",
        module="benchmarks.peers.lightning_idiomatic",
    ),
    Contestant(
        "keras.fit",
        "tensorflow",
        "compile with Adam(ExponentialDecay) and accuracy, fit on arrays with "
        "validation_data and a ModelCheckpoint "
        "per epoch, verbose=0, Keras's default jit_compile; no log file. "
        "Training phase: from the start of the first training batch to the end of fit.",
        module="benchmarks.peers.keras_fit",
    ),
    Contestant(
        "torch loop",
        "torch",
        "hand-written: fused Adam and a table of rates, rows gathered by a permutation, "
        "channels last for "
        "convolutions, validation accuracy per epoch; no other metrics, checkpoints or logs. "
        "Training phase: the loop over the epochs.",
        module="benchmarks.peers.torch_loop",
    ),
    Contestant(
        "TensorFlow loop",
        "tensorflow",
        "hand-written: an epoch is one tf.function that gathers its rows by a permutation, "
        "with Keras's layers and Adam "
        "and a table of rates, with XLA unless the model has convolutions, validation "
        "accuracy per epoch; no other metrics, "
        "checkpoints or logs. "
        "Training phase: the loop over the epochs.",
        module="benchmarks.peers.tensorflow_loop",
    ),
    Contestant(
        "torch loop with records",
        "torch",
        f"the torch loop {_RECORDS}",
        module="benchmarks.peers.torch_records",
        only="mlp",
    ),
    Contestant(
        "TensorFlow loop with records",
        "tensorflow",
        f"the TensorFlow loop {_RECORDS}",
        module="benchmarks.peers.tensorflow_records",
        only="mlp",
    ),
    Contestant(
        "torch loop, plain",
        "torch",
        "the same with torch's default Adam and memory layout.",
        module="benchmarks.peers.torch_plain",
        only="exact_*",
    ),
    Contestant(
        "TensorFlow loop, plain",
        "tensorflow",
        "hand-written: a tf.function of one update, called from Python with rows gathered "
        "by NumPy, Keras's layers and "
        "Adam, its rate set before each update, validation accuracy per epoch; no other "
        "metrics, checkpoints or logs. "
        "Training phase: the loop over the epochs.",
        module="benchmarks.peers.tensorflow_plain",
        only="exact_*",
    ),
    Contestant(
        "JAX scan",
        "jax",
        "the practical limit for the small model: an epoch is one compiled lax.scan with "
        "a hand-written Adam; nothing else. "
        "Training phase: the loop over the epochs.",
        module="benchmarks.peers.jax_scan",
        only="*mlp",
    ),
)


_EXACT = ("trainer.precision=exact",)
_MODELS = (
    Model("mlp", "digits, 1,280 rows: MLP 64-128-10, ReLU, batch 32", 20, 32, 1, "mlp", "digits"),
    Model(
        "cnn_1m",
        "1,792 images of 32x32x3: CNN 32-64-128, batch norm, dropout, 1.02 M parameters, batch 64",
        *(4, 64, 2),
        "cnn_1m",
        "2048 32 32 3",
    ),
    Model(
        "mlp_4m",
        "52,500 images of 28x28: MLP 784-1650-1650-10, 4.03 M parameters, batch 64",
        *(2, 64, 2),
        "mlp_4m",
        "60000 28 28 1",
    ),
    Model(
        "transformer",
        "digits as images: vision transformer of two blocks, 32 wide, 4 heads, batch 32",
        *(10, 32, 1),
        "transformer",
        "digits as images",
    ),
    # Twinrun in exact mode, peers in float32
    Model(
        "exact_mlp",
        "the model mlp, Twinrun in exact mode",
        20,
        32,
        1,
        "mlp",
        "digits",
        False,
        _EXACT,
    ),
    Model(
        "exact_cnn",
        "digits as images: CNN 16-32, batch 32, Twinrun in exact mode",
        5,
        32,
        1,
        "cnn",
        "digits as images",
        False,
        _EXACT,
    ),
    Model(
        "exact_resnet",
        "digits as images: ResNet of two blocks, batch 32, Twinrun in exact mode",
        *(3, 32, 1),
        "resnet",
        "digits as images",
        False,
        _EXACT,
    ),
    Model(
        "exact_transformer",
        "the model transformer, Twinrun in exact mode",
        *(3, 32, 1),
        "transformer",
        "digits as images",
        False,
        _EXACT,
    ),
)


def models(num_epochs: Mapping[str, int]) -> tuple[Model, ...]:
    """Return the models, with the given numbers of epochs."""
    return tuple(
        replace(model, num_epochs=num_epochs.get(model.name, model.num_epochs)) for model in _MODELS
    )


def taking_part(model: Model) -> list[Contestant]:
    return [contestant for contestant in CONTESTANTS if fnmatch(model.name, contestant.only or "*")]


def write_rows(model: Model, folder: Path) -> Path:
    """Write the rows of Twinrun's split, in float32, for the peers; if they are not the digits,
    also write the file that Twinrun reads."""
    path = folder / f"{model.name}.npz"
    if model.rows.startswith("digits"):
        keys = {**defaults("data", "digits"), "images": model.rows != "digits"}
        data = Digits(**keys).load()
    else:
        data = _images(images(path), *map(int, model.rows.split()))
    splits = {"train": data.train, "val": data.val}
    x = {f"x_{name}": split.x.astype(np.float32) for name, split in splits.items()}
    y = {f"y_{name}": split.y for name, split in splits.items()}
    np.savez(path, **x, **y)  # type: ignore[arg-type]
    return path


def images(rows: Path) -> Path:
    """Return the path of the file that Twinrun reads and splits itself."""
    return rows.with_stem(f"{rows.stem}_whole")


def _images(path: Path, num: int, *shape: int) -> Dataset:
    """Write and load images in 10 classes: a fixed picture for each class, with noise."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 10, num)
    x = generator.random((10, *shape))[y] + generator.normal(0, 1, (num, *shape))
    np.savez(path, x=x.astype(np.float32), y=y)
    keys = {"path": str(path), "val_fraction": _VAL_FRACTION, "test_fraction": 0}
    return NPZ(**{**defaults("data", "npz"), **keys}).load()


def environment(num_threads: int) -> Mapping[str, str]:
    """Return the environment variables, the same for every contestant. Processes are not pinned to
    cores."""
    threads = ("OMP", "MKL", "OPENBLAS")
    return {
        **{f"{library}_NUM_THREADS": str(num_threads) for library in threads},
        "TF_NUM_INTRAOP_THREADS": str(num_threads),
        "TF_NUM_INTEROP_THREADS": str(num_threads),
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if num_threads > 1 else 'false'}",
        "TWINRUN_CACHE": "off",  # every run compiles, as its peers do
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
    }


def _overrides(model: Model, rows: Path, folder: Path) -> list[str]:
    return [
        *model.overrides(rows),
        "device=cpu",
        "schedule=exponential",
        "schedule.decay_rate=0.999",
        "schedule.decay_steps=1",
        f"trainer.batch_size={model.batch_size}",
        f"trainer.max_epochs={model.num_epochs}",
        f"trainer.threads={model.num_threads}",
        f"output.root={folder}",
    ]
