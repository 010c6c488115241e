"""An allowlist for hydra.*: the launchers and sweepers, and their keys, that a config may set.

A launcher or sweeper starts from Hydra's own defaults plus these keys, each with its type. Nothing
else from a command line or a YAML file reaches Hydra.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from runner.errors import ConfigError, closest, nearest, show
from runner.user_code import check_places, walk

MOST_JOBS = 10_000  # of one multirun

# group -> allowed choices; some need an extra to be installed
CHOICES: Mapping[str, tuple[str, ...]] = {
    "hydra/launcher": ("pool", "basic", "joblib", "submitit_local", "submitit_slurm", "ray"),
    "hydra/sweeper": ("basic", "optuna"),
    "hydra/sweeper/sampler": ("tpe", "cmaes", "gp", "grid", "quasi_random", "random", "nsgaii"),
    "hydra/sweeper/pruner": ("none", "median", "asha", "hyperband"),
}


class _Kind(NamedTuple):
    words: str
    fits: Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


_COUNT = _Kind("an integer >= 1", lambda v: _is_int(v) and v >= 1)
_INDEX = _Kind("an integer >= 0", lambda v: _is_int(v) and v >= 0)
_JOBS = _Kind(
    "auto, an integer >= 1, or -1 for all cores",
    lambda v: v == "auto" or (_is_int(v) and (v >= 1 or v == -1)),
)
_ONE = _Kind("1: a job is one process", lambda v: _is_int(v) and v == 1)
_TRIALS = _Kind(f"an integer from 1 to {MOST_JOBS}", lambda v: _is_int(v) and 1 <= v <= MOST_JOBS)
_FACTOR = _Kind("an integer >= 2", lambda v: _is_int(v) and v >= 2)
_POSITIVE = _Kind("a number > 0", lambda v: _is_number(v) and v > 0)
_AMOUNT = _Kind("a number >= 0", lambda v: _is_number(v) and v >= 0)
_SWITCH = _Kind("true or false", lambda v: isinstance(v, bool))
_WORD = _Kind(
    "a word of letters, digits and _.:,=-",
    lambda v: isinstance(v, str) and re.fullmatch(r"[\w.:,=-]{1,100}", v, re.ASCII) is not None,
)
_MINIMIZE = _Kind(
    "minimize (trainer.monitor_mode=max flips the sign of the metric)", lambda v: v == "minimize"
)

_KEYS: Mapping[str, _Kind] = {
    # pool and joblib
    "launcher.n_jobs": _JOBS,
    "launcher.verbose": _INDEX,
    "launcher.timeout": _POSITIVE,
    "launcher.batch_size": _COUNT,
    # submitit
    **dict.fromkeys(
        (
            "launcher.timeout_min",
            "launcher.cpus_per_task",
            "launcher.mem_gb",
            "launcher.cpus_per_gpu",
            "launcher.array_parallelism",
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        (
            "launcher.gpus_per_node",
            "launcher.gpus_per_task",
            "launcher.signal_delay_s",
            "launcher.max_num_timeout",
        ),
        _INDEX,
    ),
    "launcher.nodes": _ONE,
    "launcher.tasks_per_node": _ONE,
    "launcher.stderr_to_stdout": _SWITCH,
    **dict.fromkeys(
        (
            f"launcher.{name}"
            for name in ("partition", "qos", "account", "constraint", "gres", "mem_per_gpu")
        ),
        _WORD,
    ),
    "launcher.mem_per_cpu": _WORD,
    # ray
    "launcher.ray.init.num_cpus": _COUNT,
    "launcher.ray.init.num_gpus": _INDEX,
    "launcher.ray.init.address": _WORD,
    "launcher.ray.remote.num_cpus": _AMOUNT,
    "launcher.ray.remote.num_gpus": _AMOUNT,
    # the sweepers
    "sweeper.max_batch_size": _COUNT,
    "sweeper.n_trials": _TRIALS,
    "sweeper.n_jobs": _COUNT,
    "sweeper.direction": _MINIMIZE,
    "sweeper.sampler.seed": _INDEX,
    "sweeper.sampler.n_startup_trials": _INDEX,
    "sweeper.sampler.n_ei_candidates": _COUNT,
    "sweeper.sampler.multivariate": _SWITCH,
    "sweeper.sampler.population_size": _FACTOR,
    "sweeper.pruner.n_startup_trials": _INDEX,
    "sweeper.pruner.n_warmup_steps": _INDEX,
    "sweeper.pruner.min_resource": _COUNT,
    "sweeper.pruner.reduction_factor": _FACTOR,
}
_OBJECTIVES = "sweeper.objectives."  # METRIC -> min or max
_PARAMS = "sweeper.params."  # KEY -> a range, like `KEY=RANGE` on the command line
_CONDITIONS = "sweeper.conditions"  # KEY=VALUE -> such ranges; in a file only
_OF_SEARCHES = (_PARAMS[:-1], _CONDITIONS, _OBJECTIVES[:-1])
# keys where Hydra records the composition; it does not act on them
_NOTES = ("overrides.", "runtime.", "job.override_dirname", "job.name", "job.config_name")
_INTERPOLATION = re.compile(r"\$\{[A-Za-z_]\w*(\.\w+|\[\d+\])*\}")


def check_choice(group: str, choice: Any) -> None:
    """Refuse a launcher or sweeper that is not listed, before Hydra looks for it."""
    choices = CHOICES.get(group)
    if choices is None:
        raise ConfigError(
            f"{group} cannot be set, got {show(choice)}; these groups can: {', '.join(CHOICES)}"
        )
    if choice not in choices:
        raise ConfigError(
            f"{group} must be one of {', '.join(choices)}, got "
            f"{show(choice)}{nearest(choice, choices)}"
        )


def allowed(
    composed: Mapping[str, Any], overrides: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Find the keys of hydra.* that files (`composed`) or the command line (`overrides`) set, other
    than the defaults of the chosen launcher and sweeper (`own`).

    Returns dotted key -> value, with interpolations unresolved. Raises ConfigError if a key is not
    in the allowlist or its value has the wrong type."""
    conditions = _conditions(composed)
    before, after = dict(leaves(own)), dict(leaves(_without_conditions(composed)))
    for key, value in overrides.items():
        after |= dict(leaves(value, key))
    changed = {
        key: value
        for key, value in after.items()
        if not key.startswith(_NOTES) and (key not in before or before[key] != value)
    }
    params = {k.removeprefix(_PARAMS): changed.pop(k) for k in [*changed] if k.startswith(_PARAMS)}
    objectives = _objectives(changed)
    for key, value in changed.items():
        kind = _KEYS.get(key)
        if kind is None or (key not in before and not key.startswith("launcher.ray.")):
            names = [name for name in _KEYS if name in before]
            last = {name.rpartition(".")[2]: f"hydra.{name}" for name in names}
            close = closest(key.rpartition(".")[2], last)
            hint = f"; did you mean {last[close]}?" if close else ""
            raise ConfigError(
                f"hydra.{key} cannot be set, got {show(value)}; these keys can: "
                f"{', '.join(last.values()) or 'none'}{hint}"
            )
        if not kind.fits(value):
            raise ConfigError(f"hydra.{key} must be {kind.words}, got {show(value)}")
    for key in before:
        if key not in after and not key.startswith((*_NOTES, *_OF_SEARCHES)):
            raise ConfigError(f"hydra.{key} cannot be removed")
    _check_ranges(_PARAMS, params)
    found = {_PARAMS[:-1]: params, _CONDITIONS: conditions, _OBJECTIVES[:-1]: objectives}
    return {**changed, **{key: value for key, value in found.items() if value}}


