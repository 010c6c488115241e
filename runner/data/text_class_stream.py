"""Texts with a label each that do not fit into memory: they are read in blocks of files, to count
the rows, to find the vocabulary, and to divide them into tokens, which are written to a temporary
file. Training reads rows from it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from runner.data.dataset import Dataset, Split, check_classes
from runner.data.files import tokenizer_of
from runner.data.splits import SPLITS
from runner.data.stream import RowFile, StreamedRows
from runner.data.text_folder import TextFolder, cut_warnings, names_of, of_rows
from runner.data.tokenizer import Tokenizer
from runner.errors import ConfigError, show_path

_MOST_FILES = 4096  # of a block


@dataclass(frozen=True)
class TextRows(StreamedRows):
    """Rows of token ids of one length: their first tokens, with padding at the end."""

    size: int  # tokens of a row
    file: IO[bytes] = field(repr=False)  # int32, all tokens; closed with the last of these rows
    begins: np.ndarray  # int64[all rows + 1], the places of the rows' first tokens, and the end

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (self.size,)

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        """Read rows in the requested order.  # int64[n] -> int32[n, size]"""
        rows = self.rows[which]
        x = np.zeros((len(rows), self.size), np.int32)
        if len(rows):
            tokens = np.memmap(self.file, np.int32, "r")
            ends = np.minimum(self.begins[rows + 1], self.begins[rows] + self.size)
            for row, begin, end in zip(x, self.begins[rows], ends, strict=True):
                row[: end - begin] = tokens[begin:end]
        return x


class _Tokens(NamedTuple):
    """The tokens of all rows, in a temporary file."""

    file: IO[bytes]
    lengths: np.ndarray  # of the rows  # int64[N]
    sha256: str

    def rows(self, size: int, num_tokens: int) -> TextRows:
        """Return all rows, with `size` tokens each."""
        numbers, extent = np.arange(len(self.lengths)), (0.0, float(num_tokens - 1))
        begins = np.concatenate([[0], np.cumsum(self.lengths)])
        sha256 = hashlib.sha256(f"{self.sha256}/{size}".encode() + begins.tobytes()).hexdigest()
        return TextRows(numbers, np.dtype(np.int32), extent, sha256, size, self.file, begins)


def load(section: TextFolder, memory_mb: int) -> Dataset:
    """Divide the texts of a section's folder into tokens, of which `memory_mb` are in memory. The
    rows are those of TextClasses.load."""
    files, memory = section.listing(), memory_mb * 2**20
    root = Path(section.path).expanduser()
    num_rows, digests = [], []
    for texts in _blocks(section, files.files, memory):
        num_rows += [len(rows) for rows in texts]
        digests += [hashlib.sha256(text.encode()).digest() for rows in texts for text in rows]
    found = of_rows(files, num_rows)
    names = names_of(files.files, num_rows, root, section.record_separator is not None)
    parts = section.split_numbers(found)
    is_train = np.zeros(len(names), bool)
    is_train[parts["train"].x] = True
    every = (t for block in _blocks(section, files.files, memory) for rows in block for t in rows)
    training = (text for text, is_used in zip(every, is_train, strict=True) if is_used)
    fitted = tokenizer_of(section.tokenizer, training, section.max_vocabulary)
    tokenizer = fitted.padded(False)
    tokens = _written(section, files.files, tokenizer, names, memory)
    context = section.context or int(tokens.lengths[is_train].max())
    x = tokens.rows(context, len(tokenizer))
    splits = {name: Split(x.taken(parts[name].x), parts[name].y) for name in SPLITS}
    splits["train"] = replace(splits["train"], x=splits["train"].x.scanned(memory))
    data = Dataset(
        splits["train"],
        splits["val"],
        splits["test"],
        "classification",
        found.classes,
        (),
        num_tokens=len(tokenizer),
        tokenizer=tokenizer,
        memory=memory,
        folds_sha256=section.folds_sha256(
            np.frombuffer(b"".join(digests), np.uint8), found.labels, found.weights
        ),
    )
    data = section.weighted(data, found, parts)
    check_classes(data, section.path)
    warnings = cut_warnings(tokens.lengths, context, section.context is None)
    return replace(data, warnings=warnings)


def _blocks(section: TextFolder, files: Sequence[Path], memory: int) -> Iterator[list[list[str]]]:
    """Yield the rows of the files, in blocks of files that take an eighth of `memory`, if one file
    does not take more."""
    block: list[Path] = []
    size = 0
    for file in files:
        own = file.stat().st_size if file.is_file() else 0
        if block and (size + own > memory // 8 or len(block) == _MOST_FILES):
            yield section.records_of(block)
            block, size = [], 0
        block.append(file)
        size += own
    yield section.records_of(block)


def _written(
    section: TextFolder,
    files: Sequence[Path],
    tokenizer: Tokenizer,
    names: Sequence[str],
    memory: int,
) -> _Tokens:
    """Write the tokens of all rows to a temporary file. Raise ConfigError for a text without
    tokens."""
    lengths: list[int] = []
    stored = RowFile(4 * sum(file.stat().st_size for file in files), "the tokens of the texts")
    for block in _blocks(section, files, memory):
        rows = tokenizer.encode_all([text for texts in block for text in texts])
        if (empty := next((i for i, ids in enumerate(rows) if not len(ids)), None)) is not None:
            raise ConfigError(f"{show_path(names[len(lengths) + empty])} has no tokens")
        lengths += [len(ids) for ids in rows]
        stored.append(np.concatenate(rows))
    return _Tokens(stored.file, np.array(lengths), stored.digest.hexdigest())
