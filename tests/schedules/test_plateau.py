"""schedule=plateau: torch's rule, on any other schedule, on both backends; what early stopping
shares with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner import dispatcher
from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data.order import Chunk, Chunks
from runner.schedules import Plateau
from runner.schedules.plateau import State
from runner.spec import Live, Report
from tests.command_line import BACKENDS, forked
from tests.training import first, prepare, train

CASES = json.loads((Path(__file__).parents[1] / "golden" / "plateau.json").read_text())


def plateau(**keys: Any) -> Plateau:
    said = [f"schedule.{key}={value}" for key, value in keys.items()]
    schedule = parse(compose(["schedule=plateau", *said])).schedule
    assert isinstance(schedule, Plateau)
    return schedule


def rates_after(schedule: Plateau, base: float, metrics: list[float]) -> np.ndarray:
    state, rates = State(), []
    for value in metrics:
        state = schedule.after(state, value)
        rates.append(schedule.scaled(np.array([base]), state)[0])
    return np.array(rates)


def as_ours(library: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The other library's arguments as ours; Keras's defaults are its own."""
    if library == "torch":
        return {key: value for key, value in args.items() if key != "eps"}
    args = {
        "patience": 10,
        "factor": 0.1,
        "min_delta": 1e-4,
        "cooldown": 0,
        "min_lr": 0.0,
        "mode": "min",
        **args,
    }
    return {
        "factor": args["factor"],
        "mode": args["mode"],
        "min_lr": args["min_lr"],
        "threshold": args["min_delta"],
        "threshold_mode": "abs",
        "patience": max(args["patience"], 1) - 1,
        "cooldown": max(args["cooldown"], 1) - 1,
    }


@pytest.mark.parametrize(
    ("library", "case"), [(library, case) for library in CASES for case in CASES[library]]
)
def test_it_is_the_other_libraries_rule(library: str, case: dict[str, Any]) -> None:
    """Rates after each of 60 metrics. torch leaves out changes of less than eps (1e-8): compared up
    to the first of them. Tolerance: a product of factors in another order (torch, float64); float32
    (Keras)."""
    ours = rates_after(plateau(**as_ours(library, case["args"])), case["base_lr"], case["metrics"])
    theirs = np.array(case["lrs_after"])
    eps = case["args"].get("eps", 1e-8) if library == "torch" else 0.0
    falls = -np.diff(ours, prepend=case["base_lr"])
    num = next((i for i, fall in enumerate(falls) if 0 < fall <= eps), len(ours))
    assert num > 20
    np.testing.assert_allclose(ours[:num], theirs[:num], rtol=1e-12 if library == "torch" else 1e-6)


def test_the_minimum_holds_what_the_plateau_lowers_and_lifts_nothing() -> None:
    """eta_m = 0.3: a rate of 1 times 0.1 is 0.3; a warm-up's 0.2 stays 0.2, and does not become
    0.02."""
    schedule = plateau(factor=0.1, min_lr=0.3)
    np.testing.assert_array_equal(
        schedule.scaled(np.array([1.0, 0.2, 5.0]), State(0.1)), [0.3, 0.2, 0.5]
    )


@pytest.mark.parametrize(
    ("backend", "extra"),
    [
        ("lightning", []),
        ("lightning", ["trainer.precision=exact"]),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("keras", []),
                ("lightning", ["trainer.accumulate_grad_batches=2"]),
                ("keras", ["trainer.accumulate_grad_batches=2"]),
                ("keras", ["trainer.precision=exact"]),
            )
        ),
    ],
)
def test_other_rates_are_in_force_from_the_next_update_on(backend: str, extra: list[str]) -> None:
    """The seam's use_tables after 10 updates: what is read back is the new table from there, and a
    run that had this table from the start makes the same weights."""
    overrides = [
        "trainer.max_steps=20",
        "trainer.steps_per_call=5",
        "trainer.batch_size=8",
        "schedule=cosine",
        *extra,
    ]
    prepared = prepare(overrides)
    spec, applied = prepared.run_spec(), []
    other = {"learning_rate": spec.tables["learning_rate"] * np.float32(0.5)}
    table = np.append(spec.tables["learning_rate"][:10], other["learning_rate"][10:])

    def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
        applied.append(report.applied["learning_rate"])
        if chunk.first_step + chunk.num_steps == 10:
            live.use_tables(other)
        return True

    chunks = Chunks(prepared.order, 0, spec.largest_chunk, None, adapt=False)
    state = dispatcher.load(backend).train(spec, first(prepared), chunks, on_chunk)
    np.testing.assert_array_equal(np.concatenate(applied), table)
    whole = train(backend, overrides, tables={"learning_rate": table})
    for name, value in state.weights.items():
        np.testing.assert_array_equal(value, whole.state.weights[name])


STALLING = (
    "schedule=plateau", "schedule.of.name=cosine", "schedule.of.warmup=5%", "schedule.patience=0",
    "schedule.threshold=0.2", "schedule.factor=0.5", "trainer.max_epochs=12",
    "trainer.precision=float64", "device=cpu",
)  # fmt: skip
EARLY = (
    "trainer.early_stopping_patience=3",
    "trainer.early_stopping_min_delta=0.1",
    "trainer.max_epochs=30",
    "device=cpu",
)


@pytest.mark.slow
def test_both_backends_lower_at_the_same_epochs_and_keep_the_state(tmp_path: Path) -> None:
    """The oracle: the rule above on the metrics that metrics.csv has."""
    each = forked(tmp_path, *((f"backend={backend}", *STALLING) for backend in BACKENDS))
    for done in each:
        folder = tmp_path / done.folder
        trace = np.genfromtxt(folder / "trace.csv", delimiter=",", names=True, deletechars="")
        losses = np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True, deletechars="")[
            "val/loss"
        ]
        prepared, state, expected = prepare(STALLING), State(), []
        schedule = prepared.plateau
        assert schedule is not None
        for epoch, loss in enumerate(losses):
            expected.append(prepared.rates(state)[40 * epoch : 40 * epoch + 40])
            before, state = state, schedule.after(state, loss)
            lowered = (
                f"plateau  val/loss has stalled: from step {40 * epoch + 40} on rates times "
                f"{state.factor:g}"
            )
            assert (lowered in done.out) == (state.factor < before.factor and epoch < 11)
        np.testing.assert_array_equal(trace["learning_rate"], np.concatenate(expected))
        assert state.factor < 0.5
        kept = json.loads((folder / "checkpoints" / "last" / "state.json").read_text())["plateau"]
        assert State.of(kept).factor in (state.factor, before.factor)


@pytest.mark.slow
def test_a_run_ends_early_as_completed(tmp_path: Path) -> None:
    """After the third epoch in a row whose validation loss was not 0.1 below the best before it."""
    for done in forked(tmp_path, *((f"backend={backend}", *EARLY) for backend in BACKENDS)):
        assert done.status == 0
        folder = tmp_path / done.folder
        result = json.loads((folder / "result.json").read_text())
        losses = np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True, deletechars="")[
            "val/loss"
        ]
        best, bad, ends = np.inf, 0, 0
        while bad < 3:
            loss, ends = losses[ends], ends + 1
            best, bad = (loss, 0) if loss < best - 0.1 else (best, bad + 1)
        assert (len(losses), result["epochs"], result["steps"]) == (ends, ends, 40 * ends)
        assert ends < 30
        assert (result["status"], result["stopped_early"]) == ("completed", True)
        assert "stopped early: val/loss was no better for 3 epochs" in done.out
        assert (folder / "checkpoints" / "last" / "manifest.json").is_file()
