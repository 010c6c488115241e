"""logger=tensorboard: an event file in the run's folder, for `tensorboard --logdir outputs/runs`.

The file is written with the protocol buffers and the record format of the package tensorboard,
without its writer, which would import TensorFlow. Values are float32.
"""

import os
import shlex
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import indent
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
from runner.run.trackers.tracker import Point, TrackedMultirun, TrackedRun, Tracker, order

FILE = "events.out.tfevents.twinrun"  # TensorBoard reads files with `tfevents` in the name
_SHOWN = (".png", ".md")  # the files of a comparison that it can show
_RGBA = 4  # a number of the format
_STATUS = {
    "completed": api_pb2.Status.Value("STATUS_SUCCESS"),
    "failed": api_pb2.Status.Value("STATUS_FAILURE"),
}


class TensorBoard(Tracker):
    """Writes scalars, pictures and texts, and the config as hyperparameters."""

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
        self._kept = set[tuple[str, int]]()
        for event, position in _events(self._file):
            if (place := _order(event)) is not None:
                if place > last:
                    break
                done = place
            self._kept |= {(value.tag, event.step) for value in event.summary.value}
            end = position
        self._file.truncate(end)
        self._file.seek(end)
        self._writer = RecordWriter(self._file)
        if end == 0:
            _add_version(self._writer)
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

    def keep(self, name: str, path: Path, step: int) -> None:
        value = _shown(path)
        if (value.tag, step) not in self._kept:
            self._add_values(step, [value])

    def close(self, status: str) -> None:
        if status in _STATUS:
            info = plugin_data_pb2.SessionEndInfo(status=_STATUS[status], end_time_secs=time.time())
            self._add_session("end", info)
        self._file.close()

    def _add_values(self, step: int, values: Sequence[Any]) -> None:
        _add_values(self._writer, step, values)

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


def write_answer(multirun: TrackedMultirun) -> str:
    """Write an event file with the answer of a multirun as a text, and the pictures and tables of
    its comparison. Return the hint."""
    path = multirun.path / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    with temporary.open("wb") as file:
        writer = RecordWriter(file)
        _add_version(writer)
        values = [_text("answer", multirun.says.replace("\n", "  \n"))]  # two spaces end a line
        values += [_shown(each) for _, each in multirun.files if each.suffix in _SHOWN]
        _add_values(writer, 0, values)
    temporary.replace(path)
    return shlex.join(["tensorboard", "--logdir", str(multirun.path)])


def _add_version(writer: RecordWriter) -> None:
    event = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
    writer.write(event.SerializeToString())


def _add_values(writer: RecordWriter, step: int, values: Sequence[Any]) -> None:
    summary = summary_pb2.Summary(value=values)
    event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
    writer.write(event.SerializeToString())


def _shown(path: Path) -> Any:
    """Return a file as a value: a PNG as a picture, JSON and Markdown as texts."""
    if path.suffix == ".png":
        return _picture(path.stem, path.read_bytes())
    text = path.read_text(encoding="utf-8")
    return _text(path.stem, indent(text, "    ") if path.suffix == ".json" else text)


def _picture(tag: str, content: bytes) -> Any:
    """Return a PNG as a value. Bytes 16 to 24 of the file have its width and height."""
    width, height = struct.unpack(">II", content[16:24])
    image = summary_pb2.Summary.Image(
        width=width, height=height, colorspace=_RGBA, encoded_image_string=content
    )
    return summary_pb2.Summary.Value(tag=tag, image=image)


def _text(tag: str, markdown: str) -> Any:
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    content = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        tensor_shape=tensor_shape_pb2.TensorShapeProto(),
        string_val=[markdown.encode()],
    )
    metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
    return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=content)


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
