"""A search with Optuna: `search=NAME`, or `hydra/sweeper=optuna` with ranges.

Each process that trains asks the study for a trial, trains its runs, and tells the result. The
launcher starts as many of these tasks as trials are left; a task that finds no trial left does
nothing. So several commands with one `output.multirun` share a study, and a command that was killed
continues when it is repeated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from runner.cli import process, sweep
from runner.cli.compose import Composer
from runner.cli.overrides import parse_overrides
from runner.cli.space import Space, listed, space
from runner.config.schema import Config
from runner.config.trust import leaves
from runner.errors import ConfigError, few_lines, nearest, show
from runner.run import run_folder, signals, study
from runner.run.observer import Limit
from runner.run.pruning import Pruning
from runner.run.study import Claim, Objective, Settings
from runner.text import quoting

if TYPE_CHECKING:
    import optuna

    from runner.report.jobs import Job

_SPACE = "space"  # attribute of a study
Values = Sequence[float]  # of a run, one for each objective


@dataclass(frozen=True)
class Trial:
    """A trial that this process has locked."""

    number: int
    chosen: Mapping[str, str]  # key -> value
    claim: Claim


@dataclass(frozen=True)
class Search:
    """The space, the study and the runs of a search."""

    space: Space
    settings: Settings
    sampler: Mapping[str, Any]  # hydra.sweeper.sampler
    num_trials: int
    base: tuple[str, ...]  # overrides of all trials
    seeds: tuple[str, ...]  # values of `seed` that each trial trains; empty: that of the config

    @property
    def named(self) -> frozenset[str]:
        """The keys in the names of the runs' folders."""
        return self.space.keys | ({"seed"} if len(self.seeds) > 1 else set())

    def overrides(self, chosen: Mapping[str, str]) -> list[list[str]]:
        """Return the overrides of a trial's runs, one for each seed."""
        lines = [*self.base, *(f"{key}={value}" for key, value in chosen.items())]
        return [[*lines, f"seed={seed}"] for seed in self.seeds] or [lines]

    def open(self) -> int:
        """Open or make the study. Return the number of trials that are not over.

        Raises ConfigError if the study has another space."""
        described = [*self.base, *map(str, self.space.ranges), *self.seeds]
        if self.settings.has_several:
            described += map(str, self.settings.objectives)
        with run_folder.exclusive_access(self.settings.folder), study.quiet():
            opened = self.settings.study()
            before = opened.user_attrs.get(_SPACE)
            if before is None:
                opened.set_user_attr(_SPACE, described)
            elif before != described:
                changed = sorted({*before} ^ {*described}) or ["the order of the keys"]
                raise ConfigError(
                    f"output.multirun: {self.settings.folder} has a search of other values: "
                    f"{show(changed[0])} is not in both; use another folder"
                )
            over = [trial for trial in self.settings.trials() if trial.state.is_finished()]
        return max(0, self.num_trials - len(over))

    def draw(self) -> Trial | None:
        """Take a trial that no process trains, or choose the values of a new one. Return None if
        there are enough."""
        from optuna.trial import TrialState

        with run_folder.exclusive_access(self.settings.path), study.quiet():
            trials = self.settings.trials()
            for known in trials:
                if known.state == TrialState.RUNNING:
                    claim = self.settings.claim(known.number)
                    if claim is not None:
                        return Trial(known.number, self._choose(known.number), claim)
            if len(trials) >= self.num_trials:
                return None
            number = len(trials)
            claim = self.settings.claim(number)
            assert claim is not None
            return Trial(number, self._choose(number, is_new=True), claim)

    def _choose(self, number: int, is_new: bool = False) -> dict[str, str]:
        """Choose the values of a trial; those that it has already stay."""
        from runner.cli import samplers

        sampler = samplers.sampler(self.sampler, self.space, number)
        opened = self.settings.study(sampler)
        trial = opened.ask() if is_new else self.settings.trial(opened, number)
        chosen = self.space.choose(lambda each: each.text(_suggest(trial, each)))
        if isinstance(sampler, samplers.CmaEs) and is_new:
            trial.set_user_attr(samplers.GENERATION, sampler.generation)
        return chosen

    def chosen(self, params: Mapping[str, Any]) -> dict[str, str]:
        """Return the values by key that a trial's parameters of Optuna say."""
        return self.space.choose(lambda each: each.text(params[each.name]))

    def tell(self, trial: Trial, runs: Sequence[Values] | None, is_pruned: bool) -> None:
        """Record the end of a trial: the means over its runs, a value for each objective; that it
        was pruned; or that it failed."""
        from optuna.trial import TrialState

        state = TrialState.PRUNED if is_pruned else TrialState.FAIL if runs is None else None
        means = None
        if runs is not None and not is_pruned:
            means = [sum(values) / len(values) for values in zip(*runs, strict=True)]
        with study.quiet():
            self.settings.study().tell(trial.number, means, state, skip_if_finished=True)
        trial.claim.release(is_over=True)


