"""Measure every figure that has a goal, against its peer, in one run; mark what falls short.

    python -m benchmarks.goals                          # a quarter of an hour on two quiet cores
    python -m benchmarks.goals --rounds 5 --markdown --json goals.json
    python -m benchmarks.goals --before FOLDER          # the same commands of another checkout too
    python -m benchmarks.goals --rounds 1 --only between   # rows whose name has this text

Every command runs in a new process. The commands take turns, round after round, those of the other
checkout next to this one's. Figures are ratios of medians over the rounds, ours / peer, or medians.
Commands that take long run in every third round only; those of a model of 50 million parameters run
with five rounds or more. The table says how often each has run. There is no warm-up round, so use
at least three. With --before, the hashes of the weights of both checkouts are compared.
"""

import argparse
import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import sweeps
from benchmarks.contestants import Contestant, Model, environment, models, taking_part, write_rows
from benchmarks.cost import BACKENDS
from benchmarks.measure import ROOT, execute, in_new_process, measure, of_checkout, ours
from benchmarks.report import layout, machine
from runner.run.run_folder import read_json

_MODELS = ("mlp", "transformer", "cnn_1m", "mlp_4m")
_LOOPS = {"lightning": "torch loop", "keras": "TensorFlow loop"}
_SCRIPTS = {"lightning": "Lightning, idiomatic", "keras": "keras.fit"}
_LARGE = (  # 49.5 million parameters
    "model.layers=[{layer: dense, units: 7000},{layer: activation, function: relu},{layer: dense, "
    "units: 7000},{layer: activation, function: relu},{layer: dense, units: outputs}]",
    *("trainer.max_epochs=null", "trainer.max_steps=40"),
)

Values = Mapping[str, float | str]


@dataclass
class Command:
    """A command of a round, and what its runs have measured."""

    name: str
    run: Callable[[Path], Values]  # with the checkout
    is_ours: bool = True  # another checkout has it too
    is_slow: bool = False  # runs in every third round only
    now: list[Values] = field(default_factory=list)
    before: list[Values] = field(default_factory=list)


@dataclass(frozen=True)
class Goal:
    """A figure with its goal: a quantity of a command, or its ratio to one of a peer."""

    name: str
    ours: tuple[str, str]  # command, quantity
    peer: tuple[str, str] | None
    goal: float
    further: float | None = None  # the next goal
    is_speed: bool = False  # more is better

    def is_missed(self, value: float, goal: float) -> bool:
        return value < goal if self.is_speed else value > goal


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        commands = {command.name: command for command in _commands(Path(folder))}
        goals, left_out = _chosen(arguments.only, arguments.rounds)
        used = {name for goal in goals for name, _ in (goal.ours, *filter(None, [goal.peer]))}
        for number in range(arguments.rounds):
            for name in (name for name in commands if name in used):
                _run(commands[name], number, arguments)
    before = arguments.before is not None
    rows = [row for goal in goals for row in _rows(goal, commands, before)]
    header = ["figure", *(["before"] if before else []), "now", "goal", "next goal", "verdict"]
    print(layout([[*header, "runs"], *rows], arguments.markdown))
    print(_listed("fall short", [row[0] for row in rows if row[-2] == "short"]))
    unmeasured = {goal.name for goal in goals} - {row[0] for row in rows}
    if unmeasured:
        print(_listed("not measured, since a command failed", sorted(unmeasured)))
    if left_out:
        print(_listed("left out with fewer than five rounds", [goal.name for goal in left_out]))
    if before:
        print(_hashes(commands.values()))
    if arguments.json is not None:
        measured = {name: {"now": c.now, "before": c.before} for name, c in commands.items()}
        values = {"machine": machine(), "rounds": arguments.rounds, "measured": measured}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.goals", description="Which figures fall short of their goals."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose name has this text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args()


def _chosen(only: Sequence[str] | None, rounds: int) -> tuple[list[Goal], list[Goal]]:
    """Return the goals to measure, and those that need more rounds."""
    found = [g for g in _goals() if only is None or any(text in g.name for text in only)]
    needs_more = [g for g in found if rounds < 5 and only is None and "50 M" in g.name]
    return [goal for goal in found if goal not in needs_more], needs_more


