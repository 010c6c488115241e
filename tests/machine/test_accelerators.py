"""Runs on accelerators are those of the CPU. Skipped where a backend finds none."""

from pathlib import Path

import numpy as np
import pytest

from runner import dispatcher
from runner.run.run_folder import read_columns, read_json
from tests.command_line import BACKENDS, forked

pytestmark = pytest.mark.slow
RUN = ("model=mlp", "trainer.max_steps=60", "schedule=cosine")


def accelerators(backend: str, num: int = 1) -> list[str]:
    """Return the names of the accelerators; skip the test if there are fewer than `num`."""
    found = [name for name in dispatcher.load(backend).devices() if name != "cpu"]
    if len(found) < num:
        pytest.skip(f"{backend} finds {len(found)} accelerators, {num} are needed")
    return found


def train(folder: Path, *overrides: str) -> Path:
    (done,) = forked(folder, (*RUN, *overrides))
    assert (done.status, done.err) == (0, "")
    return folder / done.folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_are_those_of_the_cpu_up_to_rounding(tmp_path: Path, backend: str) -> None:
    """float32 sums in another order: a thousandth after 60 updates."""
    device = accelerators(backend)[0]
    folders = [train(tmp_path, f"backend={backend}", f"device={d}") for d in ("cpu", device)]
    assert read_json(folders[1] / "environment.json")["device"] == device
    losses = [read_columns(folder / "trace.csv")["loss"] for folder in folders]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_exact_mode_has_the_hashes_of_the_cpu(tmp_path: Path, backend: str) -> None:
    device = accelerators(backend)[0]
    exact = (f"backend={backend}", "trainer.precision=exact")
    folders = [train(tmp_path, *exact, f"device={name}") for name in ("cpu", device)]
    results = [read_json(folder / "result.json") for folder in folders]
    for key in ("weights_sha256", "slots_sha256", "losses_sha256"):
        assert results[0][key] == results[1][key]


@pytest.mark.parametrize("backend", BACKENDS)
def test_jobs_side_by_side_have_an_accelerator_each(tmp_path: Path, backend: str) -> None:
    accelerators(backend, 2)
    side = ("-m", f"backend={backend}", "seed=0,1", "hydra.launcher.n_jobs=2")
    (done,) = forked(tmp_path, (*side, *RUN, "hydra/launcher=joblib"))
    assert (done.status, done.err) == (0, "")
    files = (tmp_path / done.folder).glob("*/environment.json")
    assert len({read_json(file)["device"] for file in files}) == 2
