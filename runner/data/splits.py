"""The division of rows into training, validation and test rows: pure functions of a seed, and of
labels, groups or times."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from runner.errors import ConfigError
from runner.random import permutation
from runner.schedules.dialects.calls import SentenceError
from runner.section import MOST, Fraction, Index, Section

Kind = Literal["random", "stratified", "grouped", "chronological"]
SPLITS = ("train", "val", "test")
SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # int64 each: training, validation, test rows

# A key that selects the rows of a split -> the fraction that must be 0 then
REPLACES = {
    "fold": "val_fraction",
    "val_path": "val_fraction",
    "test_path": "test_fraction",
}

_TRAIN, _VAL, _TEST = range(3)


def named_splits(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping of splits with the names of this project: Hugging Face says validation."""
    return {"val" if name == "validation" else name: rows for name, rows in data.items()}


class Splits(Section):
    """The keys of data whose rows are split here."""

    val_fraction: Fraction
    test_fraction: Fraction
    split: Kind
    split_seed: Index
    fold: Index | None
    num_folds: Annotated[int, Field(ge=2, le=MOST)]

    @model_validator(mode="after")
    def _fits(self) -> "Splits":
        if self.fold is not None and self.fold >= self.num_folds:
            raise SentenceError(
                f"fold must be < data.num_folds={self.num_folds}, because folds are counted from "
                f"0, got {self.fold}"
            )
        if self.fold is not None and "val" in self.own_paths:
            raise SentenceError(
                f"fold must be null with data.val_path, which has the validation rows, got "
                f"{self.fold}"
            )
        for key, fraction in REPLACES.items():
            value = getattr(self, fraction)
            if getattr(self, key, None) is not None and value:
                rows = "validation" if fraction == "val_fraction" else "test"
                raise SentenceError(
                    f"{fraction} must be 0 with data.{key}, which selects the {rows} rows, got "
                    f"{value:g}"
                )
        return self

    @property
    def own_paths(self) -> dict[str, str]:
        """The splits that have a file of their own -> its path, by the keys val_path, test_path."""
        paths = {name: getattr(self, f"{name}_path", None) for name in ("val", "test")}
        return {name: path for name, path in paths.items() if path is not None}

    def rows(
        self,
        num_rows: int,
        source: str,
        *,
        labels: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        times: np.ndarray | None = None,
        given: Collection[str] = (),
        order: np.ndarray | None = None,
    ) -> Parts:
        """Assign the rows of `source` by these keys. A split of `given` ("val", "test") has rows of
        its own, and gets none of these. Rows that are not split keep their order. `order` is what
        the method `order` returned, for this or another number of rows."""
        if self.fold is not None and "val" in given:
            raise ConfigError(
                f"data.fold must be null if {source} has the split val, got {self.fold}"
            )
        fractions = {"val": self.val_fraction, "test": self.test_fraction}
        val, test = (0.0 if name in given else part for name, part in fractions.items())
        parts = assign(
            num_rows,
            split=self.split,
            seed=self.split_seed,
            val_fraction=val,
            test_fraction=test,
            fold=self.fold,
            num_folds=self.num_folds,
            labels=labels,
            groups=groups,
            times=times,
            source=source,
            order=order,
        )
        is_whole = {"val", "test"} & set(given) and len(parts[0]) == num_rows
        return (np.arange(num_rows), *parts[1:]) if is_whole else parts

    def order(self, num_rows: int) -> np.ndarray | None:
        """Return the permutation of the rows that `rows` follows; None if it follows none."""
        if self.split == "chronological":
            return None
        return permutation(num_rows, self.split_seed, "split")

    def folds_sha256(self, *arrays: np.ndarray | None) -> str | None:
        """Hash what all folds have in common: the rows before they are divided, and the keys that
        divide them. Runs with equal hashes can be compared fold by fold. None without a fold."""
        if self.fold is None:
            return None
        keys = (self.split, self.split_seed, self.test_fraction, self.num_folds)
        digest = hashlib.sha256(repr(keys).encode())
        for array in arrays:
            if array is not None:
                digest.update(repr((array.shape, array.dtype.str)).encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def with_own_rows(parts: Parts, num_rows: int, own: Mapping[str, int]) -> Parts:
    """Add the rows of splits that have files of their own, split -> number of rows. They come
    after the `num_rows` rows that were divided, in the order of `own`."""
    named = dict(zip(SPLITS, parts, strict=True))
    for name, num in own.items():
        named[name] = np.arange(num_rows, num_rows + num)
        num_rows += num
    return named["train"], named["val"], named["test"]


def assign(
    num_rows: int,
    *,
    split: Kind = "random",
    seed: int = 0,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    fold: int | None = None,
    num_folds: int = 5,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    times: np.ndarray | None = None,
    source: str = "data",
    order: np.ndarray | None = None,
) -> Parts:
    """Divide the rows 0 ... num_rows - 1 into training, validation and test rows.

    n = num_rows; a fraction f stands for round(f n) rows. "The permutation" depends only on `seed`
    and on the number of items.

    - random: along the permutation of the rows: first training, then validation, then test rows.
    - stratified (needs `labels`): f n_c of the n_c rows of each class, rounded up or down, by
      largest remainder. The remainders of one class carry over to the next, so that the totals are
      right too. The only row of a class is a training row.
    - grouped (needs `groups`): whole groups, from the end of the permutation of the sorted groups:
      to the test rows while there are fewer than round(f n), then likewise to the validation rows;
      the others are training rows. A split can be larger than wanted, by less than one group.
    - chronological: in the order of `times` (rows of equal time as they are stored), by default in
      the stored order: first training, then validation, then test rows.

    `fold` = k divides the rows that are not for the test, m of them, into K = `num_folds` folds;
    fold k has the validation rows, and `val_fraction` is not used. The test rows are the same for
    every fold. The K folds are disjoint and cover the m rows, except for chronological.

    - random: the permutation in K parts of equal size; the first m mod K have one more row, as in
      sklearn.model_selection.KFold.
    - stratified: sorted by class, row i belongs to fold i mod K, as in StratifiedKFold.
    - grouped: the largest group first, each goes to the fold with the fewest rows, as in
      GroupKFold.
    - chronological: K windows of m // (K + 1) rows each end the m rows; fold k has window k, and
      all rows before it are for training, as in TimeSeriesSplit.

    `order` is the permutation, if it is known; one of another length is not used.

    Returns:
        three int64 arrays of row numbers. Raises ConfigError, naming `source`, if there are no
        training rows, fewer rows than folds, or no labels or groups to follow.
    """
    fractions = (0.0 if fold is not None else val_fraction, test_fraction)
    held_out = _num_held_out(num_rows, fractions, source)
    followed = _followed(split, labels, groups, times, num_rows, source)
    if split == "chronological":
        order = np.arange(num_rows) if followed is None else np.argsort(followed, kind="stable")
    elif order is None or len(order) != num_rows:
        order = permutation(num_rows, seed, "split")
    if followed is None or split == "chronological":
        num_val, num_test = held_out
        rest, test = np.split(order, [num_rows - num_test])
        if fold is None:
            return rest[: len(rest) - num_val], rest[len(rest) - num_val :], test
        if split == "chronological":
            return *_window(rest, fold, num_folds, source), test
        return *_apart(rest, _blocks(len(rest), num_folds, source) == fold), test
    codes = np.unique(followed, return_inverse=True)[1].reshape(-1)
    if split == "stratified":
        part = _stratified(codes, order, fractions)
    else:
        part = _grouped(codes, seed, held_out, source)
    rest, test = _apart(order, part[order] == _TEST)
    if fold is None:
        return *_apart(rest, part[rest] == _VAL), test
    divide = _class_folds if split == "stratified" else _group_folds
    return *_apart(rest, divide(codes[rest], num_folds, source) == fold), test


def _num_held_out(num_rows: int, fractions: Sequence[float], source: str) -> list[int]:
    """The numbers of validation and test rows, round(fraction * rows) each."""
    held_out = [round(fraction * num_rows) for fraction in fractions]
    if sum(held_out) >= num_rows:
        raise ConfigError(
            f"data.val_fraction + data.test_fraction leave no training rows: {source} has "
            f"{num_rows} rows"
        )
    return held_out


def _followed(
    split: Kind,
    labels: np.ndarray | None,
    groups: np.ndarray | None,
    times: np.ndarray | None,
    num_rows: int,
    source: str,
) -> np.ndarray | None:
    """The values that the split follows, checked; None: it follows the numbers of the rows."""
    values = {"stratified": labels, "grouped": groups, "chronological": times}.get(split)
    if values is not None:
        _check_followed(values, num_rows, split, source)
    elif split == "stratified":
        raise ConfigError(
            "data.split=stratified divides the rows of each class, so it needs "
            "data.task=classification; use random, grouped or chronological"
        )
    elif split == "grouped":
        raise ConfigError(
            f"data.split=grouped needs the group of each row, and {source} has none; data.group "
            f"names the column of a table, an NPZ file has the array group, a function of "
            f"data=custom returns x, y, group, data.table has the column group"
        )
    return values


def _check_followed(values: np.ndarray, num_rows: int, split: str, source: str) -> None:
    """Refuse labels, groups or times that are not one value per row, or cannot be compared."""
    name = {"stratified": "y", "grouped": "group", "chronological": "time"}[split]
    kinds, words = (
        ("iufM", "numbers or dates") if name == "time" else ("iufbMSU", "numbers or text")
    )
    if values.ndim != 1 or values.dtype.kind not in kinds:
        raise ConfigError(
            f"{source}: {name} must hold {words} of shape [N] for data.split={split}, got "
            f"{values.dtype} of shape {list(values.shape)}"
        )
    if len(values) != num_rows:
        raise ConfigError(f"{source}: x has {num_rows} rows, {name} has {len(values)}")
    if values.dtype.kind in "fM" and (missing := np.flatnonzero(values != values)).size:
        raise ConfigError(
            f"{source}: row {missing[0]} of {name} is {values[missing[0]]}; data.split={split} "
            f"needs a value in every row"
        )


def _apart(rows: np.ndarray, is_held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows[~is_held_out], rows[is_held_out]


def _stratified(codes: np.ndarray, order: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Return the part of each row, int64[N]."""
    shares = np.array([1 - sum(fractions), *fractions])
    rows = order[np.argsort(codes[order], kind="stable")]  # by class, each along the permutation
    part, carried, first = np.empty(len(codes), np.int64), np.zeros(3), 0
    for num in np.bincount(codes):
        counts = _rounded(num * shares, carried, num)
        carried += num * shares - counts
        part[rows[first : first + num]] = np.repeat(np.arange(3), counts)
        first += num
    return part


_ROUNDING = 9  # decimals of a remainder; below these, it is rounding of the fractions


def _rounded(quotas: np.ndarray, carried: np.ndarray, num: int) -> np.ndarray:
    """Round quotas up or down, so that their sum is `num`: up for the largest remainders plus what
    was carried over. A quota without a remainder stays."""
    whole = np.floor(np.round(quotas, _ROUNDING)).astype(np.int64)
    remainders = np.round(quotas - whole, _ROUNDING)
    if num == 1:
        return np.array([1, 0, 0])
    ranked = np.where(remainders > 0, np.round(remainders + carried, _ROUNDING), -np.inf)
    whole[np.argsort(-ranked, kind="stable")[: num - whole.sum()]] += 1
    return whole


def _grouped(codes: np.ndarray, seed: int, held_out: Sequence[int], source: str) -> np.ndarray:
    """Return the part of each row, int64[N]."""
    sizes = np.bincount(codes)
    part_of_group = np.full(len(sizes), _TRAIN)
    wanted = dict(zip((_VAL, _TEST), held_out, strict=True))
    backwards = iter(permutation(len(sizes), seed, "split")[::-1])
    for part in (_TEST, _VAL):
        taken = 0
        while taken < wanted[part] and (group := next(backwards, None)) is not None:
            part_of_group[group] = part
            taken += sizes[group]
    if not (part_of_group == _TRAIN).any():
        raise ConfigError(
            f"data.split=grouped leaves no training rows: {source} has {len(sizes)} groups; lower "
            f"data.val_fraction or data.test_fraction"
        )
    return part_of_group[codes]


def _check_folds(num: int, items: str, num_folds: int, source: str) -> None:
    if num < num_folds:
        raise ConfigError(
            f"data.num_folds must be <= the number of {items} that are not for the test, {num} of "
            f"{source}, got {num_folds}"
        )


def _blocks(num: int, num_folds: int, source: str) -> np.ndarray:
    """The folds of `num` rows in a row."""
    _check_folds(num, "rows", num_folds, source)
    sizes = np.full(num_folds, num // num_folds)
    sizes[: num % num_folds] += 1
    return np.repeat(np.arange(num_folds), sizes)


def _class_folds(codes: np.ndarray, num_folds: int, source: str) -> np.ndarray:
    _check_folds(len(codes), "rows", num_folds, source)
    folds = np.empty(len(codes), np.int64)
    folds[np.argsort(codes, kind="stable")] = np.arange(len(codes)) % num_folds
    return folds


def _group_folds(codes: np.ndarray, num_folds: int, source: str) -> np.ndarray:
    groups, first, codes, sizes = np.unique(
        codes, return_index=True, return_inverse=True, return_counts=True
    )
    _check_folds(len(groups), "groups", num_folds, source)
    fold_of_group, rows_of_fold = np.empty(len(groups), np.int64), np.zeros(num_folds, np.int64)
    for group in np.lexsort((first, -sizes)):  # of equal sizes, the first along the permutation
        fold_of_group[group] = np.argmin(rows_of_fold)
        rows_of_fold[fold_of_group[group]] += sizes[group]
    return fold_of_group[codes]


def _window(
    rows: np.ndarray, fold: int, num_folds: int, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """The expanding window: rows before the fold's, and the fold's."""
    if len(rows) <= num_folds:
        raise ConfigError(
            f"data.num_folds must be < the number of rows that are not for the test, {len(rows)} "
            f"of {source}, because the first rows are only for training, got {num_folds}"
        )
    size = len(rows) // (num_folds + 1)
    first = len(rows) - (num_folds - fold) * size
    return rows[:first], rows[first : first + size]
