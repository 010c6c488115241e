"""The table of commands: the key or task that selects each command, and its function.

A command line becomes a `Request`. Each of its runs is composed once, checked and frozen. The
frozen object is trained, hashed, saved and passed to a launcher.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import import_module
from os.path import isdir  # False for a name that no file system accepts
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner import dispatcher, user_code
from runner.cli import hydra_bridge, multirun, process, sweep
from runner.cli.compose import Composer
from runner.cli.overrides import (
    is_search,
    job_names,
    jobs,
    parse_overrides,
    plain_text,
    without_hydra,
    without_seed,
)
from runner.cli.pool import Pool
from runner.cli.startup import process_start
from runner.components import averages
from runner.config.conf_folder import bases, defaults, groups
from runner.config.schema import Config, marked, parse, sha256
from runner.config.stand_in import with_stand_in
from runner.config.trust import MOST_JOBS
from runner.errors import ConfigError, RunError, few_lines, memory_errors, nearest, show
from runner.machine import threads
from runner.run import checkpoint, run_folder, signals
from runner.run.observer import Limit
from runner.run.saved import Run, config_of, refuse_links, set_keys
from runner.text.console import quiet

if TYPE_CHECKING:
    from runner.cli.earlier import Earlier
    from runner.cli.racing import Racing
    from runner.cli.trunks import Branch, Trunks
    from runner.cli.tuning import Tuning
    from runner.plan import Plan
    from runner.report.jobs import Job as Ran
    from runner.report.raced import Course
    from runner.run.resume import Resumed
    from runner.tasks.train import Job

_NEEDED = {
    "schedule.on_extend": "resume=FOLDER, the folder of a run to extend",
    **dict.fromkeys(marked("needs_run"), "run=FOLDER, the folder of a finished run"),
}


@dataclass(frozen=True)
class Frozen:
    """A run's config after it was composed, resolved and checked."""

    values: dict[str, Any]  # the content of config.yaml
    finds_lr: bool = False  # optimizer.lr=auto: `values` has a number that stands in for it

    @cached_property
    def config(self) -> Config:
        return parse(self.values)

    @cached_property
    def sha256(self) -> str:
        return sha256(self.values)

    def __getstate__(self) -> dict[str, Any]:
        return {"values": self.values, "finds_lr": self.finds_lr}


