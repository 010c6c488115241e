"""Exact mode trains as well as float32: what it rounds is less than what another seed changes."""

from pathlib import Path

import numpy as np
import pytest

from runner.run.run_folder import read_json
from tests.command_line import BACKENDS, forked

SEEDS = range(10)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "diabetes"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_its_losses_are_those_of_float32_within_the_seeds_spread(
    tmp_path: Path, data: str, backend: str
) -> None:
    """Ten seeds. Of each the two precisions differ by less than a tenth of the deviation over
    seeds; the means by less than its standard error."""
    seeds = ",".join(map(str, SEEDS))
    common = (
        f"data={data}",
        f"backend={backend}",
        "trainer.max_epochs=5",
        "schedule=cosine",
        "device=cpu",
    )
    (done,) = forked(tmp_path, ("-m", "trainer.precision=float32,exact", f"seed={seeds}", *common))
    assert (done.status, done.err) == (0, "")
    losses = {}
    for precision in ("float32", "exact"):
        folders = [
            tmp_path / done.folder / f"trainer.precision-{precision}_seed-{seed}" for seed in SEEDS
        ]
        losses[precision] = np.array(
            [read_json(path / "result.json")["metrics"]["val/loss"] for path in folders]
        )
    spread = losses["float32"].std(ddof=1)
    difference = losses["exact"] - losses["float32"]
    assert np.abs(difference).max() < spread / 10
    assert abs(difference.mean()) < spread / 10**0.5
