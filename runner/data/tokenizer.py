"""Tokenizers: from text to token ids and back."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import ConfigError, one_line, show_path

UNKNOWN, PADDING, BETWEEN, MASKED = "<unk>", "<pad>", "<sep>", "<mask>"
_MARKS = ("has_padding", "has_pairs", "has_mask")
_NUM_BYTES = 256
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary, and how text is divided into its tokens.

    - characters: one token per character; `vocabulary` has the sorted characters after UNKNOWN,
      whose id 0 stands for any other character.
    - words: one token per run of letters, digits and underscores in lower case, and per other
      character that is not white space; `vocabulary` has the most frequent ones first, after
      UNKNOWN.
    - bytes: one token per byte of UTF-8.
    - file: a tokenizer of the tokenizers library; `definition` is the content of its JSON file.

    With `has_padding`, the id 0 is PADDING, and all others are one higher. With `has_pairs`, the
    last id is BETWEEN, the token between two texts; with `has_mask`, it is MASKED, the token of a
    hidden one.
    """

    kind: str
    vocabulary: tuple[str, ...]
    definition: str | None = None
    has_padding: bool = False
    has_pairs: bool = False
    has_mask: bool = False

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text's tokens.  # int32[N]"""
        return self._encode(text) + np.int32(self.has_padding)

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text's tokens.  # int32[n] each"""
        if self.kind != "file":
            return [self.encode(text) for text in texts]
        found = self._library.encode_batch(list(texts))
        return [np.array(each.ids, np.int32) + np.int32(self.has_padding) for each in found]

    def _encode(self, text: str) -> np.ndarray:
        if self.kind == "file":
            return np.array(self._library.encode(text).ids, np.int32)
        if self.kind == "bytes":
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        if self.kind == "words":
            numbers = self._numbers
            return np.array([numbers.get(word, 0) for word in words(text)], np.int32)
        codes, known = _codes(text), self._codes
        if not len(known):
            return np.zeros(len(codes), np.int32)
        places = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        return np.where(known[places] == codes, places + 1, 0).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of some tokens. Bytes that are no UTF-8 become the replacement
        character. Padding is left out; words are separated by spaces."""
        numbers = [int(i) - self.has_padding for i in ids if not (self.has_padding and i == 0)]
        if self.kind in ("file", "bytes"):  # these know no other token
            numbers = [number for number in numbers if number < len(self._own)]
        if self.kind == "file":
            text: str = self._library.decode(numbers)
            return text
        if self.kind == "bytes":
            return bytes(numbers).decode(errors="replace")
        return (" " if self.kind == "words" else "").join(
            self.vocabulary[number + self.has_padding] for number in numbers
        )

    def padded(self, has_pairs: bool) -> "Tokenizer":
        """Return the same tokenizer for rows that are padded, perhaps of two texts."""
        last = (BETWEEN,) if has_pairs else ()
        vocabulary = (PADDING, *self.vocabulary, *last)
        return replace(self, vocabulary=vocabulary, has_padding=True, has_pairs=has_pairs)

    def with_mask(self) -> "Tokenizer":
        """Return the same tokenizer for rows whose tokens are hidden, with padding, so that a model
        trained with it can go on with rows of other lengths."""
        vocabulary = (PADDING, *self.vocabulary, MASKED)
        return replace(self, vocabulary=vocabulary, has_padding=True, has_mask=True)

    @classmethod
    def of_text(cls, text: str) -> "Tokenizer":
        """Make a tokenizer of the characters of a text."""
        return cls.of_parts([text])

    @classmethod
    def of_parts(cls, texts: Iterable[str]) -> "Tokenizer":
        """Make a tokenizer of the characters of the parts of a text."""
        found = np.zeros(0, np.uint32)
        for text in texts:
            found = np.union1d(found, _codes(text))
        return cls("characters", (UNKNOWN, *_text(found)))

    @classmethod
    def most_frequent(cls, kind: str, texts: Iterable[str], most: int) -> "Tokenizer":
        """Make a tokenizer of the `most` most frequent characters or words of some texts. Of
        equally frequent ones, the first in sorted order is kept."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text if kind == "characters" else words(text))
        kept = sorted(counts, key=lambda token: (-counts[token], token))[:most]
        return cls(kind, (UNKNOWN, *(sorted(kept) if kind == "characters" else kept)))

    @classmethod
    def of_bytes(cls) -> "Tokenizer":
        return cls("bytes", tuple(f"0x{i:02x}" for i in range(_NUM_BYTES)))

    @classmethod
    def of_file(cls, path: Path, key: str) -> "Tokenizer":
        """Read a tokenizer of the tokenizers library from its JSON file."""
        try:
            definition = path.read_text(encoding="utf-8")
            library = _library().from_str(definition)
        except ConfigError:
            raise
        except Exception as error:  # the library raises Exception itself
            raise ConfigError(
                f"{key} must be the JSON file of a tokenizer of the tokenizers library, got "
                f"{show_path(path)}: {one_line(error)}"
            ) from None
        vocabulary = library.get_vocab(with_added_tokens=True)
        num = max(vocabulary.values(), default=-1) + 1
        by_id = {number: token for token, number in vocabulary.items()}
        return cls("file", tuple(by_id.get(i, f"<{i}>") for i in range(num)), definition)

    @classmethod
    def of_run(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer of a run from its folder."""
        try:
            saved = json.loads((folder / "data.json").read_text(encoding="utf-8"))
            return cls.read(saved["tokenizer"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"data.tokenizer must be the folder of a run on text, got {show_path(folder)}"
            ) from None

    def saved(self) -> dict[str, Any]:
        """The entry of data.json."""
        definition = {} if self.definition is None else {"definition": self.definition}
        marks = {name: True for name in _MARKS if getattr(self, name)}
        return {"kind": self.kind, "vocabulary": list(self.vocabulary), **definition, **marks}

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Tokenizer":
        """Read an entry of data.json."""
        marks = {name: saved.get(name, False) for name in _MARKS}
        return cls(saved["kind"], tuple(saved["vocabulary"]), saved.get("definition"), **marks)

    @property
    def _own(self) -> tuple[str, ...]:
        """The vocabulary without PADDING, BETWEEN and MASKED."""
        return self.vocabulary[self.has_padding : len(self) - self.has_pairs - self.has_mask]

    @cached_property
    def _codes(self) -> np.ndarray:
        return _codes("".join(self._own[1:]))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self._own)}

    @cached_property
    def _library(self) -> Any:
        return _library().from_str(self.definition)


def words(text: str) -> list[str]:
    """Divide a text into words, in lower case, and other signs."""
    return _WORD.findall(text.lower())


def _codes(text: str) -> np.ndarray:
    """The code points of a text.  # uint32[N]"""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _text(codes: np.ndarray) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _library() -> Any:
    try:
        from tokenizers import Tokenizer as LibraryTokenizer
    except ImportError:
        raise ConfigError(
            "data.tokenizer is a file, which needs the tokenizers library: pip install "
            "'twinrun[text]'"
        ) from None
    return LibraryTokenizer