@dataclass(frozen=True)
class Request:
    """A parsed command line."""

    arguments: Sequence[str]  # everything after `python -m runner`
    overrides: Sequence[Override]
    jobs: Sequence[Sequence[str]]  # the overrides of the single run, or of each multirun job
    is_multirun: bool
    composer: Composer
    as_json: bool = False  # print JSON
    # of the schedules of a race; copies of the request share them
    plans: "list[Plan]" = field(default_factory=list, compare=False, repr=False)

    @property
    def keys(self) -> set[str]:
        return {override.key_or_group for override in self.overrides}

    @property
    def lines(self) -> list[str]:
        """The overrides in Hydra's syntax, without those of the hydra group."""
        return [o.input_line or "" for o in self.overrides if not o.is_hydra_override()]

    @property
    def is_search(self) -> bool:
        return is_search(self.overrides)

    def check_twice(self, identities: Sequence[Any]) -> None:
        """Refuse identical jobs; a search may try a value twice."""
        if not self.is_search:
            swept = [o.key_or_group for o in self.overrides if o.is_sweep_override()]
            sweep.check_twice(self.jobs, identities, swept)

    def freeze(self, overrides: Sequence[str]) -> Frozen:
        """Compose and check one run's config."""
        values = self.composer.values(overrides)
        restricted = marked("command_line_only") if self.composer.config_dir else ()
        for key in restricted:
            if key not in self.keys and values.get(key) != defaults("", "config")[key]:
                raise ConfigError(
                    f"{key} can only be set on the command line, not in a file, got "
                    f"{show(values[key])}"
                )
        frozen = Frozen(*with_stand_in(values))
        _ = frozen.config  # validates: raises ConfigError
        return frozen

    @cached_property
    def frozen(self) -> list[Frozen]:
        """The configs of all runs. Prints the modules that they trust before any is imported."""
        configs = [self.freeze(overrides) for overrides in self.jobs]
        self.check_twice([(each.config.task, each.sha256) for each in configs])
        modules = [name for each in configs for name in each.config.trusted_modules]
        user_code.announce(list(dict.fromkeys(modules)))
        return configs

    def accepts(self, overrides: Sequence[str]) -> bool:
        """Return whether a run can have these overrides."""
        try:
            self.freeze(overrides)
        except ConfigError:
            return False
        return True

    @cached_property
    def trunks(self) -> "Trunks":
        """The plans of a race's schedules, and the updates that they have in common."""
        from runner.cli import trunks

        return trunks.find(_of_one_seed(self), self.plans)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the configs and the plans of all jobs."""
        kept = {key: v for key, v in vars(self).items() if key not in ("frozen", "trunks")}
        return {**kept, "plans": []}

    def job(
        self,
        source: "Frozen | Resumed",
        overrides: list[str],
        parent: Path,
        name: str | None,
        started: float,
        config_dir: str | None = None,
    ) -> "Job":
        """Make the job of one run: a new run, or one that resumes."""
        from runner.tasks.train import Job

        resumed = None if isinstance(source, Frozen) else source
        return Job(
            source.config,
            source.values,
            self.arguments,
            overrides,
            parent,
            name,
            started,
            resumed,
            config_dir,
            finds_lr=isinstance(source, Frozen) and source.finds_lr,
        )

    def replaced(self, lines: Sequence[str]) -> "Request":
        """Return the same command with other overrides."""
        config_dir = self.composer.config_dir
        parsed = parse_overrides(lines, config_dir)
        return replace(self, overrides=parsed, jobs=jobs(lines, self.is_multirun, config_dir))


def execute(argv: Sequence[str]) -> int:
    """Run a command line and return its exit status."""
    options = hydra_bridge.argument_parser().parse_intermixed_args([*argv])
    if options.version:
        print(", ".join(f"{name} {version}" for name, version in run_folder.packages().items()))
        return 0
    _check_options(options)
    config_dir, composer = options.config_dir, Composer(options.config_dir)
    overrides = parse_overrides(options.overrides, config_dir)
    if options.multirun:
        sweep.check_size(overrides, is_search(overrides))
    expanded = jobs(options.overrides, options.multirun, config_dir)
    request = Request(argv, overrides, expanded, options.multirun, composer, options.json)
    if _only_shows(options):
        whole = composer.whole(expanded[0])
        _check_shown(options, whole, request)
        return _show(options, config_dir, whole)
    request.check_twice([tuple(job) for job in expanded])
    command = _select(request)
    if request.as_json and request.frozen[0].config.task != "list":
        raise ConfigError(f"--json needs task=list, got task={request.frozen[0].config.task}")
    process.collect_again()
    return command(request)


def _check_options(options: Namespace) -> None:
    if options.config_name or options.config_path:
        raise ConfigError(
            "--config-name and --config-path are not supported; use --config-dir to add a folder "
            "of choices"
        )
    if not options.cfg and (options.package or options.resolve):
        raise ConfigError(
            f"--{'package' if options.package else 'resolve'} needs --cfg, which shows the config"
        )
    if options.experimental_rerun:  # would load a pickle
        raise ConfigError("--experimental-rerun is not supported; use resume=FOLDER")
    check_config_dir(options.config_dir)


def check_config_dir(config_dir: str | None) -> None:
    """Refuse what is no folder, and files in it that would have no effect, or would change other
    choices than the chosen one."""
    if config_dir is None:
        return
    if not isdir(config_dir):
        raise ConfigError(f"--config-dir must be a folder, got {show(config_dir)}")
    for name in ("config.yaml", "hydra/config.yaml"):
        file = Path(config_dir, name)
        if file.exists():
            raise ConfigError(
                f"--config-dir must not contain {name}, got {file}; move it to "
                f"experiment/NAME.yaml and select it with experiment=NAME"
            )
    for group in groups():
        for base in bases(group):
            file = Path(config_dir, group, f"{base}.yaml")
            if file.exists():
                raise ConfigError(
                    f"--config-dir must not contain {group}/{base}.yaml, got {file}; rename it: "
                    f"choices of conf/ use a file of that name"
                )


def _check_shown(options: Namespace, whole: DictConfig, request: Request) -> None:
    """Refuse a config that no run accepts, and options on which Hydra would exit by itself or print
    a traceback."""
    package, num_jobs = options.package, len(request.jobs)
    if options.cfg or options.info:
        option = "--cfg" if options.cfg else "--info"
        if num_jobs > 1:
            raise ConfigError(f"{option} shows one job, got {num_jobs}; give each key one value")
        if key := next((key for key in ("resume", "run") if key in request.keys), None):
            raise ConfigError(
                f"{option} shows the config of a new run; config.yaml in the folder of {key}= is "
                f"that of a saved one"
            )
        missing = {key for key in OmegaConf.missing_keys(whole) if not key.startswith("hydra.")}
        if not missing:  # they are what the user wants to see
            request.freeze(request.jobs[0])
    if options.cfg and package and package != "_global_":
        parts = {"job": {str(key) for key in whole} - {"hydra"}, "hydra": {"hydra"}}
        names = sorted(parts.get(options.cfg, map(str, whole)))
        known = OmegaConf.select(whole, package.removesuffix("."))
        if known is None or package.partition(".")[0] not in names:
            raise ConfigError(
                f"--package must name a group of --cfg {options.cfg}, got {show(package)}"
                f"{nearest(package, names)}"
            )
    if options.shell_completion:
        _check_completion(options.overrides)


def _check_completion(overrides: Sequence[str]) -> None:
    """Refuse all but one of `install=SHELL`, `uninstall=SHELL` and `query=SHELL`."""
    actions, shells = ("install", "uninstall", "query"), hydra_bridge.shells()
    action, _, shell = overrides[0].partition("=") if len(overrides) == 1 else ("", "", "")
    if action not in actions:
        choices = ", ".join(f"{name}=SHELL" for name in actions)
        got = show(" ".join(overrides)) if overrides else "nothing"
        raise ConfigError(f"--shell-completion takes one of {choices} and nothing else, got {got}")
    if shell not in shells:
        raise ConfigError(
            f"--shell-completion {action} must be one of {', '.join(shells)}, got {show(shell)}"
            f"{nearest(shell, shells)}"
        )
    if action == "query" and "COMP_LINE" not in os.environ:
        raise ConfigError(
            f"--shell-completion query={shell} needs the environment variable COMP_LINE, "
            f"which the shell sets; install={shell} prints the script that does so"
        )


def _only_shows(options: Namespace) -> bool:
    names = ("help", "schema", "hydra_help", "cfg", "info", "shell_completion")
    return any(getattr(options, name) for name in names)


def _show(options: Namespace, config_dir: str | None, whole: DictConfig) -> int:
    """Run an option that only prints something."""
    if not options.help and not options.schema:
        return hydra_bridge.show(options, config_dir, whole)
    from runner.cli.help import help_text, schema_text

    print(help_text(config_dir) if options.help else schema_text())
    return 0


def _select(request: Request) -> Callable[[Request], int]:
    """Select the command: by a key that names a folder (run, runs, resume), else by the task."""
    for key, command in _BY_KEY.items():
        if key in request.keys:
            return command
    for key, needed in _NEEDED.items():
        if key in request.keys:
            raise ConfigError(f"{key} needs {needed}")
    tasks = {frozen.config.task for frozen in request.frozen}
    if any(frozen.finds_lr for frozen in request.frozen):
        _check_finds_lr(request, tasks)
    if tasks & set(_TASKS_ON_FOLDERS):
        return _on_folders
    for key in sorted(request.keys & _ON_FOLDERS):
        raise ConfigError(f"{key} needs task={_users(key)}, got task={min(tasks)}")
    raced = any(frozen.config.race.budget is not None for frozen in request.frozen)
    if raced and tasks != {"train"}:
        raise ConfigError(f"race.budget needs task=train, got task={min(tasks - {'train'})}")
    if request.is_search and tasks != {"train"}:
        raise ConfigError(f"a search needs task=train, got task={max(tasks - {'train'})}")
    exclusive = tasks & {"preview", "describe", "find_lr", "twin"}
    if exclusive and tasks != exclusive:
        raise ConfigError(f"task={min(exclusive)} cannot be mixed with other tasks in one multirun")
    for task in sorted(tasks - set(_BY_TASK)):
        raise ConfigError(f"task={task} needs run=FOLDER, the folder of a finished run")
    return _BY_TASK[min(tasks)]


def _check_finds_lr(request: Request, tasks: Collection[str]) -> None:
    """Refuse optimizer.lr=auto where no run begins, and where several begin."""
    for task in sorted({*tasks} - {"train", "find_lr", "describe"}):
        raise ConfigError(f"optimizer.lr must be a number with task={task}, got auto")
    devices = request.frozen[0].config.devices
    if request.frozen[0].config.num_processes > 1:
        raise ConfigError(
            f"optimizer.lr must be a number with devices={devices}, got auto; task=find_lr "
            f"suggests one"
        )
    if request.is_multirun and tasks == {"train"}:
        raise ConfigError(
            "optimizer.lr=auto finds the base rate of one run; with -m, use tune=lr, which chooses "
            "the rate of each combination on other seeds"
        )


def _preview(request: Request) -> int:
    """Draw the schedules of all jobs without training."""
    from runner.tasks.preview import preview

    configs = [frozen.config for frozen in request.frozen]
    return preview(configs, request.jobs if request.is_multirun else None)


def _describe(request: Request) -> int:
    """Describe the data of each job without training."""
    from runner.tasks.describe import describe

    names = job_names(request.jobs)
    for i, (name, frozen) in enumerate(zip(names, request.frozen, strict=True)):
        if request.is_multirun:
            print(f"job {i}: {name}", flush=True)
        describe(frozen.config)
    return 0


def _find_lr(request: Request) -> int:
    """Run an LR range test for each job in turn; return the highest exit status."""
    from runner.tasks.find_lr import check, find_lr

    names = job_names(request.jobs) if request.is_multirun else [""]
    for frozen in request.frozen if request.is_multirun else ():
        check(frozen.values)  # check all jobs before the first one trains
    statuses = []
    for i, (name, frozen) in enumerate(zip(names, request.frozen, strict=True)):
        heading = f"job {i}: {name}" if request.is_multirun else None
        statuses.append(find_lr((frozen.values, heading)))
    return max(statuses)


def _twin(request: Request) -> int:
    """Compare the two models of a twin, for each job; return the highest exit status."""
    from runner.tasks.twin import twin

    return max(twin(frozen.values) for frozen in request.frozen)


def _train(request: Request) -> int:
    """Train one run in a new folder, or all jobs of a multirun."""
    from runner.tasks.train import train

    if request.is_multirun:
        return _multirun(request)
    if request.is_search:
        raise ConfigError("search starts several runs and needs -m (--multirun)")
    (frozen,) = request.frozen
    if frozen.config.tune is not None:
        raise ConfigError("tune=lr starts several runs and needs -m (--multirun)")
    compared = next((key for key in sorted(request.keys) if key.startswith("answer.")), None)
    if frozen.config.race.budget is not None:
        raise ConfigError("race.budget starts several runs and needs -m (--multirun)")
    if compared is not None:
        raise ConfigError(f"{compared} is a key of comparisons: it needs -m or task=compare")
    if frozen.config.output.multirun is not None:
        raise ConfigError("output.multirun is the folder of a multirun and needs -m (--multirun)")
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


def follow(composed: Mapping[str, Any], team: Any) -> int:
    """Train as another process than rank 0 of a run that a launcher has started."""
    from runner.tasks.train import follow as train

    process.tune()
    return train(composed, team)


def _multirun(request: Request) -> int:
    """Train all jobs in a new multirun folder with the chosen launcher, then compare them."""
    from runner.report import comparison
    from runner.tasks import compare

    hydra = request.composer.hydra_part(request.jobs[0])
    if request.is_search:
        return _search(request, hydra)
    params = {} if hydra.sweeper.params is None else dict(hydra.sweeper.params)
    if params:  # they act as overrides
        lines = [f"{key}={value}" for key, value in params.items() if key not in request.keys]
        lines += [override.input_line or "" for override in request.overrides]
        request, hydra.sweeper.params = request.replaced(lines), None
    first = request.frozen[0].config
    tuned, is_race = _checked(request)
    hydra.launcher = multirun.settled(hydra.launcher, [each.config for each in request.frozen])
    folder = multirun.folder(first)
    threads.keep_limits()
    num_jobs = len(request.jobs)
    signal_number, failure = None, None
    with multirun.launching(folder, hydra.launcher) as (launched, workers):
        jobs = _Jobs(hydra, request, folder, launched, workers, process_start())
        try:
            num_jobs = jobs.run(tuned, is_race)
            signal_number = launched.ended if launched else None
        except SystemExit as end:  # a signal; compare the jobs that are done
            signal_number = int(end.code or 0) - 128
        except (ConfigError, RunError, OSError, HydraException, OmegaConfBaseException):
            raise
        except Exception as error:  # raised by the launcher or the sweeper
            failure = RunError(multirun.why_ended(error))
    if signal_number is None and failure is None:
        wanted = replace(compare.wanted(first.answer), course=jobs.course)
        status = comparison.write(folder, num_jobs, wanted)
        _track_answer(folder, [each.config for each in request.frozen])
        return status
    with suppress(RunError):
        comparison.write(folder, num_jobs, comparison.Wanted(course=jobs.course))
    print(f"resume   {multirun.resume_command(request.arguments, folder)}")
    if failure is not None:
        raise failure
    return 128 + (signal_number or 0)


def _search(request: Request, hydra: DictConfig) -> int:
    """Train the trials of a search in a new multirun folder, or those that are left in the folder
    of output.multirun, then compare them."""
    from runner.cli import search
    from runner.report import comparison, trials
    from runner.tasks import compare

    planned = search.plan(request, hydra.sweeper)
    first = planned.first.config
    launcher = search.with_jobs(hydra.launcher, hydra.sweeper.n_jobs)
    hydra.sweeper = search.basic_sweeper(hydra.sweeper, launcher)
    hydra.launcher = multirun.settled(launcher, [first])
    folder = multirun.folder(first)
    opened = planned.at(folder)
    threads.keep_limits()
    num_left = opened.open()
    ended, failure = None, None
    with multirun.launching(folder, hydra.launcher) as (launched, workers):
        multirun.limit_workers(hydra.launcher, num_left)
        runs = _JobTask(request, folder, process_start(), opened.named, word="trial")
        task, slots = search.TrialTask(opened, runs), [[f"+trial={i}"] for i in range(num_left)]
        try:
            if slots:
                hydra_bridge.launch(hydra, folder, request.lines, task, slots, 0, workers)
            ended = launched.ended if launched else None
        except SystemExit as end:  # a signal
            ended = int(end.code or 0) - 128
        except (ConfigError, RunError, OSError, HydraException, OmegaConfBaseException):
            raise
        except Exception as error:  # raised by the launcher
            failure = RunError(multirun.why_ended(error))
    is_over = ended is None and failure is None
    front = trials.write(folder, opened.settings, opened.chosen, task.folders)
    with nullcontext() if is_over else suppress(RunError):
        wanted = compare.wanted(first.answer) if is_over else comparison.Wanted()
        status = comparison.write(folder, 0, replace(wanted, front=front, rules=None))
    if is_over:
        _track_answer(folder, [first])
        return status
    print(f"resume   {multirun.resume_command(request.arguments, folder)}")
    if failure is not None:
        raise failure
    return 128 + (ended or 0)


def _track_answer(folder: Path, configs: Sequence[Config]) -> None:
    """Give the trackers of the jobs the answer of their multirun."""
    if any(config.trackers for config in configs):
        from runner.report.jobs import inside
        from runner.run import trackers

        trackers.answer(folder, configs, inside(folder))


def _checked(request: Request) -> "tuple[Tuning | None, bool]":
    """Check the jobs of a multirun; plan its tuning, if it has one. Return it, and whether the
    multirun is a race."""
    from runner.cli import racing, tuning
    from runner.run import trackers
    from runner.tasks.train import check_processes

    for frozen in request.frozen:
        check_processes(frozen.config)
        trackers.check(frozen.config)
    _check_targets(request)
    is_tuned = any(frozen.config.tune is not None for frozen in request.frozen)
    is_race = any(frozen.config.race.budget is not None for frozen in request.frozen)
    if is_race:
        racing.check([frozen.config for frozen in request.frozen])
    if not is_tuned:
        if is_race:
            racing.check_several(racing.schedules(request.jobs))
            _check_budget(request)
        return None, is_race
    configs = [(frozen.config, frozen.values) for frozen in request.frozen]
    tuned = tuning.plan(request.jobs, request.overrides, configs)
    grid = replace(request, jobs=tuned.jobs(tuned.first(), tuned.tuning_seeds))
    if len(grid.jobs) > MOST_JOBS:
        raise ConfigError(
            f"tune.keys makes {len(grid.jobs)} jobs; a multirun has at most {MOST_JOBS}"
        )
    _ = grid.frozen  # checks each
    if is_race:
        racing.check_several(tuned.combinations)
        firsts = {i: (i, values) for i, values in reversed(tuned.first())}.values()
        one_each = replace(request, jobs=tuned.jobs([*firsts], tuned.seeds[:1]))
        _check_budget(one_each, len(grid.jobs))
    return tuned, is_race


def _check_budget(request: Request, num_tuning_runs: int = 0) -> None:
    """Refuse a race of these jobs if its budget is spent before its first look."""
    from runner.cli import racing

    if racing.has_known_cost(request.frozen[0].config):
        num_schedules = len(racing.schedules(request.jobs))
        racing.check_budget(request.trunks, num_schedules, num_tuning_runs)


def _of_one_seed(request: Request) -> dict[tuple[str, ...], tuple[Config, Mapping[str, Any]]]:
    """Return the schedules of a race, with a config of each, and its plain values. Those that find
    their rate when they run are left out."""
    seed = request.frozen[0].config.seed
    return {
        without_seed(job): (each.config, each.values)
        for job, each in zip(request.jobs, request.frozen, strict=True)
        if each.config.seed == seed and not each.finds_lr
    }


def _check_targets(request: Request) -> None:
    """Refuse a target of a workload that no job can have: its name consists of values of the jobs'
    keys, or of the names of their data and model."""
    target = request.frozen[0].config.answer.target
    if not isinstance(target, dict):
        return
    all_items = (item for job in request.jobs for item in job)
    items = dict.fromkeys(item for item in all_items if not item.startswith("answer."))
    values = [text for item in items for text in (item.partition("=")[2], plain_text(item))]
    values += [
        name for each in request.frozen for name in (each.config.data.name, each.config.model.name)
    ]
    known = list(dict.fromkeys(part for value in values for part in value.split("/")))
    for name in target:
        unknown = next((part for part in name.split("/") if part not in known), None)
        if unknown is not None:
            raise ConfigError(
                f"answer.target must have names of workloads, which are values of the jobs' keys, "
                f"such as iris or iris/mlp, got {show(name)}{nearest(unknown, known)}"
            )


@dataclass
class _Jobs:
    """Trains jobs of a multirun with its launcher."""

    hydra: DictConfig
    request: Request
    folder: Path
    launched: signals.Launch | None
    workers: Pool | None
    started: float | None  # start of the process, which counts for its first job
    number: int = 0  # of the next job
    racing: "Racing | None" = None
    tuning_runs: "list[Ran]" = field(default_factory=list)
    trunks: "Trunks | None" = None  # of a race
    earlier: "Earlier | None" = None  # runs that a race may use

    @property
    def course(self) -> "Course | None":
        """The race so far, if it has runs."""
        return self.racing.course if self.racing is not None and self.racing.seeds else None

    def run(self, tuned: "Tuning | None", is_race: bool) -> int:
        """Train the jobs of the command line, those of tune=lr, or those of a race. Return their
        number; 0: those that a race has tried."""
        from runner.cli import tuning

        num_jobs = 0
        if tuned is not None:
            race = self.race if is_race else None
            num_jobs = tuning.run(tuned, self.train_all, self.request.accepts, race) or 0
        elif is_race:
            self.race([[*job] for job in self.request.jobs])
        else:
            self.train()
            num_jobs = len(self.request.jobs)
        return 0 if is_race else num_jobs

    def train(self) -> None:
        """Train all jobs of the command line."""
        hydra, request = self.hydra, self.request
        multirun.limit_workers(hydra.launcher, len(request.jobs))
        self._launch(hydra, _JobTask(request, self.folder, self.started), None)

    def train_all(self, jobs: Sequence[list[str]]) -> list[float] | None:
        """Train the jobs of tune=lr. Return the value that each is to minimise, or None if a signal
        ended them."""
        task = self._task(jobs)
        if not self._train_these(task):
            return None
        self.tuning_runs += [run for run in self._runs(task) if run is not None]
        return task.objectives()

    def race(self, jobs: Sequence[list[str]]) -> None:
        """Race the schedules of these jobs."""
        from runner.cli import racing
        from runner.cli.earlier import Earlier

        request = self.request  # its schedules may have been planned already, for the budget
        if [*map(list, request.jobs)] != [*jobs]:  # those of tune=lr
            request = replace(request, jobs=[*jobs])
        frozen = request.frozen
        self.racing = racing.plan(jobs, [each.config for each in frozen], self.tuning_runs)
        self.trunks = request.trunks
        self.earlier = Earlier(Path(frozen[0].config.output.root), self.trunks.planned)
        self.racing.run(self.train_runs)

    def train_runs(self, jobs: Sequence[list[str]]) -> "tuple[list[Ran | None], int] | None":
        """Train these jobs, those that branch from others after them. Return the run of each, None
        if it has no folder, and the number of those that were completed before; None if a signal
        ended them."""
        from runner.cli import trunks

        whole = self._task(jobs)
        for job in jobs:
            name, frozen = whole.job(job)
            if self.earlier is None or frozen.finds_lr:
                continue
            source = self.earlier.take(self.folder, name, frozen.values, job)
            if source is not None:
                print(f"earlier  {name} is a copy of {source}", flush=True)
        reused = sum(path is not None and multirun.is_completed(path) for path in whole.folders())
        schedules = list(dict.fromkeys(map(without_seed, jobs)))
        branches = self.trunks.branches(schedules) if self.trunks else {}
        for wave in trunks.waves(schedules, branches):
            now = [job for job in jobs if without_seed(job) in wave]
            task = self._task(now, whole, branches, trunks.kept(branches))
            if not self._train_these(task):
                return None
        return self._runs(whole), reused

    @staticmethod
    def _runs(task: "_JobTask") -> "list[Ran | None]":
        from runner.report.jobs import read

        return [None if path is None else read([path])[0] for path in task.folders()]

    def _task(
        self,
        jobs: Sequence[list[str]],
        whole: "_JobTask | None" = None,
        branches: "Mapping[tuple[str, ...], Branch] | None" = None,
        kept: Mapping[tuple[str, ...], frozenset[int]] | None = None,
    ) -> "_JobTask":
        """Return the task that trains these jobs. In a race, `whole` has all jobs of the round;
        `branches` and `kept` are of schedules."""
        request = replace(self.request, jobs=[*jobs])
        tune = request.frozen[0].config.tune
        swept = [o.key_or_group for o in self.request.overrides if o.is_sweep_override()]
        named = frozenset([*swept, "seed", *(tune.keys if tune else ())])
        task = _JobTask(request, self.folder, self.started, named, first=self.number)
        if whole is None:
            return task
        origins: dict[tuple[str, ...], tuple[Path, int]] = {}
        steps = {}
        for job in jobs:
            schedule = without_seed(job)
            if (branch := (branches or {}).get(schedule)) is not None:
                parent = whole.find([*branch.parent, job[-1]])
                origins |= {} if parent is None else {tuple(job): (parent, branch.step)}
            steps[tuple(job)] = (kept or {}).get(schedule, frozenset())
        return replace(task, branches=origins, kept=steps)

    def _train_these(self, task: "_JobTask") -> bool:
        """Train the jobs of the task, and wait for those that other commands train. Return whether
        they ended, not by a signal."""
        hydra, jobs = deepcopy(self.hydra), task.request.jobs
        multirun.limit_workers(hydra.launcher, len(jobs))
        self._launch(hydra, task, jobs)
        while task.is_training() and not (self.launched and self.launched.ended):
            sleep(_POLL_SECONDS)
            self._take_over(hydra, task, jobs)
        self.number, self.started = self.number + len(jobs), None
        return not (self.launched and self.launched.ended)

    def _launch(
        self, hydra: DictConfig, task: "_JobTask", jobs: Sequence[Sequence[str]] | None
    ) -> None:
        """Train all jobs; then, once more, those that another command had and was killed in."""
        lines = self.request.lines
        hydra_bridge.launch(hydra, self.folder, lines, task, jobs, task.first, self.workers)
        self._take_over(hydra, task, jobs)

    def _take_over(
        self, hydra: DictConfig, task: "_JobTask", jobs: Sequence[Sequence[str]] | None
    ) -> None:
        lines, taken = self.request.lines, frozenset[int]()
        while left := task.left_behind() - taken:
            taken |= left
            again = replace(task, numbers=left)
            hydra_bridge.launch(hydra, self.folder, lines, again, jobs, task.first, self.workers)


_POLL_SECONDS = 0.5  # between two looks at the jobs of other commands


@dataclass
class _JobTask:
    """Trains one job of a multirun. A launcher calls it, in this process or in another one."""

    request: Request
    folder: Path
    started: float | None  # start of the process, which counts for its first job
    named: frozenset[str] = frozenset()  # keys that are in a job's name even if all have one value
    numbers: frozenset[int] | None = None  # of the jobs to train; None: all of them
    first: int = 0  # number of the first job
    word: str = "job"  # for a line of output; "trial" of a search
    # of jobs in a race: the run and the step that each branches from; checkpoints that each keeps
    branches: "Mapping[tuple[str, ...], tuple[Path, int]]" = field(default_factory=dict)
    kept: Mapping[tuple[str, ...], frozenset[int]] = field(default_factory=dict)
    _known: dict[tuple[str, ...], tuple[str, Frozen]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.request.is_search:
            frozen = self.request.frozen
            jobs = [tuple(without_hydra(overrides)) for overrides in self.request.jobs]
            names = job_names(jobs, self.named)
            self._known = dict(zip(jobs, zip(names, frozen, strict=True), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the start of this process: another process has its own."""
        return {**vars(self), "started": None}

    def prepare(self) -> None:
        """Import what the jobs need, for processes that are forked from this one."""
        import_module("runner.tasks.train")
        with quiet():
            for backend in dict.fromkeys(each.config.backend for each in self.request.frozen):
                dispatcher.load(backend)
        self.started = None  # not a job's own time

    def __call__(self, overrides: list[str], number: int) -> None:
        """Train or resume a job. A failure is recorded, and the other jobs continue."""
        if self.numbers is not None and number not in self.numbers:
            return
        process.tune()  # needed if a launcher started this process
        with signals.job() as is_cancelled:
            if not is_cancelled:
                status = self.train(overrides, number)
                if status > 128:
                    signals.end_multirun(status - 128)

    def train(self, overrides: list[str], number: int, limits: Sequence[Limit] = ()) -> int:
        """Train or resume a job, and return its exit status. `limits` may end it."""
        name, frozen = self.job(overrides)
        started, self.started = self.started, None
        return self._train(name, frozen, overrides, number, started or monotonic(), limits)

    def find(self, overrides: list[str]) -> Path | None:
        """Return the folder of a job."""
        name, frozen = self.job(overrides)
        code = user_code.hashes(frozen.values)
        return multirun.job_folder(self.folder, name, frozen.sha256, code)

    def left_behind(self) -> frozenset[int]:
        """The numbers of the jobs whose process was killed: another command's, as a failure of a
        process of this command's ends the command."""
        return frozenset(
            number
            for number, (name, frozen) in enumerate(self._known.values(), start=self.first)
            if multirun.is_left_behind(self.folder, name, frozen.values)
        )

    def is_training(self) -> bool:
        """Return whether another command trains one of the jobs."""
        return any(
            multirun.is_training(self.folder, name, frozen.values)
            for name, frozen in self._known.values()
        )

    def objectives(self) -> list[float]:
        """Return the value that each job is to minimise; infinite if it did not complete."""
        return [self._objective(name, frozen) for name, frozen in self._known.values()]

    def folders(self) -> list[Path | None]:
        """Return the folder of each job, None if it has none."""
        return [
            multirun.job_folder(self.folder, name, frozen.sha256, user_code.hashes(frozen.values))
            for name, frozen in self._known.values()
        ]

    def _objective(self, name: str, frozen: Frozen) -> float:
        code = user_code.hashes(frozen.values)
        return multirun.objective(self.folder, name, frozen.sha256, code, frozen.config)

    def job(self, overrides: Sequence[str]) -> tuple[str, Frozen]:
        """Look up a job's name and config; compose it here if a search has just chosen it."""
        known = self._known.get(tuple(overrides))
        if known is None:
            known = job_names([overrides], self.named)[0], self.request.freeze(overrides)
            self._known[tuple(overrides)] = known
        return known

    def _keepers(self, config: Config, overrides: Sequence[str]) -> list[Limit]:
        """Return what keeps the checkpoints that other jobs branch from."""
        from runner.run.trunk import Keeper

        steps = self.kept.get(tuple(overrides))
        trainer = config.trainer
        return [Keeper(steps, trainer.monitor, trainer.monitor_mode)] if steps else []

    def _train(
        self,
        name: str,
        frozen: Frozen,
        overrides: list[str],
        number: int,
        started: float,
        limits: Sequence[Limit],
    ) -> int:
        job = self.request.job(
            frozen, overrides, self.folder, name, started, self.request.composer.config_dir
        )
        job = replace(job, limits=[*limits, *self._keepers(frozen.config, overrides)])
        try:  # the job may have run before: output.multirun was given, or a scheduler requeued it
            with multirun.claimed(self.folder, name, frozen.values) as claim:
                is_over = claim.is_completed or (claim.is_pruned and self.request.is_search)
                note = ""
                if is_over:
                    note = f" is already {'completed' if claim.is_completed else 'pruned'}"
                elif self.numbers is not None:
                    note = " is taken over: the process that trained it was killed"
                print(f"{self.word} {number}: {name}{note}", flush=True)
                if is_over:
                    return 0
                return _train_claimed(job, claim, self.branches.get(tuple(overrides)))
        except run_folder.InUseError as error:
            if run_folder.wait_for_orphan(error.folder):
                return self._train(name, frozen, overrides, number, started, limits)
            print(f"{self.word} {number}: {name} is skipped: {error.holder} trains it", flush=True)
            return 0
        except (ConfigError, RunError, OSError) as error:  # the folder is not writable
            print(few_lines(f"error: {error}"), file=sys.stderr)
            return 1


