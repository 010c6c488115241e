"""Every dialect and every named schedule against the installed libraries, for parameters drawn at
random.

More than 200 of each. The test extra installs the libraries, all but timm: it asks for a
torchvision, which stops Lightning from being imported where it was not built for the installed
torch. timm's recorded curves are in test_dialects.py; where it is installed, it is drawn from here
too.
"""

import importlib
import importlib.util
import math
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.schedules import Clock
from tests.schedules.drawn import made

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# Of the curve's peak. torch multiplies the rate up from step to step: roundings add up over some
# hundred steps. Keras computes in float32, in a few operations, one of them a power of up to some
# hundred.
EXACT, FLOAT32 = 1e-12, 5e-6

FACTOR, GAMMA = st.floats(0.01, 1), st.floats(0.5, 1)
BASE = st.floats(1e-5, 2)
LEAST = st.floats(0, 1e-5)
STEPS = st.integers(1, 150)
WHOLE = st.integers(0, 60)


def both(
    said: dict[str, Any],
    lr: float,
    expected: Sequence[float],
    total: int,
    tolerance: float,
    at: Any = None,
) -> None:
    steps = np.arange(len(expected)) if at is None else np.asarray(at)
    found = made(said).rates(steps, Clock(total, total), lr)
    wanted = np.asarray(expected, dtype=np.float64)
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


Examples = Callable[..., Callable[[Callable[..., None]], None]]


@pytest.fixture(params=[10, pytest.param(220, marks=pytest.mark.slow)])
def examples(request: pytest.FixtureRequest) -> Examples:
    """Runs the function that it decorates, at once, on so many draws."""

    def decorate(*strategies: Any) -> Callable[[Callable[..., None]], None]:
        def run(check: Callable[..., None]) -> None:
            some = settings(max_examples=request.param, derandomize=True, deadline=None)
            some(given(*strategies)(check))()

        return run

    return decorate


# torch


def torch_rates(make: Callable[[Any], Any], lr: float, num: int) -> list[float]:
    torch = importlib.import_module("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler, found = make(optimizer), []
    for _ in range(num):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


MODE = st.sampled_from(["triangular", "triangular2", "exp_range"])
TORCH = {
    "ConstantLR": st.fixed_dictionaries({"factor": FACTOR, "total_iters": WHOLE}),
    "LinearLR": st.fixed_dictionaries({"start_factor": FACTOR, "end_factor": FACTOR,
        "total_iters": STEPS}),
    "StepLR": st.fixed_dictionaries({"step_size": STEPS, "gamma": GAMMA}),
    "MultiStepLR": st.fixed_dictionaries({"milestones": st.lists(WHOLE, max_size=4),
        "gamma": GAMMA}),
    "ExponentialLR": st.fixed_dictionaries({"gamma": GAMMA}),
    "PolynomialLR": st.fixed_dictionaries({"total_iters": STEPS, "power": st.floats(0.2, 4)}),
    "CosineAnnealingLR": st.fixed_dictionaries({"T_max": STEPS, "eta_min": LEAST}),
    "CosineAnnealingWarmRestarts": st.fixed_dictionaries(
        {"T_0": st.integers(1, 40), "T_mult": st.integers(1, 3), "eta_min": LEAST}
    ),
    "CyclicLR": st.fixed_dictionaries(
        {"base_lr": LEAST, "max_lr": BASE, "step_size_up": STEPS,
            "step_size_down": st.none() | STEPS, "mode": MODE,
         "gamma": GAMMA, "cycle_momentum": st.just(False)}
    ),
    "OneCycleLR": st.fixed_dictionaries(
        {"max_lr": BASE, "total_steps": st.integers(8, 150), "pct_start": st.floats(0.2, 0.45),
         "anneal_strategy": st.sampled_from(["cos", "linear"]), "div_factor": st.floats(1, 50),
         "final_div_factor": st.floats(1, 1e4), "three_phase": st.booleans(),
         "cycle_momentum": st.just(False)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TORCH))
def test_from_torch_is_torch(name: str, examples: Examples) -> None:
    schedulers = importlib.import_module("torch").optim.lr_scheduler

    @examples(TORCH[name], BASE)
    def check(args: dict[str, Any], lr: float) -> None:
        num = args["total_steps"] if name == "OneCycleLR" else 160
        expected = torch_rates(
            lambda optimizer: getattr(schedulers, name)(optimizer, **args), lr, num
        )
        both(
            {"name": "from_torch", "class": name, "args": args, "tick": "step"},
            lr,
            expected,
            num,
            EXACT,
        )


@pytest.mark.parametrize("outer", ["SequentialLR", "ChainedScheduler"])
def test_joined_schedulers_are_torch_s(outer: str, examples: Examples) -> None:
    schedulers = importlib.import_module("torch").optim.lr_scheduler
    names = ["ConstantLR", "LinearLR", "StepLR", "MultiStepLR", "ExponentialLR", "PolynomialLR"]
    names += ["CosineAnnealingWarmRestarts"] if outer == "SequentialLR" else []
    part = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), TORCH[name]))

    @examples(st.lists(part, min_size=1, max_size=3), st.data(), BASE)
    def check(parts: list[tuple[str, dict[str, Any]]], data: st.DataObject, lr: float) -> None:
        more = {}
        if outer == "SequentialLR":
            size = len(parts) - 1
            drawn = data.draw(
                st.lists(st.integers(1, 80), min_size=size, max_size=size, unique=True)
            )
            more["milestones"] = sorted(drawn)

        def make(optimizer: Any) -> Any:
            inner = [getattr(schedulers, name)(optimizer, **args) for name, args in parts]
            return getattr(schedulers, outer)(*([optimizer, inner] if more else [inner]), **more)

        said = {"schedulers": [{"class": name, "args": args} for name, args in parts], **more}
        both(
            {"name": "from_torch", "class": outer, "args": said, "tick": "step"},
            lr,
            torch_rates(make, lr, 100),
            100,
            EXACT,
        )


