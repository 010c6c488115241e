"""python -m tests.ranks [--share 0.1]: the same runs on 1, 2 and 4 processes of every backend.

Models x optimizers x accumulation, all with clipping, a cosine schedule, and a global batch that
neither the processes nor the rows of an epoch divide. In float64, losses, weights, statistics and
slots of all runs of a row are within 1e-12 of those of one process of Lightning; in exact mode the
hashes are equal, on the NumPy witness too. Rates are equal to the bit in both. An hour or two for
all of it on two idle cores; the tests have the same claims for fewer rows and fewer updates.

    python -m tests.ranks --models gpt --optimizers adamw --modes exact --processes 1 3
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from runner.run.run_folder import read_columns, read_json
from tests.command_line import forked
from tests.exact.__main__ import SEQUENCES
from tests.parity.test_parity import ALL_OPTIMIZERS, IMAGES
from tests.training import difference

# 1,280 rows in batches of 71: the last one of an epoch has 2, so of 4 processes two have none
_ROWS = "trainer.global_batch_size=71"
MODELS = {
    "mlp": ["model=mlp", _ROWS],
    "cnn": [  # no bias before a normalisation: its gradient would be rounding noise
        "model.layers=[{layer: reshape, shape: [8, 8, 1]},"
        "{layer: conv2d, filters: 4, kernel_size: 3, bias: false},{layer: batch_norm},"
        "{layer: activation, function: relu},{layer: dropout, rate: 0.3},{layer: flatten},"
        "{layer: dense, units: outputs}]",
        _ROWS,
    ],
    "transformer": ["model=transformer", IMAGES, _ROWS],
    "gpt": [key for key in SEQUENCES["gpt"] if "batch_size" not in key]
    + ["trainer.global_batch_size=7"],
}
OPTIMIZERS = ("momentum", "adam", "adamw")
BACKENDS = {"float64": ("lightning", "keras"), "exact": ("lightning", "keras", "witness")}
COMMON = (
    "schedule=cosine", "trainer.gradient_clip_norm=0.5", "trainer.max_epochs=100000",
    "trainer.checkpoint_every=null", "trainer.threads=1", "device=cpu",
)  # fmt: skip
CLOSE = 1e-12  # rounding of float64: the sums over rows are added in another order


class Row(NamedTuple):
    """Runs that must be equal."""

    model: str
    optimizer: str
    accumulate: int
    mode: str

    def overrides(self) -> list[str]:
        own = [*MODELS[self.model], *ALL_OPTIMIZERS[self.optimizer]]
        own += [f"trainer.accumulate_grad_batches={self.accumulate}"]
        return [*COMMON, *own, f"trainer.precision={self.mode}"]

    def __str__(self) -> str:
        return f"{self.mode}  {self.model}  {self.optimizer}  accumulation {self.accumulate}"


def state_of(folder: Path) -> dict[str, np.ndarray]:
    """Return the losses, weights, slots and statistics of a run."""
    files = (folder / "checkpoints" / "last").resolve().glob("*.safetensors")
    tensors = {f"{file.stem}/{k}": v for file in files for k, v in load_file(file).items()}
    return {"loss": read_columns(folder / "trace.csv")["loss"], **tensors}


def check(row: Row, processes: Sequence[int], updates: int, root: Path) -> bool:
    """Train a row's runs, print a line on it, and return whether all of them are equal."""
    began, folders = time.perf_counter(), {}
    for backend, num in product(BACKENDS[row.mode], processes):
        name = f"{backend} x {num}"
        more = (f"backend={backend}", f"devices={num}", f"trainer.max_steps={updates}")
        (done,) = forked(root, (*row.overrides(), *more, f"output.root={root / name}"))
        if done.status:
            print(f"{row}  {name} FAILED: {done.err.strip()[-500:]}", flush=True)
            return False
        folders[name] = root / done.folder
    differing = _differing(row, folders)
    told = ", ".join(differing) or "equal"
    seconds = time.perf_counter() - began
    print(f"{row}  {len(folders)} runs  {told}  ({seconds:.0f} s)", flush=True)
    return not differing


def _differing(row: Row, folders: dict[str, Path]) -> list[str]:
    """Name the runs that differ from the first one."""
    first, *others = folders
    traces = {name: read_columns(path / "trace.csv") for name, path in folders.items()}
    rates = {name: trace["learning_rate"] for name, trace in traces.items()}
    found = [f"{name}: other rates" for name in others if (rates[name] != rates[first]).any()]
    if row.mode == "exact":
        keys = ("weights_sha256", "slots_sha256", "losses_sha256")
        hashes = {name: read_json(path / "result.json") for name, path in folders.items()}
        for name, key in product(others, keys):
            if hashes[name][key] != hashes[first][key]:
                found.append(f"{name}: other {key}")
        return found
    expected = state_of(folders[first])
    for name in others:
        distance = difference(expected, state_of(folders[name]))
        if not distance <= CLOSE:  # NaN too
            found.append(f"{name}: {distance:.1e} apart")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ranks")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS])
    parser.add_argument("--accumulate", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--modes", nargs="+", choices=[*BACKENDS], default=[*BACKENDS])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--share", type=float, default=1.0, help="of the rows, evenly spread")
    options = parser.parse_args()
    keys = (options.models, options.optimizers, options.accumulate, options.modes)
    rows = [Row(*row) for row in product(*keys)]
    num = max(1, round(len(rows) * options.share))
    rows = [rows[int((i + 0.5) * len(rows) / num)] for i in range(num)]
    num_equal = 0
    for row in rows:
        with TemporaryDirectory() as folder:
            num_equal += check(row, options.processes, options.updates, Path(folder))
    print(f"{num_equal} of {len(rows)} rows are equal on {options.processes} processes")
    return int(num_equal < len(rows))


if __name__ == "__main__":
    sys.exit(main())
