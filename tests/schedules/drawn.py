"""Schedules drawn at random: every name, every key, and compositions of them."""

from typing import Any

from hypothesis import strategies as st
from pydantic import TypeAdapter

from runner.schedules import Schedule

SCHEDULE: TypeAdapter[Any] = TypeAdapter(Schedule)

DURATIONS = st.one_of(
    st.integers(0, 60).map(lambda n: f"{n}steps"),
    st.integers(0, 120).map(lambda n: f"{n}%"),
    st.integers(0, 8).map(lambda n: f"{n}epochs"),
)
LENGTHS = st.one_of(
    st.integers(1, 60).map(lambda n: f"{n}steps"),
    st.integers(1, 120).map(lambda n: f"{n}%"),
    st.integers(1, 8).map(lambda n: f"{n}epochs"),
)
EDGES = st.sampled_from(["left", "right", "inner", "both"])
FACTORS, RATES = st.floats(0, 2), st.floats(0, 2)
WARMUP = {
    "warmup": DURATIONS,
    "warmup_shape": st.sampled_from(["linear", "cosine"]),
    "warmup_edge": EDGES,
}
ENDING = {"final_lr": RATES, "duration": DURATIONS, "edge": EDGES, **WARMUP}
DECAY = {
    "decay_rate": st.floats(0.01, 1.5),
    "decay_steps": st.integers(1, 60),
    "staircase": st.booleans(),
}
CYCLE = {
    "period": LENGTHS,
    "growth": st.sampled_from([1.0, 1.3, 2.0, 3.0]),
    "decay": st.floats(0.1, 1),
}

# name -> the values each of its keys may have
KEYS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "constant": WARMUP,
    "exponential": {**DECAY, **WARMUP},
    "linear": ENDING,
    "step": {"decay_rate": st.floats(0.01, 1.5), "step_size": st.integers(1, 60), **WARMUP},
    "polynomial": {"power": st.floats(0.1, 5), **ENDING},
    "cosine": {"exponent": st.floats(0.1, 5), **ENDING},
    "cosine_restarts": {**CYCLE, "final_lr": RATES, **WARMUP},
    "inverse_time": {**DECAY, **WARMUP},
    "inverse_sqrt": {"scale": LENGTHS, **WARMUP},
    "power": {"scale": LENGTHS, "power": st.floats(0.1, 3), **WARMUP},
    "noam": {"model_size": st.integers(1, 1024), "warmup": DURATIONS},
    "one_cycle": {
        "initial_factor": st.floats(0, 1),
        "final_factor": st.floats(0, 1),
        "rise": DURATIONS,
        "shape": st.sampled_from(["linear", "cosine"]),
        "duration": DURATIONS,
    },
    "cyclic": {
        "min_lr": RATES,
        "up": LENGTHS,
        "down": LENGTHS,
        "mode": st.sampled_from(["triangular", "triangular2", "exp_range"]),
        "decay_rate": st.floats(0.5, 1),
    },
    "wsd": {
        "decay": DURATIONS,
        "decay_shape": st.sampled_from(["linear", "cosine", "1-sqrt"]),
        **ENDING,
    },
    "power_tokens": {
        "amplitude": st.floats(1e-3, 10),
        "exponent": st.floats(-2, -0.1),
        "decay": DURATIONS,
        "decay_shape": st.sampled_from(["linear", "cosine", "1-sqrt"]),
        **ENDING,
    },
    "tri_stage": {
        "initial_factor": st.floats(0, 1),
        "final_factor": st.floats(0.01, 1),
        "warmup": DURATIONS,
        "hold": DURATIONS,
        "decay": DURATIONS,
        "warmup_edge": EDGES,
        "edge": EDGES,
    },
    "rex": {"bend": st.floats(0, 0.99), **ENDING},
    "tanh": {"lower": st.floats(-8, 0), "upper": st.floats(0, 8), **ENDING},
    "range_test": {
        "initial_lr": st.floats(1e-6, 1),
        "final_lr": st.floats(1e-6, 1),
        "shape": st.sampled_from(["geometric", "linear"]),
        "duration": DURATIONS,
        "edge": EDGES,
    },
    "hold": {"factor": FACTORS},
    "ramp": {
        "from": st.floats(0.01, 2),
        "to": st.floats(0.01, 2),
        "shape": st.sampled_from(
            ["linear", "cosine", "polynomial", "late", "geometric", "rex", "tanh"]
        ),
        "edge": EDGES,
        "power": st.floats(0.1, 5),
        "bend": st.floats(0, 0.99),
        "lower": st.floats(-8, 0),
        "upper": st.floats(0, 8),
    },
    "inverse": {"scale": LENGTHS, "power": st.floats(0.1, 3)},
}
# Those that hold their last value from a step on that the schedule itself says, and the key that
# says it.
ENDS = {name: "duration" for name, keys in KEYS.items() if "duration" in keys}


@st.composite
def piecewise(draw: st.DrawFn) -> dict[str, Any]:
    steps = sorted(draw(st.lists(st.integers(0, 60), max_size=4)))
    factors = draw(st.lists(FACTORS, min_size=len(steps) + 1, max_size=len(steps) + 1))
    boundaries = [f"{step}steps" for step in steps]
    return {
        "name": "piecewise",
        "boundaries": boundaries,
        "factors": factors,
        **draw(st.fixed_dictionaries(WARMUP)),
    }


def keys_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """As in YAML."""
    return (
        piecewise()
        if name == "piecewise"
        else st.fixed_dictionaries({"name": st.just(name), **KEYS[name]})
    )


SIMPLE = st.sampled_from([*KEYS, "piecewise"]).flatmap(keys_of)


@st.composite
def sequences(draw: st.DrawFn, parts: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    phases = [
        {"for": draw(DURATIONS), **part} for part in draw(st.lists(parts, min_size=1, max_size=4))
    ]
    rest = draw(st.integers(0, len(phases)))
    if rest < len(phases):
        phases[rest]["for"] = "rest"
    return {"name": "sequence", "clock": draw(st.sampled_from(["own", "global"])), "phases": phases}


def _combined(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    lists = st.lists(parts, min_size=1, max_size=3)
    bounds = st.fixed_dictionaries(
        {"min_lr": st.floats(0, 0.1), "max_lr": st.none() | st.floats(0.1, 2)}
    )
    return st.one_of(
        sequences(parts),
        st.fixed_dictionaries(
            {"name": st.just("repeat"), "of": parts, **CYCLE, "floor_lr": st.floats(0, 0.1)}
        ),
        st.fixed_dictionaries({"name": st.just("product"), "of": lists}),
        st.tuples(parts, bounds).map(lambda pair: {"name": "clip", "of": pair[0], **pair[1]}),
    )


SAID = st.recursive(SIMPLE, _combined, max_leaves=5)  # as in YAML
ANY = SAID.map(SCHEDULE.validate_python)


def made(said: dict[str, Any]) -> Any:
    return SCHEDULE.validate_python(said)
