"""The commands: what triggers each of them and what it does.

A command line becomes a `Request`. Each of its runs is composed once, checked and frozen; that
object is what trains, is hashed, saved and handed to a launcher.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from os.path import isdir  # False for a name that no file system takes
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner import user_code
from runner.cli import hydra_bridge, multirun, process, sweep
from runner.cli.compose import Composer, compose
from runner.cli.overrides import SEARCHES, job_names, jobs, parse_overrides, without_hydra
from runner.cli.startup import process_start
from runner.config.conf_folder import defaults
from runner.config.schema import Config, marked, parse, sha256
from runner.errors import ConfigError, RunError, few_lines, nearest, show
from runner.machine import threads
from runner.run import checkpoint, run_folder, signals
from runner.run.saved import Run, config_of, refuse_links, set_keys

if TYPE_CHECKING:
    from runner.run.resume import Resumed
    from runner.tasks.train import Job

_NEEDED = {
    "schedule.on_extend": "a run that is made longer: it needs resume=FOLDER",
    **dict.fromkeys(marked("needs_run"), "a finished run: it needs run=FOLDER"),
}


@dataclass(frozen=True)
class Frozen:
    """A run's config: composed, resolved, checked."""

    values: dict[str, Any]  # as config.yaml keeps it

    @cached_property
    def config(self) -> Config:
        return parse(self.values)

    @cached_property
    def sha256(self) -> str:
        return sha256(self.values)

    def __getstate__(self) -> dict[str, Any]:
        return {"values": self.values}


