"""task=train: one run, from the config to its folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from runner import dispatcher, user_code
from runner.components import loss_scale
from runner.components.optimizers import Custom
from runner.config import times
from runner.config.callbacks import OwnCallback
from runner.config.given import Given, objects
from runner.config.schema import Config, Trainer, parse, sha256
from runner.config.stand_in import with_lr
from runner.data.order import Chunks, InOrder, Order
from runner.errors import IF_DIVERGED, ConfigError, RunError
from runner.errors import show as show_value
from runner.machine import devices, threads
from runner.machine.malloc import release_freed_pages
from runner.plan import Plan, check_devices, plan, replanned
from runner.run import (
    agents,
    callbacks,
    certificate,
    checkpoint,
    first_weights,
    launch,
    native,
    other_process,
    outside,
    position,
    ranks,
    run_folder,
    strict_json,
    trackers,
)
from runner.run.channel import LostError
from runner.run.failure import why_failed
from runner.run.observer import Limit, Observer
from runner.run.progress import show
from runner.run.pruning import Pruning
from runner.run.resume import Resumed, check, with_saved_choices
from runner.run.signals import Signals
from runner.run.training import Training
from runner.schedules.stall import Stall
from runner.spec import INEXACT, Backend, RunSpec, TrainState, first_state
from runner.text import quoting
from runner.text.console import Console, capture, log_traceback, tree
from runner.text.numbers import show_metric

if TYPE_CHECKING:
    from runner.tasks import auto_lr


@dataclass(frozen=True)
class Call:
    """A call of runner.train or runner.resume in Python: what a run of it has that a run of the
    command line has not. The run leaves the process as it was."""

    given: Given
    shown: TextIO  # where lines for the user go
    callbacks: Sequence[Any] = ()  # runner.Observer, or callbacks of the framework
    # gets the run's folder and config before training
    on_folder: Callable[[Path, Config], None] = lambda path, config: None


@dataclass(frozen=True)
class Job:
    """A run to train: its config, its command, and where its folder goes."""

    config: Config
    composed: Mapping[str, Any]  # the config as plain values, as config.yaml keeps it
    command: Sequence[str]  # the arguments of `python -m runner`; in Python, of runner.train
    overrides: list[str]
    parent: Path
    name: str | None  # of the folder; None: date, time, schedule and backend
    started: float  # by time.monotonic, which is never set back
    resumed: Resumed | None = None
    config_dir: str | None = None  # --config-dir
    path: Path | None = None  # of a multirun's job: its folder, which exists and is locked
    call: Call | None = None  # None: a command line
    team: launch.Team | None = None  # of one process of a run of several
    finds_lr: bool = False  # optimizer.lr=auto: `config` has a number that stands in for it
    limits: Sequence[Limit] = ()  # of a search, which may end the run

    @property
    def whole_command(self) -> list[str]:
        """Return the command or call that started the run, for environment.json."""
        start = ["python", "-m", "runner"]
        if self.call is not None:
            start = [f"runner.{'train' if self.resumed is None else 'resume'}"]
        return [*start, *self.command]

    def folder(self) -> Path:
        """Make the run's folder with its config.yaml; for a run that resumes, return its folder."""
        config = self.config
        if self.resumed is not None:
            return self.resumed.folder
        if self.path is not None:
            return self.path
        name = self.name or f"{run_folder.timestamp()}_{config.schedule.name}_{config.backend}"
        path = run_folder.create(self.parent, name)
        run_folder.write_config(path, self.composed)
        return path

    def announce(self, path: Path) -> None:
        """Tell those who wait for the run its folder."""
        if self.call is not None:
            self.call.on_folder(path, self.config)
        if self.team is not None:
            self.team.tell("folder", str(path))

    def callbacks(self) -> dict[str, Any]:
        """Make the config's `callbacks`; those of a call in Python follow. Return them by name."""
        made = {}
        for i, callback in enumerate(self.config.callbacks):
            if not isinstance(callback, OwnCallback):  # runner.run.callbacks makes it
                continue
            of = native.backend_of(callback.code)
            if of not in (None, self.config.backend):  # before it is imported
                raise ConfigError(
                    f"callbacks[{i}]._target_ {callback.code} needs backend={of}, got "
                    f"{self.config.backend}"
                )
            try:
                made[f"callbacks[{i}]._target_ {callback.code}"] = user_code.make(callback.section)
            except ValueError as error:
                raise ConfigError(f"callbacks[{i}].{error}") from error
        for i, passed in enumerate(self.call.callbacks if self.call else (), len(made)):
            made[f"callbacks[{i}] {type(passed).__qualname__}"] = passed
        return made

    def observers(self, prepared: Plan, backend: Backend) -> list[Observer]:
        """Return the run's callbacks as observers. Raise ConfigError for one that cannot work."""
        made = self.callbacks()
        natives = {}
        for name, callback in made.items():
            of = native.framework_of(callback)
            if of is not None and of != self.config.backend:
                raise ConfigError(
                    f"{name} is a callback of {of.capitalize()}, which needs backend={of}, got "
                    f"{self.config.backend}"
                )
            if of is not None:
                natives[name] = callback
            elif not isinstance(callback, Observer):
                raise ConfigError(
                    f"{name} must make a runner.Observer or a callback of the framework, got "
                    f"{type(callback).__module__}.{type(callback).__qualname__}"
                )
        if natives and self.config.num_processes > 1:
            raise ConfigError(
                f"{next(iter(natives))} needs devices=1, got {self.config.devices}; a "
                f"runner.Observer can observe a run on several devices"
            )
        if natives and self.config.trainer.precision == "exact":
            raise ConfigError(
                f"{next(iter(natives))} needs trainer.precision={INEXACT}, got exact; a "
                f"runner.Observer can observe an exact run"
            )
        wrapped = backend.observers(natives, len(prepared.data.val) > 0) if natives else []
        made.update(zip(natives, wrapped, strict=True))
        observers: list[Observer] = [*made.values()]
        if self.resumed is not None:
            native.refuse_states(observers, self.resumed.numbers)
        for observer in observers:
            if isinstance(observer, native.NativeCallback):
                continue  # its state begins with its first hook
            try:
                strict_json.dumps(observer.state())
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"callbacks: the state of {type(observer).__qualname__} must be numbers, "
                    f"texts, lists and dicts: {error}"
                ) from error
        return observers

    def at_lr(self, lr: float) -> "Job":
        """Return the same job with a base rate in place of optimizer.lr=auto."""
        values = with_lr(self.composed, lr)
        others = [item for item in self.overrides if item.partition("=")[0] != "optimizer.lr"]
        return replace(
            self,
            composed=values,
            config=parse(values) if self.call is None else self.call.given.bind(parse(values)),
            overrides=[*others, f"optimizer.lr={lr!r}"],
            finds_lr=False,
        )

    def result(self) -> dict[str, Any]:
        """Return the entries of result.json of a run that has not begun."""
        return {
            "status": "failed",
            "backend": self.config.backend,
            "schedule": self.config.schedule.name,
            "seed": self.config.seed,
            "overrides": self.overrides,
            "config_dir": self.config_dir,
            "steps": 0,
            "epochs": 0,
            "metrics": {},
            "best": None,
            "stopped_early": False,
            "stopped_by": None,
            "skipped": [],
            "resumed_from": None,
            "seconds": {"startup": None, "train": None, "compile": None, "total": None},
            "weights_sha256": None,
            "config_sha256": sha256(self.composed),
            "num_parameters": None,
        }

    def seconds(self, began: float, ended: float, compiling: float) -> dict[str, float]:
        """Return the run's times: until the first chunk, from there to the end of the last one, the
        part of this in calls that compiled, and the total."""
        spans = {"startup": began - self.started, "train": ended - began, "compile": compiling}
        spans["total"] = monotonic() - self.started
        return {name: round(span, 3) for name, span in spans.items()}


