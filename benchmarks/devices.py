"""Time an update of two processes with one thread each, against idiomatic scripts of the same
frameworks, and compare it with a cost model.

    python -m benchmarks.devices                          # some four minutes on two idle cores
    python -m benchmarks.devices --processes 1 2 4 --exact
    python -m benchmarks.devices --models cnn --updates 40

The models are the CNN with a million parameters (a global batch of 64 images) and the GPT with 0.8
million (32 rows of 64 characters). The peers are Lightning's Trainer with `strategy="ddp"`, and the
training loop of TensorFlow's guide to MultiWorkerMirroredStrategy, with stock layers and the same
sizes; Keras's own `fit` fails under this strategy with the pinned versions. All contestants run in
float32, one after another, each in new processes. The first quarter of the updates, which
compiles, does not count; neither do evaluation and checkpoints, which the peers do not have.

The cost model is time(P) = compute / min(P, cores) + collectives x latency + bytes / bandwidth,
with 2 (P - 1) / P 4 N bytes for N parameters. It takes `compute` from one process, and latency and
bandwidth from sums of 1 and of N numbers over P processes, measured by the same command.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import runner
from benchmarks.contestants import CONF, environment
from benchmarks.language import keras_gpt, torch_gpt
from benchmarks.measure import execute
from benchmarks.report import layout
from runner.machine import threads
from runner.run.launch import free_addresses
from runner.spec import World

BATCH = {"cnn": 64, "gpt": 32}  # global
# exchanges of the processes in an update: the gradients, and in each of three batch norms one
# forward and one backward
COLLECTIVES = {"cnn": 7, "gpt": 1}
IDIOMATIC = {"lightning": "Lightning ddp", "keras": "MultiWorkerMirroredStrategy"}


class Clock(runner.Observer):
    """Writes the seconds of an update to a file, from the second of four chunks on."""

    def __init__(self, path: str) -> None:
        self.path, self.chunks, self.began = path, list[float](), 0.0

    def on_chunk_start(self, chunk: Any, live: Any) -> None:
        self.began = time.perf_counter()

    def on_chunk(self, chunk: Any, report: Any, live: Any) -> bool:
        self.chunks.append((time.perf_counter() - self.began) / chunk.num_steps)
        Path(self.path).write_text(str(median(self.chunks[1:] or self.chunks)))
        return True


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.peer is not None:
        backend, model, updates, path = arguments.peer
        {"lightning": _lightning, "keras": _keras}[backend](model, int(updates), Path(path))
        return 0
    for backend in arguments.backends:
        for model in arguments.models:
            print(f"{model}, {backend}, ms per update", flush=True)
            print(_table(backend, model, arguments), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.devices", description="Several processes against one."
    )
    parser.add_argument("--models", nargs="+", choices=[*BATCH], default=[*BATCH])
    parser.add_argument("--backends", nargs="+", choices=[*IDIOMATIC], default=[*IDIOMATIC])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--exact", action="store_true", help="exact mode too")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    return parser


def _table(backend: str, model: str, arguments: Any) -> str:
    """Measure all contestants on a model, and format their times."""
    updates, compute = arguments.updates, None
    rows = [("contestant", "processes", "measured", "predicted", "speed of the peer")]
    peer = _timed_peer(backend, model, updates)
    rows.append((IDIOMATIC[backend], "2", f"{peer:.1f}", "", ""))
    kinds = {"": ()} | ({"strategy=fsdp": ("strategy=fsdp",)} if backend == "lightning" else {})
    if model == "cnn":  # the peers' batch norm has the statistics of each process
        kinds |= {"sync_batchnorm=false": ("trainer.sync_batchnorm=false",)}
    kinds |= {"exact": ("trainer.precision=exact",)} if arguments.exact else {}
    for kind, more in kinds.items():
        for num in arguments.processes if not kind else [2]:
            found, size = _ours(backend, model, num, updates, more)
            compute = found if compute is None and num == 1 else compute
            told = "" if kind or compute is None else _predicted(backend, model, num, compute, size)
            ratio = f"{peer / found:.2f}" if num == 2 else ""
            rows.append((f"Twinrun {kind}".strip(), str(num), f"{found:.1f}", told, ratio))
    return layout(rows, arguments.markdown)


def _predicted(backend: str, model: str, num: int, compute: float, size: int) -> str:
    """Predict the milliseconds of an update of `num` processes from those of one, for a model with
    `size` parameters."""
    if num == 1:
        return ""
    latency, bandwidth = _network(backend, num, size)
    sent = 2 * (num - 1) / num * 4 * size
    own = compute / min(num, threads.cores())
    total = own + COLLECTIVES[model] * latency * 1e3 + sent / bandwidth * 1e3
    return f"{total:.1f} ({latency * 1e3:.2f} ms, {bandwidth / 1e9:.2f} GB/s)"


def _variables() -> dict[str, str]:
    return {**os.environ, **environment(1)}


def _ours(
    backend: str, model: str, num: int, updates: int, more: tuple[str, ...]
) -> tuple[float, int]:
    """Return the milliseconds of an update of the command line, and the number of parameters."""
    with tempfile.TemporaryDirectory() as name:
        clock = Path(name) / "seconds"
        command = [
            *(sys.executable, "-m", "runner", "--config-dir", str(CONF), f"backend={backend}"),
            *_data(model, Path(name)),
            *("device=cpu", f"devices={num}", "trainer.threads=1", f"output.root={name}/out"),
            *(f"trainer.global_batch_size={BATCH[model]}", f"trainer.max_steps={updates}"),
            *(f"trainer.steps_per_call={updates // 4}", "trainer.checkpoint_every=null"),
            *("trainer.max_epochs=null", "trusted_modules=[benchmarks.devices]", *more),
            f"callbacks=[{{_target_: benchmarks.devices.Clock, path: {clock}}}]",
        ]
        execute(command, _variables())
        (result,) = Path(name).glob("out/runs/*/result.json")
        size = json.loads(result.read_text())["num_parameters"]
        return float(clock.read_text()) * 1e3, int(size)


def _data(model: str, folder: Path) -> list[str]:
    if model == "gpt":
        return ["experiment=language_gpt", "schedule.warmup=10steps"]
    x, y = _images()
    np.savez(folder / "images.npz", x=x, y=y)
    split = ("data.val_fraction=0.0625", "data.test_fraction=0")
    return ["model=cnn_1m", "data=npz", f"data.path={folder}/images.npz", *split]


def _images() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.random((1024, 32, 32, 3), np.float32)
    return x, generator.integers(0, 10, 1024)


def _rows(model: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return inputs, targets and the number of tokens for the peers."""
    if model == "cnn":
        return *_images(), 0
    from runner.cli.compose import compose
    from runner.config.schema import parse

    section: Any = parse(compose(["experiment=language_gpt"])).data
    data = section.load()
    rows = np.arange(1024)
    return np.asarray(data.train.x[rows]), np.asarray(data.train.y[rows]), data.num_tokens


