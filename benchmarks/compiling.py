"""Measure after how many updates `trainer.compile=true` has paid for its compilation.

    python -m benchmarks.compiling                # some five minutes of CPU
    python -m benchmarks.compiling --backends keras --models transformer cnn --markdown

Each run is a process of its own with one thread, without programs of earlier runs. Times are CPU
seconds of the calls that make updates, with those of child processes (the C++ compiler), so that
other programs matter little. An update takes the median of the calls after the first two. The
compilation is the first two calls' time beyond that of as many updates. Updates to break even: what
the compilation costs beyond that of the run with compile=false / what it saves per update.
"""

import argparse
import resource
import tempfile
from dataclasses import dataclass
from statistics import median

from benchmarks.cost import BACKENDS
from benchmarks.measure import in_new_process
from benchmarks.report import layout
from runner import Observer, train

MODELS = {
    "mlp": "",
    "wide mlp": "'model.layers=[{layer: dense, units: 1024},{layer: activation, function: gelu},"
    "{layer: dense, units: 1024},{layer: activation, function: gelu},{layer: dense, units: "
    "outputs}]'",
    "transformer": "model=transformer",
    "gpt": "data=python_docs model=gpt",
    "gru": "data=python_docs model=gru",
    "cnn": "model=cnn",
    "resnet": "model=resnet",
}
_FIRST = 2  # calls that trace and compile


@dataclass(frozen=True)
class Cost:
    """The CPU seconds of one run."""

    first: float  # of the first calls, beyond those of their updates
    update: float


class _Clock(Observer):
    """Records the updates and the CPU seconds of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float]] = []
        self.start = 0.0

    def on_chunk_start(self, chunk, live) -> None:  # type: ignore[no-untyped-def]
        self.start = _cpu_seconds()

    def on_chunk(self, chunk, report, live) -> bool:  # type: ignore[no-untyped-def]
        self.calls.append((chunk.num_steps, _cpu_seconds() - self.start))
        return True


def _cpu_seconds() -> float:
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure(backend: str, model: str, compiles: bool, num_steps: int) -> Cost:
    """Train a model; return its costs."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        overrides = (
            f"backend={backend} {model} device=cpu trainer.threads=1 trainer.max_steps={num_steps} "
            f"trainer.compile={str(compiles).lower()} trainer.steps_per_call=10 "
            f"trainer.checkpoint_every=null output.root={folder}"
        )
        train(overrides, callbacks=[clock], quiet=True)
    update = median(seconds / num for num, seconds in clock.calls[_FIRST:])
    first = sum(seconds - num * update for num, seconds in clock.calls[:_FIRST])
    return Cost(first, update)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiling")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--steps", type=int, default=100, help="updates of a run, at least 30")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    rows = [("backend", "model", "ms an update", "compiled", "seconds to compile", "breaks even")]
    for backend in arguments.backends:
        for name in arguments.models:
            plain, compiled = (
                in_new_process(measure, backend, MODELS[name], compiles, arguments.steps)
                for compiles in (False, True)
            )
            extra, saved = compiled.first - plain.first, plain.update - compiled.update
            rows.append(
                (
                    backend,
                    name,
                    f"{plain.update * 1e3:.2f}",
                    f"{compiled.update * 1e3:.2f}",
                    f"{extra:.1f}",
                    f"{extra / saved:,.0f}" if saved > 0 else "never",
                )
            )
            print(*rows[-1], flush=True)
    print(layout(rows, arguments.markdown))


if __name__ == "__main__":
    main()
