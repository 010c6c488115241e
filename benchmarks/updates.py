"""Time an update of every optimizer against the framework's own optimizer of that name.

    python -m benchmarks.updates                              # both backends; some minutes
    python -m benchmarks.updates --backends keras --optimizers lamb adafactor

An update alone: no forward pass, no data. Both have the same weights (those of `--model`, float32),
and the gradients of half the squares of the weights; Keras's updates are in one compiled loop, as
in a run. They take turns; the figure is the median over the rounds of framework's seconds / ours,
so 1 and more is as fast or faster. One thread.

torch.optim.Muon iterates in bfloat16 and ours in the dtype of the run: here torch's iterates in
float32 too. It and AdamW for the other weights are one contestant. torch's own are fused where
torch has a fused kernel.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.report import layout
from runner import dispatcher
from runner.cli.compose import compose
from runner.config.schema import parse
from runner.plan import Plan, plan
from runner.spec import first_state

MODELS = {
    "mlp": ["data=digits", "model=mlp"],
    "transformer": ["data=digits", "model=transformer"],
    "gpt": ["data=python_docs", "model=gpt"],
}
_PLAIN = ["optimizer.weight_decay=0.0"]
OPTIMIZERS: dict[str, list[str]] = {
    "sgd": ["optimizer=sgd", "optimizer.momentum=0.9", *_PLAIN],
    **{
        name: [f"optimizer={name}", *_PLAIN]
        for name in (
            *("adam", "adamw", "adamax", "nadam", "rmsprop", "adagrad", "adadelta", "lion"),
            *("adafactor", "lamb", "muon", "schedule_free_adamw"),
        )
    },
}
NONE = {"lightning": ("lion", "lamb", "schedule_free_adamw"), "keras": ()}  # without an own one
UPDATES = 20  # in a compiled loop
Update = Callable[[], None]


def main() -> int:
    arguments = _parser().parse_args()
    rows = [("backend", "optimizer", "model", "ms, the framework's", "ms, ours", "speed")]
    for backend in arguments.backends:
        dispatcher.load(backend).can_use_threads(1)
        for name in arguments.optimizers:
            if name in NONE[backend]:
                continue
            for model in arguments.models:
                theirs, ours, ratio = _measured(backend, name, model, arguments.rounds)
                row = (backend, name, model, f"{theirs * 1e3:.3f}", f"{ours * 1e3:.3f}")
                rows.append((*row, f"{ratio:.2f}"))
                print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    print(layout(rows, arguments.markdown))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.updates", description="Updates against the framework's own."
    )
    parser.add_argument("--backends", nargs="+", choices=[*NONE], default=[*NONE])
    parser.add_argument("--optimizers", nargs="+", choices=[*OPTIMIZERS], default=[*OPTIMIZERS])
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=["transformer", "gpt"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def _measured(backend: str, name: str, model: str, rounds: int) -> tuple[float, float, float]:
    """Return the median seconds of the framework's update and of ours, and of their ratios."""
    prepared = plan(parse(compose([*MODELS[model], *OPTIMIZERS[name], "device=cpu"])))
    make: Any = {"lightning": _torch, "keras": _keras}[backend]
    contestants, num = make(name, prepared)
    for contestant in contestants:  # which compiles it
        contestant()
    start = time.perf_counter()
    contestants[1]()
    repeats = max(1, int(0.1 / (time.perf_counter() - start)))
    found: list[list[float]] = []
    for i in range(rounds):
        seconds = [0.0, 0.0]
        for k in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(repeats):
                contestants[k]()
            seconds[k] = (time.perf_counter() - start) / repeats / num
        found.append(seconds)
    theirs, ours = (median(each[k] for each in found) for k in (0, 1))
    return theirs, ours, median(each[0] / each[1] for each in found)


def _weights(prepared: Plan) -> Mapping[str, Any]:
    config = prepared.config
    return first_state(
        prepared.network, config.optimizer, prepared.model.dtype, config.seed
    ).weights


def _torch(name: str, prepared: Plan) -> tuple[list[Update], int]:
    import torch

    from backends.lightning import fast, layers, optimizers

    torch.set_num_threads(1)
    spec, groups, weights = prepared.config.optimizer, prepared.groups, _weights(prepared)

    def parameters() -> dict[str, Any]:
        return {n: torch.nn.Parameter(layers.from_canonical(v)) for n, v in weights.items()}

    def with_gradients(parameters: Mapping[str, Any], apply: Update) -> Update:
        for p in parameters.values():
            if p.grad is None:
                p.grad = p.detach().clone()
            else:
                p.grad.copy_(p.detach())
        return torch.no_grad()(apply)

    own, mine = parameters(), parameters()
    flats = optimizers.flatten(mine, groups, spec.joins)
    native = optimizers.build(spec, flats, groups, layers.canonical)
    everything = [flat for group_flats in flats for flat in group_flats]
    kinds = {n: group.kind for group in groups for n in group.names}
    slots = spec.initial_slots(weights, kinds)
    optimizers.load_slots(spec, native, everything, slots, 0, layers.from_canonical)
    theirs = [
        optimizer.step for optimizer in _torch_own(name, own, [n for n in own if not kinds[n]])
    ]

    def apply_theirs() -> None:
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
            for step in theirs:
                step()

    return [
        with_gradients(own, apply_theirs if name == "muon" else theirs[0]),
        with_gradients(mine, fast.update(spec, native)),
    ], 1


