"""torch.profiler around some updates, with the names of the modules that Lightning's profiler
gives."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pytorch_lightning.profilers.pytorch import RegisterRecordFunction
from torch.profiler import ProfilerActivity, profile

from backends.lightning import device
from runner.spec import Operation, RunSpec


class Profiler:
    """Implements `runner.spec.Profiler`. The trace has the format of Chrome, for Perfetto."""

    def __init__(self, run: RunSpec, folder: Path) -> None:
        self.trace = folder / "torch.pt.trace.json"  # TensorBoard's plugin wants this suffix
        # hooks would compile the modules again; the layers of exact mode are no modules
        self._has_names = not run.compile and run.precision != "exact"
        self._activities = [ProfilerActivity.CPU]
        self._is_on_cuda = device.resolve(run.device).type == "cuda"
        if self._is_on_cuda:
            self._activities.append(ProfilerActivity.CUDA)
        self._open = ExitStack()

    def start(self, live: Any) -> None:
        if self._has_names:
            engine = getattr(live, "live", live).engine
            self._open.enter_context(RegisterRecordFunction(engine.network))
            self._open.enter_context(engine.with_hooks())
        self._profile = self._open.enter_context(profile(activities=self._activities))

    def stop(self) -> Sequence[Operation]:
        self._open.close()
        self.trace.parent.mkdir(exist_ok=True)
        self._profile.export_chrome_trace(str(self.trace))
        operations = (
            Operation(event.key, event.count, 1e-6 * self._microseconds(event))
            for event in self._profile.key_averages()
        )
        return sorted(operations, key=lambda operation: -operation.seconds)

    def _microseconds(self, event: Any) -> float:
        """Return the time of an operation without those inside it, on the device that trains."""
        of_device = event.self_device_time_total if self._is_on_cuda else event.self_cpu_time_total
        return float(of_device)
