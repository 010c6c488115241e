"""Batch sizes that change during a run: trainer.batch_size=[{for: 1epochs, size: 32}, ...]."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runner import load_run
from runner.report.jobs import Job
from runner.run.run_folder import read_columns
from tests.command_line import BACKENDS, forked
from tests.exact.common import assert_same_bits
from tests.parity.test_parity import assert_parity
from tests.rows import slow_but
from tests.training import prepare, train

# digits have 1,280 training rows: 30 updates of 64, then 2.5 epochs of 5 updates of 256 rows
SIZES = "trainer.batch_size=[{for: 1.5epochs, size: 64},{for: rest, size: 256}]"
RUN = [SIZES, "model=linear", "schedule.warmup=1epochs", "optimizer.lr=0.01"]


def test_both_backends_agree() -> None:
    assert_parity([*RUN, "schedule=linear", "trainer.precision=float64", "trainer.max_epochs=3"])


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_exact_mode_has_the_same_bits(backend: str) -> None:
    run = [*RUN, "trainer.precision=exact", "trainer.max_steps=34", "trainer.max_epochs=4"]
    assert_same_bits(train(backend, run), train("witness", run))


@pytest.mark.slow
def test_several_processes_train_as_one_does(tmp_path: Path) -> None:
    """The run begins with one process and goes on with two, inside the first part."""
    run = (*RUN, "trainer.precision=float64", "trainer.max_epochs=4", "device=cpu")
    (whole,) = forked(tmp_path, (*run, "output.root=whole"))
    (begun,) = forked(tmp_path, (*run, "output.root=run", "trainer.max_steps=25"))
    rest = (f"resume={begun.folder}", "backend=keras", "devices=2", "trainer.max_steps=null")
    (resumed,) = forked(tmp_path, rest)
    assert (whole.err, begun.err, resumed.err) == ("", "", "")
    traces = [read_columns(tmp_path / done.folder / "trace.csv") for done in (whole, begun)]
    assert [*traces[0]["batch_size"]] == [*traces[1]["batch_size"]]
    # rounding of float64: the sums over rows are added in another order
    np.testing.assert_allclose(traces[0]["loss"], traces[1]["loss"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # of 4 epochs, or of 40 updates; both sizes divide 1,280 rows
        (["trainer.max_epochs=4"], (0, 20, 40, 45)),
        (["trainer.max_epochs=null", "trainer.max_steps=40"], (0, 20, 25)),
        (["trainer.max_epochs=20", "trainer.max_steps=40"], (0, 20, 25)),
    ],
)
def test_a_percentage_is_of_what_ends_the_run(limits: list[str], expected: tuple[int]) -> None:
    sizes = "trainer.batch_size=[{for: 50%, size: 64},{for: rest, size: 256}]"
    order = prepare([sizes, *limits]).order
    assert order.epochs.starts[:2] == expected[:2]
    begun = next(step for step in range(99) if order.segment(step).batch_size == 256)
    assert begun == (40 if len(expected) == 4 else 20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run, and one that ended within the part with the first size, and was resumed."""
    here = tmp_path_factory.mktemp("sizes")
    common = (*RUN, "device=cpu", "optimizer.lawa=2")
    (whole,) = forked(here, (*common, "trainer.max_epochs=4", "trainer.checkpoint_every=2epochs"))
    (short,) = forked(here, (*common, "trainer.max_epochs=4", "trainer.max_steps=25"))
    assert (whole.err, short.err) == ("", "")
    (longer,) = forked(here, (f"resume={here / short.folder}", "trainer.max_steps=null"))
    assert (longer.status, longer.err) == (0, "")
    return here / whole.folder, here / short.folder


def test_a_resumed_run_has_the_same_bits(run: tuple[Path, Path]) -> None:
    whole, resumed = run
    assert (whole / "trace.csv").read_bytes() == (resumed / "trace.csv").read_bytes()
    weights = [load_run(folder, weights="plain").weights for folder in run]
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])


def test_the_records_of_a_run(run: tuple[Path, Path]) -> None:
    """1.5 epochs of 20 updates, then the other half of the second one: 640 rows are 3 updates."""
    whole, _ = run
    sizes = read_columns(whole / "trace.csv")["batch_size"]
    assert sizes.tolist() == [64] * 30 + [256] * 13
    assert read_columns(whole / "metrics.csv")["step"].tolist() == [20, 33, 38, 43]
    checkpoints = {path.name for path in (whole / "checkpoints").iterdir()}
    assert checkpoints >= {"33", "43"}


def test_preview_has_the_sizes_and_epochs(tmp_path: Path) -> None:
    (done,) = forked(tmp_path, ("task=preview", *RUN, "trainer.max_epochs=4"))
    lines = done.out.splitlines()
    assert lines[0].endswith("43 steps = 4 epochs")
    assert lines[1] == "trainer.batch_size 64 from step 0, 256 from step 30"
    table = [line.split() for line in lines[3:-2]]
    assert ["20", "1.00"] in [row[:2] for row in table]  # the warm-up ends with the first epoch


def test_a_size_that_no_update_has_is_told() -> None:
    for parts, unused in (
        (
            "{for: 150%, size: 8},{for: rest, size: 4}",
            "trainer.batch_size[1]: no update has the size 4",
        ),
        (
            "{for: 0steps, size: 8},{for: rest, size: 4}",
            "trainer.batch_size[0]: no update has the size 8",
        ),
        ("{for: 50%, size: 8},{for: rest, size: 4}", None),
    ):
        warnings = prepare([f"trainer.batch_size=[{parts}]", "model=linear"]).check_schedule()
        assert [text.partition(":" + " the part")[0] for text in warnings] == (
            [unused] if unused else []
        )


def test_a_longer_run_that_would_have_had_other_sizes_is_refused(tmp_path: Path) -> None:
    sizes = "trainer.batch_size=[{for: 50%, size: 64},{for: rest, size: 256}]"
    (short,) = forked(tmp_path, (sizes, "model=linear", "trainer.max_epochs=2"))
    (done,) = forked(tmp_path, (f"resume={tmp_path / short.folder}", "trainer.max_epochs=4"))
    assert (done.status, done.err) == (
        2,
        "error: trainer.batch_size has parts in percent of the run's length, which changes from 25 "
        "to 50 steps, and the first 25 would have had other sizes; set checkpoint to one before "
        "the first change, or start a new run\n",
    )


def test_a_comparison_counts_the_rows_of_updates() -> None:
    """Epochs of 10 rows: 5 updates of 2 x 1, 2 updates of up to 2 x 3,
    and one update of a run that then ended."""
    job: Any = SimpleNamespace(
        config={"trainer": {"batch_size": [], "accumulate_grad_batches": 2}},
        trace={"step": np.arange(8), "batch_size": np.array([1, 1, 1, 1, 1, 3, 3, 3])},
        epochs={"step": np.array([5.0, 7.0, 8.0])},
        data={"rows": {"train": 10}},
    )
    assert [Job.rows_until(job, epoch) for epoch in range(3)] == [10, 20, 26]
