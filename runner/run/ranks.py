"""Train one run with several processes, one per device.

The command starts a process for each device and waits for them. The process of rank 0 is the run:
it has the folder, prints, evaluates and decides everything. The others, which have the same config,
follow it: before each chunk it tells them which updates come, and after it they send the outputs of
their rows. So signals, stalls, the lengths of chunks and the observers have one home. The
gradients go through the framework's own collectives (backends/*/distributed.py).
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import numpy as np

from runner import dispatcher
from runner.data.order import Chunk, Chunks
from runner.errors import ConfigError, RunError, one_line
from runner.run import signals
from runner.run.other_process import forward_signals
from runner.spec import Backend, Live, Report, RunSpec, TrainState, World

_GRACE_SECONDS = 10  # until a process that should have ended is killed


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees them."""

    world: World
    others: Sequence[Connection]  # of rank 0: to each other rank; of another rank: to rank 0
    launcher: Connection

    def say_folder(self, folder: str) -> None:
        """Tell the launcher the run's folder, for its messages."""
        self.launcher.send(("folder", folder))


class LostError(Exception):
    """Another process of the run has ended. The launcher says why."""


# --- the command ---


def launch(function: Callable[[Any, Team], int], argument: Any, size: int) -> int:
    """Call `function(argument, team)` in `size` new processes of this machine; return the exit
    status of rank 0. If a process ends too soon, end the others and raise RunError."""
    sys.stdout.flush()
    addresses, spawn = tuple(_free_addresses(size)), multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in range(size - 1)]  # rank 0 <-> rank 1, 2, ...
    to_launcher = [spawn.Pipe() for _ in range(size)]
    processes = []
    for rank in range(size):
        others = [a for a, _ in pairs] if rank == 0 else [pairs[rank - 1][1]]
        team = Team(World(rank, size, addresses), others, to_launcher[rank][1])
        tuning = (dispatcher.importing, dispatcher.building_threads)
        processes.append(spawn.Process(target=_run, args=(function, argument, team, tuning)))
        processes[-1].start()
    for pair in (*pairs, *((child,) for _, child in to_launcher)):
        for end in pair:
            end.close()  # so that a process reads the end of the file when the other one has ended
    with _forwarding(processes[0].pid) as forwarded:
        try:
            return _wait(processes, [parent for parent, _ in to_launcher], forwarded)
        finally:
            for process in processes:
                process.kill()


def _free_addresses(num: int) -> Iterator[str]:
    """Yield addresses of this machine with ports that are free."""
    sockets = [socket.socket() for _ in range(num)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    yield from addresses


@contextmanager
def _forwarding(process: Any) -> Iterator[list[int]]:
    """Forward this process's signals to rank 0 in the block. Yields those that came."""
    forwarded: list[int] = []
    with forward_signals(process, forwarded.append):
        yield forwarded


def _wait(processes: Sequence[Any], parents: Sequence[Connection], forwarded: list[int]) -> int:
    """Wait for rank 0, and for the others after it. Return its exit status."""
    running, folder = [*range(len(processes))], None
    while True:
        wait([end for rank in running for end in (parents[rank], processes[rank].sentinel)])
        for rank in [*running]:
            code = processes[rank].exitcode  # before its messages, of which there are then no more
            for kind, content in _messages(parents[rank]):
                if kind == "folder":
                    folder = content
                elif kind == "status" and rank == 0:
                    processes[0].join(_GRACE_SECONDS)
                    return int(content)
                elif kind == "error" and rank == 0:
                    raise content
                elif kind == "error":
                    raise RunError(f"rank {rank} failed: {content}; {_then(folder)}")
            if code is not None:
                running.remove(rank)
                if rank == 0 and code < 0 and -code in forwarded:
                    return 128 - int(code)  # a second signal ended it at once
                if rank == 0 or code != 0:
                    raise RunError(f"rank {rank} {_how(code)}; {_then(folder)}")


def _messages(parent: Connection) -> Iterator[tuple[str, Any]]:
    with suppress(EOFError, OSError):
        while parent.poll():
            yield parent.recv()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _then(folder: str | None) -> str:
    ended = "the other processes were ended"
    return ended if folder is None else f"{ended}; to continue: resume={folder}"


# --- each process ---


def _run(function: Callable[[Any, Team], int], argument: Any, team: Team, tuning: Any) -> None:
    """Be one process of a run."""
    dispatcher.importing, dispatcher.building_threads = tuning
    if hasattr(os, "setsid"):
        os.setsid()  # only the command passes Ctrl-C on
    if team.world.rank == 0:
        threading.Thread(target=_end_with_command, daemon=True).start()
    else:
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    status = 0
    try:
        team.launcher.send(("status", function(argument, team)))
    except LostError:
        time.sleep(6 * _GRACE_SECONDS)  # the command says which process was lost, and kills this
        status = 1
    except BaseException as error:
        if team.world.rank > 0 and isinstance(error, ConfigError | RunError):
            time.sleep(_GRACE_SECONDS)  # rank 0 has the same config and weights, and says the same
        team.launcher.send(("error", _portable(error, team.world.rank)))
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a framework's threads may wait for the other processes


def _portable(error: BaseException, rank: int) -> Any:
    """Return an error for the launcher: that of rank 0 is raised there, others are told."""
    if rank > 0:
        return f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, ConfigError | RunError | OSError | SystemExit | KeyboardInterrupt):
        return error
    return RunError("".join(traceback.format_exception(error)))


