"""Data sets by name: what their keys are, and the arrays they give."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import Field, TypeAdapter

from runner.data.dataset import Dataset, Split
from runner.data.embedded import Diabetes, Digits
from runner.data.files import CSV, NPZ, Python
from runner.data.stream import NPY

__all__ = ["Data", "Dataset", "Split", "load"]

Data = Annotated[Union[Digits, Diabetes, NPZ, CSV, NPY, Python], Field(discriminator="name")]


def load(data: Any) -> Dataset:
    """What a section of the config speaks of. Runs of one process share it, while its files are as they were."""
    path = Path(getattr(data, "path", "")).expanduser()
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path] if path.is_file() else []
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _load(data.model_dump_json(), stamps)


@lru_cache(maxsize=1)
def _load(data: str, stamps: tuple[Any, ...]) -> Dataset:
    section: Any = TypeAdapter(Data).validate_json(data)
    dataset: Dataset = section.load()
    return dataset