def _run(command: Command, number: int, arguments: argparse.Namespace) -> None:
    """Run a command of a round, and that of the other checkout after it."""
    if command.is_slow and number % 3 != 0:
        return
    checkouts = [(command.now, ROOT)]
    if arguments.before is not None and command.is_ours:
        checkouts.append((command.before, arguments.before.resolve()))
    for taken, checkout in checkouts:
        began = time.monotonic()
        try:
            taken.append(command.run(checkout))
        except (RuntimeError, OSError, ValueError) as error:
            print(f"{checkout} cannot run {command.name}: {error}", file=sys.stderr, flush=True)
        label = "before" if checkout != ROOT else "now"
        seconds = f"{time.monotonic() - began:.1f} s"
        print(
            f"round {number + 1}  {command.name}, {label}: {seconds}", file=sys.stderr, flush=True
        )


# --- what runs ---


def _commands(folder: Path) -> Iterator[Command]:
    by_name = {model.name: model for model in models({})}
    for name in _MODELS:
        model = by_name[name]
        rows = in_new_process(write_rows, model, folder)
        for contestant in taking_part(model):
            yield Command(
                f"{name}: {contestant.name}",
                partial(_contestant, contestant, model, rows),
                is_ours=contestant.backend is not None,
                is_slow=name == "mlp_4m",
            )
            if name == "transformer" and contestant.backend == "keras":
                compiled = replace(model, more=("trainer.compile=true",))
                run = partial(_contestant, contestant, compiled, rows)
                yield Command(f"{name}, compiled: {contestant.name}", run)
            if name == "mlp" and contestant.backend == "keras":
                run = partial(_second_run, contestant, model, rows)
                yield Command(f"{name}, second run: {contestant.name}", run)
    for backend in BACKENDS:
        yield Command(f"1 run: {backend}", partial(_twice, backend))
        for num in (16, 64):
            jobs = ["-m", *sweeps.jobs(num)]
            run = partial(_default, backend, jobs)
            yield Command(f"{num} jobs: {backend}", run, is_slow=num == 64)
        yield Command(f"between epochs: {backend}", partial(_part, ("epochs", backend)))
        yield Command(f"first line: {backend}", partial(_first_line, backend))
        for every in ("null", "4steps"):
            run = partial(_large, backend, every)
            yield Command(f"50 M, checkpoint_every={every}: {backend}", run, is_slow=True)
    yield Command("start", partial(_part, ("start",)))


def _contestant(
    contestant: Contestant,
    model: Model,
    rows: Path,
    checkout: Path,
    variables: Mapping[str, str] | None = None,
) -> Values:
    run = measure(contestant, model, rows, checkout, variables)
    return {
        "updates/s": run.steps_per_second,
        "later updates/s": run.later_steps_per_second,
        "first batch": run.first_seconds,
        "seconds": run.whole_seconds,
        "megabytes": run.peak_megabytes,
        **({"sha256": run.weights_sha256} if run.weights_sha256 else {}),
    }


def _second_run(contestant: Contestant, model: Model, rows: Path, checkout: Path) -> Values:
    """Run twice; measure the second run, which finds the programs that the first has compiled."""
    with tempfile.TemporaryDirectory() as programs:
        variables = {"TWINRUN_CACHE": programs}
        _contestant(contestant, model, rows, checkout, variables)
        return _contestant(contestant, model, rows, checkout, variables)


def _twice(backend: str, checkout: Path) -> Values:
    """Run the default run twice; the second run finds the programs that the first has compiled."""
    with tempfile.TemporaryDirectory() as programs:
        variables = {"TWINRUN_CACHE": programs}
        first = _default(backend, [], checkout, variables)
        second = _default(backend, [], checkout, variables) if backend == "keras" else {}
    return {**first, **{f"second {name}": value for name, value in second.items()}}


def _default(
    backend: str,
    overrides: Sequence[str],
    checkout: Path,
    variables: Mapping[str, str] | None = None,
) -> Values:
    with ours(backend, overrides, 1, variables, checkout) as (seconds, megabytes, root):
        values: dict[str, float | str] = {"seconds": seconds, "megabytes": megabytes}
        for path in root.glob("runs/*/result.json"):
            result = read_json(path)
            values |= {"training": result["seconds"]["train"], "sha256": result["weights_sha256"]}
    return values


