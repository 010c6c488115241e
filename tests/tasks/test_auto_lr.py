"""optimizer.lr=auto: the base rate is found before the run."""

import json
from pathlib import Path

import numpy as np
import pytest

from runner import ConfigError, train
from tests.command_line import BACKENDS, forked

IRIS = ("data=iris", "device=cpu", "trainer.precision=float64")


@pytest.mark.parametrize("backend", [*BACKENDS[:1], *(
    pytest.param(backend, marks=pytest.mark.slow) for backend in BACKENDS[1:]
)])  # fmt: skip
def test_the_run_has_the_rate_that_was_best_in_short_runs(tmp_path: Path, backend: str) -> None:
    """A short run of 60 updates is a whole run here, so the run repeats the best short run: its
    value is that of metrics.csv, to the bit. Another run at the number has the same weights."""
    same = (*IRIS, f"backend={backend}", "output.root=out")
    (done,) = forked(tmp_path, (*same, "optimizer.lr=auto"))
    assert (done.status, done.err) == (0, "")
    folder = tmp_path / done.folder
    found = json.loads((folder / "find_lr.json").read_text())
    assert f"rate     optimizer.lr={found['lr']:g}\n" in done.out
    assert f"lr: {found['lr']!r}\n" in (folder / "config.yaml").read_text()
    values = {entry["lr"]: entry["value"] for entry in found["measured"]}
    assert values[found["lr"]] == min(values.values())
    assert {found["suggestion"]["lr"]} < set(values)
    rates = np.array(sorted(values))
    # two digits of each: within 5 % of a factor of 4
    np.testing.assert_allclose(rates[1:] / rates[:-1], 4, rtol=0.05)
    assert rates[0] < found["lr"] < rates[-1] or len(rates) == 6
    last = (folder / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert float(last[4]) == values[found["lr"]]
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    (again,) = forked(tmp_path, (*same, f"optimizer.lr={found['lr']!r}"))
    one, other = (
        json.loads((tmp_path / each.folder / "result.json").read_text()) for each in (done, again)
    )
    for key in ("weights_sha256", "config_sha256"):
        assert one[key] == other[key]
    assert f"optimizer.lr={found['lr']!r}" in one["overrides"]


def test_the_objects_of_python_have_it_too(tmp_path: Path) -> None:
    """A schedule of the user's own is used; without validation, the training losses decide."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 3))
    run = train(
        f"optimizer=sgd optimizer.lr=auto output.root='{tmp_path}' device=cpu model=linear "
        "data.val_fraction=0 data.test_fraction=0 data.task=regression trainer.monitor=train/loss",
        data=(x, x @ [1.0, -2.0, 3.0]),
        schedule=lambda t, total_steps, steps_per_epoch, lr: lr * (1 - t / total_steps),
        quiet=True,
    )
    # gradient descent on half of the mean square of standardised columns is stable below a rate
    # of about 2; the steepest fall is within a factor of 16 of it
    assert 0.05 < run.config.optimizer.lr < 2
    assert run.trace["learning_rate"][0] == run.config.optimizer.lr  # both in two digits


def test_an_iterable_is_refused(tmp_path: Path) -> None:
    rows = [{"x": np.zeros(2), "y": 0.0}]
    with pytest.raises(ConfigError, match=r"optimizer.lr must be a number for an iterable"):
        train(
            f"optimizer.lr=auto output.root='{tmp_path}' model=linear data.task=regression "
            "trainer.max_epochs=null trainer.max_steps=2 trainer.batch_size=1 "
            "trainer.monitor=train/loss",
            data={"train": iter(rows)},
            quiet=True,
        )
    assert not [*tmp_path.iterdir()]
