"""Measure how well task=forecast predicts schedules that it has not seen, on three workloads.

    python -m benchmarks.forecast                 # five minutes on two cores
    python -m benchmarks.forecast --workloads digits --steps 1600

Each workload trains seven schedules with one seed. Each schedule in turn is left out, the law is
fitted to the others, and its final training loss (the mean of the last block) is predicted. The
figures are the mean relative error, the share of the 80 % intervals that hold the loss, Spearman's
correlation of predicted and recorded losses, and the worst held-out error: the task refuses a fit
with more than forecast.tolerance.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from runner.report import forecast
from runner.report.forecast import Trace
from runner.report.jobs import inside, read

SCHEDULES = "constant,linear,cosine,wsd,step,exponential,inverse_sqrt"


def record(data: str, steps: int, folder: Path) -> list[Trace]:
    """Train the schedules and return their traces."""
    overrides = [
        *(f"data={data}", f"schedule={SCHEDULES}", "trainer.max_epochs=null", "device=cpu"),
        *(f"trainer.max_steps={steps}", "trainer.checkpoint_every=null"),
        *(f"output.root={folder}", f"output.multirun={folder / data}"),
    ]
    command = [sys.executable, "-m", "runner", "-m", *overrides]
    subprocess.run(command, check=True, capture_output=True)
    jobs = read(inside(folder / data))
    block = forecast.block_length(steps, int(jobs[0].epochs["step"][0]))
    return [
        Trace(str(job.result["schedule"]), job.trace["learning_rate"], job.trace["loss"], block)
        for job in jobs
    ]


def measure(traces: list[Trace]) -> str:
    """Leave out each schedule in turn; return the figures of a workload in one line."""
    predicted, recorded, held, worst = [], [], 0, 0.0
    for i, trace in enumerate(traces):
        others = [*traces[:i], *traces[i + 1 :]]
        errors = forecast.held_out(others)
        law = forecast.fit([forecast.blocks(each) for each in others])
        laws = forecast.resampled(others, law)
        prediction = forecast.predict(trace.rates, law, laws, errors, 1)
        loss = float(trace.losses[-trace.block :].mean())
        predicted.append(prediction.value)
        recorded.append(loss)
        held += prediction.low <= loss <= prediction.high
        worst = max(worst, *(each.error for each in errors))
        print(f"  {trace.name:14} {loss:.4f} predicted {prediction.value:.4f}", flush=True)
    error = np.abs(np.array(predicted) / recorded - 1).mean()
    rank = spearmanr(predicted, recorded)[0]
    return (
        f"mean error {error:.1%}, {held} of {len(traces)} within 80 % intervals, "
        f"Spearman {rank:.2f}, worst held-out error {worst:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=["digits", "diabetes", "wine"])
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for data in options.workloads:
            print(data, flush=True)
            print(measure(record(data, options.steps, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
