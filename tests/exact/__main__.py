"""python -m tests.exact [--steps 5000]: the same long runs on every implementation, and whether
their hashes are equal.

Models x optimizers, or with --losses the small MLP under other losses, all under a cosine schedule
with warm-up, clipping, three micro-batches an update and weight decay. Hours for all of it; the
tests have the same claims for fewer rows and fewer updates. Models of sequences:

    python -m tests.exact --models gpt bert gru conv1d --optimizers adamw --steps 500
"""

import argparse
import sys
import time
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from backends.keras import device
from runner.run.certificate import hashes
from tests.exact.common import BASE, binary_cross_entropy, cosine_similarity
from tests.exact.test_same_bits import HARD, MODELS
from tests.parity.test_parity import ALL_OPTIMIZERS, LOSSES
from tests.training import train

# name -> backend, whether TensorFlow compiles by XLA
IMPLEMENTATIONS = {
    "lightning": ("lightning", True),
    "xla": ("keras", True),
    "graph": ("keras", False),
    "witness": ("witness", True),
}
_TEXT = ["data=python_docs", "data.context=32", "trainer.batch_size=8"]
_BLOCK = (
    "{layer: residual, layers: [{layer: layer_norm},{layer: attention, num_heads: 2CAUSAL}]},"
    "{layer: residual, layers: [{layer: layer_norm},{layer: dense, units: 64},"
    "{layer: activation, function: gelu_tanh},{layer: dense, units: 32}]},"
)
_EMBEDDED = "{layer: embedding, features: 32},{layer: position_embedding},"
_OF_FRAMES = "model.layers=[{layer: reshape, shape: [8, 8]},"
# small ones of the kinds of model=gpt and bert (a label of each text), and of speech's
SEQUENCES = {
    "gpt": [
        *_TEXT,
        f"model.layers=[{_EMBEDDED}{2 * _BLOCK.replace('CAUSAL', ', causal: true')}"
        "{layer: layer_norm},{layer: dense, units: outputs}]",
    ],
    "bert": [
        *_TEXT,
        "data.chapters=true",
        "data.split=random",
        f"model.layers=[{_EMBEDDED}{2 * _BLOCK.replace('CAUSAL', '')}"
        "{layer: global_average_pool},{layer: dense, units: outputs}]",
    ],
    "gru": [f"{_OF_FRAMES}{{layer: gru, units: 16}},{{layer: dense, units: outputs}}]"],
    "conv1d": [
        f"{_OF_FRAMES}{{layer: conv1d, filters: 16, kernel_size: 3, bias: false}},"
        "{layer: batch_norm},{layer: activation, function: relu},"
        "{layer: conv1d, filters: 16, kernel_size: 3, stride: 2},{layer: global_average_pool},"
        "{layer: dense, units: outputs}]"
    ],
}
ALL_MODELS = {**MODELS, **SEQUENCES}
MAIN = ["momentum", "nesterov", "adam", "adamw", "rmsprop", "lion"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.exact")
    parser.add_argument("--steps", type=int, default=5000, help="updates of each run")
    parser.add_argument("--models", nargs="+", choices=[*ALL_MODELS], default=[*MODELS])
    parser.add_argument("--optimizers", nargs="+", choices=[*ALL_OPTIMIZERS], default=MAIN)
    parser.add_argument("--ways", nargs="+", choices=[*IMPLEMENTATIONS], default=[*IMPLEMENTATIONS])
    parser.add_argument(
        "--losses",
        nargs="+",
        choices=[*LOSSES, "binary_cross_entropy", "cosine_similarity"],
        help="these in place of the models",
    )
    said = parser.parse_args()
    with TemporaryDirectory() as folder:
        here = {name: Path(folder, name) for name in ("binary_cross_entropy", "cosine_similarity")}
        for path in here.values():
            path.mkdir()
        losses = {
            **LOSSES,
            "binary_cross_entropy": binary_cross_entropy(here["binary_cross_entropy"]),
            "cosine_similarity": cosine_similarity(here["cosine_similarity"]),
        }
        if said.losses:
            rows = {name: [*losses[name], *ALL_OPTIMIZERS["adam"]] for name in said.losses}
        else:
            pairs = product(said.models, said.optimizers)
            rows = {
                f"{model}  {name}": [*ALL_MODELS[model], *ALL_OPTIMIZERS[name]]
                for model, name in pairs
            }
        differing = [
            name for name, row in rows.items() if not _alike(name, row, said.steps, said.ways)
        ]
    print(
        f"{len(rows) - len(differing)} of {len(rows)} runs of {said.steps} updates have "
        f"equal hashes on {said.ways}"
    )
    return int(bool(differing))


def _alike(name: str, row: list[str], num_steps: int, ways: list[str]) -> bool:
    """One run on each; a line that tells their hashes of weights, slots and losses."""
    run = [*BASE, *row, *HARD, f"trainer.max_steps={num_steps}", "trainer.max_epochs=100000"]
    found, spent = {}, []
    for way in ways:
        backend, uses_xla = IMPLEMENTATIONS[way]
        device.uses_xla = lambda run, said=uses_xla: said
        began = time.perf_counter()
        trained = train(backend, run)
        found[way] = tuple(hashes(trained.state, trained.losses).values())
        spent.append(f"{way} {time.perf_counter() - began:.0f} s")
    alike = len(set(found.values())) == 1
    told = " ".join(value[:12] for value in found[ways[0]]) if alike else f"DIFFERENT {found}"
    print(f"{name}  {told}  ({', '.join(spent)})", flush=True)
    return alike


if __name__ == "__main__":
    sys.exit(main())
