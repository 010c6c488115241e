"""Work in blocks of rows: the same values as in one piece, with any number of threads."""

from typing import Any

import numpy as np
import pytest

from runner.data import blocks, transforms
from runner.data.cells import Column
from runner.data.columns import scale_in_place
from runner.data.dataset import Scaling


@pytest.mark.parametrize("num_rows", [1, 5, blocks.ROWS, blocks.ROWS + 1, 3 * blocks.ROWS - 7])
@pytest.mark.parametrize("num_columns", [2, 3, 19, 200])
def test_mean_and_deviation_have_the_bits_of_numpy(num_rows: int, num_columns: int) -> None:
    rng = np.random.default_rng(num_rows)
    values = rng.normal(3, 100, (num_rows, num_columns)) * rng.lognormal(size=num_columns)
    mean = blocks.mean(values)
    assert np.array_equal(mean, values.mean(axis=0))
    assert np.array_equal(blocks.deviation(values, mean), values.std(axis=0))
    low, high = blocks.edges(values)
    assert np.array_equal(low, values.min(axis=0))
    assert np.array_equal(high, values.max(axis=0))


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_scaled_as_numpy_scales_them(order: Any) -> None:
    rng = np.random.default_rng(1)
    values = np.array(rng.normal(size=(2 * blocks.ROWS + 77, 5)), order=order)
    scaling = Scaling(rng.normal(size=5), rng.lognormal(size=5))
    expected = scaling.apply(values)
    scale_in_place(scaling, values)
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_a_table_go_to_their_places(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """As NumPy's indexing takes them; the rows in no part are left out."""
    monkeypatch.setattr(blocks, "num_threads", lambda: threads)
    num_rows = 200 * blocks.ROWS + 3
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=num_rows), rng.integers(-1, 3, num_rows)
    columns = {"a": Column("a", "number", a), "b": Column("b", "text", b, ("x", "y", "z"))}
    fitted = [
        transforms.Transform("a", "number"),
        transforms.Transform("b", "text", categories=("x", "z")),
    ]
    rows = rng.permutation(num_rows)
    parts = [rows[:300], rows[300:300], rows[500:]]
    whole = np.stack([a, b == 0, b == 2], axis=1)
    for part, x in zip(parts, transforms.apply_to(fitted, columns, parts), strict=True):
        assert np.array_equal(x, whole[part])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_rows_go_to_memory_that_a_framework_can_use(dtype: str) -> None:
    """It begins at a multiple of 64 bytes; NumPy's own large arrays begin 16 bytes later."""
    rng = np.random.default_rng(0)
    values = np.array(rng.integers(0, 99, (5000, 3, 7)), dtype=dtype)
    rows = rng.permutation(5000)[:4001]
    taken = blocks.rows(values, rows)
    assert np.array_equal(taken, values[rows])
    assert blocks.converted(taken, taken.dtype) is taken
    wide = blocks.converted(taken, np.dtype(np.float64))
    assert np.array_equal(wide, values[rows])
    for found in (taken, wide):
        assert found.ctypes.data % 64 == 0
        assert blocks.is_aligned(found)
        assert found.flags.writeable
    assert not blocks.is_aligned(taken[:, 1:])


def test_the_first_error_of_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "num_threads", lambda: 4)

    def fail(rows: slice) -> None:
        if rows.start == blocks.ROWS:
            raise ValueError("block 1")

    with pytest.raises(ValueError, match="block 1"):
        blocks.in_blocks(fail, 200 * blocks.ROWS)
