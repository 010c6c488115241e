"""The processes that a launcher has started for this command, on one machine or several.

Each of them is an agent of its rank. The agent of rank 0 is the command: it composes the config,
and it has the folder and the terminal. The others connect to it and do as it says: they start a
new process for their rank of each run, and tell what becomes of it. A run needs new processes,
because a framework can join others only once; so a multirun can train its jobs in turn.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from runner.config import times
from runner.errors import RunError
from runner.run import pulse
from runner.run.channel import Channel, LostError, decode
from runner.run.launch import LOST, Local, Member, Rank, forwarding, free_addresses
from runner.run.outside import Outside
from runner.spec import World

_JOIN_SECONDS = 300  # the longest wait for all processes of a run
_END_SECONDS = 30  # the wait at the end of a command for those that never came
_NUM_PORTS = 16
_LONGEST_HELLO = 4096  # bytes

# torch would look for its store in torchrun, where TensorFlow would start a server of its own
_NOT_FOR_FRAMEWORKS = ("TORCHELASTIC_USE_AGENT_STORE", "TF_CONFIG")

_leader: "Leader | None" = None


def leader() -> "Leader | None":
    """Return this process's connections to the agents; None if no launcher has started any."""
    return _leader


def together(found: Outside, command: Callable[[], int], follow: Rank) -> int:
    """Run the command as rank 0, or follow it as another rank. Return the exit status, which is
    that of rank 0."""
    global _leader
    for key in _NOT_FOR_FRAMEWORKS:
        os.environ.pop(key, None)
    if found.rank > 0:
        return _serve(found, follow)
    status = 1
    _leader = Leader(found)
    try:
        status = command()
        return status
    finally:
        _leader.end(status)
        _leader = None


def _ports(found: Outside) -> list[int]:
    """Return the ports at which rank 0 may listen. They follow from what tells runs apart."""
    first = int(found.token[:8], 16)
    return [20_000 + (first + 37 * i) % 12_000 for i in range(_NUM_PORTS)]


def _channel(connected: socket.socket) -> Channel:
    connected.setblocking(True)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return Channel(Connection(connected.detach()))


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- rank 0 ---


class Leader:
    """The connections of rank 0 to the agents of the other ranks."""

    def __init__(self, found: Outside) -> None:
        self.found = found
        self._listener = _listen(found)
        self._changed = threading.Condition()
        self._agents: dict[int, Channel] = {}
        self._links: dict[tuple[int, int], tuple[Channel, str]] = {}  # (run, rank) -> link
        self._num_runs = 0
        for work in (self._accept, self._tell_pulse):
            threading.Thread(target=work, daemon=True).start()

    def _tell_pulse(self) -> None:
        """Tell all agents every second that this process runs."""
        while True:
            time.sleep(pulse.SECONDS)
            for agent in [*self._agents.values()]:
                with suppress(OSError):
                    agent.send(("pulse", 0, None))

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                connected, peer = self._listener.accept()
                arguments = (_channel(connected), str(peer[0]))
                threading.Thread(target=self._greet, args=arguments, daemon=True).start()

    def _greet(self, channel: Channel, host: str) -> None:
        """Take a connection of an agent. One of another program is closed."""
        with suppress(EOFError, OSError, ValueError, KeyError, TypeError):
            if channel.has_come(10):
                hello = decode(channel.connection.recv_bytes(_LONGEST_HELLO))
                rank, run = int(hello["rank"]), hello["run"]
                if hello["token"] == self.found.token and 0 < rank < self.found.size:
                    channel.send("welcome")
                    with self._changed:
                        if run is None:
                            self._agents[rank] = channel
                        else:
                            address = _address(host, int(hello["port"]))
                            self._links[int(run), rank] = channel, address
                        self._changed.notify_all()
                    return
        channel.connection.close()

    def _until(self, ranks: Callable[[], set[int]], seconds: float) -> list[int]:
        """Wait until all other ranks are there. Return those that are not."""
        others = {*range(1, self.found.size)}
        with self._changed:
            self._changed.wait_for(lambda: ranks() >= others, seconds)
            return sorted(others - ranks())

    def run(self, values: Mapping[str, Any]) -> "_Run":
        """Return the processes of the other ranks for a run with this config, not yet started."""
        self._num_runs += 1
        return _Run(self, self._num_runs, values)

    def begin(self, number: int, values: Mapping[str, Any]) -> dict[int, tuple[Channel, str]]:
        """Have the agents prepare a run. Return for each rank rank 0's connection to its process,
        and its address."""
        missing = self._until(lambda: {*self._agents}, _JOIN_SECONDS)
        if not missing:
            for rank, agent in self._agents.items():
                try:
                    agent.send(("run", number, values))
                except OSError:
                    raise RunError(f"rank {rank} was lost: its process has ended") from None
            missing = self._until(lambda: self._linked(number), _JOIN_SECONDS)
        if missing:
            names = ", ".join(map(str, missing))
            raise RunError(
                f"rank {names} of {self.found.size} did not come within {_JOIN_SECONDS} s; "
                f"{self.found.launcher} must start all processes, and they must reach rank 0 at "
                f"{self.found.host}"
            )
        return {rank: self._links.pop((number, rank)) for rank in sorted(self._agents)}

    def _linked(self, number: int) -> set[int]:
        return {rank for run, rank in self._links if run == number}

    def agent(self, rank: int) -> Channel:
        return self._agents[rank]

    def end(self, status: int) -> None:
        """Tell all agents that the command has ended."""
        self._until(lambda: {*self._agents}, _END_SECONDS)
        for agent in self._agents.values():
            with suppress(OSError):
                agent.send(("end", status))
        self._listener.close()


