"""Rows of token ids, cut out of a text, and as labels the token that follows each."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field, model_validator

from runner.data.dataset import Dataset, Split
from runner.data.files import regular_file
from runner.data.masking import masked
from runner.data.splits import SPLITS, Splits
from runner.data.text_files import joined_text
from runner.data.tokenizer import Tokenizer
from runner.errors import ConfigError
from runner.schedules.dialects.calls import SentenceError
from runner.section import MOST, Count


class Windows(Splits):
    """The keys of text that is cut into windows: window i has the tokens i T to (i + 1) T - 1, and
    as labels the tokens i T + 1 to (i + 1) T, T = `context`. The last tokens, too few for a window,
    are left out. Windows are divided into splits. `stride` < T gives more training windows: one at
    each multiple of `stride` tokens whose tokens all belong to training windows. With `mask_rate`,
    labels are the tokens that runner.data.masking hides: in each epoch others of the training
    windows, always the same ones of the validation and test windows.

    `tokenizer`: characters, bytes, a file, or the folder of a run, whose tokens have the same ids
    here."""

    tokenizer: str
    context: Annotated[int, Field(ge=2, le=MOST)]
    mask_rate: Annotated[float, Field(gt=0, lt=1)] | None
    stride: Count | None

    @model_validator(mode="after")
    def _stride_fits(self) -> "Windows":
        if self.stride is not None and self.stride > self.context:
            raise SentenceError(
                f"stride must be <= data.context={self.context}, because larger steps leave tokens "
                f"out, got {self.stride}"
            )
        return self

    def windows(
        self,
        text: str,
        source: str,
        own: Mapping[str, str],
        chapters: Mapping[str, str] | None = None,
    ) -> Dataset:
        """Cut a text into windows. `own` has the texts of splits with files of their own. With
        `chapters`, name -> text, of which the text consists, the label of a window is the chapter
        in which it begins."""
        size = self.context
        tokenizer = self.tokenizer_of(text)
        tokens = tokenizer.encode(text)
        parts = self.parts_of(len(tokens), source, own)
        if self.tokenizer == "characters":
            tokenizer, tokens = _of_training(tokenizer, tokens, parts["train"], size)
        starts = self.starts_of(parts)
        if self.mask_rate is not None and not tokenizer.has_mask:
            tokenizer = tokenizer.with_mask()
            tokens = tokens + np.int32(1)  # the padding is 0
        splits = {name: _cut(tokens, start, size) for name, start in starts.items()}
        for name, text in own.items():
            splits[name] = self._own(tokenizer, f"data.{name}_path", text)
        if self.mask_rate is not None:
            splits = {name: self._masked(split, name, tokenizer) for name, split in splits.items()}
        if chapters is not None:
            chapter = _chapter_of_token(tokenizer, chapters)
            splits = {name: Split(s.x, chapter[starts[name]]) for name, s in splits.items()}
        return Dataset(
            splits["train"],
            splits["val"],
            splits["test"],
            "classification",
            tokenizer.vocabulary if chapters is None else tuple(chapters),
            features=(),
            num_tokens=len(tokenizer),
            tokenizer=tokenizer,
            folds_sha256=self.folds_sha256(tokens),
            overlaps=self.stride is not None and self.stride < size,
            mask_rate=self.mask_rate,
        )

    def new_rows(self, path: str, tokenizer: Tokenizer) -> Dataset:
        """Cut the text of a file or folder into windows, for a run with this tokenizer. All of them
        are test rows."""
        text = joined_text(path, "data.path", getattr(self, "encoding", "utf-8"))
        rows = self._own(tokenizer, "data.path", text)
        if self.mask_rate is not None:
            rows = self._masked(rows, "test", tokenizer)
        names = tokenizer.vocabulary
        return Dataset(
            rows,
            rows,
            rows,
            "classification",
            names,
            (),
            num_tokens=len(names),
            tokenizer=tokenizer,
            mask_rate=self.mask_rate,
        )

    def parts_of(self, num_tokens: int, source: str, own: Collection[str]) -> dict[str, np.ndarray]:
        """Divide windows into the splits, by their numbers. `own` are splits of other files."""
        size = self.context
        num = (num_tokens - 1) // size
        if num < 1:
            raise ConfigError(
                f"{source} has {num_tokens} tokens; data.context={size} needs {size + 1} for a row"
            )
        if self.split in ("stratified", "grouped"):
            raise ConfigError(
                f"data.split must be chronological or random for text, got {self.split}"
            )
        return dict(zip(SPLITS, self.rows(num, source, given=own), strict=True))

    def starts_of(self, parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the first tokens of the windows of each split."""
        starts = {name: part * self.context for name, part in parts.items()}
        if self.stride is not None:
            starts["train"] = _overlapping(parts["train"], self.context, self.stride)
        return starts

    def starts_of_own(self, num_tokens: int, key: str) -> np.ndarray:
        """Return the first tokens of the windows of a text that is one split."""
        num = (num_tokens - 1) // self.context
        if num < 1:
            raise ConfigError(
                f"{key} must have at least {self.context + 1} tokens, one row of "
                f"data.context={self.context}, got {num_tokens}"
            )
        return np.arange(num) * self.context

    def tokenizer_of(self, text: str) -> Tokenizer:
        """Make the tokenizer; `text` has the characters of one of characters."""
        if self.tokenizer == "characters":
            return Tokenizer.of_text(text)
        if self.tokenizer == "bytes":
            return Tokenizer.of_bytes()
        if Path(self.tokenizer).expanduser().is_dir():
            return Tokenizer.of_run(Path(self.tokenizer).expanduser())
        return Tokenizer.of_file(regular_file(self.tokenizer, "data.tokenizer"), "data.tokenizer")

    def _masked(self, split: Split, name: str, tokenizer: Tokenizer) -> Split:
        """Hide tokens of the rows. Those of training rows are hidden during the training."""
        assert self.mask_rate is not None
        if name == "train":
            return Split(split.x, split.x)
        rows = np.arange(len(split))
        return Split(*masked(split.x, self.mask_rate, len(tokenizer), rows, 0, name))

    def _own(self, tokenizer: Tokenizer, key: str, text: str) -> Split:
        tokens = tokenizer.encode(text)
        return _cut(tokens, self.starts_of_own(len(tokens), key), self.context)