def _train_claimed(
    job: Any, claim: multirun.Claim, branched: tuple[Path, int] | None = None
) -> int:
    """Train a job of a multirun from the beginning, from its checkpoint, or from another run's,
    `branched`."""
    from runner.run import trunk
    from runner.run.resume import resume
    from runner.tasks.train import refuse, train

    job = replace(job, path=claim.path)
    try:
        if claim.has_checkpoint:
            job = replace(job, resumed=resume(claim.path, []))
        else:
            refuse_links(claim.path, "output.multirun")
            run_folder.restart(claim.path)
            if branched is not None and trunk.branch(branched[0], claim.path, branched[1]):
                print(f"trunk    the first {branched[1]} updates are those of {branched[0].name}")
                job = replace(job, resumed=resume(claim.path, []))
        with memory_errors():
            return train(job)
    except (ConfigError, RunError, OSError) as error:
        with suppress(RunError, OSError):  # a full disk cannot hold the record either
            refuse(job, error)
        print(few_lines(f"error: {error}"), file=sys.stderr)
        return 1


def _resume(request: Request) -> int:
    """Resume a run in its folder with the config that it saved."""
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
    """Read the checkpoint that a run resumes from. Writes nothing."""
    from runner.run.resume import resume

    parsed = _without_deletions(overrides)
    folder = next(override.value() for override in parsed if override.key_or_group == "resume")
    if not isinstance(folder, str) or not folder:
        raise ConfigError(f"resume must be the folder of a run, got {show(folder)}")
    resumed = resume(Path(folder), parsed)
    user_code.announce(resumed.values["trusted_modules"])
    return resumed


