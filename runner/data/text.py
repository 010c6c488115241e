"""Text for language models: files, and the help texts of Python."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import model_validator

from runner.data.dataset import Dataset
from runner.data.text_files import joined_text, listed_files
from runner.data.tokenizer import Tokenizer
from runner.data.windows import Windows
from runner.errors import ConfigError, show_path
from runner.schedules.dialects.calls import SentenceError
from runner.section import Count, Mark


class Text(Windows):
    """A text file in `encoding`, or a folder of files NAME.txt, which are joined in the order of
    their paths below it, with a line break between two. Line breaks of other systems become `\\n`.

    `tokenizer`: characters, those of the training rows, and an unknown one for all others; bytes,
    of UTF-8; or the JSON file of a tokenizer of the tokenizers library (extra `text`). `val_path`
    and `test_path` are files or folders with the rows of these splits, in place of a fraction. With
    `memory_mb` (in 2^20 bytes), tokens of characters or bytes are in a temporary file, and windows
    are read while training, within this memory."""

    name: Literal["text"]
    path: Annotated[str, Mark(on_run=True)]
    val_path: Annotated[str | None, Mark(on_run=True)]
    test_path: Annotated[str | None, Mark(on_run=True)]
    encoding: str
    memory_mb: Count | None

    def files(self) -> Iterator[Path]:
        """The files that determine the rows."""
        for path in (self.path, *self.own_paths.values()):
            yield from listed_files(path, "data.path")
        if self.tokenizer not in ("characters", "bytes"):
            source = Path(self.tokenizer).expanduser()
            yield source / "data.json" if source.is_dir() else source

    def load(self) -> Dataset:
        if self.memory_mb is not None:
            from runner.data import text_stream  # the start of other runs does not need it

            return text_stream.load(self, self.path, self.encoding, self.memory_mb)
        text = joined_text(self.path, "data.path", self.encoding)
        own = {
            name: joined_text(path, f"data.{name}_path", self.encoding)
            for name, path in self.own_paths.items()
        }
        return self.windows(text, show_path(self.path), own)


class Topics(Windows):
    """The 79 chapters of the help texts of Python's standard library, pydoc_data.topics, in
    alphabetical order of their names: 465,000 characters, 103 different ones, in Python 3.11. They
    change with the version of Python. With `chapters`, the label of a window is the chapter in
    which it begins. `data=topics` is the same."""

    name: Literal["python_docs", "topics"]
    chapters: bool

    @model_validator(mode="after")
    def _chapters_fit(self) -> "Topics":
        if self.chapters and self.mask_rate is not None:
            raise SentenceError(
                f"chapters must be false with data.mask_rate={self.mask_rate}, whose labels are "
                f"tokens, got true"
            )
        return self

    def load(self) -> Dataset:
        from pydoc_data.topics import topics

        texts = {name: topics[name] for name in sorted(topics)}
        chapters = texts if self.chapters else None
        return self.windows("\n".join(texts.values()), "data=python_docs", {}, chapters)

    def new_rows(self, path: str, tokenizer: Tokenizer) -> Dataset:
        if self.chapters:
            raise ConfigError(
                "data.path of task=evaluate names a text whose tokens are the labels; this run has "
                "data.chapters, whose labels are those of data=python_docs"
            )
        return super().new_rows(path, tokenizer)
