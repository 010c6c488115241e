"""Time a small GPT, and compare what it has learnt with hand-written loops.

    python -m benchmarks.language                      # 0.8 million parameters; ten minutes
    python -m benchmarks.language --updates 2000 --repeats 1

Twinrun's command line trains experiment=language_gpt. Its peers are loops in torch and TensorFlow
of the same sizes on the same rows, in the style of nanoGPT: stock layers, first weights from
N(0, 0.02), AdamW, clipping, the same rates; rows are drawn with NumPy. All use `--threads` threads
and float32. Seconds of an update are the difference of a long and a short training, divided by the
difference of their updates, so that start, compilation and validation do not count; medians of
rounds in which the contestants take turns. "bits" is the validation loss per character after the
long training.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure import execute
from benchmarks.report import layout

CONTESTANTS = ("torch loop", "lightning", "tensorflow loop", "keras")
PEERS = {"lightning": "torch loop", "keras": "tensorflow loop"}
SHORT = 20  # updates of the short training
BATCH, CONTEXT, WIDTH, HEADS, LAYERS = 32, 64, 128, 4, 4


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.run is not None:
        print(json.dumps(_train(*arguments.run)))
        return 0
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.contestants}
    for _ in range(arguments.repeats):
        for name in arguments.contestants:
            short, long = (
                _in_new_process(name, num, arguments.threads)
                for num in (SHORT, SHORT + arguments.updates)
            )
            seconds = (long["seconds"] - short["seconds"]) / arguments.updates
            found[name].append({"seconds": seconds, "bits": long["bits"]})
    print(_table(found, arguments.markdown))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.language", description="A small GPT against hand-written loops."
    )
    parser.add_argument("--updates", type=int, default=100, help="beyond the short training")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--run", nargs=3, metavar=("NAME", "UPDATES", "THREADS"), help=argparse.SUPPRESS
    )
    return parser


def _in_new_process(name: str, num_updates: int, threads: int) -> dict[str, float]:
    if name in PEERS:
        return _twinrun(name, num_updates, threads)
    own = ["-m", "benchmarks.language", "--run", name, str(num_updates), str(threads)]
    *_, output = execute([sys.executable, *own], dict(os.environ))
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def _twinrun(backend: str, num_updates: int, threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"backend={backend}", "experiment=language_gpt", "device=cpu",
            f"trainer.max_steps={num_updates}", f"trainer.threads={threads}",
            "schedule.warmup=10steps", f"output.root={folder}",
        ]  # fmt: skip
        execute([sys.executable, "-m", "runner", *overrides], dict(os.environ))
        (path,) = Path(folder).glob("runs/*/result.json")
        result = json.loads(path.read_text())
    seconds = result["seconds"]["train"] - result["seconds"]["compile"]
    return {"seconds": seconds, "bits": result["metrics"]["val/bits_per_token"]}


def _train(name: str, num_updates: str, threads: str) -> dict[str, float]:
    from runner.cli.compose import compose
    from runner.config.schema import parse

    section: Any = parse(compose(["experiment=language_gpt"])).data
    data = section.load()
    train = {"torch loop": _torch, "tensorflow loop": _tensorflow}[name]
    return train(data, int(num_updates), int(threads))


def _rates(num_updates: int) -> list[float]:
    """A linear warmup of ten updates to 1e-3, then half a cosine to 1e-4."""
    share = [max(0.0, (t - 10) / max(1, num_updates - 10)) for t in range(num_updates)]
    decayed = [1e-4 + 9e-4 * (1 + math.cos(math.pi * s)) / 2 for s in share]
    return [rate * min(1.0, (t + 1) / 10) for t, rate in enumerate(decayed)]


def _batches(data: Any, num_updates: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, len(data.train), BATCH) for _ in range(num_updates)]


def torch_gpt(num_tokens: int) -> Any:
    """Return the model in torch, with first weights from N(0, 0.02)."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.out = nn.Linear(WIDTH, WIDTH, bias=False)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            parts = self.qkv(self.norm_1(x)).split(WIDTH, dim=2)
            q, k, v = (p.view(*p.shape[:2], HEADS, -1).transpose(1, 2) for p in parts)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(num_tokens, WIDTH)
            self.positions = nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, num_tokens)

        def forward(self, x: Tensor) -> Tensor:
            positions = torch.arange(x.shape[1])
            return self.head(self.norm(self.blocks(self.tokens(x) + self.positions(positions))))

    model = GPT()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def _torch(data: Any, num_updates: int, threads: int) -> dict[str, float]:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    torch.set_num_threads(threads)
    torch.manual_seed(0)

    def loss_of(x: np.ndarray, y: np.ndarray) -> Tensor:
        z = model(torch.from_numpy(x))
        return F.cross_entropy(z.flatten(0, 1), torch.from_numpy(y).long().flatten())

    model = torch_gpt(data.num_tokens)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)

    def update(rows: np.ndarray, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss_of(data.train.x[rows], data.train.y[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def validate(x: np.ndarray, y: np.ndarray) -> float:
        with torch.inference_mode():
            return float(loss_of(x, y))

    return _timed(data, num_updates, update, validate)


def keras_gpt(num_tokens: int) -> Any:
    """Return the model in Keras, with first weights from N(0, 0.02)."""
    import keras
    from keras import layers

    normal = {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.02)}
    ids = keras.Input((CONTEXT,), dtype="int32")
    embedding = keras.initializers.RandomNormal(stddev=0.02)
    positions = layers.Embedding(CONTEXT, WIDTH, embeddings_initializer=embedding)
    tokens = layers.Embedding(num_tokens, WIDTH, embeddings_initializer=embedding)
    x = tokens(ids) + positions(np.arange(CONTEXT))
    for _ in range(LAYERS):
        norm = layers.LayerNormalization(epsilon=1e-5)(x)
        attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, use_bias=False, **normal)
        x = x + attention(norm, norm, use_causal_mask=True)
        y = layers.Dense(4 * WIDTH, **normal)(layers.LayerNormalization(epsilon=1e-5)(x))
        x = x + layers.Dense(WIDTH, **normal)(keras.activations.gelu(y, approximate=True))
    z = layers.Dense(num_tokens, **normal)(layers.LayerNormalization(epsilon=1e-5)(x))
    return keras.Model(ids, z)


def _tensorflow(data: Any, num_updates: int, threads: int) -> dict[str, float]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras

    keras.utils.set_random_seed(0)
    model = keras_gpt(data.num_tokens)
    optimizer = keras.optimizers.AdamW(
        1e-3, weight_decay=0.1, beta_2=0.99, epsilon=1e-8, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if v.ndim == 1])

    def loss_of(x: Any, y: Any) -> Any:
        z = model(x, training=True)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z))

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(x, y)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    def update(rows: np.ndarray, rate: float) -> None:
        optimizer.learning_rate.assign(rate)
        step(tf.constant(data.train.x[rows]), tf.constant(data.train.y[rows]))

    return _timed(
        data, num_updates, update, lambda x, y: float(loss_of(tf.constant(x), tf.constant(y)))
    )


