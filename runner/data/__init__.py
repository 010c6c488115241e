"""Data sets by name: their config sections and the arrays that they load."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import TypeAdapter

from runner.data.arrays import Arrays, Custom
from runner.data.audio import AudioFolder
from runner.data.columns import Columns
from runner.data.dataset import Dataset, Split
from runner.data.embedded import BreastCancer, Diabetes, Digits, Iris, Wine
from runner.data.files import NPZ
from runner.data.folders import Folder
from runner.data.frame import Frame
from runner.data.hugging_face import HuggingFace
from runner.data.images import ImageFolder
from runner.data.packaged import JapaneseVowels, Mnist5k
from runner.data.splits import Splits
from runner.data.stream import NPY
from runner.data.table import Table
from runner.data.text import Text, Topics
from runner.data.text_classes import TextClasses
from runner.errors import ConfigError
from runner.section import OneOf

__all__ = ["Data", "Dataset", "Split", "load"]

Data = Annotated[
    Union[
        Digits,
        Diabetes,
        Iris,
        Wine,
        BreastCancer,
        Mnist5k,
        JapaneseVowels,
        NPZ,
        Table,
        NPY,
        ImageFolder,
        AudioFolder,
        TextClasses,
        Text,
        Topics,
        Custom,
        Arrays,
        Frame,
        HuggingFace,
    ],
    OneOf("name"),
]


def load(data: Any, like: Mapping[str, Any] | None = None) -> Dataset:
    """Load the data set of a config section. Runs of one process share it as long as its files do
    not change. `like`, a run's data.json, selects the same columns: its features, and its target if
    the section names none."""
    if like is not None and isinstance(data, Columns) and data.target is None:
        data = data.model_copy(update={"target": like.get("target")})
    if isinstance(data, Arrays | Frame):
        dataset = data.load()
    else:
        dataset = _load(data.model_dump_json(by_alias=True), _stamps(data))
    return dataset if like is None else dataset.with_columns(like["features"])


def _stamps(data: Any) -> tuple[Any, ...]:
    """The name, size and modification time of each file; empty if they cannot be read, since
    loading then raises the error."""
    try:
        stats = [(str(file), file.stat()) for file in _files(data)]
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    except (ConfigError, OSError, ValueError, RuntimeError):
        return ()


def _files(data: Any) -> Iterable[Path]:
    """The files that a section's rows are read from."""
    if isinstance(data, Folder | Text):
        return data.files()
    if getattr(data, "path", None) is None:
        return ()
    root = Path(data.path).expanduser()
    others = data.own_paths.values() if isinstance(data, Splits) else ()
    pattern = "**/*.*" if isinstance(data, HuggingFace) else "*.npy"
    files = sorted(root.glob(pattern)) if root.is_dir() else [root]
    return [*files, *(Path(other).expanduser() for other in others)]


@lru_cache(maxsize=1)
def _load(data: str, stamps: tuple[Any, ...]) -> Dataset:
    section: Any = TypeAdapter(Data).validate_json(data)
    dataset: Dataset = section.load()
    return dataset