# Keras

KERAS = {
    "ExponentialDecay": {"decay_steps": STEPS, "decay_rate": GAMMA, "staircase": st.booleans()},
    "InverseTimeDecay": {"decay_steps": STEPS, "decay_rate": GAMMA, "staircase": st.booleans()},
    "PolynomialDecay": {
        "decay_steps": STEPS, "end_learning_rate": LEAST, "power": st.floats(0.5, 4),
        "cycle": st.booleans(),
    },
    "CosineDecay": {
        "decay_steps": STEPS, "alpha": st.floats(0, 0.5), "warmup_target": st.none() | BASE,
        "warmup_steps": WHOLE,
    },
    "CosineDecayRestarts": {
        "first_decay_steps": st.integers(10, 60), "t_mul": st.sampled_from([1.0, 1.7, 2.0]),
        "m_mul": GAMMA,
        "alpha": st.floats(0, 0.5),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted([*KERAS, "PiecewiseConstantDecay"]))
def test_from_keras_is_keras(name: str, examples: Examples) -> None:
    schedules = importlib.import_module("keras").optimizers.schedules
    piecewise = st.lists(WHOLE, min_size=1, max_size=4, unique=True).flatmap(
        lambda found: st.fixed_dictionaries(
            {
                "boundaries": st.just(sorted(found)),
                "values": st.lists(BASE, min_size=len(found) + 1, max_size=len(found) + 1),
            }
        )
    )
    keys = (
        st.fixed_dictionaries({"initial_learning_rate": BASE, **KERAS[name]})
        if name in KERAS
        else piecewise
    )

    @examples(keys)
    def check(args: dict[str, Any]) -> None:
        if name == "CosineDecay" and not args["warmup_steps"] and args["warmup_target"] is not None:
            args = {**args, "warmup_steps": 1}
        special = [v for key, v in args.items() if key.endswith("steps")] + args.get(
            "boundaries", []
        )
        steps = sorted(
            {0, 1, 5, 149, 150, 160, *(s + d for s in special for d in (-1, 0, 1) if s + d >= 0)}
        )
        # where a cycle begins Keras's float32 logarithm may still be in the last one
        if name == "CosineDecayRestarts":
            steps = [step for step in steps if not restarts_near(step, args)]
        schedule = getattr(schedules, name)(**args)
        expected = [float(np.asarray(schedule(step))) for step in steps]
        said = {"name": "from_keras", "class": name, "args": args, "tick": "step"}
        both(said, 1.0, expected, 160, FLOAT32, at=steps)


def restarts_near(step: int, args: dict[str, Any]) -> bool:
    share, growth = step / args["first_decay_steps"], args["t_mul"]
    number = share if growth == 1 else math.log(1 + share * (growth - 1)) / math.log(growth)
    return abs(number - round(number)) < 1e-5 and step > 0


# transformers

WARMUP, CYCLES = (
    {"num_warmup_steps": st.integers(0, 40)},
    {"num_cycles": st.sampled_from([0.5, 1.0, 1.5])},
)
WAVES = {"num_cycles": st.integers(1, 4)}
TOTAL = {"num_training_steps": st.integers(50, 150)}
LEAST_RATE = {"min_lr_rate": st.floats(0, 0.5)}
SHAPES = st.sampled_from(["linear", "cosine", "1-sqrt"])
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "constant": {},
    "constant_with_warmup": WARMUP,
    "linear": {**WARMUP, **TOTAL},
    "cosine": {**WARMUP, **TOTAL, **CYCLES},
    "cosine_with_restarts": {**WARMUP, **TOTAL, **WAVES},
    "polynomial": {**WARMUP, **TOTAL, "lr_end": st.floats(0, 9e-6), "power": st.floats(0.5, 3)},
    "inverse_sqrt": {**WARMUP, "timescale": st.none() | st.integers(40, 200)},
    "cosine_with_min_lr": {**WARMUP, **TOTAL, **CYCLES, **LEAST_RATE},
    "cosine_warmup_with_min_lr": {**WARMUP, **TOTAL, **CYCLES, **LEAST_RATE,
        "warmup_lr_rate": st.none() | FACTOR},
    "warmup_stable_decay": {
        **WARMUP, **TOTAL, "num_decay_steps": st.integers(1, 50), "warmup_type": SHAPES,
        "decay_type": SHAPES,
        "min_lr_ratio": st.floats(0, 0.5), **CYCLES,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HUGGING_FACE))
