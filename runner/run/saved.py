"""A finished run, read from its folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import isfile  # False for a name that no file system allows
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from hydra.core.override_parser.types import Override

from runner import dispatcher
from runner.components import averages
from runner.config import yaml_files
from runner.config.conf_folder import defaults, with_callback_defaults, with_schedule_defaults
from runner.config.given import Given
from runner.config.schema import Config, LayerModel, parse, sha256
from runner.data import transforms
from runner.data.columns import Columns, labelled_rows, new_rows
from runner.data.dataset import Scaling, changed, check_finite, check_ids
from runner.data.files import NPZ, channels_last
from runner.data.folders import Folder
from runner.data.frame import Frame, FrameFile, Frames, arrow_table
from runner.data.ranges import far_outside
from runner.data.source import Batch
from runner.data.stream import NPY
from runner.data.table import Table
from runner.data.text import Text
from runner.data.text_classes import TextClasses
from runner.data.tokenizer import Tokenizer
from runner.data.windows import Windows
from runner.errors import ConfigError, nearest, show
from runner.evaluation import evaluate
from runner.plan import Plan, model_spec, plan, saved_shapes
from runner.run import checkpoint, run_folder
from runner.run.strict_json import with_numbers
from runner.section import has_key
from runner.spec import Measured, ModelSpec, TrainState
from runner.text import console, notebook


def config_of(folder: str | Path, key: str = "run") -> dict[str, Any]:
    """Return a run's config as plain values. `key` is the key with which the user named the folder.
    A key that is newer than the run gets its default, which does not change the run.
    `trusted_modules` is not read from the file.

    The config's hash, which is in result.json and the checkpoints, shows whether a missing key is
    newer than the run, or was removed from the file.
    """
    path = Path(folder) / "config.yaml"
    if not isfile(path):
        raise ConfigError(
            f"{key} must be the folder of a run, got {folder}, which holds no config.yaml"
        )
    saved = _load(path, key)
    for section in ("model", "output", *_CHOICES):
        if not isinstance(saved.get(section), dict):
            got = show(saved[section]) if section in saved else "nothing"
            raise ConfigError(
                f"{key}: {path} must hold the config that ran, with the keys of {section}, "
                f"got {got}"
            )
    if saved.get("task") == "find_lr":
        raise ConfigError(
            f"{key} must be the folder of a run, got {folder}, which is of task=find_lr and has "
            f"no checkpoint"
        )
    values = _with_defaults(saved)
    missing = next(_missing_keys(saved, values), None)
    if (
        missing is not None
        and (hashes := _hashes(Path(folder)))
        and not hashes & {sha256(saved), sha256(values)}
    ):
        raise ConfigError(
            f"{key}: {path} lacks {missing} and is not the config that ran: its SHA-256 differs"
        )
    return {**values, "trusted_modules": []}


def set_keys(
    values: Mapping[str, Any], overrides: Sequence[Override], allowed: Sequence[str]
) -> dict[str, Any]:
    """Apply the overrides of a task to a finished run's config. Only the `allowed` keys may be
    set."""
    changed = deepcopy(dict(values))
    for override in overrides:
        key = override.key_or_group
        if key not in allowed:
            hint = "" if has_key(values, key) else nearest(key, allowed)
            raise ConfigError(
                f"{show(key)} cannot be set for a finished run{hint}; {', '.join(allowed)} can"
            )
        *groups, last = key.split(".")
        section = changed
        for group in groups:
            section = section[group]
        section[last] = override.value()
    return with_callback_defaults(changed)


_NOTHING = Given()
# Groups with the defaults of their keys in conf/GROUP/NAME.yaml -> NAME, or "" if it is the
# section's name
_CHOICES = {"data": "", "loss": "", "optimizer": "", "schedule": "", "trainer": "default"}


def _with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the default of every missing key."""
    default = {key: value for key, value in defaults("", "config").items() if key != "hydra"}
    default |= {
        group: defaults(group, name or str(saved[group].get("name")))
        for group, name in _CHOICES.items()
    }
    if "layer_defaults" in saved:
        default["layer_defaults"] = defaults("layer_defaults", "default")
    return with_callback_defaults(with_schedule_defaults(_merge(default, saved, depth=2)))


