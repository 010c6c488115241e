"""Tokenizers: from text to token ids and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import ConfigError, one_line, show_path

UNKNOWN = "<unk>"
_NUM_BYTES = 256


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary, and how text is divided into its tokens.

    - characters: one token per character; `vocabulary` has the sorted characters after UNKNOWN,
      whose id 0 stands for any other character.
    - bytes: one token per byte of UTF-8.
    - file: a tokenizer of the tokenizers library; `definition` is the content of its JSON file.
    """

    kind: str
    vocabulary: tuple[str, ...]
    definition: str | None = None

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text's tokens.  # int32[N]"""
        if self.kind == "file":
            return np.array(self._library.encode(text).ids, np.int32)
        if self.kind == "bytes":
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        codes, known = _codes(text), self._codes
        places = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        return np.where(known[places] == codes, places + 1, 0).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of some tokens. Bytes that are no UTF-8 become the replacement
        character."""
        numbers = [int(i) for i in ids]
        if self.kind == "file":
            text: str = self._library.decode(numbers)
            return text
        if self.kind == "bytes":
            return bytes(numbers).decode(errors="replace")
        return "".join(self.vocabulary[i] for i in numbers)

    @classmethod
    def of_text(cls, text: str) -> "Tokenizer":
        """Make a tokenizer of the characters of a text."""
        characters = _text(np.unique(_codes(text)))
        return cls("characters", (UNKNOWN, *characters))

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

    def saved(self) -> dict[str, Any]:
        """The entry of data.json."""
        definition = {} if self.definition is None else {"definition": self.definition}
        return {"kind": self.kind, "vocabulary": list(self.vocabulary), **definition}

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Tokenizer":
        """Read an entry of data.json."""
        return cls(saved["kind"], tuple(saved["vocabulary"]), saved.get("definition"))

    @cached_property
    def _codes(self) -> np.ndarray:
        return _codes("".join(self.vocabulary[1:]))

    @cached_property
    def _library(self) -> Any:
        return _library().from_str(self.definition)


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
