"""hydra/launcher=pool: the jobs of a multirun side by side on this machine.

The command imports the framework once and forks a process for each of `hydra.launcher.n_jobs`
jobs at a time. A process trains one job after another, until the multirun ends; it keeps what it
has compiled. Results, folders and the order of the output are those of jobs that run one after
another: the command prints the output of the first job that is not over as it comes, and keeps that
of later jobs until then.

A job that uses several threads waits until as many cores are free, so that jobs never wait for each
other's threads.
"""

import codecs
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from runner.config.schema import Config
from runner.errors import ConfigError
from runner.machine import threads
from runner.run import signals
from runner.text import console


class Task(Protocol):
    """Trains a job."""

    def prepare(self) -> None:
        """Import what the jobs need, for the processes to have it."""
        ...

    def __call__(self, overrides: list[str], number: int, /) -> float | None:
        """Train the job with these overrides and this number. Return the value that a search
        minimizes."""
        ...


_BYTES_OF_A_JOB = 2**30  # free memory that a job of `auto` finds at its start
# what a comparison imports: 1.4 s, while the jobs train
_FOR_THE_COMPARISON = ("runner.report.comparison", "scipy.stats", "matplotlib.backends.backend_agg")


def can_fork() -> bool:
    """Return whether a process with a framework can be forked. Frameworks do not bear it on macOS;
    Windows has no fork."""
    return sys.platform == "linux"