def _large(backend: str, every: str, checkout: Path) -> Values:
    overrides = [*_LARGE, f"trainer.checkpoint_every={every}"]
    with ours(backend, overrides, 2, checkout=checkout) as (_, megabytes, root):
        (path,) = root.glob("runs/*/result.json")
        return {"training": read_json(path)["seconds"]["train"], "megabytes": megabytes}


def _part(arguments: Sequence[str], checkout: Path) -> Values:
    script = str(Path(__file__).with_name("parts.py"))
    variables = {**os.environ, **environment(1)}
    *_, output = execute([sys.executable, "-P", script, *arguments], variables, checkout)
    values: dict[str, float] = json.loads(output.splitlines()[-1])
    return values


def _first_line(backend: str, checkout: Path) -> Values:
    """Measure the time from the start of a run to its first output on a terminal; then end it."""
    with tempfile.TemporaryDirectory() as folder:
        here, terminal = pty.openpty()
        overrides = [f"backend={backend}", "device=cpu", f"output.root={folder}"]
        variables = of_checkout(os.environ, checkout)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", *overrides],
            cwd=checkout, env=variables, stdout=terminal, stderr=terminal, close_fds=True,
        )  # fmt: skip
        os.read(here, 1)
        seconds = time.perf_counter() - began
        process.kill()
        process.wait()
        os.close(here)
        os.close(terminal)
    return {"seconds": seconds}


# --- what is to be reached ---


def _goals() -> Iterator[Goal]:
    for backend in BACKENDS:
        yield from _of_small_model(backend)
    for backend in BACKENDS:
        yield from _of_larger_models(backend)
    for backend in BACKENDS:
        yield from _of_commands(backend)
    for part, words in (("imports", "imports"), ("composed", "composition, schema and plan")):
        yield Goal(f"start: {words}, s of CPU", ("start", part), None, 0.3)


def _of_small_model(backend: str) -> Iterator[Goal]:
    run, script, loop = (
        f"mlp: {name}" for name in (f"twinrun {backend}", _SCRIPTS[backend], _LOOPS[backend])
    )
    scan, records = "mlp: JAX scan", f"{loop} with records"
    is_keras, speed, later = backend == "keras", "updates/s", "later updates/s"
    by_script = (10.0, 20.0) if is_keras else (5.0, 7.5)
    prefix = f"mlp, {backend}"
    yield Goal(f"{prefix}: speed / script", (run, speed), (script, speed), *by_script, True)
    if is_keras:
        second = f"mlp, second run: twinrun {backend}"
        name = f"{prefix}: speed of the second run / script"
        yield Goal(name, (second, speed), (script, speed), *by_script, True)
    yield Goal(
        f"{prefix}: after the first epoch / script", (run, later), (script, later),
        *((20.0, None) if is_keras else by_script), True,
    )  # fmt: skip
    goals = (1.0, None) if is_keras else (1.0, 1.4)
    yield Goal(f"{prefix}: speed / loop", (run, speed), (loop, speed), *goals, True)
    yield Goal(f"{prefix}: after the first epoch / loop", (run, later), (loop, later), *goals, True)
    yield Goal(
        f"{prefix}: after the first epoch / loop with records", (run, later), (records, later),
        *goals, True,
    )  # fmt: skip
    if is_keras:
        name = f"{prefix}: after the first epoch / JAX scan"
        yield Goal(name, (run, later), (scan, later), 0.5, None, True)
    yield Goal(f"{prefix}: whole run / script", (run, "seconds"), (script, "seconds"), 0.8, 0.5)
    yield Goal(
        f"{prefix}: first batch / script", (run, "first batch"), (script, "first batch"), 1.0
    )
    yield Goal(f"{prefix}: memory / script", (run, "megabytes"), (script, "megabytes"), 1.0, 0.7)


