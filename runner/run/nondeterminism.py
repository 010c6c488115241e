"""debug=nondeterminism: a few updates made twice from the same start. The first number that differs
fails the run."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from runner.data.order import Chunk, Chunks
from runner.errors import RunError
from runner.plan import Plan, plan
from runner.run.checkpoint import num_bytes
from runner.run.observer import Limit
from runner.spec import Backend, Live, Report, RunSpec, TrainState, first_state
from runner.text.console import Console

_NUM_UPDATES = 10
_KEPT_BYTES = 2**30  # of the states of the first pass; a large model makes fewer updates
_PREFIX = "debug=nondeterminism: "


class _Update(NamedTuple):
    """The numbers of an update."""

    fields: Mapping[str, np.ndarray]  # those that were read for it
    report: Report
    after: TrainState


class Nondeterminism(Limit):
    """Ends the run after a few updates whose data, losses, outputs, weights, slots and running
    statistics have the bits of a first pass over the same updates; else ends it as failed.

    The first pass reads the data, builds the model and makes the tables of rates anew from the
    config, so that it finds random numbers anywhere: in a data set, in first weights, in a
    schedule, in a layer, in a loss, in an optimizer, in a kernel of the device.
    """

    cause = "debug"

    def __init__(self, plan: Plan, console: Console) -> None:
        self.plan, self.console = plan, console
        self._first: list[_Update] = []
        self._num_updates = 0  # of the second pass
        self._before: TrainState

    def prepare(self, backend: Backend, run: RunSpec, start: TrainState, chunks: Chunks) -> None:
        """Make the first pass. Raise RunError if what is made before the first update differs."""
        self._backend, self._before = backend, start
        again = plan(self.plan.config)
        spec = again.run_spec()
        if start.step == 0:
            self._compare_beginnings(again, run, spec)
        most = max(2, min(_NUM_UPDATES, _KEPT_BYTES // max(1, num_bytes(start))))
        end = min(start.step + most, self.plan.order.total_steps)
        # another length of calls, so that a backend does not reuse compiled code: code of the
        # user's own may draw random numbers while it is traced
        spec = replace(spec, largest_chunk=2, tables=run.tables)

        def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
            self._first.append(_Update(chunk.fields, report, live.state()))
            return chunk.first_step + 1 < end

        backend.train(spec, start, again.chunks(start.step, None, adapt=False, end=end), on_chunk)

    def _compare_beginnings(self, again: Plan, run: RunSpec, spec: RunSpec) -> None:
        """Compare the rows in memory, the first weights and the tables of two plans."""
        config = self.plan.config
        first, second = (
            first_state(each.network, config.optimizer, each.model.dtype, config.seed)
            for each in (self.plan, again)
        )
        pairs = (
            ("the training rows differ when they are read again: field", run.fields, spec.fields),
            ("the model differs when it is built again: first values of", first.weights,
             second.weights),
            ("the model differs when it is built again: first values of", first.buffers,
             second.buffers),
            ("the schedule differs when it is computed again: the table of", run.tables,
             spec.tables),
        )  # fmt: skip
        for words, one, other in pairs:
            if (name := _different(one, other)) is not None:
                raise RunError(f"{_PREFIX}{words} {name}")

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None:
        if self._num_updates:
            self._before = live.state()

    def examine(self, chunk: Chunk, report: Report, live: Live) -> None:
        """Raise RunError if the chunk's only update differs from that of the first pass."""
        if self._num_updates >= len(self._first):  # a signal has ended the first pass
            return
        step, before = chunk.first_step, self._first[self._num_updates]
        now = _Update(chunk.fields, report, live.state())
        self._num_updates += 1
        if (name := _different(before.fields, now.fields)) is not None:
            raise RunError(
                f"{_PREFIX}the rows of update {step} differ when they are read again: field {name}"
            )
        losses = {"loss": before.report.losses}, {"loss": report.losses}
        if _different(*losses) is not None:
            one, other = float(before.report.losses[0]), float(report.losses[0])
            raise RunError(
                f"{_PREFIX}the loss of update {step} was {one!r}, then {other!r}: {self._of(chunk)}"
            )
        for (kind, one_s), (_, other_s) in zip(_numbers(before), _numbers(now), strict=True):
            if (name := _different(one_s, other_s)) is not None:
                raise RunError(
                    f"{_PREFIX}the loss of update {step} was the same, but {kind}{name} was not, "
                    f"{_apart(one_s[name], other_s[name])}: random numbers or another order of "
                    f"sums in the gradient or in the optimizer"
                )

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        self.is_over = self._num_updates >= len(self._first)
        return not self.is_over

    def on_finish(self, live: Live) -> None:
        self.console.say(
            f"nondeterminism  {self._num_updates} updates made twice: every loss, weight and slot "
            f"had the same bits"
        )

    def _of(self, chunk: Chunk) -> str:
        """Name the first layer with another output for the same weights and rows."""
        if self.plan.config.trainer.precision == "exact":
            return "exact mode promises the same bits; please report this"
        x = chunk.fields["x"] if "x" in chunk.fields else self.plan.data.train.read(chunk.rows)["x"]
        rows = {"x": np.ascontiguousarray(x, dtype=self.plan.model.input_dtype)}
        one, other = (
            self._backend.layer_outputs(self.plan.model, self._before, rows) for _ in range(2)
        )
        for (name, a), (_, b) in zip(one, other, strict=False):
            if _different({name: a}, {name: b}) is not None:
                return (
                    f"layer {name} returns two outputs for the same weights and rows, "
                    f"{_apart(a, b)}; it draws random numbers that the run does not seed"
                )
        return (
            "every layer returns the same outputs for the same weights and rows, so it is the "
            "loss, or a state of the model that is not among its weights and buffers"
        )


def _numbers(update: _Update) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """Yield the numbers of an update after its loss, in the order of their making, with words."""
    if update.report.outputs is not None:
        yield "", {"the output of the network": update.report.outputs}
    yield "the setting ", update.report.applied
    yield "", update.after.weights
    yield "the running statistic ", update.after.buffers
    for slot, values in update.after.slots.items():
        yield f"the optimizer's {slot} of ", values


def _different(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of the first array with other bits; None if there is none."""
    for name, value in one.items():
        a, b = np.asarray(value), np.asarray(other[name])
        if a.shape != b.shape or a.dtype != b.dtype or a.tobytes() != b.tobytes():
            return name
    return None


def _apart(a: np.ndarray, b: np.ndarray) -> str:
    """Describe the difference of two arrays."""
    if a.shape != b.shape:
        return f"of shapes {list(a.shape)} and {list(b.shape)}"
    num = int(np.sum(a != b))
    largest = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0)
    return f"by at most {largest:.2g} in {num} of {a.size} numbers"
