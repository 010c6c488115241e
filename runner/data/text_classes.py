"""Texts with a label each: rows of token ids of one length, with padding at the end."""

import hashlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from runner.data.capacity import memory
from runner.data.dataset import Dataset, Split, check_classes
from runner.data.files import locate, numbered, regular_file, tokenizer_of
from runner.data.folders import (
    Listing,
    below,
    renumbered,
    weight_columns,
    weights_in,
    with_split,
)
from runner.data.frame import FrameFile, arrow_table
from runner.data.splits import SPLITS
from runner.data.table_files import TableFile
from runner.data.text_folder import TextFolder, cut_warnings, names_of, of_rows
from runner.data.tokenizer import Tokenizer
from runner.errors import ConfigError, listed, nearest, show, show_path
from runner.schedules.dialects.calls import SentenceError

Row = tuple[str, ...]  # one text, or two
_TABLES = (".csv", ".tsv", ".parquet", ".feather")  # suffixes of files that are seldom one text


@dataclass(frozen=True)
class Texts:
    """Rows before they are divided into tokens.

    Attributes:
        rows: the text of each row, or its two texts.
        names: the file of each row, and its number in the file; empty for a table.
        listing: labels, classes, splits and groups of the rows.
        columns: the names of a table's columns of text.
        target: the name of a table's column of labels.
    """

    rows: list[Row]
    names: tuple[str, ...]
    listing: Listing
    columns: tuple[str, ...] = ()
    target: str | None = None