@dataclass(frozen=True)
class Request:
    """A command line, read."""

    arguments: Sequence[str]  # all that follows `python -m runner`
    overrides: Sequence[Override]
    jobs: Sequence[Sequence[str]]  # the overrides of the run, or of each job of a multirun
    is_multirun: bool
    composer: Composer

    @property
    def keys(self) -> set[str]:
        return {override.key_or_group for override in self.overrides}

    @property
    def lines(self) -> list[str]:
        """The overrides as Hydra reads them, but for those of its own part."""
        return [o.input_line or "" for o in self.overrides if not o.is_hydra_override()]

    @property
    def is_search(self) -> bool:
        return bool(self.keys & set(SEARCHES))

    def check_twice(self, identities: Sequence[Any]) -> None:
        """Refuse jobs that are alike; a search may try a value twice."""
        if not self.is_search:
            swept = [o.key_or_group for o in self.overrides if o.is_sweep_override()]
            sweep.check_twice(self.jobs, identities, swept)

    def freeze(self, overrides: Sequence[str]) -> Frozen:
        """Compose and check one run's config."""
        values = self.composer.values(overrides)
        of_files = marked("command_line_only") if self.composer.config_dir else ()
        for key in of_files:
            if key not in self.keys and values.get(key) != defaults("", "config")[key]:
                raise ConfigError(
                    f"{key} is taken from the command line only, not from a file, got "
                    f"{show(values[key])}"
                )
        frozen = Frozen(values)
        _ = frozen.config  # refused here, if it is
        return frozen

    @cached_property
    def frozen(self) -> list[Frozen]:
        """All runs' configs. Code that they trust is announced before it can be imported."""
        found = [self.freeze(overrides) for overrides in self.jobs]
        self.check_twice([(each.config.task, each.sha256) for each in found])
        user_code.announce(list(dict.fromkeys(n for f in found for n in f.config.trusted_modules)))
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Drop the configs of all jobs from what another process gets."""
        return {key: value for key, value in vars(self).items() if key != "frozen"}

    def job(
        self,
        of: "Frozen | Resumed",
        overrides: list[str],
        parent: Path,
        name: str | None,
        started: float,
        config_dir: str | None = None,
    ) -> "Job":
        """One run that this command line asks for: a new one, or one that goes on."""
        from runner.tasks.train import Job

        resumed = None if isinstance(of, Frozen) else of
        return Job(
            of.config,
            of.values,
            self.arguments,
            overrides,
            parent,
            name,
            started,
            resumed,
            config_dir,
        )

    def replaced(self, lines: Sequence[str]) -> "Request":
        """Return the same command with other overrides."""
        config_dir = self.composer.config_dir
        parsed = parse_overrides(lines, config_dir)
        return replace(self, overrides=parsed, jobs=jobs(lines, self.is_multirun, config_dir))


def execute(argv: Sequence[str]) -> int:
    """Do what a command line asks for; its exit status."""
    options = hydra_bridge.argument_parser().parse_intermixed_args([*argv])
    if options.version:
        print(", ".join(f"{name} {found}" for name, found in run_folder.packages().items()))
        return 0
    _check_options(options)
    config_dir, composer = options.config_dir, Composer(options.config_dir)
    overrides = parse_overrides(options.overrides, config_dir)
    if options.multirun:
        sweep.check_size(overrides)
    each = jobs(options.overrides, options.multirun, config_dir)
    if _only_shows(options):
        _check_shown(options, composer.whole(each[0]))
        return _show(options, config_dir)
    request = Request(argv, overrides, each, options.multirun, composer)
    request.check_twice([tuple(job) for job in each])
    return _find(request)(request)


def _check_options(options: Namespace) -> None:
    if options.config_name or options.config_path:
        raise ConfigError(
            "--config-name and --config-path are not taken; --config-dir adds a folder of choices"
        )
    if options.experimental_rerun:  # a pickle
        raise ConfigError("--experimental-rerun is not taken; resume=FOLDER goes on with a run")
    if options.config_dir is not None and not isdir(options.config_dir):
        raise ConfigError(f"--config-dir must be a folder, got {show(options.config_dir)}")

    if options.config_dir:
        for name in ("config.yaml", "hydra/config.yaml"):
            file = Path(options.config_dir, name)
            if file.exists():
                raise ConfigError(
                    f"--config-dir adds choices, GROUP/CHOICE.yaml, and takes no {name}: {file}; "
                    f"as experiment/NAME.yaml it is chosen with experiment=NAME"
                )


def _check_shown(options: Namespace, whole: DictConfig) -> None:
    """Refuse what Hydra's own options would end on with a status or a traceback of Hydra's."""
    package = options.package
    if options.cfg and package and OmegaConf.select(whole, package.removesuffix(".")) is None:
        names = [str(key) for key in whole]
        raise ConfigError(
            f"--package must name a group of the config, got {show(package)}"
            f"{nearest(package, names)}"
        )
    is_query = any(override.startswith("query=") for override in options.overrides)
    if options.shell_completion and is_query and "COMP_LINE" not in os.environ:
        raise ConfigError("--shell-completion query=SHELL needs COMP_LINE, which a shell sets")


def _only_shows(options: Namespace) -> bool:
    names = ("help", "schema", "hydra_help", "cfg", "info", "shell_completion")
    return any(getattr(options, name) for name in names)


def _show(options: Namespace, config_dir: str | None) -> int:
    """The command of an option that only shows something."""
    if not options.help and not options.schema:
        return hydra_bridge.show(options, config_dir)
    from runner.cli.help import help_text, schema_text

    print(help_text(config_dir) if options.help else schema_text())
    return 0


def _find(request: Request) -> Callable[[Request], int]:
    """The command: that of a key which names a folder, else that of the task."""
    for key, command in _BY_KEY.items():
        if key in request.keys:
            return command
    for key, needed in _NEEDED.items():
        if key in request.keys:
            raise ConfigError(f"{key} is for {needed}")
    tasks = {frozen.config.task for frozen in request.frozen}
    alone = tasks & {"preview", "find_lr"}
    if alone and tasks != alone:
        raise ConfigError(f"task must be the same for all jobs where one is {min(alone)}")
    for task in sorted(tasks - set(_BY_TASK)):
        folder = "run=FOLDER, the folder of a finished run"
        folders = "runs=[FOLDER,...], the folders of finished runs"
        raise ConfigError(f"task={task} needs {folders if task == 'compare' else folder}")
    return _BY_TASK[min(tasks)]


def _preview(request: Request) -> int:
    """The curves of all jobs, before any training."""
    from runner.tasks.preview import preview

    configs = [frozen.config for frozen in request.frozen]
    return preview(configs, request.jobs if request.is_multirun else None)


def _find_lr(request: Request) -> int:
    """An LR range test for each job, one after another; the worst status."""
    from runner.tasks.find_lr import check, find_lr

    names = job_names(request.jobs) if request.is_multirun else [""]
    for frozen in request.frozen if request.is_multirun else ():
        check(frozen.values)  # all, before the first is trained
    statuses = []
    for i, (name, frozen) in enumerate(zip(names, request.frozen, strict=True)):
        if request.is_multirun:
            print(f"job {i}: {name}", flush=True)
        statuses.append(find_lr(frozen.values))
    return max(statuses)


def _train(request: Request) -> int:
    """One run in a new folder, or all jobs of a multirun."""
    from runner.tasks.train import train

    if request.is_multirun:
        return _multirun(request)
    if request.is_search:
        raise ConfigError("search makes several runs, which needs -m (--multirun)")
    (frozen,) = request.frozen
    if frozen.config.tune is not None:
        raise ConfigError("tune=lr makes several runs, which needs -m (--multirun)")
    if frozen.config.output.multirun is not None:
        raise ConfigError(
            "output.multirun is a folder of several runs, which needs -m (--multirun)"
        )
    return train(
        request.job(
            frozen,
            request.lines,
            Path(frozen.config.output.root) / "runs",
            None,
            process_start(),
            request.composer.config_dir,
        )
    )


def _multirun(request: Request) -> int:
    """All jobs in a folder of their own, whatever launches them; then what came of them."""
    from runner.report import comparison

    first = request.frozen[0].config
    if first.tune is not None:
        configs = [frozen.config for frozen in request.frozen]
        request = request.replaced(multirun.tuned(request.overrides, first.tune, configs))
    hydra = request.composer.hydra_part(request.jobs[0])
    params = {} if hydra.sweeper.params is None else dict(hydra.sweeper.params)
    if params and not request.is_search:  # Hydra's basic sweeper: as if on the command line
        more = [f"{key}={value}" for key, value in params.items() if key not in request.keys]
        said = [override.input_line or "" for override in request.overrides]
        request, hydra.sweeper.params = request.replaced([*more, *said]), None
    folder = multirun.folder(first)
    threads.keep_limits()
    task = _JobTask(request, folder, process_start(), frozenset(params))
    num_jobs = int(hydra.sweeper.n_trials) if request.is_search else len(request.jobs)
    multirun.limit_workers(hydra.launcher, num_jobs)
    ended, failed = None, None
    with multirun.launching(folder, str(hydra.launcher["_target_"])) as launched:
        try:
            hydra_bridge.launch(hydra, folder, request.lines, task)
            ended = launched.ended if launched else None
        except SystemExit as end:  # a signal: what is done is done
            ended = int(end.code or 0) - 128
        except (ConfigError, RunError, OSError, HydraException, OmegaConfBaseException):
            raise
        except Exception as error:  # the launcher's or the sweeper's
            failed = RunError(multirun.why_ended(error))
    if ended is None and failed is None:
        return comparison.write(folder, num_jobs)
    with suppress(RunError):
        comparison.write(folder, num_jobs)
    print(f"go on    {multirun.again(request.arguments, folder)}")
    if failed is not None:
        raise failed
    return 128 + (ended or 0)


@dataclass
class _JobTask:
    """Trains one job of a multirun; a launcher calls it, in this process or in another."""

    request: Request
    folder: Path
    started: float | None  # of the process, for its first job
    searched: frozenset[str]  # keys that a search chooses
    _known: dict[tuple[str, ...], tuple[str, Frozen]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.request.is_search:
            frozen = self.request.frozen
            each = [tuple(without_hydra(overrides)) for overrides in self.request.jobs]
            self._known = dict(zip(each, zip(job_names(each), frozen, strict=True), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Drop the start of this process from what another process gets; its first job starts when
        it does."""
        return {**vars(self), "started": None}

    def __call__(self, overrides: list[str], number: int) -> float | None:
        """Train a job, or go on with it; its failure is written down and the others go on."""
        process.tune()  # a launcher may have started this process
        name, frozen = self._job(overrides)
        started, self.started = self.started, None
        with signals.job() as ended:
            if not ended:
                status = self._train(name, frozen, overrides, number, started or monotonic())
                if status > 128:
                    signals.end_multirun(status - 128)
        if not self.request.is_search:
            return None
        return multirun.objective(self.folder, name, frozen.sha256, frozen.config)

    def _job(self, overrides: Sequence[str]) -> tuple[str, Frozen]:
        """A job's name and config, composed here if a search has just chosen its values."""
        known = self._known.get(tuple(overrides))
        if known is not None:
            return known
        searched = [o for o in self.request.overrides if o.is_sweep_override()]
        keys = self.searched | {override.key_or_group for override in searched}
        return job_names([overrides], keys)[0], self.request.freeze(overrides)

    def _train(
        self, name: str, frozen: Frozen, overrides: list[str], number: int, started: float
    ) -> int:
        job = self.request.job(
            frozen, overrides, self.folder, name, started, self.request.composer.config_dir
        )
        try:  # the folder may be of output.multirun, or of a job that a scheduler has queued again
            with multirun.claimed(self.folder, name, frozen.values) as claim:
                done = " was completed before" if claim.is_completed else ""
                print(f"job {number}: {name}{done}", flush=True)
                return 0 if done else _train_claimed(job, claim)
        except run_folder.InUseError as error:
            print(f"job {number}: {name} is left to {error.holder}", flush=True)
            return 0
        except (ConfigError, RunError, OSError) as error:  # the folder cannot be made or written to
            print(few_lines(f"error: {error}"), file=sys.stderr)
            return 1


