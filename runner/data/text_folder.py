"""Folders of texts: their files, and the rows of a file."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from runner.data.folders import Folder, Listing, Media, each
from runner.data.text_files import read_text
from runner.errors import ConfigError, show_path
from runner.section import MOST, Count

_THREADS = 8  # that read; more wait for memory


class TextFolder(Folder):
    """The keys of texts in files: how they are read, and divided into rows and tokens."""

    media: ClassVar[Media] = Media("text files", (".txt",))
    record_separator: Annotated[str, Field(min_length=1)] | None
    encoding: str
    tokenizer: str
    max_vocabulary: Count
    context: Annotated[int, Field(ge=1, le=MOST)] | None
    memory_mb: Count | None

    def records_of(self, files: Sequence[Path]) -> list[list[str]]:
        """Read the texts of files: of each, its rows."""
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "texts") as pool:
            read = partial(_records, encoding=self.encoding, separator=self.record_separator)
            return each(pool, read, files)


def _records(file: Path, encoding: str, separator: str | None) -> list[str]:
    """Read the rows of a text file."""
    if not file.is_file():
        raise ConfigError(f"{show_path(file)} is not a regular file, so not a text")
    text = read_text(file, encoding)
    if separator is None:
        found = [text]
    else:
        parts: list[list[str]] = [[]]
        for line in text.split("\n"):
            if line == separator:
                parts.append([])
            else:
                parts[-1].append(line)
        found = ["\n".join(lines).strip("\n") for lines in parts]
    found = [record for record in found if record.strip()]
    if not found:
        raise ConfigError(f"{show_path(file)} has no text; remove it")
    return found


def of_rows(found: Listing, num_rows: Sequence[int]) -> Listing:
    """Return the listing of the rows of listed files; `num_rows` are those of each file."""
    of_row = np.repeat(np.arange(len(num_rows)), num_rows)
    splits = {name: np.flatnonzero(np.isin(of_row, files)) for name, files in found.splits.items()}
    if found.groups is not None:  # of the training files
        found = replace(found, groups=found.groups[of_row[splits["train"]]])
    return replace(
        found,
        files=[found.files[int(i)] for i in of_row],
        labels=found.labels[of_row],
        weights=None if found.weights is None else found.weights[of_row],
        splits=splits,
    )


def names_of(
    files: Sequence[Path], num_rows: Sequence[int], root: Path, is_numbered: bool
) -> tuple[str, ...]:
    """Name the rows of files: FILE, or FILE:NUMBER, counted from 1."""
    names = []
    for file, num in zip(files, num_rows, strict=True):
        name = os.path.relpath(file, root)
        names += [f"{name}:{i}" for i in range(1, num + 1)] if is_numbered else [name]
    return tuple(names)


def cut_warnings(lengths: np.ndarray, context: int, is_fixed: bool) -> tuple[str, ...]:
    """Warn of rows with more tokens than a row has."""
    num = int((lengths > context).sum())
    if not num:
        return ()
    size = f"{context} tokens, like the longest training row"
    size = size if is_fixed else f"data.context={context} tokens"
    whose = "its" if num == 1 else "their"
    return (
        f"{num} of {len(lengths)} rows lost {whose} end: rows have {size}, and the longest text "
        f"has {lengths.max()}",
    )
