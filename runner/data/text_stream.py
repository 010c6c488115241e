"""Text for language models that does not fit into memory: its tokens are written to a temporary
file, from which training reads windows. A text is read in blocks of characters, twice for a
vocabulary of its characters."""

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from runner.data.dataset import Dataset, Split
from runner.data.masking import masked
from runner.data.stream import RowFile, StreamedRows
from runner.data.text_files import files_of, read_text
from runner.data.tokenizer import Tokenizer
from runner.data.windows import Windows, kept
from runner.errors import ConfigError, show_path

_CHARACTERS = 2**18  # of a block
_WINDOWS = 1024  # of a block


@dataclass(frozen=True)
class TokenRows(StreamedRows):
    """Windows of tokens; `rows` are the places of their first tokens."""

    size: int  # tokens of a window
    file: IO[bytes] = field(repr=False)  # of stored numbers; closed with the last of these rows
    stored: np.dtype
    numbers: np.ndarray  # int32[stored numbers] -> ids of tokens
    # of masked tokens: the rate, the number of tokens, the split's name, and the field, 0 for x
    mask: tuple[float, int, str, int] | None = None

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def nbytes(self) -> int:
        """The bytes that the rows would take in memory."""
        return len(self) * self.row_bytes

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        """Read windows in the requested order.  # int64[n] -> dtype[n, size]"""
        starts = self.rows[which]
        tokens = np.empty((len(starts), self.size), np.int32)
        if len(starts):
            stored = sliding_window_view(np.memmap(self.file, self.stored, "r"), self.size)
            tokens = self.numbers[stored[starts]]
        if self.mask is not None:
            rate, num_tokens, name, part = self.mask
            rows = np.arange(len(self))[which]
            tokens = masked(tokens, rate, num_tokens, rows, 0, name)[part]
        return tokens.astype(self.dtype, copy=False)

    def following(self) -> "TokenRows":
        """Return the labels: the tokens one place later."""
        return replace(self, rows=self.rows + 1)

    def masked(self, rate: float, num_tokens: int, name: str) -> tuple["TokenRows", "TokenRows"]:
        """Return the rows with hidden tokens, and their labels."""
        x, y = (replace(self, mask=(rate, num_tokens, name, part)) for part in (0, 1))
        return x, replace(y, dtype=np.dtype(np.int64))


class Stored(NamedTuple):
    """The tokens of a text in a temporary file."""

    file: IO[bytes]
    dtype: np.dtype
    num_tokens: int
    sha256: str

    def rows(self, starts: np.ndarray, size: int, numbers: np.ndarray) -> TokenRows:
        """Return the windows of `size` tokens at some places, with other `numbers` of tokens."""
        digest = hashlib.sha256(self.sha256.encode() + numbers.tobytes())
        extent = (0.0, float(len(numbers) - 1))
        return TokenRows(
            starts, np.dtype(np.int32), extent, digest.hexdigest(), size, self.file, self.dtype,
            numbers,
        )  # fmt: skip


def _store(files: Sequence[Path], encoding: str, tokenizer: Tokenizer) -> Stored:
    """Write the tokens of files to a temporary file, in the smallest integers that can hold
    them."""
    dtype = np.min_scalar_type(max(1, len(tokenizer) - 1))
    most = sum(path.stat().st_size for path in files) * dtype.itemsize
    stored, num = RowFile(most, "the tokens of the text"), 0
    for text in blocks_of(files, encoding):
        tokens = tokenizer.encode(text).astype(dtype)
        stored.append(tokens)
        num += len(tokens)
    return Stored(stored.file, dtype, num, stored.digest.hexdigest())


def blocks_of(files: Sequence[Path], encoding: str) -> Iterator[str]:
    """Yield the text of `text_files.joined_text` in blocks. Raise ConfigError for a file that
    cannot be read."""
    for i, path in enumerate(files):
        if i:
            yield "\n"
        try:
            codecs.lookup(encoding)
            known = "utf-8-sig" if encoding == "utf-8" else encoding
            with path.open(encoding=known) as file:
                while text := file.read(_CHARACTERS):
                    yield text
        except (OSError, LookupError, UnicodeError):
            read_text(path, encoding)  # it names the byte
            raise


def load(section: Windows, path: str, encoding: str, memory_mb: int) -> Dataset:
    """Cut the text of a file or folder into windows, of which `memory_mb` are in memory. The rows
    are those of Windows.windows."""
    size, files = section.context, files_of(path, "data.path")
    of_characters = section.tokenizer == "characters"
    blocks = blocks_of(files, encoding)
    tokenizer = Tokenizer.of_parts(blocks) if of_characters else section.tokenizer_of("")
    if tokenizer.kind not in ("characters", "bytes"):
        raise ConfigError(
            f"data.memory_mb must be null unless data.tokenizer has characters or bytes, because "
            f"others need the whole text at once, got {memory_mb}"
        )
    stored = _store(files, encoding, tokenizer)
    parts = section.parts_of(stored.num_tokens, show_path(path), section.own_paths)
    numbers = np.arange(len(tokenizer), dtype=np.int32)
    if of_characters:
        tokenizer, numbers = kept(tokenizer, _known(stored, len(tokenizer), parts["train"], size))
    starts = section.starts_of(parts)
    if section.mask_rate is not None and not tokenizer.has_mask:
        tokenizer = tokenizer.with_mask()
        numbers += 1  # the padding is 0
    rows = {name: stored.rows(start, size, numbers) for name, start in starts.items()}
    rows["train"] = rows["train"].scanned(memory_mb * 2**20)
    for name, own in section.own_paths.items():
        stored = _store(files_of(own, f"data.{name}_path"), encoding, tokenizer)
        rows[name] = _whole(section, stored, tokenizer, f"data.{name}_path")
    rate, num = section.mask_rate, len(tokenizer)
    splits = {name: _labelled(x, rate, num, name) for name, x in rows.items()}
    return Dataset(
        splits["train"],
        splits["val"],
        splits["test"],
        "classification",
        tokenizer.vocabulary,
        features=(),
        num_tokens=num,
        tokenizer=tokenizer,
        folds_sha256=section.folds_sha256(np.frombuffer(rows["train"].sha256.encode(), np.uint8)),
        overlaps=True,
        mask_rate=rate,
        memory=memory_mb * 2**20,
    )


def _whole(section: Windows, stored: Stored, tokenizer: Tokenizer, key: str) -> TokenRows:
    """Return the windows of a split with files of its own."""
    starts = section.starts_of_own(stored.num_tokens, key)
    return stored.rows(starts, section.context, np.arange(len(tokenizer), dtype=np.int32))


def _labelled(x: TokenRows, rate: float | None, num_tokens: int, name: str) -> Split:
    """Return windows with their labels. Tokens of training rows are hidden during the training."""
    inputs = labels = x
    if rate is None:
        labels = x.following()
    elif name != "train":
        inputs, labels = x.masked(rate, num_tokens, name)
    y: Any = labels  # it is read as an array is
    return Split(inputs, y)


def _known(stored: Stored, num_tokens: int, rows: np.ndarray, size: int) -> np.ndarray:
    """Find the tokens of some windows, with the token after each.  # bool[num_tokens]"""
    is_known = np.zeros(num_tokens, bool)
    windows = stored.rows(rows * size, size + 1, np.arange(num_tokens, dtype=np.int32))
    for first in range(0, len(rows), _WINDOWS):
        is_known[np.unique(windows[first : first + _WINDOWS])] = True
    return is_known