def _end_with_command() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


# --- rank 0 ---


class Observed(Protocol):
    """The work of rank 0 between two chunks (runner.run.training.Training)."""

    signals: Any

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool: ...

    def on_chunk_start(self, chunk: Chunk, live: Live) -> None: ...


class _Told:
    """The model of rank 0. What changes the updates is told to the other ranks."""

    def __init__(self, live: Live, tell: Callable[[Any], None]) -> None:
        self._live, self._tell = live, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._live, name)

    def use_tables(self, tables: Mapping[str, np.ndarray]) -> None:
        self._tell(("tables", tables))
        self._live.use_tables(tables)


def lead(
    team: Team, backend: Backend, spec: RunSpec, start: TrainState, chunks: Chunks, run: Observed
) -> TrainState:
    """Train as rank 0. `run` sees whole chunks, as in a run of one process."""
    world, order = team.world, chunks.order
    chunks.part = world.part

    def tell(message: Any) -> None:
        for other in team.others:
            with suppress(OSError):  # it has ended; the next collective or answer says so
                other.send(message)

    def told() -> Iterator[Chunk]:
        for chunk in chunks:
            tell(("chunk", (chunk.first_step, chunk.num_steps)))
            yield chunk
        tell(("chunk", None))

    def on_chunk_start(part: Chunk, live: Live) -> None:
        run.on_chunk_start(order.chunk(part.first_step, part.num_steps), _Told(live, tell))

    def on_chunk(part: Chunk, report: Report, live: Live) -> bool:
        whole = order.chunk(part.first_step, part.num_steps)
        outputs = [report.outputs]
        for other in team.others:
            theirs, received = _receive(other)
            outputs.append(theirs)
            if received is not None and run.signals.received is None:
                run.signals.receive(received)
        if report.outputs is not None:
            report = replace(report, outputs=_gathered(whole, world, outputs))
        goes_on = run.on_chunk(whole, report, _Told(live, tell))
        tell(("goes on", goes_on))
        return goes_on

    tell(("begin", (start, dict(spec.tables), spec.threads)))
    with _noticing(team):
        return backend.train(replace(spec, world=world), start, told(), on_chunk, on_chunk_start)


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


def _receive(other: Connection) -> Any:
    try:
        return other.recv()
    except (EOFError, OSError):
        raise LostError from None


@contextmanager
def _noticing(team: Team) -> Iterator[None]:
    """Raise LostError for an error that comes from the end of another process."""
    try:
        yield
    except Exception:
        for other in team.others:
            with suppress(OSError):
                if other.poll(1.0):
                    _receive(other)
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
            found, content = _receive(self._rank_0)
            self._waiting.setdefault(found, deque()).append(content)
        return self._waiting[kind].popleft()

    def received(self, kind: str) -> Iterator[Any]:
        """Yield the messages of a kind that have come."""
        while self._waiting.get(kind):
            yield self._waiting[kind].popleft()


def follow(team: Team, backend: Backend, spec: RunSpec, chunks: Chunks) -> None:
    """Train as another rank than 0, as rank 0 says. `chunks` are those of the whole run."""
    inbox, world = _Inbox(team), team.world
    start, tables, num_threads = inbox.next("begin")
    backend.can_use_threads(num_threads)
    spec = replace(spec, tables=tables, threads=num_threads, world=world)

    def parts() -> Iterator[Chunk]:
        while (steps := inbox.next("chunk")) is not None:
            yield chunks.with_fields(world.part(chunks.order.chunk(*steps)))

    with signals.Signals() as own, _noticing(team):

        def on_chunk(part: Chunk, report: Report, live: Live) -> bool:
            team.others[0].send((report.outputs, own.received))
            goes_on: bool = inbox.next("goes on")
            for changed in inbox.received("tables"):
                live.use_tables(changed)
            return goes_on

        backend.train(spec, start, parts(), on_chunk)
