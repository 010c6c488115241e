"""Compare jobs that differ only in their backend: they should be the same run."""

from dataclasses import dataclass

import numpy as np

from runner.errors import RunError, printable
from runner.report.jobs import Job, pairs
from runner.run import checkpoint

# allowed difference of losses (relative for losses above 1) from rounding, by precision
_TOLERANCE = {"exact": 0.0, "float64": 1e-10, "float32": 1e-4, "bf16-mixed": 0.1, "16-mixed": 0.1}


@dataclass(frozen=True)
class Parity:
    """The largest differences of two runs. `first_step` is the first step at which the losses
    differ by more than the tolerance."""

    overrides: str
    backends: str
    rate: float
    loss: float
    weights: float
    tolerance: float
    first_step: int | None

    def cells(self) -> tuple[str, ...]:
        differs_at = "none" if self.first_step is None else f"step {self.first_step}"
        numbers = (
            f"{value:.1e}" if value else "0" for value in (self.rate, self.loss, self.weights)
        )
        return (self.overrides, self.backends, *numbers, f"{differs_at} (over {self.tolerance:g})")


HEADER = (
    "overrides",
    "backends",
    "largest difference of rate",
    "of loss",
    "of weights",
    "losses part at",
)


def table(jobs: list[Job]) -> list[Parity]:
    """Return one row per pair of jobs. Print the pairs with a damaged checkpoint, and leave them
    out."""
    rows = []
    for a, b in pairs(jobs):
        try:
            rows.append(_compare(a, b))
        except RunError as error:
            print(
                printable(
                    f"no table of the differences of {a.folder.name} and {b.folder.name}: {error}"
                )
            )
    return rows


def _compare(a: Job, b: Job) -> Parity:
    num = min(len(a.trace["step"]), len(b.trace["step"]))
    losses = [job.trace["loss"][:num] for job in (a, b)]
    difference = np.abs(losses[0] - losses[1]) / np.maximum(1, np.abs(losses[0]))
    tolerance = _TOLERANCE[a.config["trainer"]["precision"]]
    beyond = np.flatnonzero(difference > tolerance)
    weights = [checkpoint.read(job.folder)[0].weights for job in (a, b)]
    return Parity(
        overrides=" ".join(
            item for item in a.overrides if not item.startswith(("backend=", "output."))
        )
        or "defaults",
        backends=f"{a.backend}, {b.backend}",
        rate=max(
            float(np.abs(a.trace[column][:num] - b.trace[column][:num]).max(initial=0))
            for column in a.trace
            if column.startswith("learning_rate") and column in b.trace
        ),
        loss=float(difference.max(initial=0)),
        weights=max(
            (float(np.abs(weights[0][name] - weights[1][name]).max()) for name in weights[0]),
            default=0.0,
        ),
        tolerance=tolerance,
        first_step=int(a.trace["step"][beyond[0]]) if len(beyond) else None,
    )
