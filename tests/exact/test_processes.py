"""The claim: several processes make the bits of one. Here the processes are threads, and their
collectives a table; tests/run/test_ranks.py starts real ones. There is no tolerance."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from backends.keras.exact import TensorFlow
from backends.lightning.exact import Torch
from backends.witness import distributed
from runner.exact import gradient, rules
from runner.exact.network import Layout
from runner.exact.primitives import Primitives, Together
from runner.exact.reference import NumPy
from runner.run import launch
from runner.spec import RunSpec, World
from tests.exact.common import BASE, bits
from tests.parity.test_parity import LAYERS, LOSSES
from tests.rows import slow_but, slow_rows
from tests.training import first, prepare

WAYS: dict[str, Callable[[Any], Any]] = {
    "numpy": NumPy,
    "torch": lambda together: Torch(torch.device("cpu"), together),
    "tensorflow": TensorFlow,
}
SIZES = (7, 2)  # rows of two micro-batches: of three processes, one has none of the second
CHECKED = (
    "model.layers=[{layer: reshape, shape: [8, 8, 1]},"
    "{layer: conv2d, filters: 2, kernel_size: 3, stride: 2},{layer: batch_norm, momentum: 0.5},"
    "{layer: dropout, rate: 0.3},{layer: reshape, shape: [4, 8]},"
    "{layer: attention, num_heads: 2},{layer: gru, units: 4},{layer: dense, units: outputs}]",
    "trainer.gradient_clip_norm=0.1",
)


class Table:
    """The collectives of threads. Implements `runner.exact.primitives.Together` for each rank."""

    def __init__(self, num: int) -> None:
        self.values: list[Any] = [None] * num
        self.barrier = threading.Barrier(num, timeout=60)

    def of(self, rank: int, make: Callable[[Any], Any]) -> Any:
        def reduced(operation: Any, x: Any) -> Any:
            self.values[rank] = np.array(x)
            self.barrier.wait()
            y = operation.reduce(self.values)
            self.barrier.wait()
            return made.constant(np.asarray(y))

        class Rank:
            def largest(self, x: Any) -> Any:
                return reduced(np.maximum, x)

            def sum(self, x: Any) -> Any:
                return reduced(np.add, x)

        made = make(Rank())
        return made


def update(o: Primitives, run: RunSpec, state: Any) -> list[np.ndarray]:
    """Compute the gradient and the statistics of an update, its loss, and the outputs of the
    process's rows of each micro-batch."""
    integers, begin, batches = gradient.integer_fields(run), 0, []
    for size in SIZES:
        low, high = run.world.cut(size)
        batches.append(
            {
                name: o.constant(v if name in integers else rules.r(v))
                for name, values in run.fields.items()
                for v in [values[begin + low : begin + high]]
            }
        )
        begin += size
    layout = Layout.of(run.network, run.groups)
    weights = layout.views(o, o.constant(rules.r(layout.pack(state.weights))))
    buffers = {name: o.constant(rules.r(value)) for name, value in state.buffers.items()}
    vector, buffers, outputs = gradient.gradient(
        o, run, layout, weights, buffers, batches, SIZES, run.seed, 3
    )
    terms = [gradient.loss_terms(z, batch) for z, batch in zip(outputs, batches, strict=True)]
    loss = gradient.losses(o, run, terms, SIZES, 1)
    return [np.array(value) for value in (vector, loss, *buffers.values(), *outputs)]


def of_processes(
    make: Callable[[Any], Any], overrides: Sequence[str], num: int, **changed: bool
) -> Any:
    """Return what each of `num` threads finds as one of the processes."""
    prepared = prepare([*BASE, *overrides])
    run, table, state = prepared.run_spec(), Table(num), first(prepared)
    run = replace(run, **changed)

    def one(rank: int) -> list[np.ndarray]:
        o = table.of(rank, make) if num > 1 else make(None)
        return update(o, replace(run, world=World(rank, num)), state)

    with ThreadPoolExecutor(num) as threads:
        return [*threads.map(one, range(num))]


def assert_as_one_process(way: str, overrides: Sequence[str], num: int) -> None:
    (whole,) = of_processes(NumPy, overrides, 1)
    several = of_processes(WAYS[way], overrides, num)
    for i, expected in enumerate(whole):
        parts = [values[i] for values in several]
        is_outputs = i >= len(whole) - len(SIZES)
        for found in [np.concatenate(parts)] if is_outputs else parts:
            np.testing.assert_array_equal(bits(found), bits(expected), err_msg=f"value {i}")


@pytest.mark.parametrize(
    ("way", "num"),
    slow_rows([(way, num) for way in WAYS for num in (2, 3)], [("numpy", 3), ("torch", 3)]),
)
def test_an_update_of_several_processes_is_that_of_one(way: str, num: int) -> None:
    assert_as_one_process(way, CHECKED, num)


@pytest.mark.parametrize("way", slow_but([way for way in WAYS if way != "numpy"], "torch"))
def test_batch_norm_of_each_process_has_the_same_bits_everywhere(way: str) -> None:
    """All processes have the same running statistics after an update, and others than with the
    statistics of all rows."""
    expected = of_processes(NumPy, CHECKED, 2, syncs_batch_norm=False)
    found = of_processes(WAYS[way], CHECKED, 2, syncs_batch_norm=False)
    synced = of_processes(NumPy, CHECKED, 2)
    for rank in range(2):
        for i, value in enumerate(expected[rank]):
            np.testing.assert_array_equal(bits(found[rank][i]), bits(value), err_msg=f"value {i}")
    for i in range(len(expected[0]) - len(SIZES)):
        np.testing.assert_array_equal(bits(expected[0][i]), bits(expected[1][i]))
        assert not np.array_equal(expected[0][i], synced[0][i])


def test_the_mean_over_processes_is_that_of_each_statistic() -> None:
    """Rounded twice to float32: a relative error of 2^-23 at most."""
    values = [{"a": np.array([1.0, 1e-20, 3.0]), "b": np.array([1e9 * k])} for k in (1, 2, 4)]
    table = Table(3)

    def one(rank: int) -> Any:
        return gradient._means(table.of(rank, NumPy), values[rank], 3)

    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(one, range(3)):
            for name in ("a", "b"):
                expected = np.mean([each[name] for each in values], axis=0)
                np.testing.assert_allclose(found[name], expected, rtol=2.0**-23)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*LAYERS, *LOSSES])
def test_every_layer_and_loss(name: str, way: str) -> None:
    assert_as_one_process(way, {**LAYERS, **LOSSES}[name], 3)


@pytest.mark.parametrize("left_out", ["largest", "sum"])
@pytest.mark.parametrize("way", slow_but(WAYS, "numpy", "torch"))
def test_without_a_collective_the_bits_differ(way: str, left_out: str) -> None:
    def make(together: Together | None) -> Any:
        if together is not None:
            setattr(together, left_out, lambda x: x)
        return WAYS[way](together)

    (whole,), parts = of_processes(NumPy, CHECKED, 1), of_processes(make, CHECKED, 2)
    assert not np.array_equal(parts[0][0], whole[0])


def test_the_witness_has_collectives_of_its_own() -> None:
    addresses = launch.free_addresses(3)

    def one(rank: int) -> list[np.ndarray]:
        together = distributed.connect(World(rank, 3, addresses))
        return [together.sum(np.full((2, 1), rank + 0.5)), together.largest(np.float64(-rank))]

    with ThreadPoolExecutor(3) as threads:
        for total, largest in threads.map(one, range(3)):
            np.testing.assert_array_equal(total, [[4.5], [4.5]])
            assert largest == 0