def refuse(job: Job, error: Exception) -> None:
    """Write the folder of a multirun's job that cannot start: its config and the reason."""
    run_folder.write_json(job.folder() / "result.json", {**job.result(), "error": str(error)})


def check_resumed(resumed: Resumed) -> None:
    """Refuse a run that cannot resume. Writes nothing."""
    prepared = plan(resumed.config)
    network, config = prepared.network, prepared.config
    check(
        resumed,
        prepared,
        first_state(network, config.optimizer, prepared.model.dtype, config.seed),
    )


def train(job: Job) -> int:
    """Train in a new folder, or resume in an existing one. Return the exit status."""
    config, resumed, call = job.config, job.resumed, job.call
    _check_batch_sizes(job)
    trackers.check(config, is_resumed=resumed is not None)
    if job.team is None and call is None:
        check_processes(config)
    if config.num_processes > 1 and job.team is None:
        return _train_in_processes(job)
    shown = call.shown if call else None
    with capture(shown) as (console, captured), Signals(call is not None) as signals:
        prepared = _planned(job, console)
        warnings = [] if job.finds_lr else prepared.check_schedule()
        start = first_state(prepared.network, config.optimizer, prepared.model.dtype, config.seed)
        if resumed is not None:
            check(resumed, prepared, start)
            prepared, resumed = with_saved_choices(resumed, prepared)
        backend = dispatcher.load(config.backend)
        prepared = _on_device(prepared, backend)
        if signals.received is not None:
            return _interrupted(console, signals)
        prepared = _with_process_threads(prepared, backend) if call else prepared
        num_threads = threads.reserve(prepared.model.threads, config.num_processes)
        if call is not None or backend.can_use_threads(num_threads):
            if isinstance(config.optimizer, Custom):
                _try_optimizer(prepared, backend, num_threads)
            observers = job.observers(prepared, backend)
            start, loaded = (start, []) if resumed else first_weights.load(start, prepared, backend)
            job, prepared, found = _with_lr(job, prepared, backend, start, console, signals)
            prepared = native.with_single_updates(prepared, observers)
            if signals.received is not None:
                return _interrupted(console, signals)
            path = job.folder()
            job.announce(path)
            with nullcontext() if job.path is not None else run_folder.locked(path):
                captured.into(path / "run.log")
                warnings += [] if found is None else found.write(path)
                _say_first(job, prepared, warnings, console)
                console.say_all([*loaded, *native.notes(observers)])
                begun = _begin(job, resumed, prepared, start, path, console, signals)
                if begun is None:
                    return _interrupted(console, signals)
                return _train(job, prepared, backend, begun, path, console, signals, observers)
    devices.release()  # for the other process
    job_and_lock = job, run_folder.lock_to_share(job.path)
    return other_process.run(_train_in_other_process, job_and_lock, num_threads)