def _without_deletions(overrides: Sequence[str]) -> list[Override]:
    """Parse the overrides of a saved config; no key can be removed from it."""
    parsed = parse_overrides(overrides)
    for override in parsed:
        if override.is_delete():
            raise ConfigError(
                f"~{override.key_or_group} cannot remove a key of a saved run; write "
                f"{override.key_or_group}=VALUE"
            )
    return parsed


def _branches(request: Request) -> int:
    """Branch several runs from one checkpoint, each in its own folder, and compare them."""
    from runner.report import comparison
    from runner.run.resume import branch
    from runner.tasks.train import check_resumed, train

    branches = [_resumed(overrides) for overrides in request.jobs]
    for resumed in branches:
        check_resumed(resumed)
    root = Path(branches[0].config.output.root)
    folder = run_folder.create(root / "multiruns", run_folder.timestamp())
    status = 0
    for i, (name, resumed) in enumerate(zip(job_names(request.jobs), branches, strict=True)):
        print(f"job {i}: {name}", flush=True)
        started = monotonic() if i else process_start()
        branched = branch(resumed, run_folder.create(folder, name))
        job = request.job(branched, list(request.jobs[i]), folder, name, started)
        status = train(job)
        if status > 128:
            return status
    status = comparison.write(folder, len(branches))
    _track_answer(folder, [branch.config for branch in branches])
    return status