class _Run:
    """The processes of the other ranks of one run."""

    def __init__(self, leader: Leader, number: int, values: Mapping[str, Any]) -> None:
        self._leader, self._number, self._values = leader, number, values

    def begin(self) -> tuple[tuple[str, ...], Sequence[Channel], Sequence[Member]]:
        links = self._leader.begin(self._number, self._values)
        found = self._leader.found
        addresses = found.addresses or (
            *free_addresses(1, found.host),
            *(address for _, address in links.values()),
        )
        members = [_Remote(self._leader.agent(rank), self._number) for rank in links]
        for member in members:
            member.start(addresses)
        return addresses, [link for link, _ in links.values()], members


class _Remote:
    """The process of another rank, which its agent has started."""

    def __init__(self, agent: Channel, number: int) -> None:
        self._agent, self._number = agent, number
        self._waiting: list[tuple[str, Any]] = []
        self._code: int | None = None

    def start(self, addresses: Sequence[str]) -> None:
        """Have the agent start it, with the addresses of all ranks."""
        with suppress(OSError):  # `code` says so
            self._agent.send(("start", self._number, addresses))

    @property
    def handles(self) -> Sequence[Any]:
        return (self._agent.connection,)

    @property
    def code(self) -> int | None:
        self._read()
        return self._code

    def messages(self) -> Iterator[tuple[str, Any]]:
        self._read()
        while self._waiting:
            yield self._waiting.pop(0)

    def _read(self) -> None:
        """Read what the agent has sent. A late message of an earlier run is dropped."""
        try:
            while self._code is None and self._agent.has_come():
                number, kind, content = self._agent.receive()
                if number == self._number and kind == "exit":
                    self._code = content
                elif number == self._number:
                    self._waiting.append((kind, content))
        except (LostError, OSError):
            self._code = LOST

    def end(self) -> None:
        with suppress(OSError):
            self._agent.send(("kill", self._number, None))


def _listen(found: Outside) -> socket.socket:
    """Listen at the first free port of the run."""
    for port in _ports(found):
        for host in (found.host, ""):  # a name that is not an address of this machine: at all
            with suppress(OSError):
                return socket.create_server((host, port))
    raise RunError(f"rank 0 finds no free port at {found.host} among {_ports(found)[0]} and others")


# --- the other ranks ---


def _connect(found: Outside, **hello: Any) -> Channel:
    """Connect to rank 0."""
    hello = {"token": found.token, "rank": found.rank, "run": None, **hello}
    end = time.monotonic() + _JOIN_SECONDS
    while time.monotonic() < end:
        for port in _ports(found):
            with suppress(OSError, EOFError):
                channel = _channel(socket.create_connection((found.host, port), 5))
                with suppress(LostError, OSError, ValueError):
                    channel.send(hello)
                    if channel.has_come(10) and channel.receive() == "welcome":
                        return channel
                channel.connection.close()
        time.sleep(0.2)
    raise RunError(
        f"rank {found.rank} of {found.size} did not reach rank 0 at {found.host} within "
        f"{_JOIN_SECONDS} s"
    )


def _serve(found: Outside, follow: Rank) -> int:
    """Train as rank 0 says, until its command ends. Return its exit status."""
    agent = _connect(found)
    try:
        while True:
            kind, number, *content = _next(agent)
            if kind == "end":
                return int(number)
            if kind == "run":
                _serve_run(found, agent, number, content[0], follow)
    except (LostError, OSError):
        raise RunError(
            f"rank 0 was lost: the connection to it has ended; rank {found.rank} was ended too"
        ) from None


def _next(agent: Channel) -> Any:
    """Wait for the next message of rank 0 that is no pulse."""
    while True:
        message = agent.receive()
        if message[0] != "pulse":
            return message


def _serve_run(
    found: Outside, agent: Channel, number: int, values: Mapping[str, Any], follow: Rank
) -> None:
    """Start the process of this rank for a run, and tell rank 0's agent what becomes of it, until
    rank 0 ends the run."""
    port = int(free_addresses(1, "")[0].rpartition(":")[2])
    link = _connect(found, run=number, port=port)
    kind, of, addresses = _next(agent)
    if kind == "kill" and of == number:
        link.connection.close()
        return
    world = World(found.rank, found.size, tuple(addresses))
    process = Local(follow, values, world, [link])
    is_over = False
    limit = times.seconds(values["trainer"]["process_timeout"])
    heard = time.monotonic()
    try:
        with forwarding(process):
            while True:
                wait([agent.connection, *(() if is_over else process.handles)], pulse.SECONDS)
                code = process.code
                if not is_over:
                    for kind, content in process.messages():
                        agent.send((number, kind, content))
                    if code is not None:
                        is_over = True
                        agent.send((number, "exit", code))
                while agent.has_come():
                    heard = time.monotonic()
                    if tuple(agent.receive()[:2]) == ("kill", number):
                        return
                if time.monotonic() - heard > limit:
                    raise RunError(
                        f"rank 0 gave no sign of life for {limit:g} s (trainer.process_timeout); "
                        f"rank {found.rank} was ended too"
                    )
    finally:
        process.end()
