"""Start the processes of a run, one for each device, and wait for them.

The command does this. If a launcher has started a process on each node or device (torchrun, srun,
TF_CONFIG), these are agents (runner.run.agents): each of them starts the process of its own rank,
and tells the command, which is the agent of rank 0, what becomes of it.
"""

import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from runner import dispatcher
from runner.errors import ConfigError, RunError, one_line
from runner.run import pulse
from runner.run.channel import Channel, LostError
from runner.run.other_process import forward_signals, spawn_context
from runner.spec import World

GRACE_SECONDS = 10  # the wait before a process that should have ended is killed

_telling = threading.Lock()  # the pulse and the training of a process tell the launcher


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees them."""

    world: World
    others: Sequence[Channel]  # connections: of rank 0 to all other ranks, of these to rank 0
    launcher: Connection

    def tell(self, kind: str, content: Any) -> None:
        """Tell the launcher something: a folder, a status, an error, the pulse."""
        with _telling:
            self.launcher.send((kind, content))


Rank = Callable[[Any, Team], int]  # what a process does with its argument; its exit status


class Member(Protocol):
    """The process of a rank, as the command sees it."""

    @property
    def handles(self) -> Sequence[Any]:
        """Return what to wait for: it is ready when there is news."""
        ...

    @property
    def code(self) -> int | None:
        """Return its exit code, -N if signal N ended it; None if it runs."""
        ...

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Yield what has come from it: pulse, folder, status, error."""
        ...

    def end(self) -> None:
        """Kill it."""
        ...


class Others(Protocol):
    """The processes of the other ranks, which agents start."""

    def begin(self) -> tuple[tuple[str, ...], Sequence[Channel], Sequence[Member]]:
        """Start them. Return the addresses of all ranks, and for each other rank rank 0's
        connection to it and the process."""
        ...


class Local:
    """A process of this machine, which this process has started for a rank."""

    def __init__(
        self, function: Rank, argument: Any, world: World, others: Sequence[Channel]
    ) -> None:
        sys.stdout.flush()
        spawn = spawn_context()
        self._parent, child = spawn.Pipe()
        tuning = (dispatcher.importing, dispatcher.building_threads)
        team = Team(world, others, child)
        self._process = spawn.Process(target=_run, args=(function, argument, team, tuning))
        self._process.start()
        # Only the process itself keeps these: others then notice when it has ended.
        for end in (child, *(other.connection for other in others)):
            end.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def handles(self) -> Sequence[Any]:
        return self._parent, self._process.sentinel

    @property
    def code(self) -> int | None:
        return self._process.exitcode

    def messages(self) -> Iterator[tuple[str, Any]]:
        with suppress(EOFError, OSError):
            while self._parent.poll():
                yield self._parent.recv()

    def finish(self) -> None:
        """Wait until it has ended by itself."""
        self._process.join(GRACE_SECONDS)

    def end(self) -> None:
        self._process.kill()
        self._process.join()


# --- the command ---


def launch(
    function: Rank,
    argument: Any,
    size: int,
    others: Others | None = None,
    timeout: float = math.inf,
) -> int:
    """Call `function(argument, team)` in a new process for each rank; return the exit status of
    rank 0. The ranks are processes of this machine, or `others` has all but rank 0. If a process
    ends too soon, or hangs for `timeout` seconds, end all and raise RunError."""
    members: list[Member] = []
    try:
        if others is None:
            rank_0 = _start(function, argument, size, members)
        else:
            addresses, links, started = others.begin()
            members.extend(started)
            rank_0 = Local(function, argument, World(0, size, addresses), links)
            members.insert(0, rank_0)
        with forwarding(rank_0) as forwarded:
            return _wait(members, forwarded, pulse.Watch(size, timeout))
    finally:
        for member in members:
            member.end()


def _start(function: Rank, argument: Any, size: int, members: list[Member]) -> Local:
    """Start the ranks on this machine and append each to `members`. Return rank 0."""
    spawn = spawn_context()
    try:
        addresses = free_addresses(size)
        pairs = [tuple(map(Channel, spawn.Pipe())) for _ in range(size - 1)]
        rank_0 = Local(function, argument, World(0, size, addresses), [a for a, _ in pairs])
        members.append(rank_0)
        for rank, (_, end) in enumerate(pairs, 1):
            members.append(Local(function, argument, World(rank, size, addresses), [end]))
    except OSError as error:
        raise RunError(
            f"devices={size}: {size} processes cannot be started: {error.strerror}; set a smaller "
            f"number of devices"
        ) from error
    return rank_0