def _timed(
    data: Any,
    num_updates: int,
    update: Callable[[np.ndarray, float], None],
    validate: Callable[[np.ndarray, np.ndarray], float],
) -> dict[str, float]:
    start = time.perf_counter()
    for rows, rate in zip(_batches(data, num_updates), _rates(num_updates), strict=True):
        update(rows, rate)
    seconds = time.perf_counter() - start
    x, y = np.array(data.val.x), np.array(data.val.y)
    cuts = range(0, len(x), 128)
    losses = [validate(x[i : i + 128], y[i : i + 128]) * len(x[i : i + 128]) for i in cuts]
    return {"seconds": seconds, "bits": sum(losses) / len(x) / math.log(2)}


def _table(found: dict[str, list[dict[str, float]]], markdown: bool) -> str:
    rows: list[Sequence[str]] = [("contestant", "ms per update", "speed of its peer", "bits")]
    medians = {
        name: {key: median(each[key] for each in values) for key in ("seconds", "bits")}
        for name, values in found.items()
    }
    for name, own in medians.items():
        peer = medians.get(PEERS.get(name, ""))
        ratio = "" if peer is None else f"{peer['seconds'] / own['seconds']:.2f}"
        rows.append((name, f"{own['seconds'] * 1000:.1f}", ratio, f"{own['bits']:.3f}"))
    return layout(rows, markdown)


if __name__ == "__main__":
    sys.exit(main())