def _chapter_of_token(tokenizer: Tokenizer, chapters: Mapping[str, str]) -> np.ndarray:
    """Return the number of the chapter of each token of the joined text.  # int64[num_tokens]"""
    lengths = [len(tokenizer.encode(f"{chapter}\n")) for chapter in chapters.values()]
    return np.repeat(np.arange(len(lengths)), lengths)


def _of_training(
    tokenizer: Tokenizer, tokens: np.ndarray, rows: np.ndarray, size: int
) -> tuple[Tokenizer, np.ndarray]:
    """Reduce a vocabulary of characters to those of the training rows; the others become
    UNKNOWN. Return it with the tokens' new ids."""
    is_known = np.zeros(len(tokenizer), bool)
    for offset in range(0, len(rows), 1024):
        starts = rows[offset : offset + 1024] * size
        is_known[np.unique(sliding_window_view(tokens, size + 1)[starts])] = True
    reduced, numbers = kept(tokenizer, is_known)
    return reduced, numbers[tokens]


def kept(tokenizer: Tokenizer, is_known: np.ndarray) -> tuple[Tokenizer, np.ndarray]:
    """Reduce a vocabulary of characters to the known ones. Return it with the new id of each token,
    UNKNOWN's for those that are left out.  # int32[tokens]"""
    is_known[0] = True  # UNKNOWN
    numbers = np.where(is_known, np.cumsum(is_known) - 1, 0).astype(np.int32)
    known = tuple(t for t, known in zip(tokenizer.vocabulary, is_known, strict=True) if known)
    return Tokenizer(tokenizer.kind, known), numbers


def _overlapping(rows: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Return the first tokens of windows at each multiple of `stride`, within runs of consecutive
    rows.  # int64[N]"""
    rows = np.sort(rows)
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    firsts = [-(-run[0] * size // stride) * stride for run in runs]
    ends = [run[-1] * size + 1 for run in runs]
    return np.concatenate([np.arange(a, b, stride) for a, b in zip(firsts, ends, strict=True)])


def _cut(tokens: np.ndarray, starts: np.ndarray, size: int) -> Split:
    """Return the windows that begin at these tokens. Windows at regular distances are views."""
    views = sliding_window_view(tokens, size, writeable=True)
    steps = np.unique(np.diff(starts))
    if len(starts) and len(steps) <= 1 and (len(steps) == 0 or steps[0] > 0):
        step = int(steps[0]) if len(steps) else 1
        first, end = int(starts[0]), int(starts[-1]) + 1
        return Split(views[first:end:step], views[first + 1 : end + 1 : step])
    return Split(views[starts], views[starts + 1])
