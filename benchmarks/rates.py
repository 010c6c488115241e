"""Compare optimizer.lr=auto with a grid of rates and with the default rate, on embedded data.

    python -m benchmarks.rates [--data digits iris ...]

Prints the validation loss after the default 20 epochs, for Adam and SGD under a constant and a
cosine schedule. The grid has two rates per factor of ten, from 10^-4.5 to 10.
"""

import argparse
import json
import math
import tempfile
from itertools import product

from benchmarks.report import layout
from runner import Run, RunError, train

GRID = [10 ** (k / 2) for k in range(-9, 3)]
DATA = ("digits", "iris", "wine", "breast_cancer", "diabetes")
HEADER = ("data", "optimizer", "schedule", "auto: rate", "runs", "loss", "best of grid", "default")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    chosen = parser.parse_args().data
    cases = product(chosen, ("adam", "sgd"), ("constant", "cosine"))
    with tempfile.TemporaryDirectory() as root:
        rows = [_row(root, *case) for case in cases]
    print(layout([HEADER, *rows], markdown=True))


def _row(root: str, data: str, optimizer: str, schedule: str) -> tuple[str, ...]:
    keys = [f"data={data}", f"optimizer={optimizer}", f"schedule={schedule}", "device=cpu"]
    keys.append(f"output.root={root}")
    auto = train([*keys, "optimizer.lr=auto"], quiet=True)
    found = json.loads((auto.folder / "find_lr.json").read_text(encoding="utf-8"))
    grid = [_loss([*keys, f"optimizer.lr={lr:.6g}"]) for lr in GRID]
    best = min(range(len(GRID)), key=grid.__getitem__)
    return (
        *(data, optimizer, schedule, f"{found['lr']:g}", str(len(found["measured"]))),
        *(f"{_last(auto):.4f}", f"{grid[best]:.4f} at {GRID[best]:.2g}", f"{_loss(keys):.4f}"),
    )


def _last(run: Run) -> float:
    return float(run.metrics["val/loss"][-1])


def _loss(keys: list[str]) -> float:
    """Return the validation loss after a run; infinite if it diverged."""
    try:
        value = _last(train(keys, quiet=True))
    except RunError:
        return math.inf
    return value if math.isfinite(value) else math.inf


if __name__ == "__main__":
    main()