def test_from_huggingface_is_transformers(name: str, examples: Examples) -> None:
    optimization = importlib.import_module("transformers.optimization")
    function = optimization.TYPE_TO_SCHEDULER_FUNCTION[optimization.SchedulerType(name)]

    @examples(st.fixed_dictionaries(HUGGING_FACE[name]), BASE)
    def check(args: dict[str, Any], lr: float) -> None:
        expected = torch_rates(lambda optimizer: function(optimizer, **args), lr, 160)
        both(
            {"name": "from_huggingface", "class": name, "args": args, "tick": "step"},
            lr,
            expected,
            160,
            EXACT,
        )


# timm

CYCLE = {
    "t_initial": st.integers(1, 60), "lr_min": LEAST, "cycle_mul": st.sampled_from([1.0, 1.5, 2.0]),
    "cycle_decay": GAMMA,
    "cycle_limit": st.integers(1, 4),
}  # fmt: skip
PREFIX = {"warmup_t": st.integers(0, 10), "warmup_lr_init": LEAST, "warmup_prefix": st.booleans()}
TIMM = {
    "CosineLRScheduler": {**CYCLE, **PREFIX, "k_decay": st.floats(0.5, 2)},
    "PolyLRScheduler": {**CYCLE, **PREFIX, "k_decay": st.floats(0.5, 2),
        "power": st.floats(0.5, 3)},
    "TanhLRScheduler": {**CYCLE, **PREFIX, "lb": st.floats(-8, -1), "ub": st.floats(1, 8)},
    "StepLRScheduler": {**PREFIX, "decay_t": STEPS, "decay_rate": GAMMA},
    "MultiStepLRScheduler": {**PREFIX, "decay_t": st.lists(WHOLE, min_size=1,
        max_size=4).map(sorted), "decay_rate": GAMMA},
    "WSDLRScheduler": {
        "t_initial": st.integers(50, 100), "decay_t": st.integers(1, 50), "lr_min": LEAST,
        "warmup_t": st.integers(1, 20),
        "warmup_lr_init": LEAST, "stable_fn": st.sampled_from(["constant", "rsqrt", "power"]),
        "decay_fn": st.sampled_from(["linear", "1-sqrt", "cosine", "power", "exp"]),
        "decay_power": st.floats(0.2, 3),
        "decay_ratio": st.floats(0.01, 0.9), "stable_power": st.floats(0.1, 2),
    },
}  # fmt: skip