class TextClasses(TextFolder):
    """A folder with one folder of text files per class, or with the folders train, val and test,
    which hold the class folders; with `table`, a CSV file, the classes are in its column label, and
    the files in its column path. Each file is a row. With `record_separator`, files are divided at
    the lines that are equal to it, and each part that is not empty is a row. Or a table, whose
    columns `column` and `target` have the texts and the labels; with two names in `column`, a row
    is a pair: the tokens of the first text, the token <sep>, and those of the second.

    `tokenizer`: words (runs of letters, digits and underscores in lower case, and each other sign),
    characters, bytes of UTF-8, or the JSON file of a tokenizer of the tokenizers library. Its
    tokens have ids from 1 on; the vocabulary has the `max_vocabulary` most frequent words or
    characters of the training rows, all others are <unk>, the id 1. A row has `context` tokens, by
    default as many as the longest training row: the end of a longer one is left out, of a pair
    first that of the longer text; a shorter one is padded at its end with the id 0.

    With `memory_mb` (in 2^20 bytes), the texts of a folder are read in blocks, their tokens are in
    a temporary file, and rows are read while training, within this memory, with the same values.
    """

    name: Literal["text_classes"]
    column: str | list[str] | None
    target: str | None
    group: str | None

    @model_validator(mode="after")
    def _pairs_fit(self) -> "TextClasses":
        if isinstance(self.column, list) and len(self.column) not in (1, 2):
            raise SentenceError(
                f"column must name one column, or two for pairs of texts, got {len(self.column)}"
            )
        if isinstance(self.column, list) and len(self.column) == 2 and (self.context or 3) < 3:
            raise SentenceError(
                f"context must be >= 3 for pairs of texts and the token between them, got "
                f"{self.context}"
            )
        return self

    @property
    def is_table(self) -> bool:
        """True if `path` is a table of texts."""
        return self.table is None and not stat.S_ISDIR(_located(self.path)[1])

    def files(self) -> Iterator[Path]:
        if self.is_table:
            yield from (Path(p).expanduser() for p in (self.path, *self.own_paths.values()))
        else:
            yield from super().files()
        if self.tokenizer not in ("words", "characters", "bytes"):
            yield Path(self.tokenizer).expanduser()

    def load(self) -> Dataset:
        if self.memory_mb is not None:
            from runner.data import text_class_stream  # the start of other runs does not need it

            if self.is_table:
                raise ConfigError(
                    f"data.memory_mb must be null unless data.path is a folder of texts, got "
                    f"{self.memory_mb}"
                )
            self._check_keys_of_tables()
            return text_class_stream.load(self, self.memory_mb)
        texts = self._tabled() if self.is_table else self._in_folders()
        found = texts.listing
        parts = self.split_numbers(found)
        has_pairs = len(texts.columns) == 2
        training = [text for i in parts["train"].x for text in texts.rows[i]]
        fitted = tokenizer_of(self.tokenizer, training, self.max_vocabulary)
        tokenizer = fitted.padded(has_pairs)
        ids = _encoded(tokenizer, texts.rows, texts.names, self.path)
        lengths = np.array([len(row) for row in ids])
        context = self.context or int(lengths[parts["train"].x].max())
        x = _padded(tokenizer, ids, context)
        train, val, test = (Split(x[parts[name].x], parts[name].y) for name in SPLITS)
        digests = [hashlib.sha256("\0".join(row).encode()).digest() for row in texts.rows]
        data = Dataset(
            train,
            val,
            test,
            "classification",
            found.classes,
            (),
            num_tokens=len(tokenizer),
            tokenizer=tokenizer,
            target=texts.target,
            text_columns=texts.columns,
            folds_sha256=self.folds_sha256(
                np.frombuffer(b"".join(digests), np.uint8), found.labels, found.weights
            ),
        )
        data = self.weighted(data, found, parts)
        check_classes(data, self.path)
        return replace(data, warnings=cut_warnings(lengths, context, self.context is None))

    def new_rows(
        self, files: Sequence[Path], description: Mapping[str, Any]
    ) -> tuple[np.ndarray, list[str]]:
        texts, names = self._read(files)
        return self._of_run(texts, names, description, str(files[0]))

    def unlabelled_rows(
        self, path: str, description: Mapping[str, Any]
    ) -> tuple[np.ndarray, list[str] | None, list[str]]:
        """Read new texts for a run: of a folder of files or a file, or of a table if the run was
        trained on one.

        Args:
            path: the folder or file.
            description: the content of the run's data.json.

        Returns:
            The rows, int32[N, T]; the file of each row and its number in it, None for a table; and
            warnings.
        """
        columns = description.get("text_columns", [])
        root, mode = locate(path, "folder, text file or table")
        if columns and not stat.S_ISDIR(mode):
            rows = self._columns(path, columns)
            return *self._of_run(rows, (), description, path)[:1], None, []
        if len(columns) > 1:
            raise ConfigError(
                f"data.path must be a table with the columns {listed(columns)}, got "
                f"{show_path(path)}, which is a folder"
            )
        files = [*below(root)] if stat.S_ISDIR(mode) else [regular_file(path)]
        if not files:
            raise ConfigError(
                f"data.path must be a folder of text files, got {show_path(path)}, which has no "
                f"files"
            )
        texts, names = self._read(files, root if stat.S_ISDIR(mode) else root.parent)
        x, warnings = self._of_run(texts, names, description, path)
        if root.suffix.lower() in _TABLES and not stat.S_ISDIR(mode):
            warnings.insert(
                0,
                f"{show_path(path)} is one text, not a table, because the run was trained on "
                f"files; to predict several texts, use a folder with a file each",
            )
        return x, list(names), warnings

    def labelled_rows(self, path: str, description: Mapping[str, Any]) -> tuple[Dataset, list[str]]:
        classes = tuple(description["classes"])
        own = dict.fromkeys(("table", "val_path", "test_path"))
        keys = {"column": description.get("text_columns"), "target": description.get("target")}
        section = self.model_copy(update={"path": path, **own})
        if section.is_table and keys["column"]:
            texts = section.model_copy(update=keys)._tabled(needs_weight=False)
        else:
            found, root = self._new_listing(path)
            texts = section._of_listing(found, root)
        labels = renumbered(texts.listing, classes, path)
        x, warnings = self._of_run(texts.rows, texts.names, description, path)
        rows = Split(x, labels, texts.listing.weights)
        data = Dataset(
            rows,
            rows,
            rows,
            "classification",
            classes,
            (),
            num_tokens=description["num_tokens"],
            target=texts.target,
            row_names=texts.names,
        )
        return data, warnings

    def encoded(self, x: Any, description: Mapping[str, Any]) -> Any:
        """Return rows of token ids of texts, or of pairs of texts, or of a table with the columns
        of text that a run was trained on; other rows unchanged.  # int32[N, T]"""
        table = arrow_table(x, "x")
        if table is not None:
            file = FrameFile(Path("x"), table=table)
            rows = self._columns("x", description.get("text_columns", ["text"]), file)
            return self._of_run(rows, (), description, "x")[0]
        if isinstance(x, str):
            raise ConfigError(f"x must be a list of texts, got one text, {show(x)}")
        rows = [(row,) if isinstance(row, str) else row for row in x]
        are_texts = rows and isinstance(rows[0], tuple | list) and isinstance(rows[0][0], str)
        return self._of_run(rows, (), description, "x")[0] if are_texts else x

    # --- reading

    def _in_folders(self) -> Texts:
        self._check_keys_of_tables()
        return self._of_listing(self.listing(), Path(self.path).expanduser())

    def _check_keys_of_tables(self) -> None:
        """Refuse keys of tables for texts in folders."""
        for key in ("column", "target", "group"):
            if getattr(self, key) is not None:
                raise ConfigError(
                    f"data.{key} must be null unless data.path is a table, got "
                    f"{show(str(getattr(self, key)))}"
                )

    def _of_listing(self, found: Listing, root: Path) -> Texts:
        """Read the texts of listed files; a file has one row, or several."""
        records = self.records_of(found.files)
        num_rows = [len(rows) for rows in records]
        names = names_of(found.files, num_rows, root, self.record_separator is not None)
        rows: list[Row] = [(text,) for texts in records for text in texts]
        return Texts(rows, names, of_rows(found, num_rows))

    def _read(self, files: Sequence[Path], root: Path | None = None) -> tuple[list[Row], Any]:
        """Read the rows of some files, and their names below a folder."""
        records = self.records_of(files)
        root, num_rows = root or files[0].parent, [len(rows) for rows in records]
        names = names_of(files, num_rows, root, self.record_separator is not None)
        return [(text,) for rows in records for text in rows], names

    def _tabled(self, needs_weight: bool = True) -> Texts:
        """Read the texts and labels of a table, and of those of the splits with their own.
        `needs_weight`: False: without the column of weights, all rows count equally."""
        if self.record_separator is not None:
            raise ConfigError(
                f"data.record_separator must be null for a table, whose rows are texts, got "
                f"{show(self.record_separator)}"
            )
        file = self._table(self.path)
        columns, target = self._chosen(file)
        rows, found = self._labelled(self.path, file, columns, target, needs_weight)
        for name, path in self.own_paths.items():
            own_file = self._table(path, f"data.{name}_path")
            own, other = self._labelled(path, own_file, columns, target)
            found = with_split(found, name, other, path, self.path)
            rows += own
        return Texts(rows, (), found, columns, target)

    def _table(self, path: str, key: str = "data.path") -> TableFile:
        encoding = None if self.encoding == "utf-8" else self.encoding
        return TableFile(regular_file(path, key), encoding=encoding)

    def _chosen(self, file: TableFile) -> tuple[tuple[str, ...], str]:
        """Return the names of the columns of text and of the target."""
        names = file.names
        target = names[-1] if self.target is None else self.target
        asked = [self.column] if isinstance(self.column, str) else self.column
        others = [name for name in names if name not in (target, self.group, self.weight)]
        if asked is None and len(others) != 1:
            raise ConfigError(
                f"data.column must be the name of the column with the texts, or a list of two, one "
                f"of {listed(others)}, got null"
            )
        columns = tuple(others if asked is None else asked)
        keys = [*(("column", name) for name in columns), ("target", target), ("group", self.group)]
        for key, name in keys:
            if name is not None and name not in names:
                raise ConfigError(
                    f"data.{key} must be a column of {show_path(file.path)}, got {show(name)}"
                    f"{nearest(name, names)}"
                )
        if target in columns:
            raise ConfigError(
                f"data.column must be another column than data.target, got {show(target)}"
            )
        return columns, target

    def _labelled(
        self,
        path: str,
        file: TableFile,
        columns: Sequence[str],
        target: str,
        needs_weight: bool = True,
    ) -> tuple[list[Row], Listing]:
        """Read the texts of a table, with their labels, groups and weights."""
        rows = self._columns(path, columns, file)
        if target not in file.names:
            raise ConfigError(f"{show_path(path)} lacks the column {show(target)}")
        group = self.group if self.group in file.names else None
        followed = [target, *([] if group is None else [group])]
        extra = weight_columns(file, self.weight, [*columns, target], needs_weight)
        table = file.read([*followed, *extra], followed)
        found = {name: file.labels(table, name, "used") for name in followed}
        for name, (codes, _) in found.items():
            if (codes < 0).any():
                position = file.position(int(np.argmax(codes < 0)))
                raise ConfigError(f"{show_path(path)}: {position}, column {show(name)} is empty")
        labels, classes = numbered(*found[target])
        groups = None
        if group is not None:
            codes, texts = found[group]
            groups = np.array(texts)[codes]
        splits = {"train": np.arange(len(rows))}
        weights = weights_in(file, table, extra, len(rows))
        return rows, Listing((), labels, classes, splits, groups, weights)

    def _columns(
        self, path: str, columns: Sequence[str], file: TableFile | None = None
    ) -> list[Row]:
        """Read columns of text. Raise ConfigError for a cell without text."""
        from pyarrow import types

        file = self._table(path) if file is None else file
        absent = [name for name in columns if name not in file.names]
        if absent:
            raise ConfigError(f"{show_path(path)} lacks the column {show(absent[0])}")
        table = file.read(columns, columns)
        if not table.num_rows:
            raise ConfigError(f"{show_path(path)} holds no rows")
        cells = []
        for name in columns:
            column = table.column(name)
            kind = getattr(column.type, "value_type", column.type)
            if not (types.is_string(kind) or types.is_large_string(kind)):
                raise ConfigError(
                    f"data.column must be a column of text, got {show(name)}, which has the type "
                    f"{column.type}"
                )
            values = column.to_pylist()
            row = next((i for i, v in enumerate(values) if v is None or not v.strip()), None)
            if row is not None:
                raise ConfigError(
                    f"{show_path(path)}: {file.position(row)}, column {show(name)} has no text"
                )
            cells.append(values)
        return list(zip(*cells, strict=True))

    # --- tokens

    def _of_run(
        self, rows: Sequence[Row], names: Sequence[str], description: Mapping[str, Any], path: str
    ) -> tuple[np.ndarray, list[str]]:
        """Return new rows in the tokens of a run, and warnings.  # int32[N, T]"""
        tokenizer = Tokenizer.read(description["tokenizer"])
        wanted = 2 if tokenizer.has_pairs else 1
        if any(len(row) != wanted or not all(isinstance(t, str) for t in row) for row in rows):
            kind = "a pair of texts" if wanted == 2 else "a text"
            raise ConfigError(f"{path}: each row must be {kind}, as the run was trained on")
        ids = _encoded(tokenizer, rows, names, path)
        context = description["input_shape"][0]
        lengths = np.array([len(row) for row in ids])
        return _padded(tokenizer, ids, context), [*cut_warnings(lengths, context, True)]