def _merge(default: Mapping[str, Any], saved: Any, depth: int) -> Any:
    """Merge saved values with the defaults of missing keys, also in sections, down to a depth."""
    if not isinstance(saved, dict):
        return saved
    inner = {
        k: _merge(default[k], v, depth - 1) if depth and isinstance(default.get(k), dict) else v
        for k, v in saved.items()
    }
    return {**inner, **{key: deepcopy(value) for key, value in default.items() if key not in saved}}


def _missing_keys(saved: Any, values: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of `values` that `saved` does not have."""
    if isinstance(saved, dict) and isinstance(values, dict):
        for key, value in values.items():
            yield from (
                _missing_keys(saved[key], value, f"{prefix}{key}.")
                if key in saved
                else (f"{prefix}{key}",)
            )
    elif isinstance(saved, list) and isinstance(values, list):
        for saved_item, item in zip(saved, values, strict=False):
            yield from _missing_keys(saved_item, item, prefix)


def _hashes(folder: Path) -> set[str]:
    """Return the hashes of the config that ran, from result.json and the last checkpoint."""
    hashes = set()
    for name in ("result.json", "checkpoints/last/state.json"):
        with suppress(ConfigError):
            hashes.add(str(run_folder.read_json(folder / name).get("config_sha256")))
    return hashes


def _load(path: Path, key: str) -> dict[str, Any]:
    try:
        values = yaml_files.values(yaml_files.read_text(path), path)
    except ConfigError as error:
        reason = str(error).removeprefix(str(path)).lstrip(",: ").removeprefix("cannot be read: ")
        raise ConfigError(f"{key}: {path} cannot be read: {reason}") from None
    if not values or not all(isinstance(name, str) for name in values):
        state = "is empty" if not values else "holds no keys"
        raise ConfigError(f"{key}: {path} {state}; it must hold the config that ran")
    return values


# The keys that data.json must have, and their types
_DATA: dict[str, Sequence[type]] = {
    "task": (str,),
    "classes": (list,),
    "features": (list,),
    "input_shape": (list,),
    "num_targets": (int,),
    "sha256": (str,),
    "x_scaling": (dict, NoneType),
    "y_scaling": (dict, NoneType),
    "x_range": (dict, NoneType),  # missing in folders of older versions
}


def data_of(folder: Path) -> dict[str, Any]:
    return run_folder.read_json(folder / "data.json", _DATA)


def refuse_links(folder: Path, key: str) -> None:
    """Refuse a run's folder with symbolic links in the place of its files: a run never writes or
    deletes through a link."""
    for path in (*run_folder.links(folder), *checkpoint.links(folder)):
        if path.name in ("last", "best"):
            raise ConfigError(
                f"{key}: {path} must be a symbolic link to a step beside it, or a file that "
                f"names one"
            )
        raise ConfigError(
            f"{key}: {path} is a symbolic link, and a run never writes through one; replace it "
            f"by the file itself"
        )


@dataclass(frozen=True)
class Run:
    """A run's config, records, weights and model."""

    folder: Path
    config: Config
    checkpoint: str | int = "last"
    owns_process: bool = False  # True: this run may set the process's number of threads
    given: Given = _NOTHING  # what was passed in Python; `config` holds it too

    def __repr__(self) -> str:
        """One line: the folder, the status and the metrics after the last epoch."""
        values = ", ".join(f"{name} {value:.4g}" for name, value in self._last_metrics.items())
        return f"Run({str(self.folder)!r}, {self.status}{', ' if values else ''}{values})"

    def _repr_html_(self) -> str:
        """Show the status, the metrics and the curves in a notebook."""
        return notebook.html(*self._summary, picture=self.folder / "curves.png")

    def _repr_markdown_(self) -> str:
        return notebook.markdown(*self._summary)

    @property
    def _summary(self) -> tuple[str, list[str], list[tuple[str, ...]]]:
        """The heading, the lines and the table of a notebook's cell."""
        config, heading = self.config, self.status
        heading += f": schedule={config.schedule.name}, {config.backend}, seed {config.seed}"
        metrics = self._last_metrics
        if not metrics:
            return heading, [str(self.folder)], []
        best = self.result.get("best") or {}
        value = best.get("value")
        value = f"{value:.4g}" if isinstance(value, int | float) else str(value)
        bests = {best.get("metric"): f"{value} (epoch {best.get('epoch')})"}
        steps = f"{self.result.get('steps', 0)} steps, {self.result.get('epochs', 0)} epochs"
        rows: list[tuple[str, ...]] = [("metric", "after the last epoch", "best")]
        rows += [(name, f"{last:.4g}", bests.get(name, "")) for name, last in metrics.items()]
        return heading, [steps, str(self.folder)], rows

    @property
    def status(self) -> str:
        """completed, interrupted or failed; unfinished: it has no result.json."""
        try:
            return str(self.result["status"])
        except ConfigError:
            return "unfinished"

    @property
    def _last_metrics(self) -> dict[str, float]:
        try:
            return {name: float(value) for name, value in self.result["metrics"].items()}
        except ConfigError:
            return {}

    @cached_property
    def _saved(self) -> tuple[TrainState, dict[str, Any]]:
        """The checkpoint's state and its state.json."""
        return checkpoint.read(self.folder, self.checkpoint)

    @property
    def state(self) -> TrainState:
        """Weights, slots and buffers of the checkpoint. The weights are those that were chosen:
        their average, if the run has one and is not opened with weights=plain."""
        return averages.chosen(self._saved[0], self.config.weights)

    @cached_property
    def plan(self) -> Plan:
        """Load the data, with the columns of data.json, and plan the run."""
        return plan(self.config, self.data)

    @cached_property
    def data(self) -> dict[str, Any]:
        """data.json: names, shapes and scalings of the training data, not the rows."""
        return data_of(self.folder)

    @property
    def _has_channels_first(self) -> bool:
        data = self.config.data
        return isinstance(data, NPZ | NPY) and data.channels == "first"

    @property
    def raw_shape(self) -> list[int]:
        """The shape of a row in the data's file."""
        shape: list[int] = self.data["input_shape"]
        return [shape[-1], *shape[:-1]] if self._has_channels_first else shape

    @cached_property
    def model_spec(self) -> ModelSpec:
        """The run's model, with the number of threads in training. Does not need the data."""
        threads = self._saved[1].get("threads")
        if self.owns_process and threads and not isinstance(self.config.model, LayerModel):
            dispatcher.building_threads = threads
        spec = model_spec(self.config, saved_shapes(self.data))
        return replace(spec, threads=threads or spec.threads)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a run of text: `encode` and `decode`.

        Raises:
            ConfigError: the run's data is no text.
        """
        if "tokenizer" not in self.data:
            raise ConfigError(f"{self.folder} was not trained on text, so it has no tokenizer")
        return Tokenizer.read(self.data["tokenizer"])

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        """Canonical name -> value, buffers included."""
        return {**self.state.weights, **self.state.buffers}

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """metrics.csv by column."""
        return run_folder.read_columns(self.folder / "metrics.csv")

    @property
    def trace(self) -> dict[str, np.ndarray]:
        """trace.csv by column."""
        return run_folder.read_columns(self.folder / "trace.csv")

    def frame(self, name: str = "metrics") -> Any:
        """Return metrics.csv or trace.csv as a pandas DataFrame. Needs pandas, which is imported
        here only.

        Args:
            name: "metrics", a row per epoch, or "trace", a row per update.

        Raises:
            ConfigError: there is no such table, or pandas is not installed.
        """
        tables = ("metrics", "trace")
        if name not in tables:
            raise ConfigError(f"a run's tables are metrics and trace, got {show(name)}")
        return as_frame(getattr(self, name))

    @property
    def result(self) -> dict[str, Any]:
        """result.json."""
        values = run_folder.read_json(self.folder / "result.json")
        return {
            **values,
            **with_numbers({key: values[key] for key in ("metrics", "best") if key in values}),
        }

    def model(self) -> Any:
        """The native model of the run's backend: an nn.Module or a keras.Model, with the run's
        weights."""
        return dispatcher.load(self.config.backend).native_model(self.model_spec, self.state)

    def evaluate(self, rows: Any = None) -> dict[str, float]:
        """Return the loss and metrics of the test split, as task=evaluate does. Nothing else uses
        this split.

        Args:
            rows: new labelled rows, which are evaluated instead: a table in a file, by its path, or
                in memory. If it holds the rows that the run was trained on, only those of the test
                split are.

        Raises:
            ConfigError: the data is not what the run was trained on, or it has no test rows; or the
                new rows do not fit the run.
        """
        return self.evaluate_plan(self.plan_to_evaluate(rows)[0])

    def evaluate_plan(self, prepared: Plan, outputs: np.ndarray | None = None) -> dict[str, float]:
        """Return the loss and metrics of the test rows of a plan, from their outputs if they are
        known."""

        def predict(batch: Batch) -> np.ndarray:
            return self.outputs(batch) if outputs is None else outputs

        def measure(batches: Iterable[Batch], keeps_outputs: bool) -> Measured:
            return self.measure(batches, keeps_outputs, prepared.loss)

        return evaluate(prepared, prepared.data.test, predict, measure, "test/")

    def plan_to_evaluate(self, new: Any = None) -> tuple[Plan, bool]:
        """Return the plan with the test rows, or with the new rows of a table, in memory or by its
        path, as test rows; and whether these are new."""
        if new is None:
            difference = changed(self.data, self.plan.data.description())
            if difference is not None:
                raise ConfigError(
                    f"task=evaluate: the data is not what {self.folder} was trained on: "
                    f"{difference}; data.path=FILE names new rows of a table, and task=predict "
                    f"takes new rows without targets"
                )
            return self._with_test_rows(self.plan), False
        section = self.config.data
        if isinstance(section, Windows):
            return self._plan_for_text(section, str(new))
        has_rows = getattr(section, "inputs", None) is not None  # of images or arrays
        if not isinstance(section, Columns | Folder) or has_rows:
            raise ConfigError(
                f"data.path of task=evaluate names new rows of a table or a folder of class "
                f"folders, and {self.folder} was trained on data={section.name}"
            )
        table = None if isinstance(new, str | Path) else _table(new)
        moved = _moved(section, str(new) if table is None else table)
        with suppress(ConfigError):  # new rows need not be enough for a training
            prepared = plan(self.config.model_copy(update={"data": moved}), self.data)
            if changed(self.data, prepared.data.description()) is None:
                return self._with_test_rows(prepared), False
        if isinstance(section, Folder):
            rows, warnings = section.labelled_rows(moved.path, self.data)
        else:
            saved = self.folder / "data.json"
            file = moved.file(moved.path)
            rows, warnings = labelled_rows(section, file, self.data, saved)
        return plan(self.config, data=replace(rows, warnings=tuple(warnings))), True

    def _plan_for_text(self, section: Windows, path: str) -> tuple[Plan, bool]:
        """Return the plan with the windows of a new text as test rows."""
        if isinstance(section, Text):
            with suppress(ConfigError):  # a new text need not be enough for a training
                moved = section.model_copy(update={"path": path})
                prepared = plan(self.config.model_copy(update={"data": moved}), self.data)
                if changed(self.data, prepared.data.description()) is None:
                    return self._with_test_rows(prepared), False
        return plan(self.config, data=section.new_rows(path, self.tokenizer)), True

    def _with_test_rows(self, prepared: Plan) -> Plan:
        if not len(prepared.data.test):
            raise ConfigError(f"{self.folder} has no test rows: data.test_fraction was 0")
        return prepared

    def predict(self, x: Any) -> Any:
        """Predict the outputs of raw rows, as in the data's file: logits of the classes, or targets
        in the data's units; of a model with several outputs, a tuple or a dict of them, as the
        model returns them. A table (a DataFrame of pandas or Polars, an Arrow table, a dict of
        columns, a list of dicts) must have the columns that the run was trained on, in any order;
        text, dates and missing cells are transformed as in training. A run of data=text_classes
        takes a list of texts, or of pairs of them, a table with its columns, or token ids.
        # x float[N, ...] -> float[N, C]
        """
        outputs, several = self.packed_outputs(x), self.model_spec.network.outputs
        return outputs if several is None else several.unpack(outputs)

    def packed_outputs(self, x: Any) -> np.ndarray:
        """Return what `predict` does; several outputs joined in one array, in order of definition.
        # float[N, C]"""
        data, section = self.data, self.config.data
        if data["features"]:
            x = self._of_table(x)
        if isinstance(section, TextClasses):
            x = section.encoded(x, data)
        values = np.asarray(x)
        if list(values.shape[1:]) != self.raw_shape:
            raise ConfigError(
                f"a row of x has shape {list(values.shape[1:])}; the run was trained on "
                f"{self.raw_shape}"
            )
        values = channels_last(values) if self._has_channels_first else values
        check_finite("x", values, "the new rows")
        if num := data.get("num_tokens"):
            return self.outputs({"x": _token_ids(values, num)})
        fitted = transforms.read(data.get("columns") or (), self.folder / "data.json")
        check_ids(values, transforms.ids(fitted), data["features"], "the new rows")
        if far := far_outside(values, data, self.folder / "data.json"):
            console.warn(
                f"the new rows seem to be in other units than the training rows: {far}; "
                f"pass values in the units of the training data"
            )
        x_scaling, y_scaling = (Scaling.of(data[key]) for key in ("x_scaling", "y_scaling"))
        with np.errstate(over="ignore"):
            rows = (x_scaling.apply(values) if x_scaling else values).astype(self.model_spec.dtype)
        check_finite("x", rows, f"the new rows, scaled and in {rows.dtype}")
        outputs = self.outputs({"x": np.ascontiguousarray(rows)})
        y_scaling = None if self.model_spec.network.outputs is not None else y_scaling
        return y_scaling.invert(outputs.astype(np.float64)) if y_scaling else outputs

    def _of_table(self, x: Any) -> Any:
        """Return the features of a table's rows, not scaled; other rows unchanged.
        # float64[N, features]"""
        saved, features = self.folder / "data.json", self.data["features"]
        table = arrow_table(x, "x")
        if table is not None:
            names, raw = set(table.column_names), self.data.get("columns", ())
            is_raw = {column["name"] for column in raw} <= names
            known = (
                self.data if is_raw or not set(features) <= names else {**self.data, "columns": ()}
            )
            values, warnings = new_rows(FrameFile(Path("x"), table=table), known, saved)
            for warning in warnings:
                console.warn(warning)
            return values
        if not hasattr(x, "columns"):
            return x
        missing = [name for name in features if name not in x.columns]
        if missing:
            raise ConfigError(
                f"x lacks the column {show(missing[0])}, which the run was trained on"
            )
        return x[features]

    def check_outputs(self) -> None:
        """Raise ConfigError if the model gives no outputs: a LightningModule without `forward`."""
        if not self.model_spec.network.output_shape:
            raise ConfigError(
                f"the model of {self.folder} has no forward(x), which predictions and exports need"
            )

    def outputs(self, rows: Batch) -> np.ndarray:
        """Return the network's outputs for rows as in training: scaled, in the run's dtype; several
        outputs joined in order of definition.  # float[N, C]"""
        self.check_outputs()
        backend = dispatcher.load(self.config.backend)
        if self.owns_process:
            backend.can_use_threads(self.model_spec.threads)
        return backend.predict(self.model_spec, self.state, rows)

    def measure(self, batches: Iterable[Batch], keeps_outputs: bool, loss: Any = None) -> Measured:
        """Compute the loss of the user's own code on rows as in training, and what it logs; `loss`
        is that of another plan."""
        backend = dispatcher.load(self.config.backend)
        if self.owns_process:
            backend.can_use_threads(self.model_spec.threads)
        loss = self.plan.loss if loss is None else loss
        return backend.measure(self.model_spec, self.state, loss, batches, keeps_outputs)


def _table(rows: Any) -> Any:
    """Convert new labelled rows to a pyarrow.Table."""
    table = arrow_table(rows, "the new rows")
    if table is None:
        raise ConfigError(
            f"the new rows must be a table, or the path of one, got {type(rows).__name__}"
        )
    return table


def _moved(section: Columns | Folder, source: Any) -> Any:
    """Return a section for other rows: of a file or folder, or of a pyarrow.Table."""
    if isinstance(section, Folder):
        if not isinstance(source, str):
            raise ConfigError("the new rows of a run on folders must be a folder, got a table")
        return section.model_copy(update={"path": source})
    if not isinstance(source, str):
        return section.of(Frame, name="frame").holding(Frames({"train": source}))
    if isinstance(section, Table):
        return section.model_copy(update={"path": source})
    keys = {"separator": "auto", "encoding": "auto"}
    absent = dict.fromkeys(("val_path", "test_path", "memory_mb"))
    return section.of(Table, name="table", path=source, **keys, **absent)


def _token_ids(values: np.ndarray, num: int) -> np.ndarray:
    """Convert to int32. Raise ConfigError for other numbers than ids below `num`."""
    bad = (values < 0) | (values >= num) | (values != np.rint(values))
    if bad.any():
        raise ConfigError(
            f"the new rows must have token ids, whole numbers from 0 to {num - 1}, got "
            f"{values[bad][0]:g}"
        )
    return np.ascontiguousarray(values, np.int32)


def load_run(
    folder: str | Path,
    backend: str | None = None,
    checkpoint: str | int = "last",
    trusted_modules: Sequence[str] = (),
    *,
    model: Any = None,
    data: Any = None,
    schedule: Any = None,
    loss: Any = None,
    metrics: Any = None,
    weights: str = "auto",
) -> Run:
    """Open a run's folder in Python.

    Args:
        folder: the folder of a run.
        backend: another framework than the run's.
        checkpoint: "last", "best" or a step.
        trusted_modules: as on the command line, for a run with your own code.
        model: the object that was passed to runner.train, if one was; `data`, `schedule`, `loss`
            and `metrics` too. They are needed only by what uses them: `model()` needs no data.
        weights: "plain" or "average" of a run with optimizer.ema or optimizer.swa; "auto" is the
                average if there is one.

    Raises:
        ConfigError: the folder holds no run, or an argument does not fit it.
    """
    given = Given.of(model, data, schedule, loss, metrics)
    values = {**config_of(folder), "trusted_modules": [*trusted_modules, *given.modules()]}
    chosen = {"weights": weights, **({"backend": backend} if backend else {})}
    config = parse({**values, **chosen})
    averages.check_choice(config.optimizer, config.weights, folder)
    return Run(Path(folder), given.bind(config), checkpoint, given=given)


def as_frame(columns: Any) -> Any:
    """Make a pandas DataFrame. Raises ConfigError if pandas is not installed."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise ConfigError("a DataFrame needs pandas: pip install pandas") from None
    return pandas.DataFrame(columns)
