"""Use Hydra to compose configs, launch jobs, and run Hydra's own options.

This is the only file that imports hydra._internal. Hydra has no public API for a config loader with
its own search path, or for launching jobs with configs that are already composed.
tests/cli/test_hydra_bridge.py fails and names Hydra's version if one of these internals changes.
"""

import logging
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import CompletionPlugin
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from runner.cli.overrides import is_value, parse_override
from runner.cli.pool import Ended, Pool, Task
from runner.config import yaml_files
from runner.config.conf_folder import CONF, bases, shared
from runner.errors import ConfigError


def argument_parser() -> ArgumentParser:
    """Hydra's options; `--version` is replaced because Hydra's shows only its own version."""
    parser = ArgumentParser(
        prog="python -m runner",
        usage="%(prog)s [-m] [KEY=VALUE ...]; see --help",
        description="Hydra",
        parents=[get_args_parser()],
        add_help=False,
        conflict_handler="resolve",
    )
    parser.add_argument("--version", action="store_true", help="Show the versions and exit")
    parser.add_argument("--schema", action="store_true", help="print a JSON schema of the config")
    parser.add_argument("--json", action="store_true", help="print task=list as JSON")
    return parser


class _OwnFiles(FileConfigSource):  # type: ignore[misc]
    """A config source for conf/, `conf://FOLDER`, that reads YAML in a tenth of Hydra's time."""

    @staticmethod
    def scheme() -> str:
        return "conf"

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path) / self._normalize_file_name(config_path)
        text = path.read_text("utf-8")
        return ConfigResult(
            config=yaml_files.of_own(text),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=self._get_header_dict(text[:512]),
        )


class _UserFiles(FileConfigSource):  # type: ignore[misc]
    """A config source for the folder of --config-dir, `user://FOLDER`, that reads YAML strictly."""

    @staticmethod
    def scheme() -> str:
        return "user"

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path) / self._normalize_file_name(config_path)
        text = yaml_files.read_text(path)
        try:
            header = self._get_header_dict(text[:512])
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
        config = yaml_files.parse(text, path)
        _check_bases(config, path)
        return ConfigResult(
            config=config,
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=header,
        )


def _check_bases(config: DictConfig, path: Path) -> None:
    """Refuse a key of a user's file that a base of conf/ overrides."""
    entries = config.get("defaults")
    if not isinstance(entries, ListConfig) or "_self_" not in entries:
        return
    for entry in entries[entries.index("_self_") + 1 :]:
        if entry in bases(path.parent.name):
            for key in shared(path.parent.name, entry):
                if key in config:
                    raise ConfigError(
                        f"{path}: {key} has no effect, because the defaults list has {entry} "
                        f"after _self_; write defaults: [{entry}, _self_]"
                    )


class _Loader(ConfigLoaderImpl):  # type: ignore[misc]
    """Leaves the bases out of a group's choices: shell completion does not offer them."""

    def get_group_options(self, *arguments: Any, **more: Any) -> list[str]:
        options = super().get_group_options(*arguments, **more)
        return [option for option in options if not option.startswith("_")]


class _ShownLoader(_Loader):
    """Loads the config that a run with these overrides has, for Hydra's options that print it:
    Hydra itself would refuse a key that no file of conf/ has, such as data.fold."""

    own: DictConfig  # the run's config, composed and checked

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *rest: Any, **named: Any
    ) -> DictConfig:
        parsed = {line: parse_override(line) for line in overrides}
        kept = [line for line, override in parsed.items() if not is_value(override)]
        config: DictConfig = super().load_configuration(config_name, kept, *rest, **named)
        with open_dict(config):
            for key, value in self.own.items_ex(resolve=False):
                if key != "hydra":
                    config[key] = value
            tasks = [line for line, override in parsed.items() if not override.is_hydra_override()]
            config.hydra.overrides.task = tasks
        return config


def _loader(config_dir: str | None, kind: type[_Loader] = _Loader) -> _Loader:
    """Make a config loader for conf/ and the folder of --config-dir."""
    for source in (_OwnFiles, _UserFiles):
        SourcesRegistry.instance().register(source)
    _forget_other_sweeper()
    path = create_config_search_path(f"{_OwnFiles.scheme()}://{CONF}")
    if config_dir:
        folder = f"{_UserFiles.scheme()}://{Path(config_dir).resolve()}"
        path.prepend("command-line", folder, anchor=SearchPathQuery(provider="schema"))
    return kind(path)


def _forget_other_sweeper() -> None:
    """Drop the configs of the package hydra-optuna-sweeper, if it is installed: Hydra would take
    them as the schema of ours, which have the same names."""
    Plugins.instance()  # imports the package
    sweepers = ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {})
    for name in ("optuna.yaml", "sampler"):
        sweepers.pop(name, None)


class Composition(NamedTuple):
    own: DictConfig  # a run's config
    hydra: DictConfig  # hydra.*


