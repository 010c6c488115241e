"""Train one run with several processes, one per device.

The process of rank 0 is the run: it has the folder, prints and decides everything. The
others, which have the same config, follow it: before each chunk it tells them which updates come,
and after it they send the outputs of their rows; of an evaluation, they measure every P-th batch.
So signals, stalls, the lengths of chunks and the observers have one home. The gradients go through
the framework's own collectives (backends/*/distributed.py).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import numpy as np

from runner.data.dataset import Dataset
from runner.data.order import Chunk, Chunks
from runner.data.source import Batch
from runner.errors import RunError
from runner.evaluation import Results
from runner.plan import Plan
from runner.run import pulse, signals, validation
from runner.run.launch import Team
from runner.spec import Backend, Divided, Live, Measured, Report, RunSpec, TrainState, World

# --- rank 0 ---


class Observed(Protocol):
    """The work of rank 0 between two chunks (runner.run.training.Training)."""

    signals: Any

    def on_memory(self, num_bytes: Sequence[Mapping[str, int]]) -> None: ...

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool: ...

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None: ...


class _Told:
    """The model of rank 0. What changes the updates is told to the other ranks. They wait for a
    message of this kind, and take part in what needs all of them; `part` are the rows of rank
    0."""

    def __init__(self, live: Live, team: Team, plan: Plan, kind: str, part: Chunk) -> None:
        self._live, self._team, self._plan = live, team, plan
        self._kind, self._part, self._is_average = kind, part, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._live, name)

    def use_tables(self, tables: Mapping[str, np.ndarray]) -> None:
        _tell_all(self._team, ("tables", tables))
        self._live.use_tables(tables)

    def gradient_norms(self, chunk: Chunk) -> Mapping[str, float]:
        self._ask("norms")
        return self._live.gradient_norms(self._part.first)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with self._live.averaged():
            self._is_average = True
            try:
                yield
            finally:
                self._is_average = False

    def _ask(self, what: str, num_passes: int = 0) -> None:
        """Let the other ranks take part, with the average of the weights if rank 0 has it."""
        _tell_all(self._team, (self._kind, (what, self._is_average, num_passes)))


class _Sharing(_Told, validation.Sharing):
    """The model of rank 0, if all ranks evaluate together."""

    def results(self) -> Results:
        self._ask("results")
        world = self._team.world
        own = validation.own_results(self._plan, self._live, world)
        pulse.count()
        with pulse.waiting():
            others = [Results(*other.receive()) for other in self._team.others]
        return validation.of_all(self._plan, world, [own, *others])


class _Divided(_Sharing):
    """The model of rank 0, if it has only a part of the weights: all ranks take part in its forward
    passes."""

    def state(self) -> TrainState:
        self._ask("state")
        return self._live.state()

    def predict(self, rows: Batch) -> np.ndarray:
        self._ask_for_passes([rows], self._plan.model.rows_per_pass)
        return self._live.predict(rows)

    def measure(self, batches: Iterable[Batch], keeps_outputs: bool) -> Measured:
        known = [*batches]
        self._ask_for_passes(known, self._plan.model.batch_size)
        return self._live.measure(known, keeps_outputs)

    def _ask_for_passes(self, batches: Sequence[Batch], num_rows: int) -> None:
        """Ask for a pass for each `num_rows` rows of a batch."""
        self._ask("passes", sum(max(1, -(-len(batch["x"]) // num_rows)) for batch in batches))


def _take_part(
    inbox: "_Inbox", kind: str, live: Live, part: Chunk, evaluate: Callable[[Live], None]
) -> bool:
    """Do as another rank what `_Told` asks for, until the answer comes. Return the answer."""
    while not isinstance(answer := inbox.next(kind), bool):
        what, is_average, num_passes = answer
        with live.averaged() if is_average else nullcontext():
            if what == "state":
                live.state()
            elif what == "norms":
                live.gradient_norms(part.first)
            elif what == "passes":
                cast(Divided, live).take_part(num_passes)
            else:
                evaluate(live)
    return answer


def _tell_all(team: Team, message: Any) -> None:
    for other in team.others:
        with suppress(OSError):  # it has ended; the next collective or answer says so
            other.send(message)


def _shown(team: Team, prepared: Plan, live: Live, kind: str, part: Chunk) -> _Told:
    """Return the model of rank 0 as its observers see it."""
    shown = _Sharing if prepared.shares_evaluation else _Told
    shown = _Divided if prepared.config.strategy == "fsdp" else shown
    return shown(live, team, prepared, kind, part)


def lead(
    team: Team,
    backend: Backend,
    prepared: Plan,
    spec: RunSpec,
    start: TrainState,
    chunks: Chunks,
    run: Observed,
) -> TrainState:
    """Train as rank 0. `run` sees whole chunks, as in a run of one process."""
    world, order = team.world, chunks.order
    chunks.part = world.part
    memory: list[Mapping[str, int]] = []  # of each process, after the first chunk

    tell, shown = partial(_tell_all, team), partial(_shown, team, prepared)

    def told() -> Iterator[Chunk]:
        for chunk in chunks:
            tell(("chunk", (chunk.first_step, chunk.num_steps)))
            pulse.count()
            yield chunk
        tell(("chunk", None))

    def on_chunk_start(part: Chunk, live: Live) -> None:
        whole = order.chunk(part.first_step, part.num_steps)
        run.on_chunk_start(whole, shown(live, "starts", part))
        if spec.divides or spec.measures_norms:
            tell(("starts", True))
        pulse.begin_chunk()

    def on_chunk(part: Chunk, report: Report, live: Live) -> bool:
        whole = order.chunk(part.first_step, part.num_steps)
        answers = [other.receive() for other in team.others]
        for _, received, _ in answers:
            if received is not None and run.signals.received is None:
                run.signals.receive(received)
        pulse.end_chunk()
        if not memory:
            memory.append(_num_bytes(live, spec))
            memory.extend(num_bytes or memory[0] for _, _, num_bytes in answers)
            run.on_memory(memory)
        if report.outputs is not None:
            outputs = [report.outputs, *(theirs for theirs, _, _ in answers)]
            report = replace(report, outputs=_gathered(whole, world, outputs))
        goes_on = run.on_chunk(whole, report, shown(live, "goes on", part))
        tell(("goes on", bool(goes_on)))
        return goes_on

    tell(("begin", (_hash(prepared.data, world), vars(start), spec.tables, spec.threads)))
    with _noticing(team):
        return backend.train(replace(spec, world=world), start, told(), on_chunk, on_chunk_start)


def _num_bytes(live: Live, spec: RunSpec) -> Mapping[str, int]:
    """Count the bytes of the weights and the optimizer's state in this process."""
    if spec.divides:
        return cast(Divided, live).num_bytes()
    state = live.state()
    slots = [value for values in state.slots.values() for value in values.values()]
    return {
        "weights": sum(value.nbytes for value in state.weights.values()),
        "optimizer": sum(value.nbytes for value in slots),
    }