def _timed_peer(backend: str, model: str, updates: int) -> float:
    """Return the milliseconds of an update of the idiomatic script with two processes."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "seconds"
        own = ["-m", "benchmarks.devices", "--peer", backend, model, str(updates), str(path)]
        command, variables = [sys.executable, *own], _variables()
        if backend == "lightning":  # it starts the other process
            execute(command, variables)
            return float(path.read_text()) * 1e3
        workers = list(free_addresses(2))
        started = []
        for index in (0, 1):
            task = {"type": "worker", "index": index}
            told = json.dumps({"cluster": {"worker": workers}, "task": task})
            environ = {**variables, "TF_CONFIG": told}
            started.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE))
        try:
            for process in started:
                _, errors = process.communicate(timeout=600)
                if process.returncode:
                    raise RuntimeError(errors.decode()[-2000:])
        finally:
            for process in started:
                process.kill()  # of two workers, one waits for the other for ever
        return float(path.read_text()) * 1e3


class _Stamps:
    """The seconds of an update after the first quarter."""

    def __init__(self, updates: int, path: Path) -> None:
        self.updates, self.path, self.began = updates, path, 0.0

    def begin(self, index: int) -> None:
        if index == self.updates // 4:
            self.began = time.perf_counter()

    def end(self, index: int) -> None:
        if index == self.updates - 1:
            num = self.updates - self.updates // 4
            self.path.write_text(str((time.perf_counter() - self.began) / num))


def _lightning(model: str, updates: int, path: Path) -> None:
    """Train as users of Lightning do, with two processes."""
    import pytorch_lightning as pl
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, TensorDataset

    from benchmarks.peers.torch_layers import inputs, network

    x, y, num_tokens = _rows(model)
    torch.set_num_threads(1)
    stamps = _Stamps(updates, path)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = torch_gpt(num_tokens) if num_tokens else network("cnn_1m")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            z = self.network(batch[0])
            target = batch[1].long()
            loss = F.cross_entropy(z.flatten(0, -2), target.flatten())
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            kind = torch.optim.AdamW if num_tokens else torch.optim.Adam
            return kind(self.parameters(), lr=1e-3)

    class Timed(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            stamps.begin(trainer.global_step)

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            if trainer.is_global_zero:
                stamps.end(trainer.global_step - 1)

    rows = TensorDataset(torch.from_numpy(x) if num_tokens else inputs(x), torch.from_numpy(y))
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=updates, max_epochs=-1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Timed()],
        gradient_clip_val=1.0 if num_tokens else None,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(rows, BATCH[model] // 2, shuffle=True))


def _keras(model: str, updates: int, path: Path) -> None:
    """Train as TensorFlow's guide of MultiWorkerMirroredStrategy does, as one of two workers: a
    `tf.function` of an update, which calls `strategy.run`."""
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    from benchmarks.peers.keras_layers import network

    x, y, num_tokens = _rows(model)
    is_first = json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0
    stamps = _Stamps(updates, path if is_first else path.with_name("other"))
    with strategy.scope():
        built = keras_gpt(num_tokens) if num_tokens else network("cnn_1m")
        clip = {"global_clipnorm": 1.0, "weight_decay": 0.1} if num_tokens else {}
        optimizer = (keras.optimizers.AdamW if num_tokens else keras.optimizers.Adam)(1e-3, **clip)
    rows = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(1024, seed=0).repeat()
    rows = strategy.experimental_distribute_dataset(rows.batch(BATCH[model]))

    def update(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            z = built(x, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z)
            loss = tf.reduce_sum(losses) / (BATCH[model] * np.prod(y.shape[1:]))
        variables = built.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    @tf.function
    def step(iterator: Any) -> None:
        strategy.run(update, args=next(iterator))

    iterator = iter(rows)
    for index in range(updates):
        stamps.begin(index)
        step(iterator)
        stamps.end(index)


def _network(backend: str, num: int, size: int) -> tuple[float, float]:
    """Measure the seconds of a sum of one number over `num` processes, and the bytes per second
    that a process sends in a sum of `size` numbers."""
    spawn, addresses = get_context("spawn"), free_addresses(num)
    parent, child = spawn.Pipe()
    before = dict(os.environ)
    os.environ.update(environment(1))
    processes = [
        spawn.Process(target=_sums, args=(backend, World(rank, num, addresses), size, child))
        for rank in range(num)
    ]
    for process in processes:
        process.start()
    if not parent.poll(120):
        raise RuntimeError(f"{num} processes did not connect")
    short, long = parent.recv()
    for process in processes:
        process.join()
    os.environ.clear()
    os.environ.update(before)
    return short, 2 * (num - 1) / num * 4 * size / max(long - short, 1e-9)


def _sums(backend: str, world: World, size: int, connection: Any) -> None:
    """Be one of the processes whose sums are timed."""
    add_up = {"lightning": _torch_sum, "keras": _tensorflow_sum}[backend](world)
    found = []
    for values in (np.ones(1, np.float32), np.ones(size, np.float32)):
        call = add_up(values)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        found.append(min(times[5:]))
    if world.rank == 0:
        connection.send(found)


def _torch_sum(world: World) -> Callable[[np.ndarray], Callable[[], object]]:
    import torch

    from backends.lightning import distributed

    torch.set_num_threads(1)
    distributed.connect(world)
    return lambda values: lambda: distributed.add_up([torch.from_numpy(values)])


def _tensorflow_sum(world: World) -> Callable[[np.ndarray], Callable[[], object]]:
    import tensorflow as tf

    from backends.keras import distributed

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    together = distributed.connect(world)

    def of(values: np.ndarray) -> Callable[[], object]:
        x, add_up = tf.constant(values), tf.function(together.sum)
        return lambda: add_up(x).numpy()

    return of


if __name__ == "__main__":
    sys.exit(main())
