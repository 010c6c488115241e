"""TensorFlow's profiler around some updates. It writes the files of TensorBoard's profile plugin;
from them, this module writes a trace for Perfetto and counts the operations.

Only this module uses TensorFlow's module of the files' protocol buffers, which is not public. If a
release does not have it, there are TensorBoard's files alone.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import tensorflow as tf

from runner.spec import Operation, RunSpec

_LOOP = re.compile(r"\bwhile(/body)?(/_\d+)?/")  # of the updates of a call
_MICROSECOND = 1e6  # in picoseconds


class Profiler:
    """Implements `runner.spec.Profiler`."""

    def __init__(self, run: RunSpec, folder: Path) -> None:
        self.trace = self._folder = folder

    def start(self, live: Any) -> None:
        tf.profiler.experimental.start(str(self._folder))

    def stop(self) -> Sequence[Operation]:
        tf.profiler.experimental.stop()
        files = sorted(self._folder.glob("plugins/profile/*/*.xplane.pb"))
        if not files or protocol() is None:
            return []
        space = protocol().XSpace.FromString(files[-1].read_bytes())
        planes = [plane for plane in space.planes if plane.lines]
        self.trace = self._folder / "tensorflow.trace.json"
        content = {"traceEvents": [*_chrome_events(planes)], "displayTimeUnit": "ms"}
        self.trace.write_text(json.dumps(content), encoding="utf-8")
        return _operations(planes)


def protocol() -> Any:
    """Return the module of the protocol buffers; None if this release has none."""
    try:
        found = import_module("tensorflow.tsl.profiler.protobuf.xplane_pb2")
    except ImportError:
        return None
    return found if hasattr(found, "XSpace") else None


def _chrome_events(planes: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of all threads and streams, and their names, in Chrome's format."""
    first = min(line.timestamp_ns for plane in planes for line in plane.lines)
    for pid, plane in enumerate(planes):
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": plane.name}}
        for tid, line in enumerate(plane.lines):
            where = {"pid": pid, "tid": tid}
            yield {"ph": "M", **where, "name": "thread_name", "args": {"name": line.name}}
            begin = 1e-3 * (line.timestamp_ns - first)
            for event in line.events:
                yield {
                    "ph": "X",
                    **where,
                    "name": plane.event_metadata[event.metadata_id].name,
                    "ts": begin + event.offset_ps / _MICROSECOND,
                    "dur": event.duration_ps / _MICROSECOND,
                }


def _operations(planes: Sequence[Any]) -> list[Operation]:
    """Sum the operations by name, each without those inside it: those of the accelerator's streams
    if there is one, else those of the host's threads."""
    of_device = [plane for plane in planes if plane.name.startswith("/device:")]
    calls: dict[str, int] = defaultdict(int)
    picoseconds: dict[str, int] = defaultdict(int)
    for plane in of_device or planes:
        for line in plane.lines:
            if of_device and not line.name.startswith("Stream"):
                continue  # a summary of the streams
            for event, own in _own_times(line.events):
                name = _LOOP.sub("", plane.event_metadata[event.metadata_id].name)
                calls[name] += 1
                picoseconds[name] += own
    found = [Operation(name, num, 1e-12 * picoseconds[name]) for name, num in calls.items()]
    return sorted(found, key=lambda operation: -operation.seconds)


def _own_times(events: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """Yield the events of a thread, with the picoseconds of each outside those inside it."""
    open_events: list[tuple[Any, int, int]] = []  # event, end, picoseconds of those inside it
    for event in sorted(events, key=lambda each: (each.offset_ps, -each.duration_ps)):
        while open_events and open_events[-1][1] <= event.offset_ps:
            last, _, inside = open_events.pop()
            yield last, last.duration_ps - inside
        if open_events:
            outer, end, inside = open_events[-1]
            open_events[-1] = outer, end, inside + event.duration_ps
        open_events.append((event, event.offset_ps + event.duration_ps, 0))
    for last, _, inside in open_events:
        yield last, last.duration_ps - inside