def _on_folders(request: Request) -> int:
    """Run a task on the runs of folders, or on all runs below output.root."""
    config = request.frozen[0].config
    if config.task not in _TASKS_ON_FOLDERS:
        raise ConfigError(
            f"runs=[FOLDER,...] needs task=compare or forecast, got task={config.task}"
        )
    accepted, command = _TASKS_ON_FOLDERS[config.task]
    keys = [override.key_or_group for override in request.overrides]
    other = next((key for key in keys if key not in ("task", *accepted)), None)
    if other is not None or request.is_multirun:
        raise ConfigError(
            f"task={config.task} accepts only {', '.join(accepted[:-1])} and {accepted[-1]}, got "
            f"{'-m' if other is None else show(other)}"
        )
    return command(request, config)


def _compare(request: Request, config: Config) -> int:
    """Compare existing runs."""
    from runner.tasks.compare import compare

    if config.runs is None and config.where is None:
        raise ConfigError(
            "task=compare needs runs=[FOLDER,...], the folders of finished runs, or where=[...], "
            "conditions on all runs below output.root"
        )
    if config.runs == []:
        raise ConfigError(f"runs must list at least one folder, got {show(config.runs)}")
    return compare(config.runs, Path(config.output.root), config.where, config.answer)


def _clean(_: Request, config: Config) -> int:
    """Show what can be removed below output.root, or remove it."""
    from runner.tasks.clean import clean

    root, keys = Path(config.output.root), config.clean
    return clean(root, config.where, keys.what, keys.confirm)


