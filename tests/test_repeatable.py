"""A model with random numbers that the run cannot seed is found before the training."""

import json
from pathlib import Path

import pytest

from tests.command_line import BACKENDS, forked
from tests.rows import slow_but

SOURCE = {
    "lightning": """
import numpy as np
import torch


class Net(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.drop, self.kind = torch.nn.Linear(64, 10), torch.nn.Dropout(0.5), kind
        self.own = np.random.default_rng(0)
        self.norm = torch.nn.BatchNorm1d(64)

    def forward(self, x):
        z = self.drop(self.norm(x))
        if self.training and self.kind == "own":
            z = z + float(self.own.normal())
        if self.training and self.kind == "global":
            z = z + float(np.random.normal())
        return self.layer(z)
""",
    "keras": """
import keras
import numpy as np


class Net(keras.Model):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.drop, self.kind = keras.layers.Dense(10), keras.layers.Dropout(0.5), kind
        self.own = np.random.default_rng(0)
        self.norm = keras.layers.BatchNormalization()

    def call(self, x, training=False):
        z = self.drop(self.norm(x, training=training), training=training)
        if training and self.kind == "own":
            z = z + float(self.own.normal())
        if training and self.kind == "global":
            z = z + keras.random.normal(())
        return self.layer(z)
""",
}


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_random_numbers_that_the_run_cannot_seed_are_named(tmp_path: Path, backend: str) -> None:
    """Dropout and running statistics are repeatable; a generator of the model's own, and one of the
    whole process, are not."""
    (tmp_path / "mine.py").write_text(SOURCE[backend])
    common = (f"backend={backend}", "device=cpu", "trainer.max_epochs=1", "trusted_modules=[mine]")
    common = (*common, "model=custom", "model._target_=mine.Net")
    for kind in ("none", "own", "global"):
        (done,) = forked(tmp_path, (*common, f"model.kind={kind}"))
        assert (done.status, done.err) == (0, "")
        warns = "a resumed run is not bit-identical to a whole one" in done.out
        assert warns == (kind != "none")
        environment = json.loads((tmp_path / done.folder / "environment.json").read_text())
        assert environment.get("is_repeatable", True) == (kind == "none")