def _with_lr(
    job: Job,
    prepared: Plan,
    backend: Backend,
    start: TrainState,
    console: Console,
    signals: Signals,
) -> "tuple[Job, Plan, auto_lr.Found | None]":
    """Return the job and its plan with the base rate that optimizer.lr=auto finds, and how it was
    found. With a number, and if a signal comes, return them as they are."""

    def planned(values: Mapping[str, Any]) -> Plan:
        config = parse(values)
        if job.call is not None:
            keeps_schedule = values["schedule"] == job.composed["schedule"]
            given = job.call.given if keeps_schedule else replace(job.call.given, schedule=None)
            config = given.bind(config)
        again = replanned(prepared, config)
        model = prepared.model
        model = replace(again.model, threads=model.threads, device=model.device)
        return replace(again, model=model)

    if not job.finds_lr:
        return job, prepared, None
    from runner.tasks import auto_lr

    auto_lr.check(prepared)
    try:
        search = auto_lr.Search(job.composed, planned, prepared, backend, start, console, signals)
        found = search.find()
    except (ConfigError, RunError):
        raise
    except Exception as error:
        raise RunError(
            f"optimizer.lr=auto finds no rate: {why_failed(error, job.config)}"
        ) from error
    return (job, prepared, None) if found is None else (job.at_lr(found.lr), found.plan, found)


def _planned(job: Job, console: Console) -> Plan:
    """Return the plan of a run. Name a new single run on a terminal, since its framework's import
    takes a second."""
    prepared = plan(job.config)
    if job.resumed is None and job.name is None and job.call is None:
        console.greet(f"train    {_title(job.config, job.finds_lr)}")
    return prepared


def _on_device(prepared: Plan, backend: Backend) -> Plan:
    """Return the plan with the device that the run uses from now on."""
    config = prepared.config
    device = devices.pin(config.device_name, backend.devices(), config.num_processes)
    return replace(prepared, model=replace(prepared.model, device=device))


