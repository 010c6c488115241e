"""Steps of a backend's optimizer on given gradients, without a network: to compare it with other
libraries' optimizers."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from runner import dispatcher
from runner.components.optimizers import Group, Optimizer
from runner.config.conf_folder import defaults
from runner.spec import Tables, Weights

OPTIMIZER: TypeAdapter[Any] = TypeAdapter(Optimizer)
# a kernel that is wider than tall, one that is taller than wide, a bias, a kernel of a convolution
SHAPES = {"a/kernel": (3, 5), "b/kernel": (6, 2), "b/bias": (4,), "c/kernel": (3, 2, 4, 5)}


class Stepped(NamedTuple):
    weights: Weights
    slots: Mapping[str, Weights]


def optimizer(name: str, **keys: Any) -> Any:
    """The optimizer with the defaults of conf/, except for the given keys."""
    return OPTIMIZER.validate_python({**defaults("optimizer", name), **keys})


def drawn(seed: int, num: int, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    """`num` sets of random float64 arrays with the SHAPES."""
    rng = np.random.default_rng(seed)
    return [
        {name: rng.normal(size=shape) * scale for name, shape in SHAPES.items()} for _ in range(num)
    ]


def steps(
    backend: str,
    spec: Any,
    weights: Weights,
    gradients: Sequence[Weights],
    rates: Sequence[float],
    groups: Sequence[Group] = (),
) -> Stepped:
    """Make an update for each set of gradients, in float64 and canonical layout."""
    dispatcher.load(backend)  # which tunes the framework
    groups = groups or (Group(tuple(weights)),)
    by_backend = {"lightning": _by_lightning, "keras": _by_keras}
    tables: Tables = {group.rate: np.array(rates) * group.lr_factor for group in groups}
    return by_backend[backend](spec, weights, gradients, tables, groups)


def _kinds(groups: Sequence[Group]) -> dict[str, str]:
    return {name: group.kind for group in groups for name in group.names}


def _by_lightning(
    spec: Any,
    weights: Weights,
    gradients: Sequence[Weights],
    tables: Tables,
    groups: Sequence[Group],
) -> Stepped:
    import torch

    from backends.lightning import layers, optimizers

    parameters = {
        name: torch.nn.Parameter(layers.from_canonical(value)) for name, value in weights.items()
    }
    flats = optimizers.flatten(parameters, groups, spec.joins)
    native = optimizers.build(spec, flats, groups, layers.canonical)
    everything = [flat for group_flats in flats for flat in group_flats]
    start = spec.initial_slots(weights, _kinds(groups))
    optimizers.load_slots(spec, native, everything, start, 0, layers.from_canonical)
    for t, values in enumerate(gradients):
        for group in native.param_groups:
            group["lr"] = float(tables[group["rate"]][t])
        for flat in everything:
            flat.reset_gradient()
        for name, p in parameters.items():
            gradient = layers.from_canonical(values[name])
            if p.grad is None:
                p.grad = gradient
            else:
                p.grad.copy_(gradient)
        native.step()
    return Stepped(
        {name: layers.to_canonical(p) for name, p in parameters.items()},
        optimizers.save_slots(spec, native, everything, start, layers.to_canonical),
    )


def _by_keras(
    spec: Any,
    weights: Weights,
    gradients: Sequence[Weights],
    tables: Tables,
    groups: Sequence[Group],
) -> Stepped:
    import keras
    import tensorflow as tf

    from backends.keras import optimizers
    from backends.keras.schedule import TableLR

    variables = {
        name: keras.Variable(value, dtype="float64", name=name.replace("/", "_"))
        for name, value in weights.items()
    }
    run: Any = SimpleNamespace(
        optimizer=spec, groups=groups, scheduled={}, tables=tables, num_steps=len(gradients)
    )
    start = spec.initial_slots(weights, _kinds(groups))
    native = optimizers.build(run, TableLR(run), variables, start)
    native.load_slots(start, 0)
    for values in gradients:
        native.apply([tf.constant(values[name]) for name in variables], [*variables.values()])
    return Stepped({name: v.numpy() for name, v in variables.items()}, native.save_slots())
