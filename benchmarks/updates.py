"""Time an update of every optimizer against the framework's own optimizer of that name.

    python -m benchmarks.updates                              # both backends; some minutes
    python -m benchmarks.updates --backends keras --optimizers lamb adafactor

An update alone: no forward pass, no data. Both have the same weights (those of `--model`, float32)
and the same gradients, in arrays of their own that change with every update. Keras's updates are in
one compiled loop, as in a run, and the rate of both follows a cosine. They take turns, in short
blocks; the figure is the median over the rounds of framework's seconds / ours, in processor time,
so 1 and more is as fast or faster. One thread.

Two of the frameworks' own compute something else, and are made to compute the same; `--as-is`
leaves them as they are. torch.optim.Muon iterates in bfloat16 and ours in the dtype of the run:
torch's iterates in float32 too. keras.optimizers.ScheduleFreeAdamW keeps z from before its update
for the average, but on TensorFlow keeps the variable, which by then has the new z: it gets a copy.

torch's Muon and AdamW for the other weights are one contestant. torch's own are fused where torch
has a fused kernel.
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
BLOCK = 0.02  # seconds that one contestant runs before the other has its turn
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
                theirs, ours, ratio = _measured(backend, name, model, arguments)
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
    parser.add_argument("--rounds", type=int, default=45)
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="also where the framework's own computes another update",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def _measured(
    backend: str, name: str, model: str, arguments: argparse.Namespace
) -> tuple[float, float, float]:
    """Return the median seconds of the framework's update and of ours, and of their ratios."""
    overrides = [*MODELS[model], *OPTIMIZERS[name], "schedule=cosine", "device=cpu"]
    make: Any = {"lightning": _torch, "keras": _keras}[backend]
    contestants, num = make(name, plan(parse(compose(overrides))), arguments.as_is)
    for contestant in contestants:  # which compiles it
        contestant()
    start = time.process_time()
    contestants[1]()
    repeats = max(1, int(BLOCK / (time.process_time() - start)))
    found: list[list[float]] = []
    for i in range(arguments.rounds):
        seconds = [0.0, 0.0]
        for k in (0, 1) if i % 2 else (1, 0):
            start = time.process_time()
            for _ in range(repeats):
                contestants[k]()
            seconds[k] = (time.process_time() - start) / repeats / num
        found.append(seconds)
    theirs, ours = (median(each[k] for each in found) for k in (0, 1))
    return theirs, ours, median(each[0] / each[1] for each in found)


def _weights(prepared: Plan) -> Mapping[str, Any]:
    config = prepared.config
    return first_state(
        prepared.network, config.optimizer, prepared.model.dtype, config.seed
    ).weights


def _torch(name: str, prepared: Plan, as_is: bool) -> tuple[list[Update], int]:
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
            apply_as_is()

    def apply_as_is() -> None:
        for step in theirs:
            step()

    return [
        with_gradients(own, apply_theirs if name == "muon" and not as_is else apply_as_is),
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


def _keras(name: str, prepared: Plan, as_is: bool) -> tuple[list[Update], int]:
    from backends.keras import optimizers
    from backends.keras.schedule import TableLR

    run, weights = prepared.run_spec(), _weights(prepared)
    kinds = {n: group.kind for group in run.groups for n in group.names}

    def ours(variables: dict[str, Any]) -> Any:
        slots = run.optimizer.initial_slots(weights, kinds)
        native = optimizers.build(run, TableLR(run), variables, slots)
        native.load_slots(slots, 0)
        return native

    def theirs(variables: dict[str, Any]) -> Any:
        native = _keras_own(name, run.num_steps, as_is)
        native.build([*variables.values()])
        return native

    return [_compiled(theirs, weights), _compiled(ours, weights)], UPDATES


def _compiled(make: Callable[[dict[str, Any]], Any], weights: Mapping[str, Any]) -> Update:
    """Compile a loop of updates of the weights with the optimizer that `make` builds."""
    import keras
    import tensorflow as tf

    variables = {
        name: keras.Variable(value, name=name.replace("/", "_")) for name, value in weights.items()
    }
    native, all_variables = make(variables), [*variables.values()]
    gradients = [tf.Variable(0.5 * value, trainable=False) for value in weights.values()]

    def update(k: Any) -> Any:
        # XLA would take what never changes out of the loop
        scale = 1 / tf.cast(k + 1, tf.float32)
        native.apply([gradient * scale for gradient in gradients], all_variables)
        return (k + 1,)

    @tf.function(jit_compile=True, autograph=False)
    def loop() -> None:
        tf.while_loop(lambda k: k < UPDATES, update, (tf.constant(0),), parallel_iterations=1)

    def run_all() -> None:
        loop()
        all_variables[0].value.numpy()

    return run_all


def _keras_own(name: str, num_steps: int, as_is: bool) -> Any:
    from keras import optimizers

    rate = optimizers.schedules.CosineDecay(1e-3, num_steps)
    kinds: dict[str, Any] = {
        "sgd": lambda: optimizers.SGD(rate, momentum=0.9),
        "adam": lambda: optimizers.Adam(rate),
        "adamw": lambda: optimizers.AdamW(rate, weight_decay=0.0),
        "adamax": lambda: optimizers.Adamax(rate),
        "nadam": lambda: optimizers.Nadam(rate),
        "rmsprop": lambda: optimizers.RMSprop(rate),
        "adagrad": lambda: optimizers.Adagrad(rate),
        "adadelta": lambda: optimizers.Adadelta(rate),
        "lion": lambda: optimizers.Lion(rate),
        "adafactor": lambda: optimizers.Adafactor(rate),
        "lamb": lambda: optimizers.Lamb(rate),
        "muon": lambda: optimizers.Muon(rate, weight_decay=None, adam_weight_decay=None),
        "schedule_free_adamw": lambda: (
            optimizers.ScheduleFreeAdamW if as_is else _with_old_z(optimizers.ScheduleFreeAdamW)
        )(rate, weight_decay=0.0),
    }
    return kinds[name]()


def _with_old_z(kind: Any) -> Any:
    """Return Keras's ScheduleFreeAdamW with z from before its update in the average."""
    import tensorflow as tf

    class Kept:
        """A variable with what it was as its `value`, for one update."""

        def __init__(self, variable: Any) -> None:
            self.variable, self.dtype = variable, variable.dtype
            self.value = tf.identity(variable.value)

        def assign_sub(self, change: Any) -> None:
            self.variable.assign_sub(change)

        def __tf_tensor__(self, dtype: Any = None, name: Any = None) -> Any:
            return tf.convert_to_tensor(self.variable.value)

    class WithOldZ(kind):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            every = self._momentums
            index = self._get_variable_index(variable)
            self._momentums = {index: Kept(every[index])}
            super().update_step(gradient, variable, learning_rate)
            self._momentums = every

    return WithOldZ


if __name__ == "__main__":
    sys.exit(main())