def free_addresses(num: int, host: str = "127.0.0.1") -> tuple[str, ...]:
    """Return addresses of this machine with ports that are free."""
    sockets = [socket.socket() for _ in range(num)]
    for one in sockets:
        one.bind(("", 0))
    addresses = tuple(f"{host}:{one.getsockname()[1]}" for one in sockets)
    for one in sockets:
        one.close()
    return addresses


@contextmanager
def forwarding(process: Local) -> Iterator[list[int]]:
    """Forward this process's signals to the other one in the block. Yields those that came."""
    forwarded: list[int] = []
    with forward_signals(process.pid, forwarded.append):
        yield forwarded


def _wait(members: Sequence[Member], forwarded: list[int], watch: pulse.Watch) -> int:
    """Wait for rank 0, and for the others after it. Return its exit status."""
    running, folder = [*range(len(members))], None
    while True:
        wait([handle for rank in running for handle in members[rank].handles], pulse.SECONDS)
        for rank in [*running]:
            code = members[rank].code  # read first: after its end no further message comes
            for kind, content in members[rank].messages():
                if kind == "pulse":
                    watch.hear(rank, *content)
                elif kind == "folder":
                    folder = content
                elif kind == "status" and rank == 0:
                    _finish(members[0])
                    return int(content)
                elif kind == "error" and rank == 0:
                    raise content
                elif kind == "error":
                    raise RunError(f"rank {rank} failed: {content}; {_then(folder)}")
            if code is not None:
                running.remove(rank)
                if rank == 0 and code < 0 and -code in forwarded:
                    return 128 - code  # a second signal ended it at once
                if rank == 0 or code != 0:
                    raise RunError(f"rank {rank} {_how(code)}; {_then(folder)}")
        if (fault := watch.fault()) is not None:
            raise RunError(f"{fault}; {_then(folder)}")


def _finish(rank_0: Member) -> None:
    assert isinstance(rank_0, Local)
    rank_0.finish()


LOST = 1 << 20  # the exit code of a process whose agent has ended


def _how(code: int) -> str:
    if code == LOST:
        return "was lost: the connection to it has ended"
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


def _run(function: Rank, argument: Any, team: Team, tuning: Any) -> None:
    """Be one process of a run."""
    dispatcher.importing, dispatcher.building_threads = tuning
    dispatcher.world = team.world
    if hasattr(os, "setsid"):
        os.setsid()  # only the command passes Ctrl-C on
    for work in (_end_with_command, _tell_pulse):
        threading.Thread(target=work, args=(team,), daemon=True).start()
    if team.world.rank > 0:
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    status = 0
    try:
        ended: tuple[str, Any] | None = "status", function(argument, team)
    except LostError:
        _parent().join(6 * GRACE_SECONDS)  # the command says which one was lost, and kills this
        ended, status = None, 1
    except BaseException as error:
        if team.world.rank > 0 and isinstance(error, ConfigError | RunError):
            time.sleep(GRACE_SECONDS)  # rank 0 has the same config and weights, and says the same
        ended, status = ("error", _portable(error, team.world.rank)), 1
    if ended is not None:
        with suppress(OSError):  # the command has been killed
            team.tell(*ended)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a framework's threads may wait for the other processes


def _portable(error: BaseException, rank: int) -> Any:
    """Return an error for the launcher: that of rank 0 is raised there, others are told."""
    if rank > 0:
        kind = "" if isinstance(error, ConfigError | RunError) else f"{type(error).__name__}: "
        return f"{kind}{one_line(error)}"
    if isinstance(error, ConfigError | RunError | OSError | SystemExit | KeyboardInterrupt):
        return error
    return RunError("".join(traceback.format_exception(error)))


def _parent() -> Any:
    """Return the process that has started this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent


def _tell_pulse(team: Team) -> None:
    """Tell the command every second how far this process is."""
    with suppress(OSError):  # the command has ended
        while True:
            team.tell("pulse", pulse.now())
            pulse.rest()


def _end_with_command(team: Team) -> None:
    """Wait for the end of the command. Then rank 0 saves; the others, which it needs for that, end
    later."""
    _parent().join()
    if team.world.rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        time.sleep(6 * GRACE_SECONDS)
        os._exit(1)