def _suggest(trial: "optuna.Trial", values: Any) -> Any:
    if values.choices:
        return trial.suggest_categorical(values.name, values.choices)
    if values.is_integer:
        step = int(values.step or 1)
        return trial.suggest_int(values.name, values.low, values.high, step=step, log=values.is_log)
    return trial.suggest_float(
        values.name, values.low, values.high, step=values.step, log=values.is_log
    )


# --- from the command to a search ---


class Request(Protocol):
    """The command line, as runner/cli/commands.py reads it."""

    @property
    def overrides(self) -> Sequence[Override]: ...
    @property
    def jobs(self) -> Sequence[Sequence[str]]: ...
    @property
    def composer(self) -> Composer: ...
    def freeze(self, overrides: Sequence[str]) -> Any: ...


@dataclass(frozen=True)
class Plan:
    """A search before it has a folder."""

    space: Space
    sweeper: Mapping[str, Any]
    base: tuple[str, ...]
    seeds: tuple[str, ...]
    first: Any  # the frozen config of the first probe
    objectives: tuple[Objective, ...]

    def at(self, folder: Path) -> Search:
        """Return the search in a multirun's folder."""
        settings = Settings(folder, self.objectives, dict(self.sweeper["pruner"]))
        num_trials = int(self.sweeper["n_trials"])
        if self.sweeper["sampler"]["name"] == "grid":
            num_trials = min(num_trials, math.prod(map(len, self.space.grid().values())))
        return Search(
            self.space,
            settings,
            dict(self.sweeper["sampler"]),
            num_trials,
            self.base,
            self.seeds,
        )


def plan(request: Request, sweeper: Mapping[str, Any]) -> Plan:
    """Read what a search chooses, from hydra.sweeper and the command line, and check its configs:
    both ends of each interval and every category."""
    from runner.run import trackers
    from runner.tasks.train import check_processes

    if "n_trials" not in sweeper:
        raise ConfigError(
            "search needs `override /hydra/sweeper: optuna` in the defaults of its file; "
            "conf/search/optuna_lr.yaml has an example"
        )
    own = [each for each in request.overrides if not each.is_hydra_override()]
    keys = {each.key_or_group for each in own}
    config_dir = request.composer.config_dir
    params = _parsed(sweeper["params"] or {}, config_dir)
    searched = {param.key_or_group for param in params}
    chosen = [param for param in params if param.key_or_group not in keys]
    chosen += [each for each in own if each.is_sweep_override() or each.key_or_group in searched]
    seeds = next((each for each in chosen if each.key_or_group == "seed"), None)
    chosen = [each for each in chosen if each is not seeds]
    conditions = {
        text: _parsed(ranges, config_dir) for text, ranges in (sweeper["conditions"] or {}).items()
    }
    found = space(chosen, conditions, keys)
    without = {*(each.key_or_group for each in chosen), "search", *(["seed"] if seeds else [])}
    lines = [each.input_line or "" for each in own if each.key_or_group not in without]
    named = [each.input_line or "" for each in own if each.key_or_group == "search"]
    base = (*lines, *_set_by_search(lines, named, request.composer))
    probes = [[*base, *(f"{k}={v}" for k, v in probe.items())] for probe in found.probes()]
    frozen = [request.freeze(probe) for probe in probes]
    for each in frozen:
        is_race = each.config.race.budget is not None
        sweep.check_choosers(is_race, each.config.tune is not None)
        check_processes(each.config)
        trackers.check(each.config)
    objectives = _objectives(sweeper, frozen[0].config)
    planned = Plan(found, sweeper, base, _seeds(seeds), frozen[0], objectives)
    _check_sampler(sweeper["sampler"], found)
    return planned