def _train_claimed(job: Any, claim: multirun.Claim) -> int:
    """A multirun's job, from the beginning or from its checkpoint."""
    from runner.run.resume import resume
    from runner.tasks.train import refuse, train

    job = replace(job, path=claim.path)
    try:
        if claim.has_checkpoint:
            job = replace(job, resumed=resume(claim.path, []))
        else:
            refuse_links(claim.path, "output.multirun")
            run_folder.restart(claim.path)
        return train(job)
    except (ConfigError, RunError, OSError) as error:
        with suppress(RunError, OSError):  # a full disk does not take that either
            refuse(job, error)
        print(few_lines(f"error: {error}"), file=sys.stderr)
        return 1


def _resume(request: Request) -> int:
    """A run goes on in its folder, with the config that it saved."""
    from runner.tasks.train import train

    if request.is_multirun:
        return _branches(request)
    resumed = _resumed(request.lines)
    path = resumed.folder
    return train(
        request.job(
            resumed, resumed.overrides, path.parent, path.name, process_start(), resumed.config_dir
        )
    )


def _resumed(overrides: Sequence[str]) -> Any:
    """Read the checkpoint that a run resumes from; nothing is written yet."""
    from runner.run.resume import resume

    said = _without_deletions(overrides)
    folder = next(override.value() for override in said if override.key_or_group == "resume")
    if not isinstance(folder, str) or not folder:
        raise ConfigError(f"resume must be the folder of a run, got {show(folder)}")
    resumed = resume(Path(folder), said)
    user_code.announce(resumed.values["trusted_modules"])
    return resumed


