"""trainer.precision=16-mixed: float16 with a dynamic scale of the loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.components.loss_scale import INTERVAL, SLOT, LossScale
from runner.run.run_folder import read_columns, read_json
from tests.command_line import BACKENDS, forked
from tests.rows import slow_but
from tests.training import first, prepare, train

MIXED = ["trainer.precision=16-mixed", "device=cpu"]
# single rows with standardized targets: gradients are beyond float16 at the first scale
LARGE = (*MIXED, "data=diabetes", "trainer.batch_size=1")


@pytest.mark.slow
def test_the_scale_is_that_of_torch_s_scaler() -> None:
    """torch.amp.GradScaler has its defaults; of 6,000 updates, few overflow, and once a burst of
    them."""
    torch = pytest.importorskip("torch")
    weight = torch.zeros(1, requires_grad=True)
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD([weight], lr=0.0)
    rng, ours, seen = np.random.default_rng(0), LossScale(), set()
    for step in range(6000):
        is_finite = not (rng.random() < 3e-4 or 100 <= step < 120)
        scaler.scale(weight.sum())
        weight.grad = torch.tensor([1.0 if is_finite else np.inf])
        scaler.step(optimizer)
        scaler.update()
        ours = ours.after(is_finite)
        seen.add(ours.scale)
        assert ours.scale == scaler.get_scale(), step
    assert len(seen) > 20  # 20 times halved, and doubled at least once


@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_an_update_beyond_float16_is_skipped(backend: str) -> None:
    """The scale is far too large at first: weights and slots keep their values while it is halved,
    and the optimizer's rates go on. Then the loss falls. The last update doubles the scale."""
    overrides = [*MIXED, "schedule=linear", "trainer.max_steps=4", "model=linear"]
    start, tables = first(prepare(overrides)), prepare(overrides).run_spec().tables
    scaled = replace(start, slots={**start.slots, SLOT: LossScale(2.0**120).slot()})
    trained = train(backend, overrides, start=scaled)
    assert [*trained.applied["learning_rate"]] == [*tables["learning_rate"]]
    for name, value in start.weights.items():
        assert np.array_equal(trained.state.weights[name], value), name
    assert trained.state.slots[SLOT] == LossScale(2.0**116, 0, 4).slot()
    near = LossScale(2.0**8, INTERVAL - 4)
    whole = train(
        backend, overrides, start=replace(start, slots={**start.slots, SLOT: near.slot()})
    )
    assert whole.state.slots[SLOT] == LossScale(2.0**9).slot()
    # 11 bits of a float16
    exact = train(backend, ["trainer.precision=float64", *overrides[1:]])
    np.testing.assert_allclose(whole.losses, exact.losses, rtol=2**-9)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_run_has_the_same_scales(tmp_path: Path, backend: str) -> None:
    """The bits are the same too; the first part ends between two changes of the scale."""
    run = (*LARGE, f"backend={backend}")
    whole, part = forked(tmp_path, (*run, "trainer.max_steps=24"), (*run, "trainer.max_steps=4"))
    assert (whole.status, whole.err, part.status) == (0, "", 0)
    (resumed,) = forked(tmp_path, (f"resume={part.folder}", "trainer.max_steps=24"))
    assert (resumed.status, resumed.err) == (0, "")
    results = [read_json(tmp_path / done.folder / "result.json") for done in (whole, part)]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["overflowed"] == results[1]["overflowed"] > 0
    traces = [(tmp_path / done.folder / "trace.csv").read_text() for done in (whole, part)]
    assert traces[0] == traces[1]
    scales = read_columns(tmp_path / whole.folder / "trace.csv")["loss_scale"]
    assert scales[0] == 2.0**16 > scales[-1]
