"""Rows that can only be iterated over: DataLoaders, tf.data.Datasets, generators, shards.

They come in the order of the iterable, pass after pass, and are cut into updates here. An item of
the iterable is a row or a batch of rows.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from runner.data import weights
from runner.data.dataset import Split, Task, check_finite, first_outside
from runner.data.files import as_stored
from runner.data.mapped import Records, is_map_style
from runner.data.source import Batch
from runner.errors import ConfigError, RunError, listed, show

Batched = Literal["auto"] | bool
_FIELDS = ("x", "y", "weight")  # of an item


def is_iterable(data: Any) -> bool:
    """Return whether rows can only be iterated over, or are made by a function or class."""
    if isinstance(data, Sequence | Mapping) or hasattr(data, "dtype") or is_map_style(data):
        return False
    return _is_maker(data) or hasattr(data, "__iter__")


def _is_maker(data: Any) -> bool:
    return isinstance(data, type | partial) or inspect.isroutine(data)


def _kept(item: Any) -> Any:
    """Copy an item that is kept while the next ones are read: the user's code may use the same
    memory for them."""
    try:
        return deepcopy(item)
    except Exception:  # an object that cannot be copied
        return item


class Items:
    """The items of an iterable, for one run. The first ones can be looked at before the run."""

    def __init__(
        self, data: Any, source: str, module: str = "", make: Callable[[], Any] | None = None
    ) -> None:
        """`data` is an iterable, or a function or class that makes one; `make` makes it again."""
        self.records = Records(source, module)
        self._make = data if _is_maker(data) else make
        self._data = None if _is_maker(data) else data
        self._iterator: Iterator[Any] | None = None
        self._looked: list[Any] = []
        self._is_read = False  # by a run

    @property
    def source(self) -> str:
        return self.records.source

    @property
    def data(self) -> Any:
        """The iterable."""
        if self._data is None:
            assert self._make is not None
            self._data = self._call(self._make)
        if not hasattr(self._data, "__iter__"):
            kind = type(self._data).__name__
            raise ConfigError(f"{self.source} must make an iterable of rows, got {kind}")
        return self._data

    @property
    def is_read_once(self) -> bool:
        """True for an iterator that nothing can make again."""
        return self._make is None and hasattr(self.data, "__next__")

    @property
    def has_state(self) -> bool:
        """True if the iterable can say its position, and start from it."""
        names = ("state_dict", "load_state_dict")
        return all(callable(getattr(self.data, name, None)) for name in names)

    def look(self, num: int) -> list[Any]:
        """Return the first items, `num` or all if there are fewer. A run still gets them."""
        while len(self._looked) < num:
            if self._iterator is None:
                self._iterator = self._call(partial(iter, self.data))
            for item in self.next_of(self._iterator):
                self._looked.append(_kept(item))
                break
            else:
                break
        return self._looked[:num]

    def begin(self) -> tuple[Iterator[Any], int]:
        """Begin a run. Return its items, and the number of them that were looked at: for these,
        the iterable's state is that of a later item."""
        if not self._is_read and self._iterator is not None:
            self._is_read = True
            return chain(self._looked, self._iterator), len(self._looked)
        if self._is_read and self.is_read_once:
            raise ConfigError(
                f"{self.source} is an iterator, and another run has read it; pass a new one, or "
                f"the function that makes it"
            )
        if self._is_read and self._make is not None:
            self._data = None
        self._is_read = True
        return self._call(partial(iter, self.data)), 0

    def again(self) -> Iterator[Any] | None:
        """Begin another pass; None if there is none."""
        if self.is_read_once:
            return None
        if hasattr(self.data, "__next__"):
            self._data = None
        iterator: Iterator[Any] = self._call(partial(iter, self.data))
        return iterator

    def state(self) -> Any:
        """Return a copy of the iterable's state."""
        return deepcopy(self._call(self.data.state_dict))

    def begin_at(self, state: Any) -> Iterator[Any]:
        """Begin a run at a state."""
        if self._is_read and self._make is not None:
            self._data = None
        self._is_read = True
        self._call(partial(self.data.load_state_dict, state))
        iterator: Iterator[Any] = self._call(partial(iter, self.data))
        return iterator

    def next_of(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yield the items of an iterator, with errors of the user's code in one line."""
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                raise self._raised(error) from error
            yield item

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except (ConfigError, RunError):
            raise
        except Exception as error:
            raise self._raised(error) from error

    def _raised(self, error: Exception) -> ConfigError:
        return ConfigError(f"{self.source}: reading it raised {show(self.records.blame(error))}")


@dataclass(frozen=True)
class Stream:
    """The training rows of an iterable.

    Attributes:
        items: the iterable.
        records: the fields of its items.
        task: classification or regression.
        num_classes: labels are below it; None for a regression.
        num_tokens: x has token ids below this number; None: it has numbers.
        steps_per_epoch: updates of an epoch; None: the whole run is one.
    """

    items: Items
    records: Records
    task: Task
    num_classes: int | None
    num_tokens: int | None
    steps_per_epoch: int | None

    @property
    def is_batched(self) -> bool:
        return self.records.unit == "batch"

    @cached_property
    def _first(self) -> dict[str, np.ndarray]:
        """The fields of the first row."""
        items = self.items.look(1)
        if not items:
            raise ConfigError(f"{self.items.source} holds no rows")
        fields = self._fields(0, items[0])
        return {n: v[0] for n, v in fields.items()} if self.is_batched else fields

    def sample(self, num: int) -> Split:
        """Return the first rows, at least `num`. A run still gets them."""
        blocks: list[Batch] = []
        num_rows = 0
        while num_rows < num:
            number = len(blocks)
            items = self.items.look(number + 1)[number:]
            block = self.block(items, 1, number, num_rows)
            if block is None:
                found = f"holds {num_rows or 'no'} rows"
                if not num_rows:
                    raise ConfigError(f"{self.items.source} {found}")
                raise ConfigError(
                    f"{self.items.source} {found}, fewer than trainer.batch_size={num}"
                )
            blocks.append(block)
            num_rows += len(block["x"])
        rows = _joined(blocks)
        return Split(rows["x"], rows["y"], rows.get("weight"))

    def block(self, items: Iterable[Any], most: int, number: int, first_row: int) -> Batch | None:
        """Read and check the rows of the next items.

        Args:
            items: an iterator. Each item is copied before the next one is read, since the user's
                code may use the same memory for both.
            most: the number of items to read, 1 for batches.
            number: the number of the first item, for errors.
            first_row: the number of the first row, for errors.

        Returns:
            The fields, [rows, ...] each: x, float32, float64 or int32 token ids; y, labels int64 or
            targets float64[rows, C]; weight, float64[rows], if the items have it.
            None if there are no more items.
        """
        rows: dict[str, np.ndarray] = {}
        num = 0
        for item in islice(items, most):
            fields = self._fields(number + num, item)
            self._check(number + num, fields)
            for name, value in fields.items():
                if self.is_batched:
                    rows[name] = value.astype(self._dtype(name))
                    continue
                if name not in rows:
                    rows[name] = np.empty((most, *value.shape), self._dtype(name))
                rows[name][num] = value
            num += 1
        if not num:
            return None
        if not self.is_batched:
            rows = {name: values[:num] for name, values in rows.items()}
        source = self.items.source
        x, y = self.converted(rows["x"], rows["y"], source, first_row)
        if "weight" not in rows:
            return {"x": x, "y": y}
        weight = weights.checked(rows["weight"], len(x), f"weight of {source}", first_row)
        return {"x": x, "y": y, "weight": weight}

    def _dtype(self, name: str) -> np.dtype:
        """Return the dtype of a field's rows before they are checked."""
        dtype: np.dtype = self._first[name].dtype
        if name == "x":
            return as_stored(dtype)
        if (self.task == "regression" or name == "weight") and dtype.kind in "iufb":
            return np.dtype(np.float64)
        return np.dtype(np.int64) if dtype.kind in "iu" else dtype

    def converted(
        self, x: np.ndarray, y: np.ndarray, source: str, first_row: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Check and convert rows. `source` is their name in an error, `first_row` the number of the
        first one."""
        return self._x(x, source, first_row), self._y(y, source, first_row, x.shape[1:])

    def _fields(self, number: int, item: Any) -> dict[str, np.ndarray]:
        """Return the fields of an item that are used."""
        unit, source = self.records.unit, self.items.source
        if isinstance(item, tuple | list) and len(item) == 3:
            raise ConfigError(
                f"{source}: {unit} {number} must be (x, y) or a dict of fields, got a "
                f"{type(item).__name__} of 3"
            )
        try:
            fields = self.records.fields(number, item)
        except ConfigError:
            raise
        except Exception as error:  # an object that NumPy cannot read
            raise ConfigError(
                f"{source}: reading {unit} {number} raised {show(self.records.blame(error))}"
            ) from error
        if self.is_batched and 0 in (len(fields["x"]), len(fields["y"])):
            raise ConfigError(f"{source}: batch {number} has no rows")
        return {name: fields[name] for name in _FIELDS if name in fields}

    def _check(self, number: int, fields: Mapping[str, np.ndarray]) -> None:
        """Refuse rows of another shape or type than the first one."""
        unit, source = self.records.unit, self.items.source
        if fields.keys() != self._first.keys():
            raise ConfigError(
                f"{source}: {unit} {number} has the fields {listed([*fields])}, the first one has "
                f"{listed([*self._first])}"
            )
        for name, value in fields.items():
            if self.is_batched and len(value) != len(fields["x"]):
                raise ConfigError(
                    f"{source}: batch {number} has {len(fields['x'])} rows of x and {len(value)} "
                    f"of {name}"
                )
            first = self._first[name]
            shape = value.shape[1:] if self.is_batched else value.shape
            if shape != first.shape:
                raise ConfigError(
                    f"{source}: {name} of {unit} {number} has rows of the shape {list(shape)}, the "
                    f"first row has {list(first.shape)}; all rows must have one shape"
                )
            if value.dtype != first.dtype and self._kind(name, value) != self._kind(name, first):
                raise ConfigError(
                    f"{source}: {name} of {unit} {number} has the type {value.dtype}, of the first "
                    f"row {first.dtype}; all rows must have one type"
                )

    def _kind(self, name: str, values: np.ndarray) -> Any:
        """Return what the values of a field have in common in all rows."""
        kind = values.dtype.kind
        if name == "x":
            return as_stored(values.dtype)
        is_number = self.task == "regression" or name == "weight"
        return kind in "iufb" if is_number else kind in "iu" or kind

    def _x(self, x: np.ndarray, source: str, first_row: int) -> np.ndarray:
        if x.ndim < 2 or 0 in x.shape[1:]:
            hint = "; data.batched=true reads batches" if x.ndim == 1 else ""
            raise ConfigError(
                f"{source}: x must hold a row of values per sample, got rows of the shape "
                f"{list(x.shape[1:])}{hint}"
            )
        check_finite("x", x, source, first_row)
        if self.num_tokens is None:
            return x.astype(as_stored(x.dtype), copy=False)
        if (bad := first_outside(x, self.num_tokens)) is not None:
            value, row = bad
            raise ConfigError(
                f"{source}: x must have token ids, whole numbers from 0 to data.num_tokens - 1, "
                f"{self.num_tokens - 1}, got {value:g} in row {first_row + row}"
            )
        return x.astype(np.int32)

    def _y(
        self, y: np.ndarray, source: str, first_row: int, row_shape: tuple[int, ...]
    ) -> np.ndarray:
        num = self.num_classes
        if self.task == "regression":
            if y.dtype.kind not in "iufb" or 0 in y.shape[1:]:
                raise ConfigError(
                    f"{source}: y must have numbers, got {y.dtype} of shape {list(y.shape)}"
                )
            check_finite("y", y, source, first_row)
            return y.astype(np.float64).reshape(len(y), -1)
        assert num is not None
        positions = y.shape[1:]
        if y.dtype.kind not in "iu" or positions != row_shape[: len(positions)]:
            hint = "; set data.task=regression to predict numbers" if y.dtype.kind == "f" else ""
            raise ConfigError(
                f"{source}: y must have labels, integers from 0 to {num - 1}, one per row or one "
                f"at each position, got {y.dtype} of shape {list(positions)} in row {first_row}"
                f"{hint}"
            )
        if (bad := first_outside(y, num)) is not None:
            value, row = bad
            raise ConfigError(
                f"{source}: y must have labels from 0 to data.num_classes - 1, {num - 1}, got "
                f"{value} in row {first_row + row}"
            )
        return y.astype(np.int64)


def is_batched(items: Items, records: Records) -> bool:
    """Return whether items are batches, for data.batched=auto: those of a torch DataLoader with a
    batch size, and of a tf.data.Dataset with an unknown first axis. Raise ConfigError if that
    cannot be seen."""
    data = items.data
    if hasattr(data, "batch_sampler"):
        return data.batch_sampler is not None
    spec = getattr(data, "element_spec", None)
    shapes: list[Any] = [getattr(leaf, "shape", None) for leaf in _leaves(spec)]
    if shapes and all(getattr(s, "rank", None) and s[0] is None for s in shapes):
        return True
    for item in items.look(1):
        fields = replace(records, unit="row").fields(0, item)
        x, y = fields["x"], fields["y"]
        if x.ndim > 1 and y.ndim and x.shape[0] == y.shape[0]:
            raise ConfigError(
                f"data.batched must be true or false for {items.source}: x of its first item has "
                f"the shape {list(x.shape)} and y {list(y.shape)}, which may be a batch of "
                f"{len(x)} rows or one row"
            )
    return False


def _leaves(spec: Any) -> list[Any]:
    if isinstance(spec, Mapping):
        return [leaf for inner in spec.values() for leaf in _leaves(inner)]
    if isinstance(spec, tuple | list):
        return [leaf for inner in spec for leaf in _leaves(inner)]
    return [] if spec is None else [spec]


class Reader:
    """Reads the rows of a run in order, update by update.

    `sha256` is a chain over the updates: h(0) is empty, h(t + 1) = SHA-256(h(t) + the bytes of x
    and y of update t), in hexadecimal. It does not depend on chunks, and a run that resumes
    continues it.
    """

    def __init__(self, stream: Stream, rows_per_step: int) -> None:
        stream.sample(1)  # before the iterable is further
        self.stream, self.rows_per_step = stream, rows_per_step
        self.step, self.sha256 = 0, ""
        self._iterator: Iterator[Any] | None = None
        self._num_looked = 0  # items that come although the iterable is further
        self._num_items, self._num_rows = 0, 0  # so far
        self._rest: Batch | None = None  # rows of the last item that are not used yet
        self._state: Any = None  # of the iterable, after a whole item
        self._skip = 0  # rows that were used since
        self._num_last = 0  # rows of the last item
        self._is_fresh = True  # the pass has had no item
        self._positions: dict[int, dict[str, Any]] = {}

    def read(self, num_steps: int) -> Batch:
        """Read the rows of the next updates.  # [rows, ...] each"""
        try:
            batch = self._take(num_steps * self.rows_per_step)
        except ConfigError as error:  # the run has begun
            raise RunError(error) from error
        for first in range(0, len(batch["x"]), self.rows_per_step):
            digest = hashlib.sha256(self.sha256.encode())
            for name in sorted(batch):
                rows = batch[name][first : first + self.rows_per_step]
                digest.update(np.ascontiguousarray(rows).data)
            self.sha256 = digest.hexdigest()
        self.step += num_steps
        self._positions[self.step] = self._position()
        return batch

    def position(self, step: int) -> dict[str, Any]:
        """Return the position after an update that ended a chunk, and forget those before it."""
        self._positions = {key: p for key, p in self._positions.items() if key >= step}
        return self._positions[step]

    def _position(self) -> dict[str, Any]:
        """Return the number of rows and their hash; if the iterable has a state, also its state
        and the number of rows that were used since."""
        known = {"rows": self._num_rows, "sha256": self.sha256}
        if self._rest is None:
            self._note_state()
        if self._state is None:
            return known
        return {**known, "items": self._num_items, "state": self._state, "skip": self._skip}

    def restore(self, step: int, position: Mapping[str, Any]) -> None:
        """Continue from the state of a position."""
        self._iterator = self.stream.items.begin_at(position["state"])
        self._is_fresh = False
        self._num_items, self._num_rows = position["items"], position["rows"] - position["skip"]
        self._state, self._skip = position["state"], 0
        if position["skip"]:
            self._take(position["skip"])
        self.step, self.sha256 = step, position["sha256"]

    def _note_state(self) -> None:
        """Note the state of the iterable, whose items have all been used."""
        if self._num_items >= self._num_looked and self.stream.items.has_state:
            self._state, self._skip = self.stream.items.state(), 0

    def _take(self, num: int) -> Batch:
        """Return the next rows; those of an item may go to several calls."""
        blocks: list[Batch] = []
        while num:
            if self._rest is None:
                self._rest = self._next(num)
            part = {name: values[:num] for name, values in self._rest.items()}
            rest = {name: values[num:] for name, values in self._rest.items()}
            self._rest = rest if len(rest["x"]) else None
            used = len(part["x"])
            num, self._num_rows, self._skip = num - used, self._num_rows + used, self._skip + used
            blocks.append(part)
        return _joined(blocks)

    def _next(self, num: int) -> Batch:
        """Return the rows of the next item, or up to `num` rows if items are rows."""
        if self.stream.is_batched and num <= max(self._num_last, 1):  # probably the last one
            self._note_state()
        wanted = 1 if self.stream.is_batched else num
        block = None
        while block is None:
            if self._iterator is None:
                self._iterator, self._num_looked = self.stream.items.begin()
            items = self.stream.items.next_of(self._iterator)
            block = self.stream.block(items, wanted, self._num_items, self._num_rows)
            if block is None:
                self._begin_again()
        self._is_fresh = False
        self._num_last = len(block["x"])
        self._num_items += 1 if self.stream.is_batched else self._num_last
        return block

    def _begin_again(self) -> None:
        """Begin the next pass."""
        items = self.stream.items
        if self._is_fresh:
            raise ConfigError(f"{items.source} holds no rows in a further pass")
        iterator = items.again()
        if iterator is None:
            raise ConfigError(
                f"{items.source} ended after {self._num_rows} rows, in update "
                f"{self._num_rows // self.rows_per_step}, and an "
                f"iterator can be read only once; pass the function that makes it, or reduce "
                f"trainer.max_steps"
            )
        self._iterator, self._is_fresh = iterator, True


def _joined(blocks: Sequence[Batch]) -> Batch:
    if len(blocks) == 1:
        return blocks[0]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