def _objectives(sweeper: Mapping[str, Any], config: Config) -> tuple[Objective, ...]:
    """Return hydra.sweeper.objectives, or trainer.monitor. Raises ConfigError for a metric that is
    not measured, and for a sampler or pruner that is not for so many objectives."""
    from runner.cli import samplers
    from runner.plan import measured
    from runner.plan import plan as prepare

    wanted: Mapping[str, str] = sweeper["objectives"]
    sampler, pruner = sweeper["sampler"]["name"], sweeper["pruner"]["name"]
    if not wanted:
        if sampler in samplers.OF_SEVERAL_OBJECTIVES:
            raise ConfigError(
                f"hydra/sweeper/sampler={sampler} needs hydra.sweeper.objectives with two or more "
                f"metrics; for trainer.monitor alone use another sampler, such as tpe"
            )
        return (Objective(config.trainer.monitor, config.trainer.monitor_mode == "max"),)
    if sampler in samplers.OF_ONE_OBJECTIVE:
        raise ConfigError(
            f"hydra/sweeper/sampler={sampler} has one objective, got {', '.join(wanted)} in "
            f"hydra.sweeper.objectives; use tpe, nsgaii, gp, quasi_random, random or grid"
        )
    if pruner != "none":
        raise ConfigError(
            f"hydra/sweeper/pruner={pruner} compares one metric, got {', '.join(wanted)} in "
            f"hydra.sweeper.objectives; use hydra/sweeper/pruner=none"
        )
    known = [*measured(prepare(config)), *OF_RESULT]
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"hydra.sweeper.objectives must be of {', '.join(known)}, got {name}"
                f"{nearest(name, known)}"
            )
    return tuple(Objective(name, mode == "max") for name, mode in wanted.items())


def _check_sampler(options: Mapping[str, Any], found: Space) -> None:
    """Raise ConfigError if Optuna is missing, or for a space that the sampler cannot search."""
    study.check_installed()
    from runner.cli import samplers

    with study.quiet():
        samplers.sampler(options, found, 0)


def with_jobs(launcher: DictConfig, num_jobs: int | None) -> DictConfig:
    """Let a pool train `num_jobs` trials at a time; None: as many as it would."""
    if num_jobs is not None and str(launcher["_target_"]).endswith("PoolLauncher"):
        launcher.n_jobs = num_jobs
    return launcher


def basic_sweeper(sweeper: Mapping[str, Any], launcher: DictConfig) -> DictConfig:
    """Return Hydra's own sweeper, which launches the trials: as many at a time as
    hydra.sweeper.n_jobs says, if that is not the launcher's number already."""
    is_pool = str(launcher["_target_"]).endswith("PoolLauncher")
    batch = None if is_pool else sweeper["n_jobs"]
    return OmegaConf.create({**_BASIC_SWEEPER, "max_batch_size": batch})


_BASIC_SWEEPER = {
    "_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "params": None,
}


def _parsed(ranges: Mapping[str, Any], config_dir: str | None) -> list[Override]:
    return parse_overrides([f"{key}={value}" for key, value in ranges.items()], config_dir)


def _seeds(override: Override | None) -> tuple[str, ...]:
    """Return the seeds that each trial trains."""
    if override is None:
        return ()
    if not override.is_sweep_override():
        return (override.get_value_element_as_str(),)
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"seed must be a list in a search, got {show(override.input_line)}: each trial trains "
            f"all seeds, and its value is their mean; write seed=0,1,2"
        )
    return listed(override)


