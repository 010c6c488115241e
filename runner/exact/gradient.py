"""The gradient of one update from its micro-batches, and the losses of several updates."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from runner.components.optimizers import frozen
from runner.exact import optimizers
from runner.exact.layers import Pass
from runner.exact.losses import FORMS, OF_LABELS, values_per_row
from runner.exact.network import Layout, backward, forward
from runner.exact.primitives import Place, Primitives, Tensor
from runner.exact.rules import divide, sum_bits
from runner.spec import RunSpec

Buffers = dict[str, Tensor]


def gradient(
    o: Primitives,
    run: RunSpec,
    layout: Layout,
    weights: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batches: Iterable[Mapping[str, Tensor]],
    sizes: Sequence[int],
    seed: Any,
    step: Any,
    clips: bool = True,
) -> tuple[Tensor, Buffers, list[Tensor]]:
    """Return (gradient, running statistics, outputs of each micro-batch). The gradient is that of
    the mean loss over the rows of all micro-batches of all processes, by all weights as one vector;
    it is 0 for frozen weights. With `clips`, it is within the run's limits.
    batches  # x [B, ...], y labels [B] or targets [B, C], and any weights [B]: of this process
    sizes    # rows of each micro-batch, of all processes together"""
    vector, outputs, buffers = None, [], dict(buffers)
    unchanged = frozen(run.groups)
    zeros = {name: [0.0 * weights[name]] for name in unchanged}
    is_local = run.world.size > 1 and not run.syncs_batch_norm
    for micro_batch, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
        x, y = batch["x"], batch["y"]
        where = Place(seed, step, micro_batch, run.world.cut(size)[0])
        p = Pass(o, {**weights, **buffers}, size, where, unchanged, syncs_batch_norm=not is_local)
        z, tape = forward(p, run.network.nodes, x)
        g = FORMS[run.loss.name][0](o, run.loss, _by_position(o, run, z), _target(o, run, y))
        g = _weighted(o, run, g, batch.get("weight"))
        gradients: dict[str, list[Tensor]] = {}
        num_values = sum(sizes) * _num_averaged(run) * _values_per_row(run)
        g = o.reshape(divide(o, g, num_values), (-1, *run.network.output_shape))
        backward(p, tape, g, gradients)
        batch_vector = layout.total(o, {**gradients, **zeros})
        vector = batch_vector if vector is None else o.r(vector + batch_vector)
        buffers.update(p.buffers)
        outputs.append(z)
    if is_local:
        buffers = _means(o, buffers, run.world.size)
    if clips:
        vector = optimizers.clip(o, vector, run.clips, layout)
    return vector, buffers, outputs


def _means(o: Primitives, buffers: Buffers, num: int) -> Buffers:
    """Return the means of the buffers [C] over `num` processes: R(R(sum) / num), each number on a
    grid of its own."""
    values = o.reshape(o.join([*buffers.values()]), (-1, 1))
    q, unit = o.grid(values, sum_bits(num), per_row=True, of_all=True)
    mean = o.reshape(divide(o, o.r(o.over_all(q) * unit), num), (-1,))
    means, begin = {}, 0
    for name, buffer in buffers.items():
        means[name] = mean[begin : begin + buffer.shape[0]]
        begin += buffer.shape[0]
    return means


def norms(run: RunSpec, layout: Layout, vector: np.ndarray) -> dict[str, float]:
    """Return the norm of the gradient of each weight that is not frozen. Every backend and any
    number of processes has the same bits: the vector has, and NumPy adds up the squares."""
    unchanged = frozen(run.groups)
    return {
        name: math.sqrt(np.sum(np.square(part)))
        for name, part in layout.unpack(vector, np.float64).items()
        if name not in unchanged
    }


def losses(
    o: Primitives,
    run: RunSpec,
    batches: Sequence[tuple[Tensor, ...]],
    sizes: Sequence[int],
    num_steps: int,
) -> Tensor:
    """Return the loss of each of K updates.  # [K]

    `batches` has the `loss_terms` of each micro-batch of an update: the outputs z [K B, C], the
    targets y and any weights of this micro-batch in all K updates, one after another. With a label
    at each of T positions, z is [K B, T, C]. `sizes` has the rows of each micro-batch, of all
    processes together."""
    loss_sum = None
    for (outputs, y, *weights), size in zip(batches, sizes, strict=True):
        z = _by_position(o, run, outputs)
        values = FORMS[run.loss.name][1](o, run.loss, z, _target(o, run, y))
        values = _weighted(o, run, values, *weights)
        num_own = values.shape[0] // num_steps * values.shape[1]
        num = size * _num_positions(run) * values.shape[1]
        q, unit = o.grid(
            o.reshape(values, (num_steps, num_own)), sum_bits(num), per_row=True, of_all=True
        )
        batch_sum = o.r(o.over_all(o.sum(q, (1,), True)) * unit)
        loss_sum = batch_sum if loss_sum is None else o.r(loss_sum + batch_sum)
    num_values = sum(sizes) * _num_averaged(run) * _values_per_row(run)
    return o.reshape(divide(o, loss_sum, num_values), (num_steps,))


def integer_fields(run: RunSpec) -> set[str]:
    """Return the fields that stay integers: token ids and labels. R rounds the others."""
    is_integer = {"x": run.network.takes_tokens, "y": run.loss.name in OF_LABELS}
    return {name for name, is_one in is_integer.items() if is_one}


def loss_terms(z: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return what `losses` needs of a micro-batch with the outputs z."""
    return (z, batch["y"], *([batch["weight"]] if "weight" in batch else []))


def _weighted(o: Primitives, run: RunSpec, values: Tensor, weights: Tensor | None = None) -> Tensor:
    """R(w v) for the values [B T, V] of rows with the weights [B], or of positions [B, T]."""
    if weights is None:
        return values
    width = values.shape[-1]
    by_row = o.reshape(values, (-1, _num_positions(run) * width))
    if run.weighs_positions:
        return o.r(values * o.reshape(weights, (-1, 1)))
    return o.reshape(o.r(by_row * o.reshape(weights, (-1, 1))), (-1, width))


def _by_position(o: Primitives, run: RunSpec, z: Tensor) -> Tensor:
    """[B, T, C] -> [B T, C]"""
    return o.reshape(z, (-1, run.network.output_shape[-1]))


def _num_positions(run: RunSpec) -> int:
    """Return T, the number of labels of a row."""
    return math.prod(run.network.output_shape[:-1])


def _num_averaged(run: RunSpec) -> int:
    """Return the number of positions that a row's loss is divided by; weights of positions have
    divided it."""
    return 1 if run.weighs_positions else _num_positions(run)


def _target(o: Primitives, run: RunSpec, y: Tensor) -> Tensor:
    if run.loss.name not in OF_LABELS:
        return y
    return o.one_hot(o.reshape(y, (-1,)), run.network.output_shape[-1])


def _values_per_row(run: RunSpec) -> int:
    return values_per_row(run.loss, run.network.output_shape[-1])
