"""Report progress on the terminal and in run.log while a run trains."""

from collections.abc import Mapping

from runner.data.order import Chunk
from runner.run.observer import Epoch, Observer
from runner.spec import Live, Report
from runner.text.console import Console
from runner.text.numbers import show_metric


class Progress(Observer):
    """Updates the progress bar after every chunk; prints a line after every epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_chunk(self, chunk: Chunk, report: Report, live: Live) -> bool:
        rate, loss = report.applied["learning_rate"][-1], report.losses[-1]
        done = chunk.first_step + chunk.num_steps
        self.console.advance(done, f"rate {rate:.3g}  loss {loss:.4g}")
        return True

    def on_epoch(self, epoch: Epoch, live: Live) -> bool:
        line = f"epoch {epoch.number}  step {epoch.step}  {show(epoch.metrics)}"
        self.console.epoch(line)
        return True


def show(values: Mapping[str, float]) -> str:
    """Format metrics as one line."""
    return "  ".join(f"{name} {show_metric(value)}" for name, value in values.items())
