"""The user's own code, named by Hydra's convention: `_target_` is a class or a function, and the
other keys of the section are its arguments, which may contain a `_target_` too.

Only code from the packages in `trusted_modules` and in `OPEN` runs. The key is accepted on the
command line and from Python, never from a file, a run's folder or a checkpoint.
"""

import hashlib
import importlib
import importlib.util
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from runner.errors import ConfigError, one_line, show

TARGET = "_target_"
WEIGHTS = "weights"  # the key of a model with the file of its first weights
_KEYS = (TARGET, "_partial_", "_args_")  # Hydra's keys that a config may set; others are fixed
# Packages that need no entry in `trusted_modules` -> the base class of the classes that are
# allowed; None: functions that build models.
OPEN: Mapping[str, tuple[str, str] | None] = {
    "torch.nn": ("torch.nn", "Module"),
    "torch.optim": ("torch.optim", "Optimizer"),
    "keras.layers": ("keras.layers", "Layer"),
    "keras.losses": ("keras.losses", "Loss"),
    "keras.optimizers": ("keras.optimizers", "Optimizer"),
    "keras.applications": None,
    "torchvision.models": None,
    "timm": None,
}
# Packages that need an entry in `trusted_modules`, and whose names come from other modules -> the
# base class of the classes that are allowed.
_EXPORTING: Mapping[str, tuple[str, str]] = {
    "keras.callbacks": ("keras.callbacks", "Callback"),
    "pytorch_lightning.callbacks": ("pytorch_lightning", "Callback"),
}
_CHECKPOINTS = "use trainer.checkpoint_every and trainer.keep_checkpoints"
_AVERAGES = "use optimizer.ema, or an optimizer that averages the weights"
_PROGRESS = "the runner shows its own progress"
_FREEZING = "use optimizer.groups=[{match: ..., lr_factor: 0}]"
_STATISTICS = "it needs a logger; metrics.csv and trace.csv have the numbers of a run"
# Callbacks of the frameworks that do what the runner does, or against it -> what to do instead.
REPLACED: Mapping[str, str] = {
    "BackboneFinetuning": _FREEZING,
    "BackupAndRestore": _CHECKPOINTS,
    "BaseFinetuning": _FREEZING,
    "BatchSizeFinder": "use trainer.batch_size",
    "CSVLogger": "metrics.csv and trace.csv have the numbers of a run",
    "DeviceStatsMonitor": _STATISTICS,
    "EarlyStopping": "use trainer.early_stopping_patience",
    "GradientAccumulationScheduler": "use trainer.accumulate_grad_batches",
    "History": "metrics.csv has the metrics of each epoch",
    "LearningRateFinder": "use task=find_lr",
    "LearningRateMonitor": "trace.csv has the learning rate of each update",
    "LearningRateScheduler": "use schedule=custom",
    "ModelCheckpoint": _CHECKPOINTS,
    "ModelPruning": "pruning is not supported",
    "ModelSummary": "environment.json and result.json describe the model",
    "OnExceptionCheckpoint": _CHECKPOINTS,
    "OrbaxCheckpoint": _CHECKPOINTS,
    "ProgbarLogger": _PROGRESS,
    "ProgressBar": _PROGRESS,
    "ReduceLROnPlateau": "use schedule=plateau",
    "StochasticWeightAveraging": _AVERAGES,
    "SwapEMAWeights": _AVERAGES,
    "TensorBoard": _STATISTICS,
    "TerminateOnNaN": "use trainer.on_nonfinite=stop",
    "ThroughputMonitor": _STATISTICS,
    "WeightAveraging": _AVERAGES,
}
_LOADING = ("weights", "pretrained", "checkpoint_path")  # arguments that download or read weights
# Layers that run or load code that their arguments name.
_CLOSED = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")


def check(values: Mapping[str, Any]) -> None:
    """Refuse a config that names code from an untrusted module. Imports nothing."""
    for group in ("schedule", "data"):
        if isinstance(values.get(group), Mapping) and values[group].get("name") == "python":
            raise ConfigError(renamed(group))
    trusted = values.get("trusted_modules", [])
    for path, section in targets(values):
        key, target = f"{path}.{TARGET}", section[TARGET]
        parts = target.split(".") if isinstance(target, str) else []
        if len(parts) < 2 or not all(part.isidentifier() for part in parts):
            raise ConfigError(f"{key} must be MODULE.CLASS or MODULE.FUNCTION, got {show(target)}")
        package, name = open_package(target), parts[-1]
        if ".".join(parts[:-1]) in _EXPORTING and name in REPLACED:
            raise ConfigError(f"{key} must not be {target}: {REPLACED[name]}")
        if package is not None:
            _check_open(path, section, package)
        elif not isinstance(trusted, list) or not any(
            _is_in(target, name) for name in trusted if isinstance(name, str)
        ):
            module = target.rpartition(".")[0]
            raise ConfigError(
                f"{key} is code from {show(module)}, which is not trusted; to trust it, add "
                f"trusted_modules=[{module}] to the command line"
            )


