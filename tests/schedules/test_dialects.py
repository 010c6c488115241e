"""schedule=from_torch, from_keras, from_huggingface, from_timm: the libraries' own curves, at every
step and past the end."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner import rates
from runner.schedules import Clock
from tests.schedules.drawn import made

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

# library -> the schedule, and how far apart of the curve's peak: float64 libraries multiply rates
# up over some hundred steps, Keras computes in float32 (spacing 1.2e-7) in a few operations.
DIALECTS = {
    "torch": ("from_torch", 1e-12),
    "keras": ("from_keras", 5e-7),
    "transformers": ("from_huggingface", 1e-12),
    "timm": ("from_timm", 1e-12),
}
# What needs Python there, what takes the rate in force, and a chain with a part that is no factor.
NOT_TAKEN = {"LambdaLR", "MultiplicativeLR", "SWALR"}
CHAINED_COSINES = {"torch/ChainedScheduler/random-3", "torch/ChainedScheduler/random-4"}


def arguments(curve: dict[str, Any]) -> dict[str, Any]:
    """As this project's YAML spells them."""
    args = dict(curve["args"])
    args |= args.pop("scheduler_specific_kwargs", None) or {}
    if "schedulers" in args:
        args["schedulers"] = [
            {"class": part["name"], "args": part["args"]} for part in args["schedulers"]
        ]
    args.pop("t_in_epochs", None)
    return args


def curves() -> list[Any]:
    found = []
    for library in DIALECTS:
        for curve in json.loads((GOLDEN / f"{library}.json").read_text(encoding="utf-8"))["curves"]:
            if curve["name"] not in NOT_TAKEN and curve["id"] not in CHAINED_COSINES:
                found.append(pytest.param(library, curve, id=curve["id"]))
    return found


CURVES = curves()


@pytest.mark.parametrize(("library", "curve"), CURVES)
def test_the_curve_is_the_library_s_own(library: str, curve: dict[str, Any]) -> None:
    name, tolerance = DIALECTS[library]
    schedule = made(
        {"name": name, "class": curve["name"], "args": arguments(curve), "tick": "step"}
    )
    total = curve["total_steps"]
    # where torch raises, at the end of OneCycleLR and one tick earlier where it extrapolates, the
    # last value holds here
    until = total if curve["name"] == "OneCycleLR" else total + 10
    numbers = [rate for rate in curve["lrs"] if not isinstance(rate, str)]
    expected = np.array([rate if not isinstance(rate, str) else np.nan for rate in curve["lrs"]])[
        :until
    ]
    found = schedule.rates(np.arange(until), Clock(total, total), curve["base_lr"] or 1.0)
    assert np.nanmax(np.abs(found - expected)) <= tolerance * max(map(abs, numbers))


def test_all_classes_are_compared() -> None:
    compared = Counter(param.values[0] for param in CURVES)
    assert compared == {"torch": 135 - 27 - 2, "keras": 54, "transformers": 74, "timm": 40}
    from runner.schedules.dialects import DIALECTS as KINDS

    for kind in KINDS:
        library = next(
            library
            for library, (name, _) in DIALECTS.items()
            if name in str(kind.model_fields["name"])
        )
        assert set(kind.registry) == {p.values[1]["name"] for p in CURVES if p.values[0] == library}


def test_a_tick_of_an_epoch_gives_all_its_updates_one_rate() -> None:
    by_epoch = made(
        {
            "name": "from_torch",
            "class": "StepLR",
            "args": {"step_size": 2, "gamma": 0.5},
            "tick": "epoch",
        }
    )
    found = by_epoch.rates(np.arange(15), Clock(15, 3), 1.0)
    assert list(found) == [1.0] * 6 + [0.5] * 6 + [0.25] * 3


def test_what_the_run_knows_need_not_be_said() -> None:
    """Hugging Face's linear to the run's end; timm's cosine over the run's epochs; Keras's first
    rate is optimizer.lr."""
    linear = rates(
        "schedule=from_huggingface schedule.class=linear schedule.args.num_warmup_steps=0", 4, 1.0
    )
    np.testing.assert_array_equal(linear, [1, 0.75, 0.5, 0.25])
    cosine = rates("schedule=from_timm schedule.class=CosineLRScheduler", 4, 1.0, steps_per_epoch=2)
    np.testing.assert_allclose(cosine, [1, 1, 0.5, 0.5], rtol=1e-15)
    held = rates(
        "schedule=from_timm schedule.class=WSDLRScheduler schedule.args.decay_t=2",
        4,
        1.0,
        steps_per_epoch=1,
    )
    np.testing.assert_allclose(held, [1, 1, 1, 1 - 0.5**0.5], rtol=1e-15)
    decay = rates(
        (
            "schedule=from_keras schedule.class=ExponentialDecay 'schedule.args={decay_steps: "
            "1, decay_rate: 0.5}'"
        ),
        3,
        0.1,
    )
    np.testing.assert_allclose(decay, [0.1, 0.05, 0.025], rtol=1e-15)


def test_a_dialect_can_be_a_part_of_a_schedule() -> None:
    part = "{for: rest, name: from_torch, class: ExponentialLR, args: {gamma: 0.5}}"
    found = rates(
        f"schedule=sequence 'schedule.phases=[{{for: 2steps, name: hold}}, {part}]'", 5, 1.0
    )
    assert list(found) == [1, 1, 1, 0.5, 0.25]
