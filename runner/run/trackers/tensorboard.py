"""logger=tensorboard: an event file in the run's folder, for `tensorboard --logdir outputs/runs`.

The file is written with the protocol buffers and the record format of the package tensorboard,
without its writer, which would import TensorFlow. Values are float32.
"""

import shlex
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from google.protobuf.struct_pb2 import Value
from tensorboard.compat.proto import (
    event_pb2,
    summary_pb2,
    tensor_pb2,
    tensor_shape_pb2,
    types_pb2,
)
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from runner.run.trackers.points import LEARNING_RATE
from runner.run.trackers.tracker import Point, TrackedRun, Tracker, order

FILE = "events.out.tfevents.twinrun"  # TensorBoard reads files with `tfevents` in the name
_STATUS = {
    "completed": api_pb2.Status.Value("STATUS_SUCCESS"),
    "failed": api_pb2.Status.Value("STATUS_FAILURE"),
}


class TensorBoard(Tracker):
    """Writes scalars, and the config as hyperparameters."""

    def __init__(self, run: TrackedRun) -> None:
        self._run, self._path = run, run.path / FILE
        self.hint = shlex.join(["tensorboard", "--logdir", str(run.path.parent)])
        self._file: BinaryIO

    def open(self, last: int) -> int:
        """Cut the file after the last point of the records, and after the last whole event."""
        if self._path.is_symlink():
            raise OSError(f"{self._path} is a symbolic link")
        self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        done, end = -1, 0
        for event, position in _events(self._file):
            if (place := _order(event)) is not None:
                if place > last:
                    break
                done = place
            end = position
        self._file.truncate(end)
        self._file.seek(end)
        self._writer = RecordWriter(self._file)
        if end == 0:
            self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
            self._add_session(
                "start",
                plugin_data_pb2.SessionStartInfo(
                    hparams={key: _value(v) for key, v in self._run.hyperparameters.items()},
                    start_time_secs=time.time(),
                ),
            )
        self._file.flush()
        return done

    def write(self, points: Sequence[Point]) -> None:
        for point in points:
            values = [
                summary_pb2.Summary.Value(tag=tag, simple_value=value)
                for tag, value in point.values.items()
            ]
            self._add_values(point.step, values)
        self._file.flush()

    def close(self, status: str) -> None:
        if status in _STATUS:
            info = plugin_data_pb2.SessionEndInfo(status=_STATUS[status], end_time_secs=time.time())
            self._add_session("end", info)
        self._file.close()

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def _add_values(self, step: int, values: Sequence[Any]) -> None:
        summary = summary_pb2.Summary(value=values)
        self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def _add_session(self, which: str, info: Any) -> None:
        """Add an event of the hyperparameters plugin: the `start` or the `end` of a session."""
        content = plugin_data_pb2.HParamsPluginData(version=0, **{f"session_{which}_info": info})
        plugin = summary_pb2.SummaryMetadata.PluginData(
            plugin_name="hparams", content=content.SerializeToString()
        )
        empty = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_FLOAT,
            tensor_shape=tensor_shape_pb2.TensorShapeProto(
                dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]
            ),
            float_val=[0.0],
        )
        value = summary_pb2.Summary.Value(
            tag=f"_hparams_/session_{which}_info",
            metadata=summary_pb2.SummaryMetadata(plugin_data=plugin),
            tensor=empty,
        )
        self._add_values(0, [value])


def _value(value: str | float | int | bool) -> Any:
    """Return a hyperparameter as a value of protocol buffers."""
    if isinstance(value, bool):
        return Value(bool_value=value)
    if isinstance(value, str):
        return Value(string_value=value)
    return Value(number_value=value)


def _events(file: BinaryIO) -> Iterator[tuple[Any, int]]:
    """Yield the whole events of a file, each with the position after it."""
    while True:
        header = file.read(12)
        if len(header) < 12:
            return
        (length,) = struct.unpack("<Q", header[:8])
        content = file.read(length + 4)
        if len(content) < length + 4:
            return
        yield event_pb2.Event.FromString(content[:length]), file.tell()


def _order(event: Any) -> int | None:
    """Return the place of an event's point; None if it has no scalars."""
    tags = [value.tag for value in event.summary.value if value.HasField("simple_value")]
    return order(event.step, LEARNING_RATE in tags) if tags else None
