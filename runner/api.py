"""Training from Python: train, resume, compare.

The objects of a notebook take the place of names in the config; all else is as on the command line.
"""

import io
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from runner import user_code
from runner.cli.commands import Frozen, Request, check_config_dir
from runner.cli.compose import Composer
from runner.cli.overrides import explained, parse_overrides
from runner.config.given import Given
from runner.config.schema import Config, marked
from runner.errors import ConfigError, RunError, show
from runner.report import answer, comparison
from runner.report.workloads import Rules
from runner.run.resume import Resumed
from runner.run.resume import resume as read_resumed
from runner.run.run_folder import PARENTS, read_json
from runner.run.saved import Run, as_frame
from runner.tasks.compare import new_folder, read_all
from runner.tasks.train import Call, Job
from runner.tasks.train import train as train_job
from runner.text import notebook
from runner.text.quoting import override as spelled

_one_at_a_time = threading.RLock()  # a run uses settings of the whole process


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a run, which has saved a checkpoint.

    Attributes:
        folder: the folder of the run; runner.resume(folder) continues it. None if Ctrl-C came
            before the run had one.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__("" if folder is None else f"the run is saved in {folder}")
        self.folder = folder


def train(
    overrides: str | Sequence[str] = "",
    *,
    model: Any = None,
    data: Any = None,
    schedule: Any = None,
    loss: Any = None,
    metrics: Any = None,
    trusted_modules: Sequence[str] = (),
    config_dir: str | Path | None = None,
    callbacks: Sequence[Any] = (),
    quiet: bool = False,
) -> Run:
    """Train one run, as `python -m runner` does, in this process.

    Runs of one process take turns, also those of several threads. Afterwards the process is as it
    was: signal handlers, random states, threads, Keras's session and settings.

    Args:
        overrides: as on the command line: one text, `"schedule=cosine optimizer.lr=3e-4"`, or a
            sequence of texts. `output.root` is the folder for the run's folder.
        model: a class or function that makes a torch.nn.Module (backend=lightning) or a Keras model
            (backend=keras), called without arguments under the run's seed; or an instance, which is
            copied and keeps its weights, whatever the seed.
        data: (x, y), {"x": x, "y": y}, or {"train": ..., "val": ..., "test": ...} of these: NumPy
            arrays, tensors on the CPU, pandas DataFrames; or a map-style data set. Training rows
            may also be an iterable, or a function that makes one for each pass. The key "weight"
            has the weights of the rows, in the loss and in the metrics. The keys of data=arrays
            apply, such as `data.task=regression` and `data.standardize=true`. Or a table with its
            target: a DataFrame of pandas or Polars, an Arrow table, a dict of columns, a list of
            dicts. The keys of data=table apply, such as `data.target=price`.
        schedule: a function f(t, total_steps, steps_per_epoch, lr) -> rates, with an array of steps
            t. All other keys of `schedule` are its arguments.
        loss: a function f(outputs, batch) of the framework's tensors, as with loss=custom.
        metrics: {name: f}, with functions f(outputs, targets) of NumPy arrays;
            {"accuracy": "accuracy"} is a metric of the config.
        trusted_modules: modules whose code a `_target_` of the overrides may name.
        config_dir: a folder of choices, as --config-dir.
        callbacks: additional callbacks: runner.Observer; on backend=lightning objects of
            pytorch_lightning.Callback, on backend=keras of keras.callbacks.Callback.
        quiet: print nothing; run.log in the run's folder has everything.

    Returns:
        The finished run: `.metrics`, `.trace`, `.result`, `.folder`, `.model()`, `.predict(x)`,
        `.evaluate()`.

    Raises:
        ConfigError: something is wrong with the config, the model or the data; nothing is written.
        RunError: the training failed; `.folder` is its folder.
        Interrupted: Ctrl-C (a KeyboardInterrupt); the run has saved a checkpoint.

    Example:
        >>> run = train("trainer.max_epochs=1 device=cpu", quiet=True)
        >>> run.status
        'completed'
    """
    with _one_at_a_time, _explained():
        given = Given.of(model, data, schedule, loss, metrics)
        folder = None if config_dir is None else str(config_dir)
        check_config_dir(folder)
        lines, parsed = _parsed(overrides, folder, trusted_modules, given)
        _refuse_for_train(parsed)
        lines += given.overrides({o.key_or_group: o.value() for o in parsed})
        request = Request(
            _shown_call(overrides, given),
            parse_overrides(lines, folder),
            [lines],
            False,
            Composer(folder),
        )
        frozen = request.freeze(lines)
        config = frozen.config
        if config.task != "train":
            raise ConfigError(f"task must be train in runner.train, got {config.task}")
        if config.tune is not None:
            raise ConfigError("tune starts several runs, which is for the command line with -m")
        if config.race.budget is not None:
            raise ConfigError("race.budget starts several runs: it needs the command line and -m")
        if not quiet:  # who passes an object knows what it is
            passed = given.modules()
            user_code.announce([name for name in config.trusted_modules if name not in passed])
        return _run(request, frozen, given, Path(config.output.root) / "runs", callbacks, quiet)


