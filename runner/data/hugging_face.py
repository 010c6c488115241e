"""Data sets of Hugging Face's library `datasets`, by a local path or a name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from runner.data.arrays import OF_ITERABLES, Arrays, Passed, given
from runner.data.columns import Columns
from runner.data.dataset import Dataset
from runner.data.files import regular_file
from runner.data.frame import Frame, Frames, of_hugging_face
from runner.data.splits import named_splits
from runner.data.table_files import TableFile
from runner.errors import ConfigError, listed, one_line, show
from runner.section import Count, Mark

_BUILDERS = {
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}


class HuggingFace(Columns):
    """A data set of the library `datasets`: a folder that `save_to_disk` wrote, a folder or a file
    of Parquet, JSON, CSV or Arrow, or the name of a data set on the Hub. `subset` is the name of
    its configuration. If it is `offline`, a name must be in the library's cache.

    `data=datasets` is the same. Its columns are used as those of data=table; a ClassLabel is the
    text of its name. With `inputs`, the fields of that name are x as in data=custom: images,
    arrays, sequences of one length; `memory_mb` reads them while training. Its splits train,
    validation (or val) and test are used as they are; those that it lacks are taken from the
    training rows.
    """

    name: Literal["huggingface", "datasets"]
    path: Annotated[str, Mark(on_run=True)]
    subset: str | None
    offline: bool
    inputs: str | list[str] | None
    memory_mb: Count | None

    def load(self) -> Dataset:
        if self.inputs is not None and self.texts:
            raise ConfigError(
                f"data.texts must be [] with data.inputs, which names no columns of a table, got "
                f"{listed(self.texts)}"
            )
        if self.inputs is not None and self.category_encoding != "one_hot":
            raise ConfigError(
                f"data.category_encoding must be one_hot with data.inputs, which names no columns "
                f"of categories, got {self.category_encoding}"
            )
        sets = _sets(_read(self.path, self.subset, self.offline), self.path)
        if self.inputs is not None:
            return self._rows(sets)
        if self.memory_mb is not None:
            raise ConfigError(
                f"data.memory_mb must be null without data.inputs, because a table is read into "
                f"memory, got {self.memory_mb}"
            )
        tables = {name: of_hugging_face(rows) for name, rows in sets.items()}
        frame: Any = self.of(Frame, name="frame")
        data: Dataset = frame.holding(Frames(tables, self.path)).load()
        return data

    def _rows(self, sets: Mapping[str, Any]) -> Dataset:
        """Use a field of the rows as x."""
        target = self.target if self.target is not None else sets["train"].column_names[-1]
        if not isinstance(target, str):
            raise ConfigError(
                f"data.target must be one field with data.inputs, got {listed(target)}"
            )
        shared = Passed.model_fields.keys() - {"target", "no_label"}
        keys: dict[str, Any] = {key: getattr(self, key) for key in shared} | OF_ITERABLES
        section = Arrays.model_construct(**keys, target=target, no_label=None, name="arrays")
        return section.dataset(given(sets, self.path))

    def file(self, path: str | Path, key: str = "data.path") -> TableFile:
        """Open a file with new rows."""
        return TableFile(regular_file(path, key))


def _sets(data: Any, path: str) -> dict[str, Any]:
    """Return the splits train, val and test -> data sets."""
    if not isinstance(data, Mapping):
        return {"train": data}
    sets = named_splits(data)
    if "train" not in sets:
        raise ConfigError(f"data.path {path} must have the split train, got {listed([*data])}")
    return {name: rows for name, rows in sets.items() if name in ("train", "val", "test")}


def _read(path: str, subset: str | None, offline: bool) -> Any:
    """Load a data set, or a dict of them by split."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"data=huggingface needs the library datasets ({error}): "
            "pip install 'twinrun[datasets]'"
        ) from None
    root = Path(path).expanduser()
    try:
        with _quiet(datasets, offline):
            if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
                return datasets.load_from_disk(str(root))
            if root.is_file():
                builder = _BUILDERS.get(root.suffix.lower(), "parquet")
                return datasets.load_dataset(builder, data_files=str(root))
            return datasets.load_dataset(str(root) if root.is_dir() else path, name=subset)
    except Exception as error:  # it raises those of many libraries
        cached = "; data.offline=false downloads it" if offline and not root.exists() else ""
        raise ConfigError(
            f"data.path must be a data set of Hugging Face, got {show(path)}: "
            f"{show(one_line(error))}{cached}"
        ) from None


@contextmanager
def _quiet(datasets: Any, offline: bool) -> Iterator[None]:
    """Show no progress, and allow no connection if `offline`; restore both settings."""
    from datasets.utils import are_progress_bars_disabled
    from huggingface_hub import constants

    settings = [(datasets.config, "HF_HUB_OFFLINE"), (constants, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in settings]
    shows = not are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        for module, name in settings:
            setattr(module, name, offline or getattr(module, name))
        yield
    finally:
        for (module, name), value in zip(settings, before, strict=True):
            setattr(module, name, value)
        if shows:
            datasets.enable_progress_bars()