def _located(path: str) -> tuple[Path, int]:
    return locate(path, "folder of text files or a table")


def _encoded(
    tokenizer: Tokenizer, rows: Sequence[Row], names: Sequence[str], path: str
) -> list["_Ids"]:
    """Divide each row into tokens. Raise ConfigError for a text that has none."""
    columns = [tokenizer.encode_all(texts) for texts in zip(*rows, strict=True)]
    ids = [_Ids(texts) for texts in zip(*columns, strict=True)]
    for i, row in enumerate(ids):
        if not all(map(len, row.texts)):
            where = show_path(names[i]) if names else f"{show_path(path)}: row {i}"
            raise ConfigError(f"{where} has no tokens")
    return ids


@dataclass(frozen=True)
class _Ids:
    """The token ids of a row's texts."""

    texts: tuple[np.ndarray, ...]  # int32[n] each

    def __len__(self) -> int:
        return sum(map(len, self.texts)) + len(self.texts) - 1

    def cut(self, size: int, between: int) -> np.ndarray:
        """Return the first `size` tokens. Of a pair, each text keeps at least half of the places
        that it needs, and what the other does not need.  # int32[<= size]"""
        if len(self.texts) == 1:
            return self.texts[0][:size]
        first, second = self.texts
        places = size - 1
        kept = max(places - len(second), min(len(first), (places + 1) // 2))
        first = first[:kept]
        return np.concatenate([first, [between], second[: places - len(first)]])


def _padded(tokenizer: Tokenizer, ids: Sequence[_Ids], context: int) -> np.ndarray:
    """Return rows of one length.  # int32[N, T]"""
    needed, most = 8 * len(ids) * context, memory()  # as they are read, and as they are trained on
    if needed > most:
        raise ConfigError(
            f"data.context must give rows that fit into this machine's {most / 2**30:.3g} GiB of "
            f"memory, got {len(ids)} rows of {context} tokens, which take {needed / 2**30:.3g} GiB"
        )
    x = np.zeros((len(ids), context), np.int32)
    for row, tokens in zip(x, ids, strict=True):
        cut = tokens.cut(context, len(tokenizer) - 1)
        row[: len(cut)] = cut
    return x
