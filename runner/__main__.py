"""The command line: compose, check, hand over to the task."""

import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, time
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from runner import multirun, own_code, quoting, run_folder, signals, sweep, threads
from runner.compose import (
    CONF,
    NESTED,
    SEARCHES,
    Known,
    compose,
    composed,
    explained,
    jobs,
    opened,
    parse_overrides,
    set_keys,
    to_values,
)
from runner.config import Config, parse, sha256
from runner.console import steady
from runner.errors import ConfigError, RunError, show
from runner.saved import Run, config_of, refuse_links

# What may be said beside `run=FOLDER`; all else is the saved config's.
_ON_A_RUN = ("task", "run", "checkpoint", "format", "steps", "backend", "device", "data.path", "trusted_modules")


_IMPORTED = monotonic()  # a tenth of a second after the interpreter's start


@steady
def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # until the training takes over
    parser = get_args_parser()
    parser.prog, parser.usage = "python -m runner", "%(prog)s [-m] [KEY=VALUE ...]; --help tells more"
    arguments = parser.parse_args()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing: the words are ours
    try:
        if arguments.config_name or arguments.config_path:
            raise ConfigError("--config-name and --config-path are not taken; --config-dir adds a folder of choices")
        if arguments.config_dir and not Path(arguments.config_dir).is_dir():
            raise ConfigError(f"--config-dir must be a folder, got {arguments.config_dir}")
        parsed = parse_overrides(arguments.overrides, arguments.config_dir)
        if arguments.multirun:
            sweep.check_size(parsed)
        each = jobs(arguments.overrides, arguments.multirun, arguments.config_dir)
        if arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion:
            composed(each[0], arguments.config_dir)  # refuses what Hydra would run
            return _hydra(arguments.overrides)
        said = {override.key_or_group for override in parsed}
        swept = [override.key_or_group for override in parsed if override.is_sweep_override()]
        if not said & set(SEARCHES):
            sweep.check_twice(each, [tuple(job) for job in each], swept)
        if "run" in said:
            return max(_on_a_run(job) for job in each)
        if "runs" in said:
            return _compare(each[0], said, arguments.multirun)
        if "resume" in said:
            return _branches(each, sys.argv[1:]) if arguments.multirun else _resume(each[0], sys.argv[1:])
        if "schedule.on_extend" in said:
            raise ConfigError("schedule.on_extend is for a run that is made longer: it needs resume=FOLDER")
        for key in ("checkpoint", "format", "steps"):
            if key in said:
                raise ConfigError(f"{key} is for a finished run: it needs run=FOLDER")
        known: Known = {}
        whole = [composed(job, arguments.config_dir, known) for job in each]
        values = [to_values(one) for one in whole]
        configs = [parse(each_values) for each_values in values]
        own_code.announce(list(dict.fromkeys(name for config in configs for name in config.trusted_modules)))
        if arguments.multirun:
            sweep.check_launch(whole[0].hydra)
            if not said & set(SEARCHES):
                sweep.check_twice(each, [(one["task"], sha256(one)) for one in values], swept)
        command = arguments.overrides
        tune = configs[0].tune
        if tune is not None:
            if not arguments.multirun:
                raise ConfigError("tune=lr makes several runs, which needs -m (--multirun)")
            command = multirun.tuned(parsed, tune, configs)
            each = jobs(command, True, arguments.config_dir)
        alone = {config.task for config in configs} & {"preview", "find_lr"}
        if alone and any({config.task} != alone for config in configs):
            raise ConfigError(f"task must be the same for all jobs where one is {min(alone)}")
        if alone == {"preview"}:
            from runner.tasks.preview import preview

            return preview(configs, each if arguments.multirun else None)
        if alone:
            from runner.tasks.find_lr import find_lr

            return _each(find_lr, values, each if arguments.multirun else None)
        for config in configs:
            if config.task == "compare":
                raise ConfigError("task=compare needs runs=[FOLDER,...], the folders of finished runs")
            if config.task != "train":
                raise ConfigError(f"task={config.task} needs run=FOLDER, the folder of a finished run")
        num_jobs = len(each)
        if said & set(SEARCHES):
            if not arguments.multirun:
                raise ConfigError("search makes several runs, which needs -m (--multirun)")
            num_jobs = whole[0].hydra.sweeper.get("n_trials", num_jobs)
        return _multirun(configs[0], command, num_jobs, whole[0].hydra) if arguments.multirun else _hydra(command)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 2
    except RecursionError:
        print(f"error: the config {NESTED}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _hydra(overrides: Sequence[str], extra: Sequence[str] = ()) -> int:
    """Let Hydra compose once more and launch; the worst status of the jobs that ran in this process."""
    import hydra

    program, *command = sys.argv
    options = [argument for argument in command if argument not in get_args_parser().parse_args(command).overrides]
    statuses: list[int] = []
    refused: list[ConfigError | RunError | OSError] = []

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def job(composed: Any) -> float | None:
        try:
            statuses.append(_train(composed, command, first=not statuses))
        except (ConfigError, RunError, OSError) as error:  # Hydra would put a line of its own before ours
            refused.append(error)
            return None
        return multirun.objective(composed)

    sys.argv = [program, *options, *map(opened, overrides), *extra]
    job()
    if refused:
        raise refused[0]
    return max(statuses, default=0)


def _each(task: Callable[[Any], int], composed: Sequence[Any], names: Sequence[Sequence[str]] | None) -> int:
    """One job after another, named where there are several; the worst status."""
    statuses = []
    for i, values in enumerate(composed):
        if names is not None:
            print(f"job {i}: {run_folder.job_name(names[i])}", flush=True)
        statuses.append(task(values))
    return max(statuses)


def _multirun(config: Config, overrides: Sequence[str], num_jobs: int, hydra: Any) -> int:
    """All jobs in a folder of their own, whatever launches them; then what came of them."""
    from runner.report import comparison

    folder, command = multirun.folder(config), sys.argv[1:]
    threads.keep_limits()
    ended, failed = None, None
    with multirun.launching(folder, str(hydra.launcher["_target_"])) as launch:
        try:
            _hydra(
                overrides,
                [quoting.override("hydra.sweep.dir", str(folder)), *multirun.workers(hydra.launcher, num_jobs)],
            )
            ended = launch.ended if launch else None
        except SystemExit as end:  # a signal: what is done is done
            ended = int(end.code or 0) - 128
        except (ConfigError, RunError, OSError, HydraException, OmegaConfBaseException):
            raise
        except Exception as error:  # the launcher's or the sweeper's: a job's process was killed
            failed = RunError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    if ended is None and failed is None:
        return comparison.write(folder, num_jobs)
    with suppress(RunError):
        comparison.write(folder, num_jobs)
    print(f"go on    {multirun.again(command, folder)}")
    if failed is not None:
        raise failed
    return 128 + (ended or 0)


def _train(composed: Any, command: Sequence[str], first: bool) -> int:
    """One job, alone or of a multirun, where its failure is written down and the others go on."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from runner.tasks.train import Job, train

    values, hydra = to_values(composed), HydraConfig.get()
    overrides = [said.lstrip("+") for said in hydra.overrides.task]
    config, started = parse(values), _process_start() if first else monotonic()
    if hydra.mode == RunMode.RUN:
        return train(Job(config, values, command, overrides, Path(config.output.root) / "runs", None, started))
    job = Job(config, values, command, overrides, Path(hydra.sweep.dir), run_folder.job_name(overrides), started)
    with signals.job() as ended:
        return 128 + ended if ended else _train_one_of_many(job, hydra.job.num)


def _train_one_of_many(job: Any, number: int) -> int:
    """A multirun's job, if nobody else has it."""
    try:  # the folder may be of output.multirun, or of a job that a scheduler has queued again
        with multirun.claimed(job.parent, str(job.name), job.composed) as claim:
            done = " was completed before" if claim.is_completed else ""
            print(f"job {number}: {job.name}{done}", flush=True)
            return 0 if done else _train_claimed(replace(job, path=claim.path), claim.has_checkpoint)
    except run_folder.InUseError as error:
        print(f"job {number}: {job.name} is left to {error.holder}", flush=True)
        return 0
    except (RunError, OSError) as error:  # the folder cannot be made or written to
        print(f"error: {error}", file=sys.stderr)
        return 1


def _train_claimed(job: Any, has_checkpoint: bool) -> int:
    """A multirun's job, from the beginning or from its checkpoint."""
    from runner.resume import resume
    from runner.tasks.train import refuse, train

    try:
        if has_checkpoint:
            job = replace(job, resumed=resume(job.path, []))
        else:
            refuse_links(job.path, "output.multirun")
            run_folder.restart(job.path)
        status = train(job)
    except (ConfigError, RunError, OSError) as error:
        with suppress(RunError, OSError):  # a full disk does not take that either
            refuse(job, error)
        print(f"error: {error}", file=sys.stderr)
        return 1
    if status > 128:
        signals.end_multirun(status - 128)
    return status


def _resume(overrides: Sequence[str], command: Sequence[str]) -> int:
    """A run goes on in its folder, with the config that it saved."""
    from runner.tasks.train import Job, train

    resumed = _resumed(overrides)
    path = resumed.folder
    before = resumed.overrides
    return train(
        Job(resumed.config, resumed.values, command, before, path.parent, path.name, _process_start(), resumed)
    )


def _resumed(overrides: Sequence[str]) -> Any:
    """Where a run goes on, which nothing has touched yet."""
    from runner.resume import resume

    said = parse_overrides(overrides)
    folder = next(override.value() for override in said if override.key_or_group == "resume")
    if not isinstance(folder, str) or not folder:
        raise ConfigError(f"resume must be the folder of a run, got {show(folder)}")
    resumed = resume(Path(folder), said)
    own_code.announce(resumed.values["trusted_modules"])
    return resumed


def _branches(each: Sequence[Sequence[str]], command: Sequence[str]) -> int:
    """Several runs from one checkpoint, each in a folder of its own, and the comparison."""
    from runner.report import comparison
    from runner.resume import branch
    from runner.tasks.train import Job, train

    made = [_resumed(overrides) for overrides in each]
    folder = run_folder.create(Path(made[0].config.output.root) / "multiruns", run_folder.timestamp())
    for i, (overrides, resumed) in enumerate(zip(each, made, strict=True)):
        name = run_folder.job_name([said for said in overrides if not said.startswith("resume=")])
        print(f"job {i}: {name}", flush=True)
        started = monotonic() if i else _process_start()
        here = branch(resumed, run_folder.create(folder, name))
        status = train(Job(here.config, here.values, command, list(overrides), folder, name, started, here))
        if status > 128:
            break
    return status if status > 128 else comparison.write(folder, len(each))


def _compare(job: Sequence[str], said: Collection[str], is_multirun: bool) -> int:
    """Runs that exist, beside each other."""
    other = next((key for key in said if key not in ("task", "runs", "output.root")), None)
    if other is not None or is_multirun:
        raise ConfigError(f"task=compare takes runs and output.root alone, got {'-m' if other is None else other}")
    config = parse(compose(job))
    if config.task != "compare" or not config.runs:
        raise ConfigError(
            f"runs=[FOLDER,...] goes with task=compare and holds at least one folder, got task={config.task}"
        )
    from runner.tasks.compare import compare

    return compare(config.runs, Path(config.output.root))


def _on_a_run(overrides: Sequence[str]) -> int:
    """The tasks that take a finished run's folder; nothing is composed but what it saved."""
    said = parse_overrides(overrides)
    keys = {override.key_or_group: override.value() for override in said}
    if not isinstance(keys["run"], str) or not keys["run"]:
        raise ConfigError(f"run must be the folder of a run, got {show(keys['run'])}")
    folder = Path(keys["run"])
    values = set_keys(
        config_of(folder), [override for override in said if override.key_or_group != "data.path"], _ON_A_RUN
    )
    config = parse({**values, "resume": None})
    own_code.announce(config.trusted_modules)
    refuse_links(folder, "run")
    run = Run(folder, config, config.checkpoint)
    source = keys.get("data.path")
    if (source is None) == (config.task == "predict"):
        raise ConfigError("task=predict needs data.path=FILE, and no other task takes it")
    match config.task:
        case "evaluate":
            from runner.tasks.evaluate import evaluate

            return evaluate(run)
        case "predict":
            from runner.tasks.predict import predict

            return predict(run, str(source))
        case "export":
            from runner.tasks.export import export

            return export(run, config.format)
        case "verify":
            from runner.tasks.verify import verify

            return verify(run, config.steps)
    raise ConfigError(f"run=FOLDER goes with task=evaluate, predict, export or verify, got task={config.task}")


def _process_start() -> float:
    """When this process began, by time.monotonic."""
    import psutil

    created = float(psutil.Process().create_time())
    if sys.platform == "linux":  # there it is the boot's whole second and the time since the boot
        from time import CLOCK_BOOTTIME, clock_gettime

        age = clock_gettime(CLOCK_BOOTTIME) - (created - psutil.boot_time())
    else:
        age = time() - created
    began = monotonic() - age
    # a shell may have become this process, whose age is then the shell's
    return began if _IMPORTED - began < 5 else _IMPORTED


if __name__ == "__main__":
    sys.exit(main())