def load(config_dir: str | None, overrides: Sequence[str]) -> Composition:
    """Compose these overrides with Hydra."""
    with warnings.catch_warnings():  # Hydra warns about changes in its next version
        warnings.simplefilter("ignore", UserWarning)
        whole: DictConfig = _loader(config_dir).load_configuration(
            "config", [*overrides], RunMode.RUN
        )
    with open_dict(whole):
        return Composition(own=whole, hydra=whole.pop("hydra"))


def apply(values: Sequence[Override], whole: DictConfig) -> None:
    """Set the values of these overrides on a composed config, as Hydra does."""
    ConfigLoaderImpl._apply_overrides_to_config([*values], whole)


def show(arguments: Namespace, config_dir: str | None, own: DictConfig) -> int:
    """Run --hydra-help, --cfg, --info or --shell-completion. `own` is the config of a run with the
    overrides."""
    loader = _loader(config_dir, _ShownLoader)
    loader.own = own
    hydra = Hydra.create_main_hydra2("runner", loader.get_search_path())
    hydra.config_loader = loader
    parser, overrides = argument_parser(), arguments.overrides
    if arguments.hydra_help:
        hydra.hydra_help(config_name="config", args_parser=parser, args=arguments)
    elif arguments.cfg:
        hydra.show_cfg("config", overrides, arguments.cfg, arguments.package, arguments.resolve)
    elif arguments.info:
        logging.disable(logging.NOTSET)  # Hydra prints --info as log lines
        hydra.show_info(arguments.info, config_name="config", overrides=overrides)
    else:
        with suppress(HydraException):  # of a line that is not complete yet
            hydra.shell_completion(config_name="config", overrides=overrides)
    return 0


def shells() -> list[str]:
    """The shells that --shell-completion knows."""
    return sorted(each.provides() for each in Plugins.instance().discover(CompletionPlugin))


def launch(
    hydra: DictConfig,
    folder: Path,
    overrides: Sequence[str],
    task: Task,
    jobs: Sequence[Sequence[str]] | None = None,
    first: int = 0,
    pool: Pool | None = None,
) -> None:
    """Let `pool` or the launcher run `task` for each job, in this process or in others. `hydra` is
    the checked hydra.* config; `overrides` come from the command line.

    Without `jobs`, Hydra's basic sweeper makes them; the first of `jobs` has the number `first`.
    """
    JobRuntime.instance().set("name", "twinrun")
    setup_globals()  # registers the resolvers that hydra.* uses
    config = OmegaConf.create({"hydra": hydra})
    with open_dict(config):
        config.hydra.mode = RunMode.MULTIRUN
        config.hydra.sweep.dir = str(folder).replace("${", r"\${")
        config.hydra.overrides.task = [*overrides]
    context = HydraContext(config_loader=_JobLoader(), callbacks=Callbacks())
    plugins = Plugins.instance()
    if pool is not None:  # Hydra makes launchers of the package hydra_plugins only
        plugins.instantiate_launcher = partial(_pool_launcher, pool)
    try:
        sweeper = plugins.instantiate_sweeper(
            config=config, hydra_context=context, task_function=_ForHydra(task)
        )
    finally:
        vars(plugins).pop("instantiate_launcher", None)
    if jobs is None:
        sweeper.sweep([*overrides])
        return
    size = sweeper.max_batch_size or max(1, len(jobs))
    for start in range(0, len(jobs), size):
        batch = [[*job] for job in jobs[start : start + size]]
        for done in sweeper.launcher.launch(batch, initial_job_idx=first + start):
            _ = done.return_value  # raises the error of the job, if it has one


class PoolLauncher(Launcher):  # type: ignore[misc]
    """Launches jobs in a pool of processes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def setup(self, *, task_function: "_ForHydra", **_: Any) -> None:
        self._task = task_function.task

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        jobs = self._pool.run(self._task, job_overrides, initial_job_idx)
        return [_returned(job) for job in jobs]


def _pool_launcher(pool: Pool, **given: Any) -> PoolLauncher:
    launcher = PoolLauncher(pool)
    launcher.setup(**given)
    return launcher


def _returned(job: Ended) -> JobReturn:
    is_failed = job.error is not None
    done = JobReturn(status=JobStatus.FAILED if is_failed else JobStatus.COMPLETED)
    done.return_value = job.error if is_failed else job.value
    return done


class _JobLoader(ConfigLoaderImpl):  # type: ignore[misc]
    """Gives a launcher the hydra.* config with a job's overrides. The job's own config is not in
    it: the task has composed and checked that already."""

    def __init__(self) -> None:
        super().__init__(_loader(None).get_search_path())

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        config = deepcopy(master_config)
        config.hydra.overrides.task = sweep_overrides
        return config


class _ForHydra:
    """Adapts a task to Hydra, which calls it with the job's config, empty here."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, _: Any) -> float | None:
        hydra = HydraConfig.get()
        return self.task([*hydra.overrides.task], int(hydra.job.num))