def _objectives(changed: dict[str, Any]) -> dict[str, str]:
    """Take hydra.sweeper.objectives from the keys, as METRIC -> min or max."""
    keys = [key for key in changed if key.startswith(_OBJECTIVES)]
    found = {key.removeprefix(_OBJECTIVES): changed.pop(key) for key in keys}
    for name, mode in found.items():
        if mode not in ("min", "max"):
            raise ConfigError(
                f"hydra.{_OBJECTIVES}{name} must be min or max, got {show(mode)}"
                f"{nearest(mode, ('min', 'max'))}"
            )
    if len(found) == 1:
        raise ConfigError(
            f"hydra.{_OBJECTIVES[:-1]} must have two or more metrics, got {', '.join(found)}; for "
            f"one, set trainer.monitor and trainer.monitor_mode"
        )
    return found


def _check_ranges(parent: str, ranges: Mapping[str, Any]) -> None:
    """Refuse a range of a key of hydra.*, and a value that is no range in Hydra's syntax."""
    for name, value in ranges.items():
        if name.startswith("hydra") or not re.fullmatch(r"[\w./@]+", name):
            raise ConfigError(f"hydra.{parent}{name} must name a key of the config")
        if not (isinstance(value, str) or _is_number(value)) or "${" in str(value):
            raise ConfigError(
                f"hydra.{parent}{name} must be a range such as interval(1e-4,1e-1), got "
                f"{show(value)}"
            )


def _conditions(composed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return hydra.sweeper.conditions as KEY=VALUE -> {key: range}."""
    found = (composed.get("sweeper") or {}).get("conditions")
    conditions: dict[str, dict[str, Any]] = {}
    for text, ranges in (found or {}).items():
        if not isinstance(ranges, Mapping):
            raise ConfigError(
                f"hydra.{_CONDITIONS}: {show(text)} must have ranges of keys below it, got "
                f"{show(ranges)}"
            )
        conditions[str(text)] = dict(leaves(ranges))
        _check_ranges(f"{_CONDITIONS}: {text}: ", conditions[str(text)])
    return conditions


def _without_conditions(composed: Mapping[str, Any]) -> dict[str, Any]:
    sweeper = dict(composed.get("sweeper") or {})
    sweeper.pop("conditions", None)
    return {**composed, "sweeper": sweeper} if sweeper else dict(composed)


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse `_target_` where no code can be named, and every `${...}` that does not refer to a key
    of the config: a resolver could read the environment or return unchecked values."""
    check_places(values)
    for path, _, value in walk(values):
        if isinstance(value, str) and "${" in _INTERPOLATION.sub("", value):
            raise ConfigError(
                f"{path} may only refer to keys of the config, such as ${{optimizer.lr}}; write "
                f"the value itself, got {show(value)}"
            )


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every value that is not a group of keys."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
