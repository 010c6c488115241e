"""The rows that each update uses."""

from fractions import Fraction
from itertools import pairwise
from math import ceil

import numpy as np
import pytest

from runner.data import order as module
from runner.data.order import Chunk, Chunks, Order, Phase, segments
from runner.data.source import Batch
from runner.schedules.units import Periods

# rows, batch size, accumulation: epochs that divide evenly, end in a short batch, in an incomplete
# group, in both, in one row, or are smaller than one batch or one group.
SIZES = [
    (12, 3, 1), (12, 3, 2), (13, 3, 1), (13, 3, 2), (16, 3, 2), (9, 3, 2), (10, 3, 3), (2, 5, 1),
    (2, 5, 4), (7, 5, 4), (1, 1, 1)
]  # fmt: skip


def order(
    num_rows: int, batch_size: int, accumulate: int, num_epochs: float = 3, seed: int = 0
) -> Order:
    steps_per_epoch = ceil(num_rows / (batch_size * accumulate))
    return Order(num_rows, batch_size, accumulate, seed, ceil(num_epochs * steps_per_epoch))


def chunks(
    of: Order, start: int = 0, largest: int = 10**6, every: int | None = None
) -> list[Chunk]:
    checkpoints = None if every is None else Periods(every)
    return list(Chunks(of, start, largest, checkpoints, adapt=False))


def updates(made: list[Chunk]) -> list[list[list[int]]]:
    """Each update as its micro-batches, each as its rows."""
    return [
        [micro.tolist() for block in chunk.blocks for micro in block[k]]
        for chunk in made
        for k in range(chunk.num_steps)
    ]


@pytest.mark.parametrize(("num_rows", "batch_size", "accumulate"), SIZES)
@pytest.mark.parametrize("largest", [1, 2, 3, 1000])
def test_every_epoch_uses_every_row_exactly_once(
    num_rows: int, batch_size: int, accumulate: int, largest: int
) -> None:
    of = order(num_rows, batch_size, accumulate)
    made = updates(chunks(of, largest=largest))
    assert len(made) == of.total_steps == 3 * of.epochs.length
    for epoch in range(3):
        own = made[epoch * of.epochs.length : (epoch + 1) * of.epochs.length]
        used = [row for update in own for micro in update for row in micro]
        assert sorted(used) == list(range(num_rows))
        assert used == of.epoch(epoch).tolist()


@pytest.mark.parametrize(("num_rows", "batch_size", "accumulate"), SIZES)
def test_the_updates_are_the_same_however_they_are_cut_into_chunks(
    num_rows: int, batch_size: int, accumulate: int
) -> None:
    of = order(num_rows, batch_size, accumulate)
    whole = updates(chunks(of))
    assert all(
        updates(chunks(of, largest=largest, every=every)) == whole
        for largest in (1, 2, 5)
        for every in (None, 2, 3)
    )


@pytest.mark.parametrize(("num_rows", "batch_size", "accumulate"), SIZES)
def test_a_run_goes_on_from_any_step_with_the_same_rows(
    num_rows: int, batch_size: int, accumulate: int
) -> None:
    of = order(num_rows, batch_size, accumulate)
    whole = updates(chunks(of))
    assert all(
        updates(chunks(of, start=start)) == whole[start:] for start in range(of.total_steps + 1)
    )


def test_the_last_update_of_an_epoch_has_the_rows_that_are_left() -> None:
    """13 rows, batches of 3, two to an update: 6 and 6, then a micro-batch of one row."""
    sizes = [
        [len(micro) for micro in update]
        for update in updates(chunks(order(13, 3, 2, num_epochs=1)))
    ]
    assert sizes == [[3, 3], [3, 3], [1]]


def test_an_incomplete_group_keeps_its_whole_batches_and_its_short_one() -> None:
    """16 rows, batches of 3, three to an update: 9, then 3, 3 and 1."""
    last = chunks(order(16, 3, 3, num_epochs=1))[-1]
    assert [block.shape for block in last.blocks] == [(1, 2, 3), (1, 1, 1)]
    assert not last.is_whole
    assert last.rows_per_step == 7
    assert len(last.rows) == 7