def _of_larger_models(backend: str) -> Iterator[Goal]:
    for name in _MODELS[1:]:
        run, script, loop = (
            f"{name}: {each}" for each in (f"twinrun {backend}", _SCRIPTS[backend], _LOOPS[backend])
        )
        prefix, later = f"{name}, {backend}", "later updates/s"
        goals = (1.0, None) if name == "transformer" else (0.97, 1.15)
        yield Goal(
            f"{prefix}: after the first epoch / loop", (run, later), (loop, later), *goals, True
        )
        if name == "transformer" and backend == "keras":
            compiled = f"{name}, compiled: twinrun {backend}"
            for quantity, words in ((later, "after the first epoch"), ("updates/s", "speed")):
                title = f"{prefix}, trainer.compile=true: {words} / loop"
                yield Goal(title, (compiled, quantity), (loop, quantity), *goals, True)
        yield Goal(
            f"{prefix}: after the first epoch / script",
            (run, later),
            (script, later),
            1.0,
            None,
            True,
        )
        yield Goal(
            f"{prefix}: memory / script", (run, "megabytes"), (script, "megabytes"), 1.0, 0.7
        )


def _of_commands(backend: str) -> Iterator[Goal]:
    single = f"1 run: {backend}"
    if backend == "keras":
        for quantity in ("training", "seconds"):
            words = "training phase" if quantity == "training" else "whole run"
            yield Goal(
                f"second run, {backend}: {words} / first run's",
                (single, f"second {quantity}"), (single, quantity), 1.0,
            )  # fmt: skip
    for num, goals in ((16, (4.0, 2.0)), (64, (5.0, None))):
        name = f"{num} jobs, {backend}: whole command / 1 run"
        yield Goal(name, (f"{num} jobs: {backend}", "seconds"), (single, "seconds"), *goals)
    between = f"between epochs: {backend}"
    yield Goal(f"between two epochs, {backend}: ms", (between, "clock"), None, 2.0)
    yield Goal(f"between two epochs, {backend}: ms of CPU", (between, "cpu"), None, 2.0)
    yield Goal(f"first line, {backend}: s", (f"first line: {backend}", "seconds"), None, 0.5)
    large, rare = (f"50 M, checkpoint_every={every}: {backend}" for every in ("4steps", "null"))
    yield Goal(
        f"50 M parameters, {backend}: training with a checkpoint every 4 updates / with one",
        (large, "training"), (rare, "training"), 1.1,
    )  # fmt: skip
    yield Goal(f"50 M parameters, {backend}: MB", (rare, "megabytes"), None, 3072.0)


# --- the table ---


def _rows(goal: Goal, commands: Mapping[str, Command], before: bool) -> Iterator[list[str]]:
    """Yield the row of a goal."""
    ours, peer = commands[goal.ours[0]], commands[goal.peer[0]] if goal.peer else None
    now = _value(goal, ours.now, peer.now if peer else None)
    if now is None:
        return
    old_peer = None if peer is None else (peer.before if peer.is_ours else peer.now)
    old = _value(goal, ours.before, old_peer)
    verdict = "reached"
    if goal.is_missed(now, goal.goal):
        verdict = "short"
    elif goal.further is not None and not goal.is_missed(now, goal.further):
        verdict = "next reached"
    cells = [goal.name, *([_text(old)] if before else []), _text(now)]
    yield [*cells, f"{goal.goal:g}", _text(goal.further), verdict, str(len(ours.now))]


def _value(goal: Goal, ours: Sequence[Values], peer: Sequence[Values] | None) -> float | None:
    """Return a goal's figure; None if it was not measured."""
    values = [float(values[goal.ours[1]]) for values in ours if goal.ours[1] in values]
    if not values or goal.peer is None:
        return median(values) if values else None
    others = [float(values[goal.peer[1]]) for values in peer or () if goal.peer[1] in values]
    return median(values) / median(others) if others else None


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _listed(title: str, names: Sequence[str]) -> str:
    return "".join([f"\n{title}: {len(names)}", *(f"\n- {name}" for name in names)])


def _hashes(commands: Iterable[Command]) -> str:
    """Say whether the weights of each command have one hash in all runs of both checkouts."""
    equal, different = [], []
    for command in commands:
        hashes = [
            {values["sha256"] for values in runs if "sha256" in values}
            for runs in (command.now, command.before)
        ]
        if all(hashes):
            (equal if len(hashes[0] | hashes[1]) == 1 else different).append(command.name)
    said = [("same weights", equal), ("other weights", different)]
    return "\n".join(f"{words}: {'; '.join(names) or 'none'}" for words, names in said)


if __name__ == "__main__":
    sys.exit(main())