def _forecast(_: Request, config: Config) -> int:
    """Predict the final losses of the named schedules."""
    from runner.tasks.forecast import forecast

    if not config.runs:
        raise ConfigError("task=forecast needs runs=[FOLDER,...], the folders of two or more runs")
    return forecast(config.runs, Path(config.output.root), config.forecast)


def _list(request: Request, config: Config) -> int:
    """Print the runs below output.root."""
    from runner.tasks.list_runs import list_runs

    root = Path(config.output.root)
    return list_runs(root, config.where, config.sort, request.as_json)


def _on_runs(request: Request) -> int:
    """Run a task on finished runs, for each job, and return the highest exit status. All jobs are
    checked before the first one runs."""
    tasks = [_on_a_run(job) for job in request.jobs]
    return max(task() for task in tasks)


def _on_a_run(overrides: Sequence[str]) -> Callable[[], int]:
    """Prepare a task on a finished run with the config that it saved."""
    parsed = _without_deletions(overrides)
    keys = {override.key_or_group: override.value() for override in parsed}
    if not isinstance(keys["run"], str) or not keys["run"]:
        raise ConfigError(f"run must be the folder of a run, got {show(keys['run'])}")
    folder = Path(keys["run"])
    if keys.get("task") == "card":
        return _card(folder, keys)
    changes = [override for override in parsed if override.key_or_group != "data.path"]
    values = set_keys(config_of(folder), changes, marked("on_run"))
    config = parse({**values, "resume": None})
    task = _TASKS_ON_A_RUN.get(config.task)
    if task is None:
        allowed = ", ".join(_TASKS_ON_A_RUN)
        raise ConfigError(f"run=FOLDER needs task to be one of {allowed}, got {config.task}")
    if config.push is not None:
        raise ConfigError(f"push needs task=card, got task={config.task}")
    source = keys.get("data.path")
    if source is None and config.task == "predict":
        raise ConfigError("task=predict needs data.path=FILE")
    if source is not None and config.task not in ("predict", "evaluate"):
        raise ConfigError(
            f"data.path names new rows for task=predict or task=evaluate, got {show(source)} for "
            f"task={config.task}"
        )
    averages.check_choice(config.optimizer, config.weights, folder)
    user_code.announce(config.trusted_modules)
    refuse_links(folder, "run")
    if config.task != "verify":  # it repeats the run from its beginning
        checkpoint.find(folder, config.checkpoint)
    return partial(task, Run(folder, config, config.checkpoint, owns_process=True), source)


