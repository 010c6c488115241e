"""Training through the seam, without a folder: what the parity and contract suites compare."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from runner import dispatcher
from runner.cli.compose import compose
from runner.components.losses import couples_rows
from runner.config.schema import parse
from runner.data.order import Chunk
from runner.plan import Plan, plan
from runner.spec import Live, Report, RunSpec, Tables, TrainState, first_state


class Trained(NamedTuple):
    losses: np.ndarray  # [T]
    applied: dict[str, np.ndarray]  # [T] each, as read back from the framework's optimizer
    outputs: np.ndarray  # [n, C]
    state: TrainState

    @property
    def rates(self) -> np.ndarray:
        return self.applied["learning_rate"]

    def then(self, rest: "Trained") -> "Trained":
        """This run and what went on from its state, as one."""
        applied = {
            name: np.concatenate([values, rest.applied[name]])
            for name, values in self.applied.items()
        }
        losses, outputs = (
            np.concatenate(pair)
            for pair in ((self.losses, rest.losses), (self.outputs, rest.outputs))
        )
        return Trained(losses, applied, outputs, rest.state)


def prepare(overrides: Sequence[str]) -> Plan:
    return plan(parse(compose(overrides)))


def first(prepared: Plan) -> TrainState:
    return first_state(
        prepared.network, prepared.config.optimizer, prepared.model.dtype, prepared.config.seed
    )


def train(
    backend: str,
    overrides: Sequence[str],
    start: TrainState | None = None,
    stop_after: int | None = None,
    tables: Tables | None = None,
) -> Trained:
    """Train as the command line would, from `start` or from fresh weights, with the config's tables
    or other ones; stop at the chunk that ends `stop_after`."""
    prepared = prepare(overrides)
    spec: RunSpec = prepared.run_spec()
    # a run does not need these outputs; the suites compare them
    has_places = not prepared.data.has_one_label or couples_rows(prepared.loss)
    if has_places or prepared.mixing is not None:
        spec = replace(spec, keeps_outputs=True)
    spec = spec if tables is None else replace(spec, tables=tables)
    start = start or first(prepared)
    reports: list[Report] = []

    def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
        reports.append(report)
        return chunk.first_step + chunk.num_steps != stop_after

    chunks = prepared.chunks(start.step, prepared.checkpoints(), adapt=False)
    state = dispatcher.load(backend).train(spec, start, chunks, on_chunk)
    return Trained(
        np.concatenate([report.losses for report in reports]),
        {
            name: np.concatenate([report.applied[name] for report in reports])
            for name in spec.tables
        },
        np.concatenate([report.outputs for report in reports]),
        state,
    )


def in_two_parts(backend: str, overrides: Sequence[str], at: int) -> tuple[Trained, Trained]:
    """Train a run as a whole, and one that goes on from its state after `at` updates."""
    whole = train(backend, overrides)
    begun = train(backend, overrides, stop_after=at)
    return whole, begun.then(train(backend, overrides, start=begun.state))


def difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """The largest difference of two sets of tensors of the same names and shapes, by `apart`."""
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)
    return max((apart(a[name], b[name]) for name in a), default=0.0)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference, relative to the largest value where that is above 1."""
    return float(np.abs(a - b).max() / max(1.0, np.abs(a).max()))


def differences(a: Trained, b: Trained) -> dict[str, float]:
    """The largest difference of losses, outputs, weights, buffers and every slot."""
    assert a.state.step == b.state.step
    assert a.state.slots.keys() == b.state.slots.keys()
    return {
        "losses": apart(a.losses, b.losses),
        "outputs": apart(a.outputs, b.outputs),
        "weights": difference(a.state.weights, b.state.weights),
        "buffers": difference(a.state.buffers, b.state.buffers),
        **{slot: difference(a.state.slots[slot], b.state.slots[slot]) for slot in a.state.slots},
    }
