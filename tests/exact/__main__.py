"""python -m tests.exact [--steps 5000]: the same long runs on every implementation, and whether their hashes are equal.

Models x optimizers, under a cosine schedule with warm-up, clipping, three micro-batches an update and weight decay. Hours for
all of it; the tests have the same claims for fewer rows and fewer updates.
"""

import argparse
import sys
import time

from backends.keras import device
from runner.exact.certificate import hashes
from tests.exact.common import BASE
from tests.exact.test_same_bits import HARD, MODELS
from tests.parity.test_parity import OPTIMIZERS
from tests.training import train

# name -> backend, whether TensorFlow compiles by XLA
IMPLEMENTATIONS = {
    "lightning": ("lightning", True),
    "xla": ("keras", True),
    "graph": ("keras", False),
    "witness": ("witness", True),
}
MAIN = ["momentum", "nesterov", "adam", "adamw", "rmsprop", "lion"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.exact")
    parser.add_argument("--steps", type=int, default=5000, help="updates of each run")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--optimizers", nargs="+", choices=[*OPTIMIZERS], default=MAIN)
    parser.add_argument("--ways", nargs="+", choices=[*IMPLEMENTATIONS], default=[*IMPLEMENTATIONS])
    said = parser.parse_args()
    rows = [(model, optimizer) for model in said.models for optimizer in said.optimizers]
    differing = [row for row in rows if not _alike(*row, said.steps, said.ways)]
    print(f"{len(rows) - len(differing)} of {len(rows)} runs of {said.steps} updates have equal hashes on {said.ways}")
    return int(bool(differing))


def _alike(model: str, optimizer: str, num_steps: int, ways: list[str]) -> bool:
    """One run on each; a line that tells their hashes of weights, slots and losses."""
    run = [
        *BASE,
        *MODELS[model],
        *OPTIMIZERS[optimizer],
        *HARD,
        f"trainer.max_steps={num_steps}",
        "trainer.max_epochs=100000",
    ]
    found, spent = {}, []
    for way in ways:
        backend, by_xla = IMPLEMENTATIONS[way]
        device.by_xla = lambda run, said=by_xla: said
        began = time.perf_counter()
        trained = train(backend, run)
        found[way] = tuple(hashes(trained.state, trained.losses).values())
        spent.append(f"{way} {time.perf_counter() - began:.0f} s")
    alike = len(set(found.values())) == 1
    told = " ".join(value[:12] for value in found[ways[0]]) if alike else f"DIFFERENT {found}"
    print(f"{model}  {optimizer}  {told}  ({', '.join(spent)})", flush=True)
    return alike


if __name__ == "__main__":
    sys.exit(main())
