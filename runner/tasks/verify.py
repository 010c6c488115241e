"""task=verify: repeat a run in exact mode, or a range of its steps, and check that every bit is the
same."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from runner import dispatcher
from runner.data.order import Chunk
from runner.errors import ConfigError, RunError
from runner.run import certificate, checkpoint, run_folder
from runner.run.saved import Run
from runner.spec import Live, OnChunk, Report, Tables, TrainState, first_state
from runner.tasks import card
from runner.text.console import capture


def verify(run: Run, steps: str | None) -> int:
    """Print `identical` and return 0, or print the first step or tensor that differs and return 1.

    steps=A..B starts from the checkpoint of step A (from the seed if A = 0) and ends before update
    B. Rates and scheduled hyperparameters are read from trace.csv as far as it has them: they
    belong to the run, like the data.
    """
    if run.config.trainer.precision != "exact":
        raise ConfigError(
            f"task=verify takes runs with trainer.precision=exact, got one with "
            f"{run.config.trainer.precision}"
        )
    if run.plan.normalizes_by_process:
        raise ConfigError(
            f"task=verify repeats a run in one process, and batch norm of this one has the "
            f"statistics of each of {run.config.num_processes} (trainer.sync_batchnorm=false); "
            f"train it again and compare certificate.json"
        )
    recorded = _certificate(run)
    card.check_saved(run.folder)
    begin, end, backend = *_range(steps, recorded["steps"]), run.config.backend
    with capture() as (console, captured):
        captured.into(run.folder / "run.log")
        if run.plan.data.description()["sha256"] != recorded["data_sha256"]:
            console.say(
                "different: the data is not what the run was trained on (data_sha256 of "
                "certificate.json)"
            )
            return 1
        trace = _trace(run)
        start = _state(run, begin)
        expected = recorded["tensors_sha256"] if end == recorded["steps"] else _hashes_at(run, end)
        with console.progress(end, begin):
            state, step = _repeat(run, start, end, trace, console.advance)
        if step is not None:
            console.say(f"different: the loss of step {step} on {backend}")
            return 1
        different = _different_tensor(state, expected, backend)
        if different is None and end == recorded["steps"]:
            different = _different_hash(run, recorded, state, trace)
        if different is not None:
            console.say(f"different: {different}")
            return 1
        console.say(
            f"identical: steps {begin} to {end} on {backend}: {end - begin} losses, "
            f"{len(expected)} tensors"
        )
        console.say(f"hash     {checkpoint.weights_sha256(state)}")
        return 0


def _as_recorded(tables: Tables, trace: Mapping[str, np.ndarray]) -> Tables:
    """Return the tables with the trace's values, as far as the trace goes."""
    recorded = {name: values.copy() for name, values in tables.items()}
    for name, values in recorded.items():
        values[: len(trace[name])] = trace[name][: len(values)]
    return recorded


def _repeat(
    run: Run,
    start: TrainState,
    end: int,
    trace: Mapping[str, np.ndarray],
    advance: Callable[[int, str], None],
) -> tuple[TrainState, int | None]:
    """Return the state after update `end`, and the first step with another loss, or None."""
    planned = run.plan.run_spec()
    spec = replace(planned, tables=_as_recorded(planned.tables, trace))
    chunks = run.plan.chunks(start.step, None, adapt=True, end=end)
    first_different: list[int] = []

    def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
        step = chunk.first_step + chunk.num_steps
        expected = trace["loss"][chunk.first_step : step].astype(np.float32)
        different = np.flatnonzero(report.losses[: len(expected)] != expected)
        first_different.extend(int(chunk.first_step + i) for i in different[:1])
        advance(step, "")
        return not first_different and step < end

    listener: OnChunk = on_chunk
    state = dispatcher.load(run.config.backend).train(spec, start, chunks, listener)
    return state, first_different[0] if first_different else None


def _certificate(run: Run) -> dict[str, Any]:
    path = run.folder / "certificate.json"
    if not path.is_file():
        raise RunError(f"{run.folder} has no certificate.json: the run did not end")
    return run_folder.read_json(path)


def _different_tensor(state: TrainState, expected: Mapping[str, str], backend: str) -> str | None:
    """Describe the first tensor with another hash than expected."""
    hashes = certificate.tensor_hashes(state)
    names = [name for name in sorted(expected) if hashes.get(name) != expected[name]]
    num = f"{len(names)} of {len(hashes)} tensors"
    return f"{names[0]} after step {state.step} on {backend} ({num})" if names else None


def _different_hash(
    run: Run, recorded: Mapping[str, Any], state: TrainState, trace: Mapping[str, np.ndarray]
) -> str | None:
    """Describe the first hash of the certificate that is not that of the repeated run."""
    made = certificate.hashes(state, trace["loss"][: state.step])
    if not (run.folder / "trace.csv").is_file():
        del made["losses_sha256"]
    name = next((name for name in made if recorded.get(name, made[name]) != made[name]), None)
    return name and f"{name} of certificate.json is not that of the repeated run"


def _trace(run: Run) -> Mapping[str, np.ndarray]:
    """Return the run's trace; empty if the file is missing: then only tensors are compared."""
    return run.trace if (run.folder / "trace.csv").is_file() else defaultdict(lambda: np.empty(0))


def _range(steps: str | None, total: int) -> tuple[int, int]:
    if steps is None:
        return 0, total
    match = re.fullmatch(r"(\d+)\.\.(\d+)", steps)
    if not match or not int(match[1]) < int(match[2]) <= total:
        raise ConfigError(
            f"steps must be A..B with 0 <= A < B <= {total}, the run's updates, got {steps}"
        )
    return int(match[1]), int(match[2])


def _state(run: Run, step: int) -> TrainState:
    if step:
        return checkpoint.read(run.folder, step)[0]
    return first_state(
        run.plan.network, run.config.optimizer, run.plan.model.dtype, run.config.seed
    )


def _hashes_at(run: Run, step: int) -> dict[str, str]:
    return certificate.tensor_hashes(checkpoint.read(run.folder, step)[0])