def _hash(data: Dataset, world: World) -> str | None:
    """Return the hash of the data, if another machine could have other files; else None."""
    hosts = {address.rpartition(":")[0] for address in world.addresses}
    return str(data.description()["sha256"]) if len(hosts) > 1 else None


def _gathered(whole: Chunk, world: World, outputs: Sequence[Any]) -> np.ndarray:
    """Put the outputs of all ranks into the order of the whole chunk's rows.  # float[n, C]"""
    num = len(whole.rows)
    columns = np.cumsum([block[0].size for block in whole.blocks])[:-1]
    numbers = np.split(np.arange(num).reshape(whole.num_steps, -1), columns, axis=1)
    shaped = (part.reshape(block.shape) for part, block in zip(numbers, whole.blocks, strict=True))
    numbered = whole._replace(blocks=tuple(shaped))
    joined = np.empty((num, *outputs[0].shape[1:]), outputs[0].dtype)
    for rank, values in enumerate(outputs):
        joined[replace(world, rank=rank).part(numbered).rows] = values
    return joined


@contextmanager
def _noticing(team: Team) -> Iterator[None]:
    """Raise LostError for an error that comes from the end of another process."""
    try:
        yield
    except Exception:
        for other in team.others:
            if other.has_come(1.0):
                other.receive()
        raise


# --- the other ranks ---


class _Inbox:
    """The messages of rank 0, by kind: a framework may ask for a chunk before it has trained the
    last one."""

    def __init__(self, team: Team) -> None:
        self._rank_0 = team.others[0]
        self._waiting: dict[str, deque[Any]] = {}

    def next(self, kind: str) -> Any:
        """Wait for the next message of a kind."""
        while not self._waiting.get(kind):
            found, content = self._rank_0.receive()
            self._waiting.setdefault(found, deque()).append(content)
        return self._waiting[kind].popleft()

    def received(self, kind: str) -> Iterator[Any]:
        """Yield the messages of a kind that have come."""
        while self._waiting.get(kind):
            yield self._waiting[kind].popleft()


def follow(team: Team, backend: Backend, prepared: Plan) -> None:
    """Train as another rank than 0, as rank 0 says."""
    inbox, world = _Inbox(team), team.world
    expected, start, tables, num_threads = inbox.next("begin")
    if (found := _hash(prepared.data, world)) != expected:
        raise RunError(
            f"its data has the hash {str(found)[:12]} and that of rank 0 {str(expected)[:12]}; the "
            f"machines of a run must read the same files"
        )
    backend.can_use_threads(num_threads)
    spec = replace(prepared.run_spec(), tables=tables, threads=num_threads, world=world)
    chunks = prepared.chunks(0, None, adapt=False)

    def parts() -> Iterator[Chunk]:
        while (steps := inbox.next("chunk")) is not None:
            chunk = chunks.with_fields(world.part(chunks.order.chunk(*steps)))
            pulse.count()
            yield chunk

    def evaluate(live: Live) -> None:
        found = validation.own_results(prepared, live, world)
        pulse.count()
        team.others[0].send(found)

    with signals.Signals() as own, _noticing(team):

        def on_chunk(part: Chunk, report: Report, live: Live) -> bool:
            num_bytes = cast(Divided, live).num_bytes() if spec.divides else None
            team.others[0].send((report.outputs, own.received, num_bytes))
            goes_on = _take_part(inbox, "goes on", live, part, evaluate)
            for changed in inbox.received("tables"):
                live.use_tables(changed)
            return goes_on

        def on_chunk_start(part: Chunk, live: Live) -> None:
            if spec.divides or spec.measures_norms:
                _take_part(inbox, "starts", live, part, evaluate)

        backend.train(spec, TrainState(**start), parts(), on_chunk, on_chunk_start)
