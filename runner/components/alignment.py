"""Sequences of labels that are shorter than the outputs: the likelihood of connectionist temporal
classification (CTC), and edit distances.

z      # outputs [N, T, C + 1]; the last of each step is the blank
y      # labels int[N, L], -1 after the last one of a row
"""

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
NO_LABEL = -1


def lengths(y: Array) -> Array:
    """Count the labels of each row.  # int64[N]"""
    num: Array = (y != NO_LABEL).sum(axis=1)
    return num


def texts_of(labels: Array, classes: Sequence[str], separator: str) -> list[str]:
    """Join the names of sequences of labels, -1 after the last one of a row.  # int64[N, L]"""
    return [separator.join(classes[i] for i in row[row >= 0]) for row in labels]


def fewest_steps(y: Array) -> Array:
    """Return the fewest steps that can have the labels of each row: one for each, and a blank
    between two equal neighbours.  # int64[N]"""
    repeats = (y[:, 1:] == y[:, :-1]) & (y[:, 1:] != NO_LABEL)
    num: Array = lengths(y) + repeats.sum(axis=1)
    return num


def extended(y: Array, blank: int) -> tuple[Array, Array]:
    """Put blanks around and between the labels. Return l' [N, 2 L + 1], and where a path may come
    from two places before, because that label is another one and no blank.  # bool[N, 2 L + 1]"""
    labels = np.full((len(y), 2 * y.shape[1] + 1), blank)
    labels[:, 1::2] = np.where(y == NO_LABEL, blank, y)
    skips = np.zeros(labels.shape, bool)
    skips[:, 2:] = (labels[:, 2:] != blank) & (labels[:, 2:] != labels[:, :-2])
    return labels, skips


def negative_log_likelihood(log_p: Array, y: Array) -> Array:
    """Compute -ln p(y) of each row, by the forward recursion in logarithms.

    p(y) is the sum over all paths of T classes and blanks that become y, if equal neighbours and
    then the blanks are left out, of the product of their probabilities. With the labels l' of
    `extended`, a_1(1) = p_1(blank), a_1(2) = p_1(y_1), and a_t(s) = p_t(l'_s) (a_{t-1}(s) +
    a_{t-1}(s - 1) + [skips_s] a_{t-1}(s - 2)); p(y) = a_T(2 l) + a_T(2 l + 1) for l labels.

    Graves et al. (2006), equations 5 to 8. torch.nn.functional.ctc_loss with reduction="none",
    tf.nn.ctc_loss.

    Args:
        log_p: the logarithms of the probabilities, the blank last.  # float64[N, T, C + 1]
        y: the labels, at least one in each row.

    Returns:
        -ln p(y) >= 0; infinite if T is less than `fewest_steps`.  # float64[N]
    """
    labels, skips = extended(y, log_p.shape[-1] - 1)
    emitted = np.take_along_axis(log_p, labels[:, None], axis=2)  # [N, T, 2 L + 1]
    alpha = np.where(np.arange(labels.shape[1]) < 2, emitted[:, 0], -np.inf)
    for step in range(1, emitted.shape[1]):
        one_before, two_before = (
            np.pad(alpha, ((0, 0), (num, 0)), constant_values=-np.inf)[:, :-num] for num in (1, 2)
        )
        two_before = np.where(skips, two_before, -np.inf)
        alpha = np.logaddexp(np.logaddexp(alpha, one_before), two_before) + emitted[:, step]
    last = 2 * lengths(y)[:, None]
    ends = np.take_along_axis(alpha, np.concatenate([last - 1, last], axis=1), axis=1)
    found: Array = -np.logaddexp(ends[:, 0], ends[:, 1])
    return found


def greedy(z: Array) -> Array:
    """Return the labels of the most probable path: the largest output of each step (the first one
    of equals), without repetitions, then without blanks. Graves et al. (2006), section 3.2, best
    path decoding.  # int64[N, T], -1 after the last one of a row"""
    path = z.argmax(axis=-1)
    is_kept = path != z.shape[-1] - 1
    is_kept[:, 1:] &= path[:, 1:] != path[:, :-1]
    order = np.argsort(~is_kept, axis=1, kind="stable")  # the kept ones first
    is_kept = np.take_along_axis(is_kept, order, axis=1)
    return np.where(is_kept, np.take_along_axis(path, order, axis=1), NO_LABEL)


def edit_distances(found: Array, y: Array) -> Array:
    """Return the fewest insertions, deletions and substitutions that turn each row of `found` into
    that of `y`; both have -1 after the last label. Levenshtein (1966), by the recursion of Wagner
    and Fischer (1974), for all rows at once.  # int64[N, M], int64[N, L] -> int64[N]"""
    columns = np.arange(found.shape[1] + 1)
    distances = np.broadcast_to(columns, (len(y), len(columns)))  # to the empty sequence
    num_found, num_labels = lengths(found), lengths(y)
    result = num_found.copy()
    for i in range(y.shape[1]):
        other = found != y[:, i : i + 1]
        best = distances + 1  # label i is deleted
        best[:, 1:] = np.minimum(best[:, 1:], distances[:, :-1] + other)
        # insertions, from left to right: d_j = min over k <= j of best_k + j - k
        distances = np.minimum.accumulate(best - columns, axis=1) + columns
        at_end = np.take_along_axis(distances, num_found[:, None], axis=1)[:, 0]
        result = np.where(num_labels == i + 1, at_end, result)
    return result