def _try_optimizer(prepared: Plan, backend: Backend, num_threads: int) -> None:
    """Refuse an optimizer of the user's own that cannot train the model."""
    dispatcher.prepare(backend, num_threads)
    optimizer = prepared.config.optimizer
    backend.check_optimizer(optimizer, prepared.model, prepared.groups)


def _with_process_threads(prepared: Plan, backend: Backend) -> Plan:
    """Return the plan with the number of threads that the process has, if a run cannot have its
    own. Only a number that the user asks for is set, and only while the framework allows it."""
    requested, fixed = prepared.config.trainer.threads, backend.fixed_threads()
    if fixed in (None, prepared.model.threads):
        return prepared
    if requested != "auto":
        if backend.can_use_threads(requested):
            return prepared
        raise ConfigError(
            f"trainer.threads must be auto or {fixed}, the number that backend={backend.name} has "
            f"in this process, got {requested}"
        )
    return replace(prepared, model=replace(prepared.model, threads=fixed))


def _say_first(job: Job, prepared: Plan, warnings: Sequence[str], console: Console) -> None:
    """Print what the user should know before the training."""
    if job.config.print_config:
        console.say_all(tree(job.composed).splitlines())
    console.say_all(f"warning: {warning}" for warning in warnings)
    console.say_all(prepared.notes)
    if remark := prepared.remark_on_compiling():
        console.say(remark)
    if job.call is None:
        if remark := prepared.remark_on_threads():
            console.say(remark)
        return
    given = job.call.given
    if given.keeps_weights and job.resumed is None:
        console.say(
            f"model    {given.names()['model']} is an instance: it keeps its weights, whatever the "
            f"seed; pass a class or a function for first weights of the seed"
        )
    saved = job.resumed.numbers.get("threads") if job.resumed else None
    if saved not in (None, prepared.model.threads):
        console.say(
            f"threads  {prepared.model.threads}, which this process has; {saved} before, so sums "
            f"may round differently"
        )


def _environment(job: Job, prepared: Plan, start: TrainState) -> dict[str, Any]:
    """Return the content of environment.json."""
    given = job.call.given if job.call else Given()
    passed = objects(given, prepared.network)
    if "model" in passed and job.resumed is None:
        passed["model"]["first_weights_sha256"] = checkpoint.weights_sha256(start)
    code = {
        **user_code.hashes(job.composed),
        **{f"{group} {entry['name']}": entry["sha256"] for group, entry in passed.items()},
    }
    known = {name: digest for name, digest in code.items() if digest is not None}
    model = prepared.model
    values = run_folder.environment(model.device, model.threads, job.whole_command, known)
    values |= {"overrides": job.overrides, "config_dir": job.config_dir}
    if not prepared.built.is_repeatable:
        values["is_repeatable"] = False
    return {**values, "objects": passed} if passed else values


def _check_batch_sizes(job: Job) -> None:
    """Refuse two sizes of the batch, of which one would have no effect."""
    keys = {override.partition("=")[0].lstrip("+") for override in job.overrides}
    both = {"trainer.batch_size", "trainer.global_batch_size"}
    if job.resumed is None and both <= keys and job.config.trainer.global_batch_size is not None:
        raise ConfigError(
            "trainer.batch_size is the rows of each device and trainer.global_batch_size those of "
            "all; set one of them"
        )


def _train_in_processes(job: Job) -> int:
    """Train with a process for each device, of which the first one has the folder."""
    if job.call is not None:
        raise ConfigError(
            f"devices must be 1 in Python, got {job.config.devices}: the objects of this process "
            f"cannot be passed on to others; use python -m runner"
        )
    check_devices(job.config)
    lock, leader = run_folder.lock_to_share(job.path), agents.leader()
    others = None if leader is None else leader.run(job.composed)
    num, timeout = job.config.num_processes, times.seconds(job.config.trainer.process_timeout)
    return launch.launch(_train_as_rank, (job, lock), num, others, timeout)


def check_processes(config: Config) -> None:
    """Refuse a config of other processes than a launcher has started."""
    leader = agents.leader()
    if leader is not None:
        leader.found.check(config)
    else:
        outside.check_alone(config)


