"""All randomness of a run: pure functions of the seed and a name, from raw Philox bits and an
integer hash.

There is no state, so a run can resume at any step. Raw bits do not change between NumPy releases.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

MASK = 0xFFFFFFFF


def _bits(num: int, seed: int, name: str) -> np.ndarray:
    """uint64[num] of Philox 4x64, keyed by the SHA-256 of (seed, name)."""
    key = np.frombuffer(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], dtype="<u8")
    return np.random.Philox(key=key).random_raw(num)


def uniform(shape: Sequence[int], seed: int, name: str) -> np.ndarray:
    """U[0, 1) in float64, 53 bits each."""
    bits = _bits(int(np.prod(shape)), seed, name)
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(shape)


def permutation(num: int, seed: int, name: str) -> np.ndarray:
    """A permutation of 0 ... num-1, int64: the stable order of `num` raw 64-bit draws.

    Each draw gets its number in place of its lowest bits, so that one sort of integers, three times
    as fast as NumPy's argsort, orders both. Draws that differ only in these bits are then ordered
    by all of their bits.
    """
    bits = _bits(num, seed, name)
    width = np.uint64(max(0, num - 1).bit_length())
    numbers = (np.uint64(1) << width) - np.uint64(1)
    keys = (bits & ~numbers) | np.arange(num, dtype=np.uint64)
    keys.sort()
    order = (keys & numbers).astype(np.int64)
    keys >>= width
    tied = np.flatnonzero(keys[1:] == keys[:-1])
    if tied.size:
        places = np.union1d(tied, tied + 1)
        rows = order[places]
        order[places] = rows[np.lexsort((rows, bits[rows]))]
    return order


def mix(x: Any) -> Any:
    """The 32-bit finalizer `lowbias32` of Wellons's hash prospector, of an int or an int64 array:
    products that overflow keep the low 32 bits. The backends implement the same on tensors."""
    x = x & MASK
    x = ((x ^ x >> 16) * 0x7FEB352D) & MASK
    x = ((x ^ x >> 15) * 0x846CA68B) & MASK
    return x ^ x >> 16


def layer_key(seed: int, layer_index: int) -> int:
    """Return the key of one layer's dropout masks: mix(mix(seed) + layer_index)."""
    return mix(mix(seed) + layer_index)


def threshold(rate: float) -> int:
    """Return the limit below which an element's hash drops it: P = rate, to 2^-32."""
    return int(rate * 2**32)


def keep(
    num: int,
    rate: float,
    key: int,
    step: int,
    micro_batch: int,
    first: int = 0,
    row_size: int | None = None,
) -> np.ndarray:
    """Return `num` elements of a layer's dropout mask in one forward pass, from `first` on,
    bool[num]; True = kept. The backends are tested against it.

    k = mix(mix(key + step) + micro_batch); element i is kept where mix(mix(i + k) xor k) >= rate *
    2^32. In a masked sequence, each row r of `row_size` elements counts its own from 0, with
    mix(k + r) as its k, so that longer padding does not change them.
    """
    k, i = mix(mix(key + step) + micro_batch), np.arange(first, first + num)
    if row_size is not None:
        rows, i = np.divmod(i, row_size)
        k = mix(k + rows)
    return mix(mix(i + k) ^ k) >= threshold(rate)
