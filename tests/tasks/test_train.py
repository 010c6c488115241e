"""The lines that a run prints at its end."""

import pytest

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.tasks.train import _best_epoch


@pytest.mark.parametrize(
    ("mode", "last", "words"),
    [
        ("min", 0.75, "best val/loss of the whole epochs 0.9000 after epoch 2"),
        ("min", 0.9, "best val/loss 0.9000 after epoch 2"),
        ("min", float("nan"), "best val/loss 0.9000 after epoch 2"),
        ("max", 0.95, "best val/loss of the whole epochs 0.9000 after epoch 2"),
    ],
)
def test_a_better_value_within_an_epoch_is_not_called_worse_than_the_best(
    mode: str, last: float, words: str
) -> None:
    """`trainer.max_steps` ended the run within epoch 3, which is no whole epoch."""
    trainer = parse(compose([f"trainer.monitor_mode={mode}"])).trainer
    best = {"metric": "val/loss", "value": 0.9, "epoch": 2, "step": 80}
    assert _best_epoch({"best": best, "metrics": {"val/loss": last}}, trainer) == words
