"""Masked tokens of a language model: the same on every backend, and after a resume."""

import numpy as np

from runner.random import MASK, mix, threshold, uniform

NO_LABEL = -1  # the label of a position that has none
_FIRST = 1  # tokens below it are padding
_MASKED, _RANDOM = 0.8, 0.1  # shares of the chosen tokens


def num_masked(rate: float, length: int) -> int:
    """The number of chosen tokens of a row: `rate` of them, rounded, at least one."""
    return max(1, round(rate * length))


def masked(
    tokens: np.ndarray, rate: float, num_tokens: int, rows: np.ndarray, seed: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `num_masked` tokens of each row, and hide them: of the chosen ones, 80 % become the
    mask, 10 % a random token, and 10 % stay as they are. Devlin et al. (2019), BERT, section 3.1
    and appendix A.1.

    A function of (seed, name, row, position), by the hash that draws the masks of dropout. Every
    row has as many chosen tokens, so the mean over the rows of a batch is that over its labels.

    Args:
        tokens: ids in [0, num_tokens).  # int32[n, T]
        rate: the share of chosen tokens, in (0, 1).
        num_tokens: of the vocabulary, whose last token is the mask, and whose first is padding.
        rows: the numbers of the rows.  # int64[n]
        seed: the run's seed.
        name: of the epoch, or of the split.

    Returns:
        The rows with hidden tokens, int32[n, T]; and labels, the chosen tokens, NO_LABEL at all
        other positions, int64[n, T].
    """
    key = int(uniform((1,), seed, f"mask/{name}")[0] * 2**32)
    row_keys = mix(mix(rows[:, None] + key) ^ key)
    hashes = mix(mix(np.arange(tokens.shape[1]) + row_keys) ^ row_keys)
    order = np.argsort(hashes, axis=1, kind="stable")
    places = order[:, : num_masked(rate, tokens.shape[1])]
    chosen = np.take_along_axis(tokens, places, axis=1)
    draws = mix(np.take_along_axis(hashes, places, axis=1) ^ key)
    others = _FIRST + mix(draws ^ MASK) % (num_tokens - 1 - _FIRST)
    is_masked = draws < threshold(_MASKED)
    is_random = ~is_masked & (draws < threshold(_MASKED + _RANDOM))
    hidden = np.where(is_masked, num_tokens - 1, np.where(is_random, others, chosen))
    x, y = tokens.copy(), np.full(tokens.shape, NO_LABEL, np.int64)
    np.put_along_axis(x, places, hidden.astype(tokens.dtype), axis=1)
    np.put_along_axis(y, places, chosen.astype(np.int64), axis=1)
    return x, y
