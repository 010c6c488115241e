"""debug=fast, overfit, anomaly, ...: a run that checks its own config, model and data. All train as
the run would; most end it early, with an evaluation and a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner import dispatcher
from runner.data.order import Chunk
from runner.errors import RunError
from runner.plan import Plan
from runner.run.nondeterminism import Nondeterminism
from runner.run.observer import Limit
from runner.run.profile import Profile
from runner.spec import Live, Report, TrainState
from runner.text.console import Console

_FAST_UPDATES = 2
_NEAR_ZERO = 0.01  # of the first loss
_MOST_ROWS = 10  # that a message lists


class Fast(Limit):
    """Ends the run after two updates, so that everything is executed: a whole run with all of its
    observers, the validation of one batch, a checkpoint, the picture."""

    cause = "debug"

    def __init__(self) -> None:
        self._num_updates = 0  # of this session

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        self._num_updates += chunk.num_steps
        self.is_over = self._num_updates >= _FAST_UPDATES
        return not self.is_over


class Overfit(Limit):
    """Ends the run when the loss of its only batch is near 0: at most 1 % of the first loss. Warns
    if the run ends before that."""

    cause = "debug"

    def __init__(self, plan: Plan, console: Console) -> None:
        self.console, self.lr = console, plan.config.optimizer.lr
        self._first: float | None = None
        self._last, self._step = 0.0, 0

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        if self._first is None:
            self._first = float(report.losses[0])
        self._last, self._step = float(report.losses[-1]), chunk.first_step + chunk.num_steps
        self.is_over = self._last <= _NEAR_ZERO * self._first
        return not self.is_over

    def on_finish(self, live: Live) -> None:
        fell = f"from {self._first:.4g} to {self._last:.4g} in {self._step} updates"
        if self.is_over:
            self.console.say(f"overfit  the loss of one batch fell {fell}")
            return
        self.console.say(
            f"warning: debug=overfit: the loss of one batch went {fell}, which is not near 0; a "
            f"model that can learn fits one batch: look for labels that do not belong to their "
            f"rows, outputs that the loss does not expect, tensors without a gradient, and a rate "
            f"that does not fit (optimizer.lr={self.lr:g}); dropout and label smoothing keep a "
            f"loss above 0, and a short run may need more updates"
        )

    def state(self) -> dict[str, Any]:
        return {} if self._first is None else {"overfit": {"first_loss": self._first}}

    def resume(self, numbers: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state.json."""
        self._first = numbers.get("overfit", {}).get("first_loss")


class Anomaly(Limit):
    """Ends the run as failed at the first update with a NaN or infinite loss or weight, and names
    the layer and the rows, or the weight, in which the first such value is.

    It keeps the state from before each update, and runs the rows of the failed update through its
    layers, as in training but for the dropout masks.
    """

    cause = "debug"

    def __init__(self, plan: Plan, console: Console) -> None:
        self.plan, self.console = plan, console
        self._before: TrainState | None = None

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None:
        if self._before is None:
            self._before = live.state()

    def examine(self, chunk: Chunk, report: Report, live: Live) -> None:
        """Raise RunError if the chunk's only update has such a value."""
        loss, step = float(report.losses[0]), chunk.first_step
        if not np.isfinite(loss):
            raise RunError(f"debug=anomaly: the loss of update {step} is {loss}: {self._of(chunk)}")
        after = live.state()
        tensors = {"": after.weights, "the running statistic ": after.buffers}
        for slot, values in after.slots.items():
            tensors[f"the optimizer's {slot} of "] = values
        for kind, values in tensors.items():
            for name, value in values.items():
                if not np.isfinite(value).all():
                    raise RunError(
                        f"debug=anomaly: update {step} made {kind}{name} {_kind(value)}: its loss "
                        f"was {loss:.4g}, so its gradient, or the optimizer's division by it, is "
                        f"not finite"
                    )
        self._before = after

    def _of(self, chunk: Chunk) -> str:
        """Name the first layer with such a value, for the weights before the update."""
        model, rows = self.plan.model, chunk.rows
        x = chunk.fields["x"] if "x" in chunk.fields else self.plan.data.train.read(rows)["x"]
        x = np.ascontiguousarray(x, dtype=model.input_dtype)
        assert self._before is not None
        backend = dispatcher.load(self.plan.config.backend)
        outputs = backend.layer_outputs(model, self._before, {"x": x})
        for name, values in [("x", x), *outputs]:
            is_bad = ~np.isfinite(values)
            if is_bad.any():
                where = "the input x" if name == "x" else f"the output of layer {name}"
                return f"{where} is {_kind(values)} {_rows(is_bad, rows)}"
        return "all layers are finite, so it comes from the loss of these outputs and targets"

    def on_finish(self, live: Live) -> None:
        self.console.say("anomaly  no loss, weight or slot was NaN or infinite")


def _kind(values: np.ndarray) -> str:
    """Return the first value of an array that is not finite: nan, inf or -inf."""
    return str(values[~np.isfinite(values)].flat[0])


def _rows(is_bad: np.ndarray, rows: np.ndarray) -> str:
    """Name the training rows with such values; outputs without an axis of rows have none."""
    if is_bad.ndim == 0 or len(is_bad) != len(rows):
        return ""
    found = rows[is_bad.reshape(len(rows), -1).any(axis=1)].tolist()
    listed = ", ".join(map(str, found[:_MOST_ROWS]))
    more = f" and {len(found) - _MOST_ROWS} more" if len(found) > _MOST_ROWS else ""
    return f"in {len(found)} of {len(rows)} rows: training rows {listed}{more}"


def observers(
    plan: Plan, path: Path, console: Console, resumed: Mapping[str, Any] | None
) -> list[Limit]:
    """Return the observers of the config's `debug`, which may end the run."""
    if plan.config.debug == "fast":
        return [Fast()]
    if plan.config.debug == "overfit":
        observer = Overfit(plan, console)
        observer.resume(resumed or {})
        return [observer]
    if plan.config.debug == "anomaly":
        return [Anomaly(plan, console)]
    if plan.config.debug == "nondeterminism":
        return [Nondeterminism(plan, console)]
    if plan.config.debug == "profile":
        return [Profile(plan, path, console)]
    return []
