"""logger=wandb: a run in Weights & Biases, whose files are in the run's folder. Without a key of
its server it is offline; `wandb sync` uploads it later.

Each session of a run has a file, also online, with what the run has been given. The points that the
tracked run has are those in these files, so none is given twice. Weights & Biases cannot remove
points: if a run resumes before the last one, a new tracked run begins with the whole history, and
its tag `replaces-ID` names the other one.
"""

import json
import netrc
import os
import shlex
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import gmtime, localtime, monotonic, sleep, strftime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported

import wandb
import wandb.proto.wandb_internal_pb2 as messages
from google.protobuf.message import DecodeError

from runner.run.trackers.tracker import (
    Point,
    TrackedMultirun,
    TrackedRun,
    Tracker,
    kept_id,
    save_id,
    saved_id,
)

FILE = "wandb.json"  # has the id of the tracked run; lies in the run's folder
STEP = "step"  # the horizontal axis of all tags
_PROJECT = "twinrun"
_SERVER = "https://api.wandb.ai"
_MOST_SECONDS = 10.0  # for the last record of a session
_HEADER_BYTES = 7  # of a file
_BLOCK_BYTES = 2**15
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4  # kinds of parts of a record
_EXIT = {"completed": 0, "interrupted": 130, "failed": 1}
# nothing of this machine, of its environment or of what is printed
_SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "host": "-",
    "program": "-",
    "symlink": False,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


class WandB(Tracker):
    """Writes metrics, files and the config; the multirun is the group. A point's number in Weights
    & Biases, `_step`, is its order."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run

    def open(self, last: int) -> int:
        before, tags = saved_id(self._run.path / FILE), None
        if before is not None:
            done = max((int(p["_step"]) for p in points(self._run.path, before)), default=-1)
            if done <= last:
                self._begin(before)
                return done
            tags = [f"replaces-{before}"]
        self._begin(save_id(self._run.path / FILE, _new_id()), tags)
        return -1

    def _begin(self, run_id: str, tags: Sequence[str] | None = None) -> None:
        self._tracked, self.hint = _session(
            self._run.path,
            run_id,
            group=self._run.group,
            tags=tags,
            config=dict(self._run.hyperparameters),
        )
        self._tracked.define_metric("*", step_metric=STEP)
        self._file = Path(self._tracked.dir).parent / f"run-{run_id}.wandb"

    def write(self, points: Sequence[Point]) -> None:
        for point in points:
            self._tracked.log({**point.values, STEP: point.step}, step=point.order)

    def keep(self, name: str, path: Path, step: int) -> None:
        _keep(self._tracked, name, path)

    def close(self, status: str) -> None:
        self._tracked.finish(exit_code=_EXIT[status])
        _wait_for_end(self._file)


def write_answer(multirun: TrackedMultirun) -> str:
    """Write a run of the multirun's group with its answer as notes and summary, and its files.
    Return the hint."""
    run_id = kept_id(multirun.path / FILE, _new_id)
    tracked, hint = _session(
        multirun.path, run_id, group=multirun.name, job_type="answer", notes=multirun.says
    )
    tracked.summary.update({"answer": multirun.says, "winner": multirun.winner})
    for name, path in multirun.files:
        _keep(tracked, name, path)
    tracked.finish()
    return hint


def _session(folder: Path, run_id: str, **about: Any) -> tuple[wandb.Run, str]:
    """Begin a session of the tracked run of a folder. Return it and the hint."""
    _wait_for_new_second(folder, run_id)
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    tracked = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or _PROJECT,
        dir=str(folder.resolve()),  # the process of wandb may have another working folder
        id=run_id,
        name=folder.name,
        mode=mode,
        resume="allow",
        reinit="create_new",  # a notebook may have a run of its own
        settings=wandb.Settings(**_SETTINGS),
        **about,
    )
    if mode != "offline":
        return tracked, f"wandb, {tracked.url or mode}"
    sessions = sorted(folder.glob(f"wandb/offline-run-*-{run_id}*"))
    return tracked, shlex.join(["wandb", "sync", *map(str, sessions)])


def _wait_for_new_second(folder: Path, run_id: str) -> None:
    """Wait until no session has begun in this second: its folder is named by the second, and a
    second session would write over its file."""

    def has_begun() -> bool:
        return any(
            any(folder.glob(f"wandb/*run-{strftime('%Y%m%d_%H%M%S', now)}-{run_id}"))
            for now in (localtime(), gmtime())
        )

    while has_begun():
        sleep(0.02)


def _wait_for_end(file: Path) -> None:
    """Wait until a session's file has its last record, which a resumed run reads. On a busy machine
    `finish` returns before the process of wandb has written it."""
    until, size = monotonic() + _MOST_SECONDS, -1
    while file.is_file() and monotonic() < until:
        if file.stat().st_size != size:
            size = file.stat().st_size
            if any(record.WhichOneof("record_type") == "exit" for record in _records(file)):
                return
        sleep(0.02)


def _keep(tracked: wandb.Run, name: str, path: Path) -> None:
    """Add a file to the files of a session, as a link if the file system allows it."""
    own = Path(tracked.dir) / name
    own.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, own)
    except OSError:
        shutil.copyfile(path, own)
    tracked.save(own, base_path=tracked.dir, policy="now", glob=False)


def _new_id() -> str:
    return uuid4().hex[:8]


def has_key() -> bool:
    """Return whether this user has a key of the server that WANDB_BASE_URL names, in the
    environment or in the file of `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _SERVER).hostname or ""
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def points(folder: Path, run_id: str) -> Iterator[dict[str, Any]]:
    """Yield the points in the files of a run's sessions, the oldest first: tag -> value."""
    for path in sorted(folder.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb")):
        for record in _records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }


def _records(path: Path) -> Iterator[Any]:
    """Yield the whole records of a file. It has the format of LevelDB's log: blocks of 32 KiB with
    parts of records, each with a checksum, its length and its kind."""
    content, position, record = path.read_bytes(), _HEADER_BYTES, b""
    while position + 7 <= len(content):
        rest = _BLOCK_BYTES - position % _BLOCK_BYTES
        if rest < 7:
            position += rest
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        part = content[position + 7 : position + 7 + length]
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or len(part) < length:
            return  # the end of what a killed process has written
        position += 7 + length
        record = part if kind in (_WHOLE, _FIRST) else record + part
        if kind in (_WHOLE, _LAST):
            try:
                yield messages.Record.FromString(record)  # type: ignore[attr-defined]
            except DecodeError:
                return
