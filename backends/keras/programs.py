"""XLA's compiled programs on disk (runner.machine.programs). On Lightning, this is torch's own
cache, with its own variable.

TensorFlow reads TF_XLA_FLAGS once, when it looks for devices or computes. It fails a run if it
cannot read or write a program in the folder that the flags name. So the folder is a symbolic link
of this process: during training to verified programs, otherwise to nothing, where TensorFlow makes
a folder.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tensorflow as tf

from runner.machine import programs
from runner.spec import RunSpec

_VARIABLE, _FLAG = "TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory"


class _Link:
    """The symbolic link that this process's flags name."""

    def __init__(self, root: Path, flags: str) -> None:
        self.process = os.getpid()
        self.folder = programs.process_folder(root)
        self.path = self.folder / "now"
        self.flags = flags  # the user's
        self.temporary: str | None = None  # the folder in place of one that was abandoned

    def point(self, target: Path | str) -> None:
        """Point the link at a folder."""
        self.remove()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.symlink_to(target, target_is_directory=True)

    def remove(self) -> None:
        """Remove the process's folder, with programs from before or after the training."""
        with suppress(OSError):
            shutil.rmtree(self.folder)
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary = None

    def abandon(self) -> bool:
        """Point the link at an empty folder, if it points at kept programs. Return whether it
        did."""
        if self.temporary is not None or not self.path.is_symlink():
            return False
        empty = tempfile.mkdtemp(prefix="twinrun-programs-")
        self.point(empty)
        self.temporary = empty
        return True


_link: _Link | None = None


def prepare() -> None:
    """Name this process's link in the flags, before TensorFlow looks for devices or computes."""
    global _link
    if _link is not None and _link.process == os.getpid():
        return
    flags = os.environ.get(_VARIABLE, "")
    is_of_user = _FLAG in flags and not programs.is_of_process(flags)
    root = None if is_of_user else programs.usable_root()
    if root is None:  # off, or the user has a folder of their own
        _link = None
        return
    # another process's flag is there if that one has not computed yet
    _link = _Link(
        root, " ".join(flag for flag in flags.split() if not programs.is_of_process(flag))
    )
    os.environ[_VARIABLE] = f"{_link.flags} {_FLAG}={_link.path}".strip()


@contextmanager
def kept(run: RunSpec) -> Iterator[None]:
    """Use the programs of earlier runs in the block, and keep new ones."""
    link = _link
    if link is None or link.process != os.getpid() or tf.config.list_logical_devices("GPU"):
        yield
        return
    tf.constant(0) + 1  # TensorFlow has read the flags now
    _restore(link)
    with programs.opened("keras", _parts(run)) as folder:
        try:
            if folder is not None:
                with suppress(OSError):
                    link.point(folder)
            yield
            if folder is not None and link.temporary is not None:
                _empty(folder)
        finally:
            link.remove()


def _empty(folder: Path) -> None:
    """Remove the programs that a run could not use."""
    for file in folder.iterdir():
        file.unlink(missing_ok=True)


def _restore(link: _Link) -> None:
    """Restore the user's flags, which other programs inherit."""
    if link.flags:
        os.environ[_VARIABLE] = link.flags
    else:
        os.environ.pop(_VARIABLE, None)


def call(function: Any, *arguments: Any) -> tuple[Any, Any]:
    """Trace a tf.function for these arguments, compile it if it uses XLA, and call it. If it fails
    with the programs of earlier runs, or because it cannot keep a new one, compile it again
    without. Return what it returns, and the traced function for later calls."""
    traced = function.get_concrete_function(*arguments)
    try:
        return traced(*arguments), traced
    except tf.errors.OpError:
        if _link is None or not _link.abandon():
            raise
    # TensorFlow keeps the failure of a function that it has traced
    again = tf.function(function.python_function, jit_compile=True, autograph=False)
    return call(again, *arguments)


def _parts(run: RunSpec) -> Mapping[str, object]:
    """Return what the programs of a run depend on. XLA compares the rest of a program itself: runs
    with other programs may share a folder."""
    return {
        "tensorflow": tf.version.GIT_VERSION,
        "flags": [os.environ.get(name, "") for name in ("XLA_FLAGS", _VARIABLE)],
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "tf32": run.tf32,
        "weights": {name: each.shape for name, each in run.network.variables().items()},
        "optimizer": run.optimizer.name,
        "loss": run.loss.name,
        "precision": run.precision,
        "updates": [run.num_steps, run.largest_chunk, run.batch_size, run.accumulate],
        "rows": {name: values.shape for name, values in run.fields.items()},
    }