def resume(
    run: str | Path | Run,
    overrides: str | Sequence[str] = "",
    *,
    model: Any = None,
    data: Any = None,
    schedule: Any = None,
    loss: Any = None,
    metrics: Any = None,
    trusted_modules: Sequence[str] = (),
    callbacks: Sequence[Any] = (),
    quiet: bool = False,
) -> Run:
    """Resume a run in its folder, as `python -m runner resume=FOLDER` does.

    Args:
        run: the folder of the run, or the run.
        overrides: keys that may change, such as `"trainer.max_epochs=10"`.
        model: the object that was passed to `train`, if one was; `data`, `schedule`, `loss`
            and `metrics` too. Those that a `Run` holds need not be passed again.
        trusted_modules, callbacks, quiet: as in `train`.

    Returns:
        The run after its last update.

    Raises:
        ConfigError: the run cannot resume: its folder is damaged, the data is not what it was
            trained on, or nothing is left to train.
        RunError, Interrupted: as in `train`.
    """
    with _one_at_a_time, _explained():
        folder = run.folder if isinstance(run, Run) else Path(run)
        given = Given.of(model, data, schedule, loss, metrics)
        if isinstance(run, Run):
            given = given.completed(run.given)
        lines, parsed = _parsed(overrides, None, trusted_modules, given)
        for override in parsed:
            if override.is_delete():
                raise ConfigError(
                    f"~{override.key_or_group} cannot remove a key of a saved run; write "
                    f"{override.key_or_group}=VALUE"
                )
        resumed = read_resumed(folder, parsed, given)
        command = [str(folder), *_shown_call(overrides, given)]
        request = Request(command, parsed, [lines], False, Composer(resumed.config_dir))
        return _run(request, resumed, given, folder.parent, callbacks, quiet)


# columns of a comparison's table that a notebook's cell leaves out, as it is narrower than a page
_DETAILS = ("sd", "better on", "raw p", "p by signs", "more seeds", "seconds", "rate at its best")


@dataclass(frozen=True)
class Answer:
    """The answer of a comparison: which settings are best, and whether that is more than noise.
    `print(answer)` shows what task=compare prints."""

    metric: str
    mode: str  # min, max
    winner: str | None  # the label of the best group; None: no group can be ranked
    is_real: bool  # the winner is better than all others by more than the noise
    says: tuple[str, ...]  # the answer in words
    table: tuple[dict[str, str], ...]  # a row per ranked group, best first
    command: str | None  # trains the winner
    folder: Path  # comparison.html, comparison.md, answer.json, ...
    text: str
    others: tuple["Answer", ...] = ()  # of runs with other data, another loss or another metric
    workloads: Mapping[str, Any] | None = None  # over all of these, as in answer.json

    def __str__(self) -> str:
        return self.text

    def frame(self) -> Any:
        """Return the table as a pandas DataFrame. Needs pandas, which is imported here only."""
        return as_frame(list(self.table))

    def _repr_html_(self) -> str:
        """Show the answer, the table, the picture and the command of the winner in a notebook."""
        picture = self.folder / "comparison.png"
        return notebook.html(*self._summary, picture=picture, command=self.command)

    def _repr_markdown_(self) -> str:
        return notebook.markdown(*self._summary)

    @property
    def _summary(self) -> tuple[str, list[str], list[tuple[str, ...]]]:
        """The heading, the lines and the table of a notebook's cell, without empty columns and
        details. `table` has all."""
        heading = f"best {self.metric}: {self.winner or 'no run can be ranked'}"
        names = [name for name in (self.table[0] if self.table else ()) if self._has(name)]
        rows = [tuple(names), *(tuple(row[name] for name in names) for row in self.table)]
        return heading, [*self.says], rows if names else []

    def _has(self, column: str) -> bool:
        is_detail = column in _DETAILS or column.startswith(("steps to ", "rows to "))
        return not is_detail and any(row[column] for row in self.table)


def compare(runs: Sequence[Run | str | Path]) -> Answer:
    """Compare runs, as task=compare does: runs that differ only in the seed are a group.

    Args:
        runs: runs, or folders that are or contain runs.

    Returns:
        The answer. Its folder is below `comparisons` in the output folder of the first run.

    Raises:
        ConfigError: there is no completed run, or one is there twice.
    """
    if isinstance(runs, Run | str | Path):
        raise ConfigError(f"runs must be a sequence of runs, got one: {show(runs)}")
    folders = [str(run.folder if isinstance(run, Run) else run) for run in runs]
    if not folders:
        raise ConfigError("runs must have at least one run, got none")
    with _one_at_a_time, _explained():
        jobs = read_all(folders)
        folder = new_folder(_root(jobs[0].folder))
        text = io.StringIO()
        verdicts = answer.answers(jobs)
        rules = Rules(relax=Composer().values([])["answer"]["relax"])
        comparison.compare(
            folder,
            jobs,
            len(jobs),
            verdicts,
            lambda line: print(line, file=text),
            comparison.Wanted(rules=rules),
        )
        first, *others = (_answer(verdict, folder, text.getvalue()) for verdict in verdicts)
        over = read_json(folder / "answer.json")["workloads"]
        return Answer(**{**vars(first), "others": tuple(others), "workloads": over})


