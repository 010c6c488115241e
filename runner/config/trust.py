"""Keys of Hydra's part that a config may set: a launcher, a sweeper, and the keys listed here.

The list says what is allowed. A launcher or sweeper is started from Hydra's own description of it
plus these keys, each with its type; nothing else from a command line or a YAML file reaches Hydra.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from runner.errors import ConfigError, closest, nearest, show
from runner.user_code import walk

MOST_JOBS = 10_000  # of one multirun

# group -> the choices that can be started; each but the first is an extra
CHOICES: Mapping[str, tuple[str, ...]] = {
    "hydra/launcher": ("basic", "joblib", "submitit_local", "submitit_slurm", "ray"),
    "hydra/sweeper": ("basic", "optuna"),
    "hydra/sweeper/sampler": ("tpe", "random", "grid"),
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
_JOBS = _Kind("an integer >= 1, or -1 for all cores", lambda v: _is_int(v) and (v >= 1 or v == -1))
_ONE = _Kind("1: a job is one process", lambda v: _is_int(v) and v == 1)
_TRIALS = _Kind(f"an integer from 1 to {MOST_JOBS}", lambda v: _is_int(v) and 1 <= v <= MOST_JOBS)
_SHARE = _Kind("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
_POSITIVE = _Kind("a number > 0", lambda v: _is_number(v) and v > 0)
_AMOUNT = _Kind("a number >= 0", lambda v: _is_number(v) and v >= 0)
_SWITCH = _Kind("true or false", lambda v: isinstance(v, bool))
_WORD = _Kind(
    "a word of letters, digits and _.:,=-",
    lambda v: isinstance(v, str) and re.fullmatch(r"[\w.:,=-]{1,100}", v, re.ASCII) is not None,
)
_MINIMIZE = _Kind(
    "minimize (for trainer.monitor_mode=max its sign is turned)", lambda v: v == "minimize"
)

_KEYS: Mapping[str, _Kind] = {
    # joblib
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
    "sweeper.max_failure_rate": _SHARE,
    "sweeper.sampler.seed": _INDEX,
    "sweeper.sampler.n_startup_trials": _INDEX,
    "sweeper.sampler.n_ei_candidates": _COUNT,
    "sweeper.sampler.multivariate": _SWITCH,
}
_PARAMS = "sweeper.params."  # KEY -> a range, as `KEY=RANGE` on the command line
# what Hydra notes of a composition; it acts on none of it
_NOTES = ("overrides.", "runtime.", "job.override_dirname", "job.name", "job.config_name")
_INTERPOLATION = re.compile(r"\$\{[A-Za-z_]\w*(\.\w+|\[\d+\])*\}")


def check_choice(group: str, choice: Any) -> None:
    """Refuse a launcher or sweeper that is not listed, before Hydra looks for it."""
    choices = CHOICES.get(group)
    if choices is None:
        raise ConfigError(
            f"{group} is fixed; of Hydra's groups {', '.join(CHOICES)} can be chosen, got "
            f"{show(choice)}"
        )
    if choice not in choices:
        raise ConfigError(
            f"{group} must be one of {', '.join(choices)}, got "
            f"{show(choice)}{nearest(choice, choices)}"
        )


def allowed(
    found: Mapping[str, Any], said: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is set of Hydra's part besides what its choices hold by themselves, `own`: by the
    files that made up `found`, or by the command line, `said`; dotted key -> value, interpolations
    as they are written. ConfigError where a key is not listed or its value is of another type."""
    before, after = dict(_leaves(own)), dict(_leaves(found))
    for key, value in said.items():
        after |= dict(_leaves(value, key))
    changed = {
        key: value
        for key, value in after.items()
        if not key.startswith(_NOTES) and (key not in before or before[key] != value)
    }
    params = {k.removeprefix(_PARAMS): changed.pop(k) for k in [*changed] if k.startswith(_PARAMS)}
    for key, value in changed.items():
        kind = _KEYS.get(key)
        if kind is None or (key not in before and not key.startswith("launcher.ray.")):
            names = [name for name in _KEYS if name in before]
            last = {name.rpartition(".")[2]: f"hydra.{name}" for name in names}
            close = closest(key.rpartition(".")[2], last)
            hint = f"; did you mean {last[close]}?" if close else ""
            raise ConfigError(
                f"hydra.{key} cannot be set, got {show(value)}; "
                f"{', '.join(last.values()) or 'no key'} of hydra can{hint}"
            )
        if not kind.fits(value):
            raise ConfigError(f"hydra.{key} must be {kind.words}, got {show(value)}")
    for key in before:
        if key not in after and not key.startswith(_NOTES) and not key == _PARAMS[:-1]:
            raise ConfigError(f"hydra.{key} cannot be removed")
    for name, value in params.items():
        if name.startswith("hydra") or not re.fullmatch(r"[\w./@]+", name):
            raise ConfigError(f"hydra.{_PARAMS}{name} must name a key of the config")
        if not (isinstance(value, str) or _is_number(value)) or "${" in str(value):
            raise ConfigError(
                f"hydra.{_PARAMS}{name} must be a range such as interval(1e-4,1e-1), got "
                f"{show(value)}"
            )
    return {**changed, **({_PARAMS[:-1]: params} if params else {})}


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse in the config's own part, as it is written, what names a class to run, and each
    `${...}` that is anything but another key of the config: a resolver could read the environment
    or make what was not checked."""
    for path, key, value in walk(values):
        if key in ("_target_", "_partial_", "_args_", "_recursive_", "_convert_"):
            raise ConfigError(
                f"{path} is not taken from a config: it would run {show(value)}; "
                f"SECURITY.md lists what may be named"
            )
        if isinstance(value, str) and "${" in _INTERPOLATION.sub("", value):
            raise ConfigError(
                f"{path} may refer to keys of the config alone, as in ${{optimizer.lr}}: write the "
                f"value itself, got {show(value)}"
            )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is no mapping with keys."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