def _train_as_rank(job_and_lock: tuple[Job, Any], team: launch.Team) -> int:
    job, lock = job_and_lock
    if team.world.rank == 0:
        return _train_in_other_process((replace(job, team=team), lock))
    return follow(job.composed, team)


def follow(composed: Mapping[str, Any], team: launch.Team) -> int:
    """Train as another rank than 0, with the config of rank 0."""
    config = parse(composed)
    prepared, backend = plan(config), dispatcher.load(config.backend)
    if isinstance(config.optimizer, Custom):  # rank 0 tries it
        dispatcher.prepare(backend, prepared.model.threads)
    ranks.follow(team, backend, prepared)
    return 0


def _train_in_other_process(job_and_lock: tuple[Job, Any]) -> int:
    job, lock = job_and_lock
    with run_folder.use_lock(job.path, lock):
        return train(job)


def _interrupted(console: Console, signals: Signals) -> int:
    """Return the exit status of a run that a signal ends before its first update."""
    assert signals.received is not None
    console.say("interrupted before the training began")
    return 128 + signals.received


def _begin(
    job: Job,
    resumed: Resumed | None,
    prepared: Plan,
    start: TrainState,
    path: Path,
    console: Console,
    signals: Signals,
) -> TrainState | None:
    """Write the first files of a run, or prepare its files for resuming. Return its first state;
    None if a signal came."""
    environment = _environment(job, prepared, start)
    if resumed is None:
        run_folder.write_json(path / "environment.json", environment)
        run_folder.write_json(path / "data.json", prepared.data.description())
        return start
    _move_stream(resumed, prepared, console, signals)
    if signals.received is not None:
        return None
    _prepare_resume(resumed, prepared.order, environment, console)
    return resumed.state


def _move_stream(resumed: Resumed, prepared: Plan, console: Console, signals: Signals) -> None:
    """Move an iterable of training rows to where the run resumes."""
    step = resumed.state.step
    if prepared.data.stream is None or resumed.is_over(prepared.order.total_steps):
        return
    position.resume(
        prepared.reader,
        step,
        resumed.numbers["stream"],
        prepared.config.trainer.strict,
        console.say,
        lambda: signals.received is not None,
    )


def _prepare_resume(
    resumed: Resumed, order: Order | InOrder, environment: Mapping[str, Any], console: Console
) -> None:
    """Print where the run resumes and which keys have changed; remove records and checkpoints of
    the steps that it will train again."""
    folder, step, is_over = resumed.folder, resumed.state.step, resumed.is_over(order.total_steps)
    console.say_all(resumed.notes)
    console.say(f"resume   {folder} from step {step}")
    for name, digest in (run_folder.code_of(folder) or {}).items():
        if name != "model.weights" and environment["code"].get(name) != digest:
            console.say(
                f"warning: the code of {name} has changed since step {step}: the run continues "
                f"with the new code, so its results differ from those of an uninterrupted run"
            )
    for key, (before, after) in resumed.changes.items():
        if key == "checkpoint":  # the line above names the step
            continue
        console.say(f"changed  {key} {show_value(before)} -> {show_value(after)}")
    if (folder / "result.json").is_file():  # there is no result until the run ends
        run_folder.write_json(
            folder / "result.json",
            {**_read(folder, "result.json", console), "status": "interrupted"},
        )
    run_folder.tidy(folder)
    checkpoint.rewind_to(folder, step, checkpoint.best_saved(folder, step, resumed.numbers["best"]))
    if is_over:
        console.say("nothing is left to train; writing the final files")
    else:
        run_folder.rewind(folder, run_folder.records(folder, step, order.epochs))
    callbacks.rewind(folder, step, is_over or order.is_epoch(step))
    run_folder.write_config(folder, resumed.values)
    before = _read(folder, "environment.json", console) or dict(environment)
    resumptions = [*before.get("resumed", []), {"step": step, **environment}]
    run_folder.write_json(folder / "environment.json", {**before, "resumed": resumptions})


def _read(folder: Path, name: str, console: Console) -> dict[str, Any]:
    """Read a file that no result depends on. If it is damaged, warn: a new one will be written."""
    try:
        return run_folder.read_json(folder / name)
    except ConfigError as error:
        console.say(f"warning: {error}; writing a new one")
        return {}