def timm_scheduler(name: str) -> Any:
    """timm's class, from its own file; without the package's `__init__`, which imports all models
    and torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        pytest.skip("timm is not installed: see above")
    bare = {key: types.ModuleType(key) for key in ("timm", "timm.scheduler")}
    for key, module in bare.items():
        module.__path__ = [str(Path(found.origin).parent.joinpath(*key.split(".")[1:]))]
    kept = {key: sys.modules.get(key) for key in bare}
    sys.modules.update(bare)
    try:
        return getattr(importlib.import_module(f"timm.scheduler.{TIMM_MODULES[name]}"), name)
    finally:
        for key, module in kept.items():
            sys.modules.pop(key)
            if module is not None:
                sys.modules[key] = module


@pytest.mark.parametrize("name", sorted(TIMM))
def test_from_timm_is_timm(name: str, examples: Examples) -> None:
    scheduler_of, torch = timm_scheduler(name), importlib.import_module("torch")

    @examples(st.fixed_dictionaries(TIMM[name]), BASE)
    def check(args: dict[str, Any], lr: float) -> None:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        scheduler, expected = scheduler_of(optimizer, **args), []
        for t in range(160):
            expected.append(optimizer.param_groups[0]["lr"])
            scheduler.step(t + 1)
        both(
            {"name": "from_timm", "class": name, "args": args, "tick": "step"},
            lr,
            expected,
            160,
            EXACT,
        )


TIMM_MODULES = {
    "CosineLRScheduler": "cosine_lr", "PolyLRScheduler": "poly_lr", "TanhLRScheduler": "tanh_lr",
    "StepLRScheduler": "step_lr", "MultiStepLRScheduler": "multistep_lr",
    "WSDLRScheduler": "wsd_lr",
}  # fmt: skip


# The named schedules, each said as another library says it, or as its paper does.

NO_WARMUP = {"warmup": "0steps", "warmup_shape": "linear", "warmup_edge": "left"}


def ending(total: int, final_lr: float = 0.0, warmup: int = 0) -> dict[str, Any]:
    return {
        "duration": f"{total}steps", "edge": "left", "final_lr": final_lr, **NO_WARMUP,
        "warmup": f"{warmup}steps",
    }  # fmt: skip


def torch_named(name: str, args: dict[str, Any], lr: float) -> tuple[dict[str, Any], float, int]:
    """The same under this project's name: the schedule, its base rate, and up to which step."""
    match name:
        case "ConstantLR":
            if not args["total_iters"]:
                return {"name": "hold", "factor": args["factor"]}, lr, 160
            boundaries = {
                "boundaries": [f"{args['total_iters']}steps"],
                "factors": [args["factor"], 1.0],
            }
            return {"name": "piecewise", **boundaries, **NO_WARMUP}, lr, 160
        case "LinearLR":
            final = lr * args["end_factor"]
            return (
                {"name": "linear", **ending(args["total_iters"], final)},
                lr * args["start_factor"],
                160,
            )
        case "StepLR":
            return (
                {
                    "name": "step",
                    "decay_rate": args["gamma"],
                    "step_size": args["step_size"],
                    **NO_WARMUP,
                },
                lr,
                160,
            )
        case "MultiStepLR":
            found = sorted(args["milestones"])
            factors = [args["gamma"] ** i for i in range(len(found) + 1)]
            return (
                {
                    "name": "piecewise",
                    "boundaries": [f"{b}steps" for b in found],
                    "factors": factors,
                    **NO_WARMUP,
                },
                lr,
                160,
            )
        case "ExponentialLR":
            decay = {"decay_rate": args["gamma"], "decay_steps": 1, "staircase": False}
            return {"name": "exponential", **decay, **NO_WARMUP}, lr, 160
        case "PolynomialLR":
            return (
                {"name": "polynomial", "power": args["power"], **ending(args["total_iters"])},
                lr,
                160,
            )
        case "CosineAnnealingLR":
            said = {"name": "cosine", "exponent": 1.0, **ending(args["T_max"], args["eta_min"])}
            return said, lr, args["T_max"] + 1
        case "CosineAnnealingWarmRestarts":
            cycle = {"period": f"{args['T_0']}steps", "growth": float(args["T_mult"]), "decay": 1.0}
            return (
                {"name": "cosine_restarts", **cycle, "final_lr": args["eta_min"], **NO_WARMUP},
                lr,
                160,
            )
        case "CyclicLR":
            down = args["step_size_down"] or args["step_size_up"]
            turns = {
                "up": f"{args['step_size_up']}steps",
                "down": f"{down}steps",
                "mode": args["mode"],
            }
            said = {
                "name": "cyclic",
                "min_lr": args["base_lr"],
                "decay_rate": args["gamma"],
                **turns,
            }
            return said, args["max_lr"], 160
    initial, total = 1 / args["div_factor"], args["total_steps"]
    said = {
        "name": "one_cycle", "initial_factor": initial,
        "final_factor": initial / args["final_div_factor"],
        "rise": f"{100 * args['pct_start']:.12f}%", "duration": f"{total}steps",
        "shape": {"cos": "cosine", "linear": "linear"}[args["anneal_strategy"]],
    }  # fmt: skip
    return said, args["max_lr"], total


