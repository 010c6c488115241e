"""callbacks=[memory]: the largest memory so far."""

import sys
from pathlib import Path
from typing import Any

from runner.plan import Plan
from runner.run.callbacks.rows import Rows
from runner.run.observer import Epoch
from runner.spec import Backend, Live
from runner.text.console import Console

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

FILE = "memory.csv"


class Memory(Rows):
    """Appends a row to memory.csv after each epoch: the largest resident memory that the process
    has had since it began, and the largest memory of tensors on the accelerator, if the run has
    one. Both in bytes."""

    def __init__(
        self, section: Any, plan: Plan, backend: Backend, path: Path, console: Console
    ) -> None:
        super().__init__(plan, path / FILE, ["process_peak_bytes", "device_peak_bytes"])
        self._backend, self._device = backend, plan.config.device_name

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        values = {"process_peak_bytes": process_peak_bytes()}
        of_device = self._backend.device_peak_bytes(self._device)
        if of_device is not None:
            values["device_peak_bytes"] = of_device
        self.append(epoch.step, values)
        return True


def process_peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    if resource is None:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # in KiB on Linux