def num_jobs(requested: Any, configs: Sequence[Config]) -> int:
    """Return how many jobs run at a time. Raises ConfigError if the number cannot be had."""
    if requested == "auto" or requested == -1:
        if not can_fork() or any(_has_accelerator(config.device) for config in configs):
            return 1
        most = threads.cores() // max(config.num_processes for config in configs)
        return max(1, min(most, _free_memory() // _BYTES_OF_A_JOB))
    if requested > 1 and not can_fork():
        raise ConfigError(
            f"hydra.launcher.n_jobs must be auto or 1 on {sys.platform}, where a process with a "
            f"framework cannot be forked, got {requested}; hydra/launcher=joblib starts new ones"
        )
    return int(requested)


def _has_accelerator(device: str) -> bool:
    if device == "auto":
        return os.path.exists("/dev/nvidia0") or os.path.exists("/dev/kfd")
    return device != "cpu"


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


@dataclass
class Ended:
    """The end of a job: its value, or its error."""

    value: float | None = None
    error: Exception | None = None


@dataclass
class _Pipe:
    stream: str  # stdout or stderr
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )


@dataclass
class _Worker:
    """A process that trains jobs, as the command sees it."""

    process: Any
    connection: Connection
    pipes: dict[int, _Pipe]  # of its output, by their descriptors
    task: int  # the number of the task that it has
    job: int | None = None  # its job's number
    asked: int = 0  # cores that its job waits for
    cores: int = 1  # cores that its job has


@dataclass
class _Output:
    """The output of one job: kept until it is the job's turn."""

    parts: list[tuple[str, str]] = field(default_factory=list)
    is_over: bool = False


class Pool:
    """Processes, at most `size` of them, that train jobs until the `with` block ends."""

    def __init__(self, size: int) -> None:
        self._size, self._capacity = size, max(threads.cores(), size)
        self._shown = console.Console(sys.stdout)
        self._workers: list[_Worker] = []
        self._task: Task | None = None
        self._num_tasks = 0  # so far
        self._outputs: dict[int, _Output] = {}
        self._ended: dict[int, Ended] = {}
        self._imports: threading.Thread | None = None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes: at once, if a job is not over."""
        for worker in self._workers:
            if worker.job is None:
                with suppress(OSError):
                    worker.connection.send(None)
            else:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            self._drop(worker)
        self._workers.clear()

    def run(self, task: Task, jobs: Sequence[Sequence[str]], first: int) -> list[Ended]:
        """Run the task for all jobs; the first has this number. Return what became of each."""
        waiting = deque((number, [*job]) for number, job in enumerate(jobs, first))
        self._outputs, self._ended = {number: _Output() for number, _ in waiting}, {}
        numbers = [*self._outputs]
        task.prepare()
        self._task, self._num_tasks = task, self._num_tasks + 1
        while len(self._workers) < min(self._size, len(jobs)):
            self._start()
        if self._imports is None:
            self._imports = threading.Thread(target=_import_for_the_comparison, daemon=True)
            self._imports.start()
        with self._shown.progress(len(jobs), 0):
            while len(self._ended) < len(numbers):
                self._shown.advance(len(self._ended), "jobs")
                self._give(waiting)
                self._listen()
                if waiting and not self._workers:  # all were killed
                    self._start()
        return [self._ended[number] for number in numbers]

    def _start(self) -> None:
        """Fork a process. An import in another thread would hold locks that the process needs."""
        if self._imports is not None:
            self._imports.join()
        _flush()
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()
        pipes = {stream: os.pipe() for stream in ("stdout", "stderr")}
        open_here = [here.fileno(), *(reader for reader, _ in pipes.values())]
        open_here += [worker.connection.fileno() for worker in self._workers]
        open_here += [reader for worker in self._workers for reader in worker.pipes]
        writers = [writer for _, writer in pipes.values()]
        process = fork.Process(target=_work, args=(self._task, there, writers, open_here))
        process.start()
        there.close()
        for writer in writers:
            os.close(writer)
        readers = {reader: _Pipe(stream) for stream, (reader, _) in pipes.items()}
        for reader in readers:
            os.set_blocking(reader, False)
        self._workers.append(_Worker(process, here, readers, self._num_tasks))

    def _give(self, waiting: deque[tuple[int, list[str]]]) -> None:
        """Give each idle process a job, and cores to those whose jobs wait for them."""
        for worker in self._workers:
            if worker.job is None and waiting:
                number, overrides = waiting.popleft()
                worker.job, worker.asked, worker.cores = number, 0, 1
                task = None if worker.task == self._num_tasks else self._task
                with suppress(OSError):  # it was killed, which _listen finds
                    worker.connection.send((task, overrides, number))
                worker.task = self._num_tasks
        for worker in sorted(self._workers, key=lambda each: each.job or 0):
            others = sum(w.cores for w in self._workers if w is not worker and w.job is not None)
            if worker.asked and others + worker.asked <= self._capacity:
                worker.cores, worker.asked = worker.asked, 0
                with suppress(OSError):
                    worker.connection.send(True)
            elif worker.asked:
                break  # the first that waits is the first that gets them

    def _listen(self) -> None:
        """Wait for news of the processes, and take it."""
        handles: list[Any] = []
        for worker in self._workers:
            handles += [worker.connection, worker.process.sentinel, *worker.pipes]
        wait(handles)
        for worker in [*self._workers]:
            try:
                while worker.connection.poll():
                    self._take(worker, *worker.connection.recv())
                is_lost = worker.process.exitcode is not None
            except (EOFError, OSError):
                is_lost = True
            self._read(worker)
            if is_lost:
                self._lose(worker)
        self._print()

    def _take(self, worker: _Worker, kind: str, content: Any) -> None:
        assert worker.job is not None
        if kind == "cores":  # its job keeps none while it waits
            worker.asked, worker.cores = min(int(content), self._capacity), 0
            return
        self._read(worker)
        self._finish(worker, content)

    def _finish(self, worker: _Worker, ended: Ended) -> None:
        assert worker.job is not None
        self._ended[worker.job] = ended
        self._outputs[worker.job].is_over = True
        worker.job = None

    def _lose(self, worker: _Worker) -> None:
        """Record that a process was killed. Its job is trained again once all others are over."""
        self._workers.remove(worker)
        worker.process.join()
        number = worker.job
        self._drop(worker)
        if number is not None:
            note = f"job {number}: its process was killed, perhaps because memory ran out\n"
            self._outputs[number].parts.append(("stderr", note))
            self._finish(worker, Ended())

    @staticmethod
    def _drop(worker: _Worker) -> None:
        worker.connection.close()
        for reader in worker.pipes:
            os.close(reader)

    def _read(self, worker: _Worker) -> None:
        for reader, pipe in [*worker.pipes.items()]:
            with suppress(BlockingIOError):
                while read := os.read(reader, 2**16):
                    if worker.job is not None:
                        text = pipe.decoder.decode(read)
                        self._outputs[worker.job].parts.append((pipe.stream, text))
                worker.pipes.pop(reader)  # closed
                os.close(reader)

    def _print(self) -> None:
        """Print what has come of the jobs whose turn it is."""
        for number, output in [*self._outputs.items()]:
            for stream, text in output.parts:
                self._shown.pass_on(text, stream)
            output.parts.clear()
            if not output.is_over:
                return
            del self._outputs[number]


def _import_for_the_comparison() -> None:
    for name in _FOR_THE_COMPARISON:
        importlib.import_module(name)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


# --- each process ---


def _work(
    task: Task, connection: Connection, outputs: Sequence[int], others: Sequence[int]
) -> None:
    """Train the jobs that come over the connection, until None comes."""
    for descriptor in others:
        os.close(descriptor)
    if sys.stdout.isatty():
        console.leave_out_epochs()
    for output, descriptor in zip(outputs, (1, 2), strict=True):
        os.dup2(output, descriptor)
        os.close(output)
    signal.set_wakeup_fd(-1)  # the command's own
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    signals.follow()

    def wait_for_cores(number: int) -> None:
        if number > 1:
            connection.send(("cores", number))
            connection.recv()

    threads.wait_for_cores = wait_for_cores
    with suppress(EOFError, BrokenPipeError):
        while (received := connection.recv()) is not None:
            new, overrides, number = received
            task, ended = task if new is None else new, Ended()
            try:
                ended.value = task(overrides, number)
            except Exception as error:
                ended.error = error
            _flush()
            connection.send(("ended", ended))