@pytest.mark.parametrize("name", sorted(TORCH))
def test_named_schedules_are_torch_s(name: str, examples: Examples) -> None:
    schedulers = importlib.import_module("torch").optim.lr_scheduler

    @examples(TORCH[name], BASE)
    def check(args: dict[str, Any], lr: float) -> None:
        args = {**args, "three_phase": False} if name == "OneCycleLR" else args
        said, base, until = torch_named(name, args, lr)
        expected = torch_rates(
            lambda optimizer: getattr(schedulers, name)(optimizer, **args), lr, until
        )
        both(said, base, expected, 160, EXACT)


def test_named_schedules_are_optax_s(examples: Examples) -> None:
    optax, jax = importlib.import_module("optax"), importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    steps = sorted({0, 1, 2, 19, 20, 21, 59, 60, 61, 99, 100, 101, 150})

    @examples(BASE, LEAST, st.integers(1, 40), st.integers(50, 120), st.floats(0.5, 3), GAMMA)
    def check(lr: float, final: float, warmup: int, total: int, power: float, gamma: float) -> None:
        peers = {
            "linear": (
                optax.linear_schedule(lr, final, total),
                {"name": "linear", **ending(total, final)},
            ),
            "polynomial": (
                optax.polynomial_schedule(lr, final, power, total),
                {"name": "polynomial", "power": power, **ending(total, final)},
            ),
            "cosine": (
                optax.warmup_cosine_decay_schedule(0.0, lr, warmup, total, final, exponent=power),
                {"name": "cosine", "exponent": power, **ending(total, final, warmup)},
            ),
            "exponential": (
                optax.exponential_decay(lr, total, gamma, staircase=True),
                {
                    "name": "exponential",
                    "decay_rate": gamma,
                    "decay_steps": total,
                    "staircase": True,
                    **NO_WARMUP,
                },
            ),
        }
        for schedule, said in peers.values():
            both(said, lr, [float(schedule(step)) for step in steps], total, EXACT, at=steps)