def _train(
    job: Job,
    prepared: Plan,
    backend: Backend,
    start: TrainState,
    path: Path,
    console: Console,
    signals: Signals,
    observers: Sequence[Observer],
) -> int:
    order, spec = prepared.order, prepared.run_spec()
    adapt = prepared.config.trainer.steps_per_call == "auto"
    chunks = prepared.chunks(start.step, prepared.checkpoints(), adapt)
    result = {**job.result(), "num_parameters": prepared.num_parameters}
    is_over = job.resumed is not None and job.resumed.is_over(order.total_steps)
    named = callbacks.observers(prepared, backend, path, console)
    observers = [*observers, *named, *_trackers(job, order.total_steps, path, console)]
    with (
        console.progress(order.total_steps, start.step),
        Training(
            prepared,
            path,
            console,
            signals,
            spec.tables,
            result["config_sha256"],
            job.started,
            resumed=job.resumed.numbers if job.resumed else None,
            is_over=is_over,
            observers=observers,
            limits=job.limits,
        ) as training,
    ):
        trainer = None if is_over else backend
        result |= _updates(job, prepared, spec, trainer, start, chunks, training)
        ended = monotonic()
        if job.path is None:  # the next job of a multirun would use the pages
            release_freed_pages()  # the picture needs some
        picture = _draw(path, _title(job.config))
        result |= {
            **training.result(),
            "resumed_from": job.resumed and start.step,
            "seconds": job.seconds(chunks.began or ended, ended, training.compile_seconds),
        }
        try:
            run_folder.write_json(path / "result.json", result, is_durable=True)
        except RunError as error:
            console.say(f"warning: {error}")
            result["status"] = "failed"
        training.on_end(result)
    _print_outcome(console, result, job, path, picture)
    return 128 + signals.received if signals.received else int(result["status"] != "completed")


def _trackers(job: Job, total_steps: int, path: Path, console: Console) -> Sequence[Observer]:
    """Return the observers that pass the records on to the trackers."""
    if not job.config.trackers:
        return ()
    if "comparison" in job.config.tracker.artifacts and job.path is None and job.resumed is None:
        console.say("note: tracker.artifacts has comparison, which only a multirun has (-m)")
    tracked = trackers.TrackedRun(
        path,
        Path(job.config.output.root),
        trackers.group_of(job.path),
        trackers.hyperparameters(job.composed),
        job.config.tracker.artifacts,
    )
    return trackers.followers(job.config.trackers, tracked, total_steps, console)


def _updates(
    job: Job,
    prepared: Plan,
    spec: RunSpec,
    backend: Backend | None,
    start: TrainState,
    chunks: Chunks,
    training: Training,
) -> dict[str, Any]:
    """Make the run's updates; without a backend, make none. Return entries of result.json."""
    try:
        spec = replace(spec, tables=prepared.tables(training.stalls.plateau))
        state = start
        if backend is not None:
            for limit in training.limits:
                limit.prepare(backend, spec, start, chunks)
            if job.team is not None:
                state = ranks.lead(job.team, backend, prepared, spec, start, chunks, training)
            else:
                on_chunk, on_chunk_start = training.on_chunk, training.on_chunk_start
                state = backend.train(spec, start, chunks, on_chunk, on_chunk_start)
        training.checkpoints.finish()
    except LostError:
        raise
    except Exception as error:
        log_traceback()
        with suppress(Exception):  # the first error is the one to report
            training.checkpoints.finish()
        return {"error": why_failed(error, job.config)}
    is_finished = state.step == prepared.order.total_steps or training.stopped_by is not None
    result: dict[str, Any] = {
        "status": _status(training.stopped_by, is_finished),
        "weights_sha256": checkpoint.weights_sha256(state),
    }
    if spec.scales_loss:
        result["overflowed"] = loss_scale.split(state.slots)[1].num_skipped
    by_process = {}
    if prepared.normalizes_by_process:  # the results depend on their number
        by_process = {"sync_batchnorm": False, "processes": prepared.config.num_processes}
    result |= by_process
    if spec.precision == "exact":
        result |= certificate.write(training.path, job.composed, state, by_process)
    return result


def _status(stopped_by: str | None, is_finished: bool) -> str:
    """Return the status of a run that did not fail."""
    if stopped_by == Pruning.cause:
        return "pruned"
    return "completed" if is_finished else "interrupted"