def test_whole_updates_are_one_block_of_steps_micro_batches_and_rows() -> None:
    first = chunks(order(16, 3, 2, num_epochs=1))[0]
    assert [block.shape for block in first.blocks] == [(2, 2, 3)]
    assert first.is_whole
    assert first.rows_per_step == 6


@pytest.mark.parametrize(("num_rows", "batch_size", "accumulate"), SIZES)
def test_a_chunk_s_rows_are_those_of_its_updates_in_turn(
    num_rows: int, batch_size: int, accumulate: int
) -> None:
    for chunk in chunks(order(num_rows, batch_size, accumulate)):
        in_turn = [row for update in updates([chunk]) for micro in update for row in micro]
        assert chunk.rows.tolist() == in_turn


@pytest.mark.parametrize("every", [None, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("largest", [1, 3, 1000])
def test_a_chunk_ends_where_something_has_to_happen(every: int | None, largest: int) -> None:
    # 6 updates an epoch, the last of them short; ends within the third
    of = order(23, 2, 2, num_epochs=2.5)
    made = chunks(of, largest=largest, every=every)
    ends = [chunk.first_step + chunk.num_steps for chunk in made]
    starts = [chunk.first_step for chunk in made]
    assert starts == [0, *ends[:-1]]
    due = {
        step
        for step in range(1, 16)
        if step % 6 == 0 or step == 15 or (every and step % every == 0)
    }
    assert due <= set(ends)
    assert all(b - a <= largest for a, b in pairwise([0, *ends]))


def test_epochs_differ_and_the_seed_decides_on_them() -> None:
    of, same, other = (order(50, 5, 1, seed=seed) for seed in (0, 0, 1))
    assert not np.array_equal(of.epoch(0), of.epoch(1))
    assert np.array_equal(of.epoch(1), same.epoch(1))
    assert not np.array_equal(of.epoch(0), other.epoch(0))


def test_the_rows_do_not_depend_on_the_batch_size_or_the_length_of_the_run() -> None:
    few, many = order(50, 5, 1, num_epochs=1), order(50, 7, 3, num_epochs=9)
    assert np.array_equal(few.epoch(0), many.epoch(0))


def test_a_chunk_of_its_own_choosing_is_cut_by_the_same_rules() -> None:
    """`adapt` makes the lengths follow the clock; the updates stay the same."""
    of = order(100, 3, 1)
    adapted = list(Chunks(of, 0, 1000, None, adapt=True))
    assert updates(adapted) == updates(chunks(of))
    assert adapted[0].num_steps == 8


@pytest.mark.parametrize(
    ("seconds_each", "largest", "lengths"),
    [
        (0.25, 1000, [8, 4, 4, 4]),  # 1 / 0.25
        (0.3, 1000, [8, 3, 3, 3, 3]),  # 3.3, downwards
        (4.0, 1000, [8, 1, 1]),  # at least one
        (0.0625, 11, [8, 11, 1]),  # 16, at most `largest`
        (0.25, 6, [6, 4, 4, 4, 2]),
    ],
)
def test_a_chunk_is_kept_near_a_second(
    monkeypatch: pytest.MonkeyPatch, seconds_each: float, largest: int, lengths: list[int]
) -> None:
    """A clock that moves by `seconds_each` for every update; 1 / seconds_each updates take a
    second."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    found = []
    for chunk in Chunks(order(60, 3, 1, num_epochs=1), 0, largest, None, adapt=True):
        found.append(chunk.num_steps)
        now[0] += seconds_each * chunk.num_steps
    assert sum(found) == 20
    assert found[: len(lengths)] == lengths


def test_without_adapt_the_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    found = []
    for chunk in Chunks(order(60, 3, 1, num_epochs=1), 0, 7, None, adapt=False):
        found.append(chunk.num_steps)
        now[0] += 100.0
    assert found == [7, 7, 6]


@pytest.mark.parametrize("more", [0, 1, 1000])
def test_a_run_that_starts_at_or_after_its_end_has_no_chunk(more: int) -> None:
    of = order(12, 3, 1)
    assert chunks(of, start=of.total_steps + more) == []


def test_a_chunk_brings_its_rows_in_the_shape_of_its_blocks() -> None:
    """x of row i in epoch e is (i, i + e/2): whole micro-batches, then the short one of the epoch's
    end."""
    of = order(16, 3, 3, num_epochs=2)

    def read(rows: np.ndarray, epoch: int) -> Batch:
        return {"x": np.stack([rows, rows + epoch / 2], axis=1)}

    made = list(Chunks(of, 0, 1000, None, adapt=False, read=read))
    shapes = [[(1, 3, 3, 2)], [(1, 2, 3, 2), (1, 1, 1, 2)]]
    assert [[part.shape for part in chunk.by_block("x")] for chunk in made] == 2 * shapes
    for i, chunk in enumerate(made):
        for part, block in zip(chunk.by_block("x"), chunk.blocks, strict=True):
            np.testing.assert_array_equal(part, np.stack([block, block + i // 2 / 2], axis=-1))


# sizes by the rows or the updates that they last: within an epoch of 13 rows, to its end, for
# several epochs, for none
CHANGES = [
    ([(2, 20, None), (3, None, 4), (4, 6, None)], 5),
    ([(6, 13, None)], 1),
    ([(3, Fraction(13, 2), None), (20, 26, None)], 4),
    ([(4, 0, None), (2, None, 30)], 3),
]  # fmt: skip


def changing(phases: list[tuple[int, Fraction | int | None, int | None]], last: int) -> Order:
    parts = [Phase(b, None if n is None else Fraction(n), k) for b, n, k in phases]
    made = Order(13, last, 2, 0, 0, segments(13, 2, parts, last, num_epochs=5))
    return Order(13, last, 2, 0, made.epochs.begin(5), made.earlier)


def simulated(phases: list[tuple[int, Fraction | int | None, int | None]], last: int) -> list[int]:
    """The rows of each update, one after another: the first part that has not ended has the size,
    and no update crosses the end of an epoch of 13 rows."""
    made: list[int] = []
    left = [*phases, (last, None, None)]
    begin, used, num = Fraction(0), 0, 0  # of the part: its first row; rows so far; its updates
    while used < 5 * 13:
        size, num_rows, num_steps = left[0]
        if (num_rows is not None and used >= begin + num_rows) or num == num_steps:
            begin, num = begin + num_rows if num_rows is not None else Fraction(used), 0
            left.pop(0)
            continue
        made.append(min(2 * size, 13 - used % 13))
        used, num = used + made[-1], num + 1
    return made


@pytest.mark.parametrize(("phases", "last"), CHANGES)
def test_a_batch_size_that_changes_cuts_the_same_permutations(
    phases: list[tuple[int, Fraction | int | None, int | None]], last: int
) -> None:
    of = changing(phases, last)
    made = updates(chunks(of))
    rows = [[row for micro in update for row in micro] for update in made]
    assert [*map(len, rows)] == simulated(phases, last)
    assert [row for update in rows for row in update] == [
        row for epoch in range(5) for row in of.epoch(epoch)
    ]
    ends = np.cumsum([*map(len, rows)])
    whole = [int(n) + 1 for n in np.flatnonzero(ends % 13 == 0)]
    assert of.epochs.ends(of.total_steps) == whole
    assert [of.is_epoch(step) for step in range(1, len(rows) + 1)] == [*(ends % 13 == 0)]
    for start in range(of.total_steps):  # from any step, in chunks of any length
        assert updates(chunks(of, start, largest=1 + start % 3)) == made[start:]