def test_named_schedules_are_transformers_s(examples: Examples) -> None:
    optimization = importlib.import_module("transformers.optimization")

    @examples(BASE, st.integers(1, 40), st.integers(60, 140), st.integers(1, 50), SHAPES)
    def check(lr: float, warmup: int, total: int, decay: int, shape: str) -> None:
        left = {"warmup": f"{warmup}steps", "warmup_shape": "linear", "warmup_edge": "left"}
        inverse = torch_rates(lambda o: optimization.get_inverse_sqrt_schedule(o, warmup), lr, 160)
        both({"name": "inverse_sqrt", "scale": f"{warmup}steps", **left}, lr, inverse, 160, EXACT)
        decay = min(decay, total - warmup)
        kinds = {"num_training_steps": total, "decay_type": shape}
        wsd = torch_rates(
            lambda o: optimization.get_wsd_schedule(o, warmup, decay, **kinds), lr, 160
        )
        said = {
            "name": "wsd",
            "decay": f"{decay}steps",
            "decay_shape": shape,
            **ending(total, 0.0, warmup),
        }
        both(said, lr, wsd, 160, EXACT)


def test_tanh_is_its_paper_s(examples: Examples) -> None:
    """Hsueh, Li and Wu (2019): (1 - tanh(a (1 - u) + b u)) / 2, as timm has it after its first
    tick."""

    @examples(BASE, st.integers(60, 140), st.floats(-8, -1), st.floats(1, 5))
    def check(lr: float, total: int, lower: float, upper: float) -> None:
        falls = [
            0.5 * (1 - math.tanh(lower * (1 - t / total) + upper * t / total)) for t in range(total)
        ]
        said = {"name": "tanh", "lower": lower, "upper": upper, **ending(total)}
        both(said, lr, [lr * fall for fall in falls], total, EXACT)


def test_named_schedules_are_their_papers(examples: Examples) -> None:
    """Written out once more, step by step, in Python's own floats."""

    @examples(
        BASE,
        st.integers(1, 40),
        st.integers(60, 140),
        FACTOR,
        st.floats(0.1, 3),
        st.floats(0, 0.99),
    )
    def check(lr: float, w: int, total: int, f: float, p: float, d: float) -> None:
        steps = range(total)
        noam = [lr * 512**-0.5 * min((t + 1) ** -0.5, (t + 1) * w**-1.5) for t in steps]
        both({"name": "noam", "model_size": 512, "warmup": f"{w}steps"}, lr, noam, total, EXACT)
        power = [lr * (1 + t / w) ** -p for t in steps]
        both(
            {"name": "power", "scale": f"{w}steps", "power": p, **NO_WARMUP},
            lr,
            power,
            total,
            EXACT,
        )
        both({"name": "inverse", "scale": f"{w}steps", "power": p}, lr, power, total, EXACT)
        inverse = [lr / (1 + f * (t // w)) for t in steps]
        keys = {"decay_rate": f, "decay_steps": w, "staircase": True}
        both({"name": "inverse_time", **keys, **NO_WARMUP}, lr, inverse, total, EXACT)
        z = [1 - t / total for t in steps]
        both(
            {"name": "rex", "bend": d, **ending(total)},
            lr,
            [lr * x / ((1 - d) + d * x) for x in z],
            total,
            EXACT,
        )
        geometric = [f * (lr / f) ** (t / (total - 1)) for t in steps]
        test = {
            "initial_lr": f,
            "final_lr": lr,
            "shape": "geometric",
            "duration": "100%",
            "edge": "both",
        }
        both({"name": "range_test", **test}, 1.0, geometric, total, EXACT)
        hold = (total - w) // 2
        fall = total - w - hold
        stages = [
            lr * (f + (1 - f) * t / w)
            if t < w
            else lr
            if t < w + hold
            else lr * math.exp(math.log(f) * (t - w - hold) / fall)
            for t in steps
        ]
        lengths = {"warmup": f"{w}steps", "hold": f"{hold}steps", "decay": f"{fall}steps"}
        edges = {"warmup_edge": "left", "edge": "left", "initial_factor": f, "final_factor": f}
        both({"name": "tri_stage", **lengths, **edges}, lr, stages, total, EXACT)
