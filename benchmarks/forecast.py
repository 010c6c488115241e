"""Measure how well task=forecast predicts schedules that it has not seen.

    python -m benchmarks.forecast                          # fifteen minutes on two cores
    python -m benchmarks.forecast --workloads digits --seeds 0,1,2,3 --folder recorded
    python -m benchmarks.forecast --curves MultiPowerLaw/loss_curve_repo

Each workload trains seven schedules with each seed. Each schedule in turn is left out, the law that
predicts the others best on their held-out stretches is fitted to the others, and the left out final
training loss (the mean of the last block, over the seeds) is predicted. The figures are the mean
relative error, the share of the 80 % intervals that hold the loss, Spearman's correlation of
predicted and recorded losses, and the worst held-out error: the task refuses a fit with more than
forecast.tolerance. Beside them stands the noise: the standard deviation of a seed, and that of the
mean over the seeds when what all schedules of a seed have in common is taken out.

`--curves` has the curves of Luo et al. (2025), in folders csv_25, csv_100 and csv_400 with columns
step, lr and loss: a fit to three schedules predicts the six others, and each of the nine is left
out in turn.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from runner.report import forecast
from runner.report.forecast import Forecast, HeldOut, Trace
from runner.report.jobs import inside, read
from runner.report.laws import KINDS

SCHEDULES = "constant,linear,cosine,wsd,step,exponential,inverse_sqrt"
# a GPT of one block with 32 features
_GPT = (
    "model.layers=[{layer:embedding,features:32},{layer:position_embedding,init:uniform},"
    "{layer:residual,layers:[{layer:layer_norm},{layer:attention,num_heads:2,causal:true}]},"
    "{layer:residual,layers:[{layer:layer_norm},{layer:dense,units:64},"
    "{layer:activation,function:gelu_tanh},{layer:dense,units:32}]},"
    "{layer:layer_norm},{layer:dense,units:outputs}]"
)
_STREAM = [
    *("data=custom", "trusted_modules=[benchmarks.streams]", "data.steps_per_epoch=40"),
    *("data.test_fraction=0", "trainer.batch_size=64", "trainer.max_steps=1600"),
]
_TEXT = [
    *("data=python_docs", "data.context=32", "data.stride=4", "model=gpt"),
    *("trainer.batch_size=16", "optimizer.lr=3e-3", "trainer.max_steps=800"),
]
_SHORT = [  # rows without a character in common
    *("data.context=32", "data.stride=32", "trainer.batch_size=16", "trainer.max_steps=400"),
]
WORKLOADS: Mapping[str, list[str]] = {
    "classes": [
        *_STREAM,
        "data._target_=benchmarks.streams.classes",
        "data.num_classes=10",
    ],
    "values": [
        *_STREAM,
        "data._target_=benchmarks.streams.values",
        "data.task=regression",
    ],
    "text": [*_TEXT, _GPT],
    **{name: [f"experiment={name}", *_SHORT] for name in ("language_lstm", "language_gpt")},
    **{data: [f"data={data}", "trainer.max_steps=800"] for data in ("digits", "diabetes", "wine")},
}
_WARMUP = 2160  # updates of the public curves
_FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")


def record(name: str, seeds: str, folder: Path) -> list[Trace]:
    """Train the schedules, unless the folder has them, and return their traces."""
    overrides = [
        *(f"schedule={SCHEDULES}", f"seed={seeds}", "trainer.max_epochs=null", "device=cpu"),
        *(*WORKLOADS[name], "trainer.checkpoint_every=null"),
        *(f"output.root={folder}", f"output.multirun={folder / name}"),
    ]
    command = [sys.executable, "-m", "runner", "-m", *overrides]
    subprocess.run(command, check=True, capture_output=True)
    jobs = read(inside(folder / name))
    num_steps = len(jobs[0].trace["loss"])
    block = forecast.block_length(num_steps, int(jobs[0].epochs["step"][0]))
    lr = float(jobs[0].config["optimizer"]["lr"])
    return [
        Trace(
            str(job.result["schedule"]),
            job.trace["learning_rate"],
            job.trace["loss"],
            block,
            lr,
            job.block,
        )
        for job in jobs
    ]


def _logs(traces: Sequence[Trace]) -> dict[str, np.ndarray]:
    """Return the logarithms of the final losses of each schedule, by seed."""
    names = dict.fromkeys(trace.name for trace in traces)
    finals = {(t.name, t.seed): _last(t) for t in traces}
    return {
        name: np.array([final for (own, _), final in finals.items() if own == name])
        for name in names
    }


def noise(traces: Sequence[Trace]) -> str:
    """Return the deviation of a final loss between seeds, and what is left of it in a mean over
    the seeds without what the schedules of a seed have in common."""
    logs = np.stack([*_logs(traces).values()])
    num, num_seeds = logs.shape
    if num_seeds < 2:
        return "noise unknown (one seed)"
    own = logs - logs.mean(axis=0) - logs.mean(axis=1, keepdims=True) + logs.mean()
    left = np.sqrt((own**2).sum() / ((num - 1) * (num_seeds - 1)) / num_seeds)
    return f"seed noise {logs.std(axis=1, ddof=1).mean():.1%}, own noise of the mean {left:.1%}"


def measure(traces: Sequence[Trace], law: str) -> str:
    """Leave out each schedule in turn; return the figures of a workload in one line."""
    finals, predicted, recorded, held, worst, kinds = _logs(traces), [], [], 0, 0.0, []
    for name, logs in finals.items():
        others = [trace for trace in traces if trace.name != name]
        kind, errors = _errors(others, law)
        rates = next(trace.rates for trace in traces if trace.name == name)
        longer = forecast.held_out(others, KINDS[kind])
        prediction = Forecast.of(others, KINDS[kind], errors, longer).predict(rates)
        loss = float(np.exp(logs).mean())
        predicted.append(prediction.value)
        recorded.append(loss)
        held += prediction.low <= loss <= prediction.high
        worst = max(worst, *(each.error for each in errors))
        kinds.append(kind)
        print(f"  {name:14} {loss:.4f} predicted {prediction.value:.4f}", flush=True)
    error = np.abs(np.array(predicted) / recorded - 1).mean()
    rank = spearmanr(predicted, recorded)[0]
    laws = ", ".join(f"{kind} {kinds.count(kind)} times" for kind in dict.fromkeys(kinds))
    return (
        f"mean error {error:.2%}, {held} of {len(finals)} within 80 % intervals, Spearman "
        f"{rank:.2f}, worst held-out error {worst:.1%}; {noise(traces)}; law {laws}"
    )


def _errors(traces: Sequence[Trace], law: str) -> tuple[str, list[HeldOut]]:
    if law != "auto":
        return law, forecast.held_out(traces, KINDS[law].shaped)
    kind, errors = forecast.best_kind(traces)
    return kind.name, errors[kind.name]


def public(folder: Path) -> list[Trace]:
    """Read the curves of one size, with losses at every 128th update or so."""
    traces = []
    for path in sorted(folder.glob("*.csv")):
        steps, rates, losses = np.loadtxt(path, delimiter=",", skiprows=1).T
        every = np.arange(int(steps[-1]) + 1)
        warm = np.minimum(every / _WARMUP, 1.0)
        eta = np.where(every < steps[0], rates[0] * warm, np.interp(every, steps, rates))
        loss = np.interp(every, steps, losses)
        traces.append(Trace(path.stem, eta, loss, 128, float(rates.max()), len(every)))
    return traces


def measure_public(folder: Path, law: str) -> str:
    """Predict six curves by a fit to three; return their errors, and those of nine left out."""
    traces = public(folder)
    known = [trace for trace in traces if trace.name in _FITTED]
    kind, errors = _errors(known, law)
    longer = forecast.held_out(known, KINDS[kind])
    found = Forecast.of(known, KINDS[kind], errors, longer)
    off = [
        found.predict(trace.rates).value / np.exp(_last(trace)) - 1
        for trace in traces
        if trace.name not in _FITTED
    ]
    three = f"{kind} fitted to three: six final losses {np.abs(off).mean():.2%} off"
    return f"{three}, worst {np.abs(off).max():.2%}; {measure(traces, law)}"


def _last(trace: Trace) -> float:
    return float(np.log(trace.losses[-trace.block :].mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--folder", type=Path, help="keep the runs here; runs there are used again")
    parser.add_argument("--law", default="auto", choices=["auto", *KINDS])
    parser.add_argument("--curves", type=Path, help="the folder of the public curves")
    options = parser.parse_args()
    if options.curves:
        for folder in sorted(options.curves.glob("csv_*")):
            print(folder.name, flush=True)
            print(measure_public(folder, options.law), flush=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.workloads:
            print(name, flush=True)
            traces = record(name, options.seeds, (options.folder or Path(temporary)).absolute())
            print(measure(traces, options.law), flush=True)


if __name__ == "__main__":
    main()