def _torch_own(name: str, parameters: Mapping[str, Any], matrices: list[str]) -> list[Any]:
    """Return torch's optimizers; `matrices` are those that Muon takes."""
    from torch import optim

    fused = {"fused": True}
    makers: dict[str, Any] = {
        "sgd": lambda p: optim.SGD(p, 1e-3, momentum=0.9, **fused),
        "adam": lambda p: optim.Adam(p, 1e-3, **fused),
        "adamw": lambda p: optim.AdamW(p, 1e-3, weight_decay=0.0, **fused),
        "adamax": lambda p: optim.Adamax(p, 1e-3),
        "nadam": lambda p: optim.NAdam(p, 1e-3),
        "rmsprop": lambda p: optim.RMSprop(p, 1e-3),
        "adagrad": lambda p: optim.Adagrad(p, 1e-3, **fused),
        "adadelta": lambda p: optim.Adadelta(p, 1e-3),
        "adafactor": lambda p: optim.Adafactor(p, 1e-3),
    }
    if name != "muon":
        return [makers[name](parameters.values())]
    two = [n for n in matrices if parameters[n].ndim == 2]
    others = [p for n, p in parameters.items() if n not in two]
    muon = optim.Muon([parameters[n] for n in two], 1e-3, weight_decay=0.0)
    return [muon, makers["adamw"](others)]


def _keras(name: str, prepared: Plan) -> tuple[list[Update], int]:
    import keras
    import tensorflow as tf

    from backends.keras import optimizers
    from backends.keras.schedule import TableLR

    run, weights = prepared.run_spec(), _weights(prepared)
    kinds = {n: group.kind for group in run.groups for n in group.names}

    def compiled(make: Callable[[dict[str, Any]], Any]) -> Update:
        variables = {
            n: keras.Variable(value, name=n.replace("/", "_")) for n, value in weights.items()
        }
        native, all_variables = make(variables), [*variables.values()]

        def update(k: Any) -> Any:
            gradients = [tf.convert_to_tensor(v) * 0.5 for v in all_variables]
            native.apply(gradients, all_variables)
            return (k + 1,)

        @tf.function(jit_compile=True, autograph=False)
        def loop() -> None:
            tf.while_loop(lambda k: k < UPDATES, update, (tf.constant(0),), parallel_iterations=1)

        def run_all() -> None:
            loop()
            all_variables[0].value.numpy()

        return run_all

    def ours(variables: dict[str, Any]) -> Any:
        slots = run.optimizer.initial_slots(weights, kinds)
        native = optimizers.build(run, TableLR(run), variables, slots, uses_products=True)
        native.load_slots(slots, 0)
        return native

    def theirs(variables: dict[str, Any]) -> Any:
        native = _keras_own(name)
        native.build([*variables.values()])
        return native

    return [compiled(theirs), compiled(ours)], UPDATES


def _keras_own(name: str) -> Any:
    from keras import optimizers

    kinds: dict[str, Any] = {
        "sgd": lambda: optimizers.SGD(1e-3, momentum=0.9),
        "adam": lambda: optimizers.Adam(1e-3),
        "adamw": lambda: optimizers.AdamW(1e-3, weight_decay=0.0),
        "adamax": lambda: optimizers.Adamax(1e-3),
        "nadam": lambda: optimizers.Nadam(1e-3),
        "rmsprop": lambda: optimizers.RMSprop(1e-3),
        "adagrad": lambda: optimizers.Adagrad(1e-3),
        "adadelta": lambda: optimizers.Adadelta(1e-3),
        "lion": lambda: optimizers.Lion(1e-3),
        "adafactor": lambda: optimizers.Adafactor(1e-3),
        "lamb": lambda: optimizers.Lamb(1e-3),
        "muon": lambda: optimizers.Muon(1e-3, weight_decay=None, adam_weight_decay=None),
        "schedule_free_adamw": lambda: optimizers.ScheduleFreeAdamW(1e-3, weight_decay=0.0),
    }
    return kinds[name]()


if __name__ == "__main__":
    sys.exit(main())