def _without_deletions(overrides: Sequence[str]) -> list[Override]:
    """The overrides of a saved config, which keeps all of its keys."""
    said = parse_overrides(overrides)
    for override in said:
        if override.is_delete():
            raise ConfigError(
                f"~{override.key_or_group} cannot be removed from the config of a run; write "
                f"{override.key_or_group}=VALUE"
            )
    return said


def _branches(request: Request) -> int:
    """Several runs from one checkpoint, each in a folder of its own, and the comparison."""
    from runner.report import comparison
    from runner.run.resume import branch
    from runner.tasks.train import check_resumed, train

    each = request.jobs
    made = [_resumed(overrides) for overrides in each]
    for resumed in made:
        check_resumed(resumed)
    root = Path(made[0].config.output.root)
    folder = run_folder.create(root / "multiruns", run_folder.timestamp())
    status = 0
    for i, (name, resumed) in enumerate(zip(job_names(each), made, strict=True)):
        print(f"job {i}: {name}", flush=True)
        started = monotonic() if i else process_start()
        here = branch(resumed, run_folder.create(folder, name))
        job = request.job(here, list(each[i]), folder, name, started)
        status = train(job)
        if status > 128:
            return status
    return comparison.write(folder, len(each))


def _compare(request: Request) -> int:
    """Runs that exist, beside each other."""
    from runner.tasks.compare import compare

    other = next((k for k in request.keys if k not in ("task", "runs", "output.root")), None)
    if other is not None or request.is_multirun:
        raise ConfigError(
            f"task=compare takes runs and output.root alone, got "
            f"{'-m' if other is None else show(other)}"
        )
    config = parse(compose(request.jobs[0]))
    if config.task != "compare" or not config.runs:
        raise ConfigError(
            f"runs=[FOLDER,...] goes with task=compare and holds at least one folder, got "
            f"task={config.task}"
        )
    return compare(config.runs, Path(config.output.root))


