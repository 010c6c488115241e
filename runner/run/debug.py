"""debug=fast and debug=overfit: a run that checks its own config. Both train as the run would, and
end early with an evaluation and a checkpoint."""

from collections.abc import Mapping
from typing import Any

from runner.data import Split
from runner.data.order import Chunk
from runner.plan import Plan
from runner.run.observer import Observer
from runner.spec import Live, Report
from runner.text.console import Console

_FAST_UPDATES = 2
_NEAR_ZERO = 0.01  # of the first loss


class Fast(Observer):
    """Ends the run after two updates, so that everything is executed: a whole run with all of its
    observers, the validation of one batch, a checkpoint, the picture."""

    cause = "debug"

    def __init__(self) -> None:
        self.is_over = False
        self._num_updates = 0  # of this session

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        self._num_updates += chunk.num_steps
        self.is_over = self._num_updates >= _FAST_UPDATES
        return not self.is_over


class Overfit(Observer):
    """Ends the run when the loss of its only batch is near 0: at most 1 % of the first loss. Warns
    if the run ends before that."""

    cause = "debug"

    def __init__(self, plan: Plan, console: Console) -> None:
        self.console, self.lr = console, plan.config.optimizer.lr
        self.is_over = False
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


def observers(plan: Plan, console: Console, resumed: Mapping[str, Any] | None) -> list[Any]:
    """Return the observers of the config's `debug`, which may end the run."""
    if plan.config.debug == "fast":
        return [Fast()]
    if plan.config.debug == "overfit":
        observer = Overfit(plan, console)
        observer.resume(resumed or {})
        return [observer]
    return []


def validation(plan: Plan) -> Split:
    """Return the validation rows that a run evaluates: with debug=fast, those of one batch."""
    val = plan.data.val
    return val.head(plan.model.batch_size) if plan.config.debug == "fast" else val