def _answer(verdict: answer.Answer, folder: Path, text: str) -> Answer:
    header, *rows = comparison.table_of(verdict) if verdict.ranked else [()]
    best = verdict.best.group if verdict.ranked else None
    return Answer(
        metric=verdict.metric,
        mode=verdict.mode,
        winner=best.label if best else None,
        is_real=verdict.is_real,
        says=tuple(verdict.sentences()),
        table=tuple(dict(zip(header, row, strict=True)) for row in rows),
        command=answer.command(best) if best else None,
        folder=folder,
        text=text.strip("\n"),
    )


def _root(folder: Path) -> Path:
    """Return the output folder that a run is in, else the run's parent."""
    roots = (path.parent for path in folder.parents if path.name in PARENTS)
    return next(roots, folder.parent)


def _run(
    request: Request,
    source: Frozen | Resumed,
    given: Given,
    parent: Path,
    callbacks: Sequence[Any],
    quiet: bool,
) -> Run:
    """Train the run. Return it, or raise how it ended."""
    folders: list[Path] = []
    configs: list[Config] = []

    def on_folder(path: Path, config: Config) -> None:
        folders.append(path)
        configs.append(config)

    with _shown(quiet) as stream:
        call = Call(given, stream, callbacks, on_folder)
        lines = request.lines if isinstance(source, Frozen) else source.overrides
        config_dir = request.composer.config_dir
        job = request.job(source, lines, parent, None, monotonic(), config_dir)
        job = Job(**{**vars(job), "config": given.bind(job.config), "call": call})
        try:
            train_job(job)
        except KeyboardInterrupt:
            raise Interrupted(folders[0] if folders else None) from None
        except SystemExit:  # Lightning's way to end on a second Ctrl-C
            raise Interrupted(folders[0] if folders else None) from None
        except RunError as error:
            raise RunError(error, folders[0] if folders else None) from None
    if not folders:  # the handler of a signal did not end the process
        raise RunError("a signal ended the run before the training began")
    finished = Run(folders[0], configs[0], given=given)
    if finished.status == "failed":
        reason = finished.result.get("error", "its last files could not be written")
        raise RunError(f"{reason}; the traceback is in {finished.folder / 'run.log'}", folders[0])
    return finished


@contextmanager
def _shown(quiet: bool) -> Iterator[TextIO]:
    """Return the stream for the user's lines."""
    if not quiet:
        yield sys.stdout
        return
    with open(os.devnull, "w", encoding="utf-8") as stream:
        yield stream


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of Hydra and of files into this program's."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        raise explained(error) from None
    except OSError as error:
        raise RunError(f"{error.filename or 'a file'}: {error.strerror}") from error


def _parsed(
    overrides: str | Sequence[str],
    config_dir: str | None,
    trusted_modules: Sequence[str],
    given: Given,
) -> tuple[list[str], list[Override]]:
    """Split the overrides, and add the trusted modules of all sources."""
    lines = _split(overrides)
    for line in lines:
        if line.startswith("-"):
            raise ConfigError(
                f"overrides must be KEY=VALUE, got {show(line)}; for several runs, call train in a "
                f"loop: [train(f'seed={{k}}') for k in range(5)]"
            )
    parsed = parse_overrides(lines, config_dir)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{show(override.input_line)} has several values, and train makes one run; call it "
                f"in a loop, or write a list as [a,b]"
            )
    own = _value(parsed, "trusted_modules", [])
    modules = list(dict.fromkeys([*own, *trusted_modules, *given.modules()]))
    if modules:
        lines = [
            line
            for line, o in zip(lines, parsed, strict=True)
            if o.key_or_group != "trusted_modules"
        ]
        lines.append(spelled("trusted_modules", modules))
        parsed = parse_overrides(lines, config_dir)
    return lines, list(parsed)


def _split(overrides: str | Sequence[str]) -> list[str]:
    if not isinstance(overrides, str):
        return [str(line) for line in overrides]
    try:
        return shlex.split(overrides)
    except ValueError as error:
        raise ConfigError(f"overrides {show(overrides)}: {error}") from None


def _refuse_for_train(parsed: Sequence[Override]) -> None:
    """Refuse keys of other commands."""
    functions = {"resume": "runner.resume(FOLDER)", "run": "runner.load_run(FOLDER)"}
    functions["runs"] = "runner.compare(runs)"
    for override in parsed:
        key = override.key_or_group
        if key in functions:
            raise ConfigError(f"{key} is not a key of train; call {functions[key]}")
        if key in ("search", "output.multirun") or key in marked("needs_run"):
            raise ConfigError(f"{key} is for the command line; train makes one new run")


def _value(parsed: Sequence[Override], key: str, default: Any) -> Any:
    return next((o.value() for o in parsed if o.key_or_group == key), default)


def _shown_call(overrides: str | Sequence[str], given: Given) -> list[str]:
    """Return the arguments of the call, for environment.json."""
    objects = [f"{group}={name}" for group, name in given.names().items()]
    return [*_split(overrides), *objects]