def _card(folder: Path, keys: Mapping[str, Any]) -> Callable[[], int]:
    """Prepare the card of a run or a multirun."""
    from runner.tasks import push
    from runner.tasks.card import card, check

    check(folder)
    other = next((key for key in keys if key not in ("task", "run", "push")), None)
    if other is not None:
        raise ConfigError(f"task=card accepts only run and push, got {show(other)}")
    repository = keys.get("push")
    if repository is not None:
        push.check(repository)
    return partial(card, folder, repository)


def _evaluate(run: Run, source: Any) -> int:
    from runner.tasks.evaluate import evaluate

    return evaluate(run, source)


def _predict(run: Run, source: Any) -> int:
    from runner.tasks.predict import predict

    with memory_errors(" in task=predict", "split data.path into files of fewer rows"):
        return predict(run, str(source))


def _export(run: Run, _: Any) -> int:
    from runner.tasks.export import export

    return export(run, run.config.format)


def _verify(run: Run, _: Any) -> int:
    from runner.tasks.verify import verify

    return verify(run, run.config.steps)


_BY_KEY: Mapping[str, Callable[[Request], int]] = {
    "run": _on_runs,
    "runs": _on_folders,
    "resume": _resume,
}
_BY_TASK: Mapping[str, Callable[[Request], int]] = {
    "train": _train,
    "preview": _preview,
    "describe": _describe,
    "find_lr": _find_lr,
    "twin": _twin,
}
_ANSWER = ("answer.margin", "answer.test", "answer.target", "answer.relax")
# task -> the keys that it accepts, and its function
_TASKS_ON_FOLDERS: Mapping[str, tuple[Sequence[str], Callable[[Request, Config], int]]] = {
    "compare": (("runs", "where", *_ANSWER, "output.root"), _compare),
    "clean": (("clean.what", "clean.confirm", "where", "output.root"), _clean),
    "forecast": (
        ("runs", "forecast.law", "forecast.tolerance", "forecast.optimize", "output.root"),
        _forecast,
    ),
    "list": (("where", "sort", "output.root"), _list),
}
# the keys that only these tasks have
_SHARED = {"output.root", *_ANSWER}
_ON_FOLDERS = {key for keys, _ in _TASKS_ON_FOLDERS.values() for key in keys} - _SHARED


def _users(key: str) -> str:
    """List the tasks that accept a key."""
    return ", ".join(task for task, (keys, _) in _TASKS_ON_FOLDERS.items() if key in keys)


_TASKS_ON_A_RUN: Mapping[str, Callable[[Run, Any], int]] = {
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "verify": _verify,
}