def _on_runs(request: Request) -> int:
    """The tasks that take a finished run's folder, for each job; the worst status. All are checked
    before the first is done."""
    checked = [_on_a_run(job) for job in request.jobs]
    return max(do() for do in checked)


def _on_a_run(overrides: Sequence[str]) -> Callable[[], int]:
    """Return a task on a finished run, with the config that it saved."""
    said = _without_deletions(overrides)
    keys = {override.key_or_group: override.value() for override in said}
    if not isinstance(keys["run"], str) or not keys["run"]:
        raise ConfigError(f"run must be the folder of a run, got {show(keys['run'])}")
    folder = Path(keys["run"])
    changes = [override for override in said if override.key_or_group != "data.path"]
    values = set_keys(config_of(folder), changes, marked("on_run"))
    config = parse({**values, "resume": None})
    task = _TASKS_ON_A_RUN.get(config.task)
    if task is None:
        allowed = ", ".join(_TASKS_ON_A_RUN)
        raise ConfigError(f"run=FOLDER goes with task={allowed}, got task={config.task}")
    source = keys.get("data.path")
    if (source is None) == (config.task == "predict"):
        raise ConfigError("task=predict needs data.path=FILE, and no other task takes it")
    user_code.announce(config.trusted_modules)
    refuse_links(folder, "run")
    checkpoint.find(folder, config.checkpoint)
    return partial(task, Run(folder, config, config.checkpoint, owns_process=True), source)


def _evaluate(run: Run, _: Any) -> int:
    from runner.tasks.evaluate import evaluate

    return evaluate(run)


def _predict(run: Run, source: Any) -> int:
    from runner.tasks.predict import predict

    return predict(run, str(source))


def _export(run: Run, _: Any) -> int:
    from runner.tasks.export import export

    return export(run, run.config.format)


def _verify(run: Run, _: Any) -> int:
    from runner.tasks.verify import verify

    return verify(run, run.config.steps)


_BY_KEY: Mapping[str, Callable[[Request], int]] = {
    "run": _on_runs,
    "runs": _compare,
    "resume": _resume,
}
_BY_TASK: Mapping[str, Callable[[Request], int]] = {
    "train": _train,
    "preview": _preview,
    "find_lr": _find_lr,
}
_TASKS_ON_A_RUN: Mapping[str, Callable[[Run, Any], int]] = {
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "verify": _verify,
}
