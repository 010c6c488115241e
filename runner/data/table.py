"""Tables in files."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import model_validator

from runner.data.columns import Columns
from runner.data.dataset import Dataset
from runner.data.files import regular_file
from runner.data.table_files import SEPARATORS, TableFile
from runner.errors import ConfigError, show
from runner.schedules.dialects.calls import SentenceError
from runner.section import Count, Mark


class Table(Columns):
    """A file with named columns and one row per line or record: CSV with any separator, also
    compressed, Parquet, Feather or Arrow. `data=csv` is the same. The files `val_path` and
    `test_path`, with the columns of `path` in any order, have the rows of these splits, in place of
    a fraction; what was fitted on the training rows of `path` transforms them. With `memory_mb` (in
    2^20 bytes), the rows of a Parquet, Feather or Arrow file are read while training, within this
    memory, from a temporary file of the transformed rows."""

    name: Literal["table", "csv"]
    path: Annotated[str, Mark(on_run=True)]
    val_path: Annotated[str | None, Mark(on_run=True)]
    test_path: Annotated[str | None, Mark(on_run=True)]
    separator: Literal["auto", "comma", "semicolon", "tab", "pipe", "space"]
    encoding: str
    memory_mb: Count | None

    @model_validator(mode="after")
    def _streams(self) -> "Table":
        if self.memory_mb is not None and self.own_paths:
            name = next(iter(self.own_paths))
            raise SentenceError(
                f"memory_mb must be null with data.{name}_path, got {self.memory_mb}"
            )
        return self

    def load(self) -> Dataset:
        if self.memory_mb is None:
            return super().load()
        from runner.data import table_stream  # the start of other runs does not need it

        return table_stream.load(self, self.memory_mb)

    def file(self, path: str | Path, key: str = "data.path") -> TableFile:
        """Open a file with the section's separator and encoding."""
        encoding = None if self.encoding == "auto" else self.encoding
        if encoding is not None:
            try:
                "".encode(encoding)
            except (LookupError, ValueError):
                raise ConfigError(
                    f"data.encoding must be auto or an encoding that Python knows, such as utf-8 "
                    f"or latin-1, got {show(encoding)}"
                ) from None
        return TableFile(regular_file(path, key), SEPARATORS.get(self.separator), encoding)
