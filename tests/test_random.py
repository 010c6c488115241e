"""Randomness: pure functions of a seed and a place, stable across releases, fair."""

import subprocess
import sys
from itertools import combinations
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from runner import random
from runner.random import keep, layer_key, mix, permutation, threshold, uniform

REPOSITORY = Path(__file__).resolve().parent.parent

PINNED_PERMUTATION = [8, 4, 6, 2, 7, 0, 5, 9, 1, 3]
PINNED_UNIFORM = ["0x1.f9cbb6b608057p-1", "0x1.45b93eb88c8e4p-3", "0x1.0af06440c2503p-1"]
PINNED_DROPPED = [1, 4, 10, 14, 18, 20, 24, 28]


@pytest.mark.parametrize("num", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(num: int) -> None:
    assert np.array_equal(np.sort(permutation(num, 0, "a place")), np.arange(num))


@pytest.mark.parametrize("shift", [0, 7, 40])
def test_equal_draws_keep_their_order(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    """Also draws that differ only in the bits that `permutation` replaces by their numbers."""
    draws = np.array([3, 1, 3, 1, 0, 3] * 40, np.uint64) << np.uint64(shift)
    monkeypatch.setattr(random, "_bits", lambda num, seed, name: draws[:num])
    expected = sorted(range(240), key=lambda i: (int(draws[i]), i))
    assert permutation(240, 0, "ties").tolist() == expected


def test_a_permutation_depends_on_seed_and_place_alone() -> None:
    first = permutation(100, 7, "order/3")
    assert np.array_equal(first, permutation(100, 7, "order/3"))
    assert not np.array_equal(first, permutation(100, 8, "order/3"))
    assert not np.array_equal(first, permutation(100, 7, "order/4"))


def test_seed_and_place_do_not_run_into_each_other() -> None:
    assert not np.array_equal(permutation(100, 1, "1/x"), permutation(100, 11, "/x"))


def test_every_row_is_as_likely_at_every_place() -> None:
    """Over 4,000 permutations of 5 a number stands at a place 800 times, give or take six standard
    deviations."""
    drawn = np.array([permutation(5, seed, "fair") for seed in range(4000)])
    for number in range(5):
        counts = (drawn == number).sum(axis=0)
        assert (np.abs(counts - 800) <= 6 * sqrt(4000 * 0.2 * 0.8)).all()


def test_uniform_draws_are_those_of_a_philox_generator_keyed_by_a_sha256() -> None:
    """Salmon et al. (2011); NumPy's own Generator.random makes the same 53 bits of each raw
    draw."""
    from hashlib import sha256

    key = np.frombuffer(sha256(b"5/dense_0/kernel").digest()[:16], dtype="<u8")
    expected = np.random.Generator(np.random.Philox(key=key)).random(12)
    assert np.array_equal(uniform((3, 4), 5, "dense_0/kernel"), expected.reshape(3, 4))


def test_pinned_values_of_every_source_of_randomness() -> None:
    """Written down once: a change of any makes old runs impossible to repeat."""
    assert permutation(10, 0, "order/0").tolist() == PINNED_PERMUTATION
    assert [value.hex() for value in uniform((3,), 0, "dense_0/kernel").tolist()] == PINNED_UNIFORM
    assert np.flatnonzero(~keep(32, 0.25, layer_key(0, 3), 5, 0)).tolist() == PINNED_DROPPED


def test_another_process_draws_the_same() -> None:
    code = "from runner.random import permutation; print(permutation(50, 3, 'order/1').tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.strip() == str(permutation(50, 3, "order/1").tolist())


@pytest.mark.parametrize("x", [0, 1, 2, 0xDEADBEEF, 0xFFFFFFFF, 2**32, -1])
def test_mix_is_lowbias32(x: int) -> None:
    """Multiplication and shifts, done here in NumPy's own uint32 arithmetic."""
    with np.errstate(over="ignore"):
        h = np.uint32(x & 0xFFFFFFFF)
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x7FEB352D)
        h ^= h >> np.uint32(15)
        h *= np.uint32(0x846CA68B)
        h ^= h >> np.uint32(16)
    assert mix(x) == int(h)


def test_mix_maps_no_two_numbers_to_one() -> None:
    assert len({mix(x) for x in range(100_000)}) == 100_000


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_dropout_keeps_one_minus_rate_of_the_elements(rate: float) -> None:
    """Binomial: within six standard deviations of the mean, over several steps and
    micro-batches."""
    num = 5000
    for step, micro_batch in ((0, 0), (1, 0), (0, 1), (123456, 7)):
        kept = keep(num, rate, layer_key(0, 2), step, micro_batch).sum()
        assert abs(kept - num * (1 - rate)) <= 6 * sqrt(num * rate * (1 - rate))


def test_the_masks_of_two_places_agree_by_chance_only() -> None:
    """Two fair masks of 4,000 agree in half of the places, give or take six standard deviations."""
    num, key = 4000, layer_key(0, 1)
    first = keep(num, 0.5, key, 0, 0)
    assert np.array_equal(first, keep(num, 0.5, key, 0, 0))
    others = [
        keep(num, 0.5, key, 1, 0),
        keep(num, 0.5, key, 0, 1),
        keep(num, 0.5, layer_key(0, 2), 0, 0),
    ]
    others += [keep(num, 0.5, layer_key(1, 1), 0, 0), np.roll(first, 1)]
    for other in others:
        assert abs((first == other).sum() - num / 2) <= 6 * sqrt(num / 4)


def test_the_threshold_is_the_rate_in_parts_of_2_to_the_32() -> None:
    assert [threshold(rate) for rate in (0.0, 0.25, 0.5)] == [0, 2**30, 2**31]
    assert threshold(1 - 2**-53) == 2**32 - 1


def test_rows_of_a_masked_sequence_have_elements_of_their_own() -> None:
    """Longer rows begin with the elements of shorter ones, and a part of the rows has theirs. Two
    rows agree where both are kept or dropped, by chance in 0.7^2 + 0.3^2 of the places, give or
    take six standard deviations."""
    key = layer_key(0, 2)
    short, long = (
        keep(6 * size, 0.3, key, 2, 1, row_size=size).reshape(6, size) for size in (4000, 7000)
    )
    np.testing.assert_array_equal(long[:, :4000], short)
    last = keep(2 * 4000, 0.3, key, 2, 1, first=4 * 4000, row_size=4000)
    np.testing.assert_array_equal(last.reshape(2, 4000), short[4:])
    agreeing = np.array([(a == b).mean() for a, b in combinations(short, 2)])
    assert np.abs(agreeing - 0.58).max() < 6 * sqrt(0.58 * 0.42 / 4000)
