"""What a config may make Python import or run: nothing but the classes listed here.

Our own parts are names in closed registries. Hydra, though, instantiates what its own part of the config names, from the
command line, a file of --config-dir or of its search path, before the program's first line; so this is checked first.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from runner.errors import ConfigError, show

# Hydra's own launchers and sweeper, our callback, and its plugins that are installed as packages of the same names
_TARGETS = frozenset(
    {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "runner.compose.ComposeOnce",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
        "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
        "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
        "optuna.samplers.TPESampler",
        "optuna.samplers.RandomSampler",
        "optuna.samplers.GridSampler",
    }
)
# of logging.config's dictionaries, where a class and a factory are looked up by name
_LOGGING = frozenset({"logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"})
# What Hydra would do by itself with files, folders and the environment stays as conf/config.yaml has it
_FIXED: Mapping[str, Any] = {
    "run.dir": ".",
    "sweep.dir": "${output.root}/multiruns",
    "sweep.subdir": ".",
    "output_subdir": None,
    "job.chdir": False,
    "job.env_set": {},
    "job.env_copy": [],
}
# interpolations that look at the config or at what Hydra knows of a job; no resolver that reads or makes anything else
_PLAIN = re.compile(r"\$\{[\w.\[\]/@]+\}|\$\{(hydra|now|oc\.select):[^${}]*\}")


def check(config: Mapping[str, Any]) -> None:
    """`config` is the whole of what Hydra composed, its own part included, interpolations as they are written."""
    for path, key, value in _walk(config, ""):
        if key in ("_target_", "_partial_", "_args_", "_recursive_", "_convert_") and path.rpartition(".")[0] == "":
            raise _refused(path, value)
        if key == "_target_" and value not in _TARGETS:
            raise _refused(path, value)
        logs = path.startswith(("hydra.job_logging.", "hydra.hydra_logging."))
        if logs and (key == "()" or (key == "class" and value not in _LOGGING)):
            raise _refused(path, value)
        if path.startswith(("hydra.overrides.", "hydra.job.override_dirname")):  # what was said, as text
            continue
        if isinstance(value, str) and re.search(r"\$\{\s*oc\.env\b", value) and not path.startswith("hydra."):
            raise ConfigError(
                f"{path} would write a variable of the environment into the run's folder: say its value instead"
            )
        if path.startswith("hydra.") and isinstance(value, str) and "${" in _PLAIN.sub("", value):
            raise _refused(path, value)

    for name, expected in _FIXED.items():
        found = config["hydra"]
        for key in name.split("."):
            found = found[key]
        if found != expected:
            raise ConfigError(f"hydra.{name} must be {show(expected)}, got {show(found)}")


def _refused(path: str, value: Any) -> ConfigError:
    return ConfigError(
        f"{path} is not taken from a config: it would run {show(value)}; SECURITY.md lists what may be named"
    )


def _walk(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """(dotted path, last key, value) of everything in it."""
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        place = f"{path}.{key}" if path else str(key)
        yield place, str(key), inner
        yield from _walk(inner, place)