def _title(config: Config, finds_lr: bool = False) -> str:
    """Return a run in one line: data, model, optimizer, schedule, base rate, seed and backend."""
    source = getattr(config.data, "path", None)
    data = f"{config.data.name} {Path(source).name}" if source else config.data.name
    names = (data, config.model.name, config.optimizer.name, config.schedule.name)
    lr = "auto" if finds_lr else f"{config.optimizer.lr:g}"
    return f"{', '.join(names)}, lr {lr}, seed {config.seed}, {config.backend}"


def _draw(path: Path, title: str) -> Path | None:
    """Draw the picture. An error is only logged in run.log: it must not fail the run."""
    from runner.report import curves

    try:
        return curves.draw(path, title)
    except Exception:
        log_traceback()
        return None


def _say_ending(console: Console, result: Mapping[str, Any], trainer: Trainer) -> None:
    """Print which updates were skipped, and what ended the run early."""
    if result["skipped"]:
        listed = ", ".join(map(str, result["skipped"]))
        console.say(
            f"warning: skipped {len(result['skipped'])} updates without a finite loss: {listed}"
        )
    if result.get("overflowed"):
        console.say(
            f"precision 16-mixed: the gradient of {result['overflowed']} updates was not "
            f"finite; they were skipped, and the loss scale was halved each time"
        )
    if result["stopped_early"]:
        console.say(
            f"stopped early: {trainer.monitor} was no better for "
            f"{trainer.early_stopping_patience} epochs"
        )
    if result["stopped_by"] == "max_time":
        console.say(
            f"stopped by time: trainer.max_time={trainer.max_time} is over at step "
            f"{result['steps']}; to train longer, resume with a larger trainer.max_time"
        )


def _print_outcome(
    console: Console,
    result: Mapping[str, Any],
    job: Job,
    path: Path,
    picture: Path | None,
) -> None:
    """Print the run's outcome."""
    trainer = job.config.trainer
    seconds = result["seconds"]
    if "error" in result:
        console.say(f"failed: {result['error'][:300]}")
        console.say(f"traceback in {path / 'run.log'}")
    else:
        _say_ending(console, result, trainer)
        times = (
            f"{result['steps']} steps in {seconds['train']:.1f} s, {seconds['total']:.1f} s in all"
        )
        if trainer.compile and seconds["compile"]:
            times += f" ({seconds['compile']:.1f} s of it compiling)"
        console.say(f"{result['status']}: {times}")
        value = result["metrics"].get(trainer.monitor, 0.0)
        if not math.isfinite(value):
            console.say(
                f"warning: the run diverged: {trainer.monitor} is {value} after the last epoch; "
                f"{IF_DIVERGED}"
            )
    if result["metrics"]:
        console.say(f"result   {show(result['metrics'])}  ({_best_epoch(result, trainer)})")
    console.say(f"folder   {path}")
    if result["status"] == "interrupted" and job.path is None:  # a multirun resumes as a whole
        console.say(f"resume   {_to_resume(job, path)}")
    if picture is not None:
        console.say(f"picture  {picture}")


def _best_epoch(result: Mapping[str, Any], trainer: Trainer) -> str:
    """Describe the best whole epoch. A run that ends within an epoch may end at a better value,
    which does not count, because a longer run would not measure it."""
    best = result["best"]
    if not best:
        return f"no epoch had a finite {trainer.monitor}"
    last = result["metrics"].get(trainer.monitor, math.nan)
    is_beaten = Stall(trainer.monitor_mode, patience=0).is_better(last, float(best["value"]))
    among = " of the whole epochs" if is_beaten else ""
    return f"best {best['metric']}{among} {show_metric(best['value'])} after epoch {best['epoch']}"


def _to_resume(job: Job, path: Path) -> str:
    """Return the command, or in Python the call, that resumes the run."""
    if job.call is not None:
        passed = "".join(f", {group}=..." for group in job.call.given.names())
        return f'runner.resume("{path}"{passed})'
    modules = list(job.config.trusted_modules)
    trusted = [quoting.override("trusted_modules", modules)] if modules else []
    return quoting.command_line([quoting.override("resume", str(path)), *trusted])