def renamed(group: str) -> str:
    """Return an error that names the replacement of `GROUP=python` of earlier versions."""
    return (
        f"{group}=python was renamed: use {group}=custom with {group}._target_=MODULE.FUNCTION; "
        f"its arguments are keys beside it, {group}.NAME=VALUE"
    )


def check_places(values: Mapping[str, Any]) -> None:
    """Refuse a `_target_` where none is allowed, and Hydra's keys that are fixed."""
    allowed = {path for path, _ in targets(values)}
    for path, key, value in walk(values):
        parent = path[: -len(key) - 1] if key else path
        is_fixed = key in ("_recursive_", "_convert_")
        if is_fixed or (key in _KEYS and parent not in allowed):
            raise ConfigError(
                f"{path} is not allowed in a config: it would run {show(value)}; "
                f"SECURITY.md lists what a config may name"
            )


def targets(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the path and the section of each allowed `_target_`: in `model`, in a twin's two
    sections, in sections with the name `custom`, in items of `metrics` and `callbacks`, and in the
    arguments of another `_target_`."""
    above: list[str] = []
    for path, _, section in walk(values):
        if not isinstance(section, Mapping) or TARGET not in section:
            continue
        root = re.split(r"[.\[]", path)[0]
        is_named = root in ("data", "loss", "optimizer", "schedule")
        is_own = (
            path in ("model", "model.lightning", "model.keras")
            or (is_named and section.get("name") == "custom")
            or re.fullmatch(r"(metrics|callbacks)\[\d+\]", path) is not None
        )
        if is_own or any(path.startswith((f"{parent}.", f"{parent}[")) for parent in above):
            above.append(path)
            yield path, section


def hashes(values: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> SHA-256 of the source of each trusted module that a checked config uses: of
    its file, or of all .py files of a package; and of the file of `model.weights`. Imports
    nothing."""
    trusted = values.get("trusted_modules") or []
    targets_used = [section[TARGET] for _, section in targets(values)]
    sha256 = {}
    for name in sorted(
        {name for name in trusted for target in targets_used if _is_in(target, name)}
    ):
        spec = _find(name)
        if spec is None or spec.origin is None or not spec.has_location:
            continue
        file = Path(spec.origin)
        is_package = bool(spec.submodule_search_locations)
        files = sorted(file.parent.rglob("*.py")) if is_package else [file]
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.relative_to(file.parent).as_posix().encode())
            digest.update(path.read_bytes())
        sha256[name] = digest.hexdigest()
    model = values.get("model")
    source = model.get(WEIGHTS) if isinstance(model, Mapping) else None
    if isinstance(source, str):
        path = Path(source).expanduser()
        path = path / "checkpoints" / "last" / "weights.safetensors" if path.is_dir() else path
        if path.is_file():
            sha256[f"model.{WEIGHTS}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return sha256


def announce(modules: Sequence[str]) -> None:
    """Print the trusted modules and their files. Imports nothing, so it prints before any of their
    code runs."""
    for name in modules:
        spec = _find(name)
        if spec is None:
            raise ConfigError(
                f"trusted_modules: no module {show(name)} can be imported from this folder"
            )
        print(f"trusted  {name}  {spec.origin}", flush=True)


def resolve(target: str) -> Any:
    """Import a checked `_target_`. Raise ValueError, with a message for the key `_target_`, if it
    does not exist, or if another module defines it."""
    package = open_package(target)
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            value: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if end > 1 and error.name == module:
                continue  # its last part may be a class
            raise ValueError(f"_target_ must be importable, got {target}: {error}") from None
        except Exception as error:
            raise ValueError(
                f"_target_: importing {module} raised {blame(error, module)}"
            ) from error
        break
    try:
        for part in parts[end:]:
            value = getattr(value, part)
    except AttributeError as error:
        raise ValueError(f"_target_ must be importable, got {target}: {error}") from None
    if not callable(value):
        raise ValueError(f"_target_ must be callable, got {target} of type {type(value).__name__}")
    if package is not None:
        _check_kind(value, target, OPEN[package], package)
    elif (exporting := target.rpartition(".")[0]) in _EXPORTING:
        _check_kind(value, target, _EXPORTING[exporting], exporting)
    elif not _is_in(defined_in := str(getattr(value, "__module__", None)), module):
        raise ValueError(
            f"_target_ must be defined in {module} itself, got {target} of {defined_in}"
        )
    return value


def call(target: str, *arguments: Any, **named: Any) -> Any:
    """Call a checked `_target_` and return its result. Raise ValueError, with a message for the key
    `_target_`, if that fails."""
    function = resolve(target)
    try:
        return function(*arguments, **named)
    except Exception as error:
        raise ValueError(f"_target_ {target} raised {blame(error, target)}") from error


def call_given(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function that was passed in Python, as `call` does."""
    try:
        return function(*arguments, **named)
    except Exception as error:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        module = str(getattr(function, "__module__", ""))
        raise ValueError(f"_target_ {name} raised {blame(error, module)}") from error


def make(section: Mapping[str, Any]) -> Any:
    """Call the `_target_` of a checked section with its other keys as arguments, nested ones first,
    as hydra.utils.instantiate does. Raise ValueError, with a message for the key `_target_`."""
    for _, inner in [("", section), *targets({"model": section})]:
        resolve(inner[TARGET])
    from hydra.utils import instantiate

    try:
        return instantiate(dict(section), _convert_="all")
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"_target_ {section[TARGET]} raised {blame(cause, section[TARGET])}"
        ) from error


def function(section: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that a checked section names: for a class, an instance made with the
    section's other keys; for a function, the function with these keys as additional arguments.
    Raise ValueError, with a message for the key `_target_`."""
    is_class = isinstance(resolve(section[TARGET]), type)
    made: Callable[..., Any] = make(section if is_class else {**section, "_partial_": True})
    if not callable(made):
        raise ValueError(f"_target_ {section[TARGET]} must make a function, got {show(made)}")
    return made


def blame(error: BaseException, target: str) -> str:
    """Describe an error of the user's code in one line, with the user's file and line."""
    location = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.stem == target.split(".")[0] or target.split(".")[0] in path.parts:
            location = f" ({path.name}:{frame.lineno})"
    return f"{type(error).__name__}: {one_line(error)}{location}"


def open_package(target: str) -> str | None:
    """Return the package of `OPEN` that directly contains the target, or None."""
    package = target.rpartition(".")[0]
    return package if package in OPEN else None


def _check_open(path: str, section: Mapping[str, Any], package: str) -> None:
    name = section[TARGET].rpartition(".")[2]
    if name in _CLOSED or (package == "timm" and name != "create_model"):
        raise ConfigError(
            f"{path}.{TARGET} must not run or load code that its arguments name, got "
            f"{section[TARGET]}"
        )
    for key in _LOADING:
        is_ours = path == "model" and key == "weights"  # model.weights is a key of the runner
        if not is_ours and section.get(key) not in (None, False):
            raise ConfigError(
                f"{path}.{key} must be null or false for {section[TARGET]}, got "
                f"{show(section[key])}; nothing is downloaded or loaded here"
            )
    if package == "timm" and ":" in str(section.get("model_name")):
        raise ConfigError(
            f"{path}.model_name must name a model of timm itself, got {show(section['model_name'])}"
        )
    if package == "keras.applications" and "weights" not in section and path != "model":
        raise ConfigError(
            f"{path}.weights must be null for {section[TARGET]}: the default downloads weights; "
            f"add {path}.weights=null"
        )


def _check_kind(value: Any, target: str, kind: tuple[str, str] | None, package: str) -> None:
    """Refuse modules and helpers of an open package: only its layers, optimizers or models are
    allowed."""
    if kind is None:
        if isinstance(value, type) or target.rpartition(".")[2].startswith("get_"):
            raise ValueError(f"_target_ must be a function that builds a model, got {target}")
        return
    base = getattr(importlib.import_module(kind[0]), kind[1])
    if not (isinstance(value, type) and issubclass(value, base)):
        raise ValueError(f"_target_ must be a class of {package}, got {target}")


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _find(name: str) -> ModuleSpec | None:
    """Find a module's file without importing its parents, as importlib.util.find_spec would."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            first = f"{first}.{part}"
            spec = PathFinder.find_spec(first, [*spec.submodule_search_locations])
    except (ImportError, ValueError):
        return None
    return spec


def walk(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (path as the user writes it, last key, value) for everything in nested values."""
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}" if path else str(key), str(key), v) for key, v in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{i}]", "", item) for i, item in enumerate(value)]
    else:
        items = []
    for inner_path, key, inner in items:
        yield inner_path, key, inner
        yield from walk(inner, inner_path)