def _set_by_search(lines: Sequence[str], named: Sequence[str], composer: Composer) -> list[str]:
    """Return overrides for the values that the file of search=NAME sets. With them, the command of
    a trial trains the same run without the search."""
    if not named:
        return []

    def values(*more: str) -> dict[str, Any]:
        return dict(leaves(composer.values([*lines, *more])))

    given = {line.partition("=")[0].lstrip("+") for line in lines}
    wanted, without = values(*named), values()
    changed = _differing(wanted, without)
    choices = {key.removesuffix(".name"): v for key, v in changed.items() if key.endswith(".name")}
    extra = [quoting.override(group, choice) for group, choice in choices.items()]
    if extra:  # the keys of the choice itself need no override
        changed = _differing(wanted, values(*extra))
    return [*extra, *(quoting.override(k, v) for k, v in changed.items() if k not in given)]


def _differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    missing = object()
    return {key: value for key, value in values.items() if others.get(key, missing) != value}


# --- in the processes that train ---


class Runs(Protocol):
    """Trains the runs of trials, in the folder of a multirun."""

    def prepare(self) -> None: ...

    def train(self, overrides: list[str], number: int, limits: Sequence[Limit]) -> int:
        """Train a run, and return its exit status."""
        ...

    def find(self, overrides: list[str]) -> Path | None:
        """Return the folder of a run."""
        ...


@dataclass
class TrialTask:
    """Trains one trial. A launcher calls it, in this process or in another one."""

    search: Search
    runs: Runs

    def prepare(self) -> None:
        self.runs.prepare()

    def folders(self, chosen: Mapping[str, str]) -> list[Path]:
        """Return the folders of the runs with these values."""
        found = map(self.runs.find, self.search.overrides(chosen))
        return [path for path in found if path is not None]

    def __call__(self, overrides: list[str], number: int) -> float | None:
        """Train the next trial of the study, if there is one."""
        process.tune()  # needed if a launcher started this process
        with signals.job() as is_cancelled:
            trial = None if is_cancelled else self.search.draw()
            if trial is not None:
                status = self._train(trial)
                if status > 128:
                    trial.claim.release(is_over=False)
                    signals.end_multirun(status - 128)
        return None

    def _train(self, trial: Trial) -> int:
        """Train a run for each seed until one is pruned or fails; tell the study the mean."""
        values: list[Values] = []
        for i, overrides in enumerate(self.search.overrides(trial.chosen)):
            # the seeds of a trial are pruned by the first one; several objectives are not pruned
            can_prune = i == 0 and not self.search.settings.has_several
            limits = [self._pruning(trial)] if can_prune else []
            try:
                status = self.runs.train(overrides, trial.number, limits)
                if status > 128:
                    return status
                value = self._values(overrides)
            except ConfigError as error:  # these values do not go together
                print(few_lines(f"trial {trial.number} failed: {error}"), flush=True)
                value = None
            if value is None or value == "pruned":
                self.search.tell(trial, None, is_pruned=value == "pruned")
                return 0
            values.append(value)
        self.search.tell(trial, values, is_pruned=False)
        return 0

    def _pruning(self, trial: Trial) -> Limit:
        return Pruning(self.search.settings, trial.number, self.search.settings.objectives[0].name)

    def _values(self, overrides: list[str]) -> Values | Literal["pruned"] | None:
        """Return a run's value for each objective; the worst ones if it diverged, "pruned" if it
        was pruned, None if it failed."""
        from runner.report import jobs

        folder = self.runs.find(overrides)
        if folder is None:
            return None
        while run_folder.holder(folder) is not None:  # another trial has the same values
            sleep(_POLL_SECONDS)
        (job,) = jobs.read([folder])
        if job.status == "pruned":
            return "pruned"
        objectives = self.search.settings.objectives
        if job.has_config and job.has_diverged:
            return [objective.worst for objective in objectives]
        return [_of(job, objective.name) for objective in objectives] if job.is_completed else None


def _of(job: "Job", name: str) -> float:
    """Return the number of a completed run that an objective names."""
    of_result = OF_RESULT.get(name)
    return job.last(name) if of_result is None else float(of_result(job.result))


# objectives that are not in metrics.csv, from result.json
OF_RESULT: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "seconds": lambda result: result["seconds"]["train"],
    "num_parameters": lambda result: result["num_parameters"],
}


_POLL_SECONDS = 0.2
