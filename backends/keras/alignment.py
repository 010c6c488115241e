"""CTC in TensorFlow: runner.components.alignment, with its derivative.

tf.nn.ctc_loss and keras.ops.ctc_loss compute in float32 only, so the recursion is written out. The
derivative by the logarithms of the probabilities is minus the probability of each class at each
step given the labels, from the recursions forward and backward in time. These are the same
function, the second one of reversed labels and steps, so one loop computes both.
"""

from typing import Any

import tensorflow as tf

_NEVER = -1e30  # a logarithm of 0 whose differences are numbers


def negative_log_likelihood(z: Any, y: Any) -> Any:
    """Return -ln p(y) of each row, for outputs z [B, T, C + 1] and labels y [B, L].  # [B]"""
    return _of_log_p(tf.nn.log_softmax(z), y)


@tf.custom_gradient
def _of_log_p(log_p: Any, y: Any) -> Any:
    num_steps, num_classes = log_p.shape[1], log_p.shape[2]
    labels, skips = _extended(y, num_classes - 1)
    num_places = labels.shape[1]
    emitted = tf.gather(log_p, tf.tile(labels[:, None], [1, num_steps, 1]), axis=2, batch_dims=2)
    places, last = tf.range(num_places)[None], 2 * _lengths(y)[:, None]
    starts = tf.tile(places < 2, [tf.shape(y)[0], 1])
    ends = (places == last) | (places == last - 1)
    # backward, a path comes from place s + 2 where place s + 2 can be skipped to from s
    skips_back = tf.reverse(tf.pad(skips[:, 2:], [[0, 0], [0, 2]]), [1])
    paths = _recursion(
        tf.concat([emitted, tf.reverse(emitted, [1, 2])], 0),
        tf.concat([starts, tf.reverse(ends, [1])], 0),
        tf.concat([skips, skips_back], 0),
    )
    forward, backward = tf.split(paths, 2)
    never = tf.constant(_NEVER, log_p.dtype)
    total = tf.reduce_logsumexp(tf.where(ends, forward[:, -1], never), axis=1)

    def gradient(upstream: Any) -> tuple[Any, None]:
        # the step's own probability is in both recursions
        through = forward + tf.reverse(backward, [1, 2]) - emitted - total[:, None, None]
        of_place = tf.exp(through) * upstream[:, None, None]
        return -tf.matmul(of_place, tf.one_hot(labels, num_classes, dtype=log_p.dtype)), None

    return -total, gradient


def _recursion(emitted: Any, starts: Any, skips: Any) -> Any:
    """Return ln a_t(s), the paths that begin at `starts` and end at place s at step t.

    emitted        # logarithms of probabilities [B, T, S]
    starts, skips  # bool[B, S]
    """
    never = tf.constant(_NEVER, emitted.dtype)

    def step(before: Any, here: Any) -> Any:
        one, two = (
            tf.pad(before, [[0, 0], [num, 0]], constant_values=never)[:, :-num] for num in (1, 2)
        )
        parts = tf.stack([before, one, tf.where(skips, two, never)])
        return tf.reduce_logsumexp(parts, axis=0) + here

    by_step = tf.transpose(emitted, [1, 0, 2])
    begin = tf.where(starts, by_step[0], never)
    later = tf.scan(step, by_step[1:], begin)
    return tf.transpose(tf.concat([begin[None], later], 0), [1, 0, 2])


def _extended(y: Any, blank: int) -> tuple[Any, Any]:
    """runner.components.alignment.extended."""
    labels = tf.where(y < 0, tf.constant(blank, y.dtype), y)
    blanks = tf.fill(tf.shape(y), tf.constant(blank, y.dtype))
    between = tf.reshape(tf.stack([blanks, labels], 2), [-1, 2 * y.shape[1]])
    labels = tf.concat([between, blanks[:, :1]], 1)
    skips = (labels[:, 2:] != blank) & (labels[:, 2:] != labels[:, :-2])
    return labels, tf.pad(skips, [[0, 0], [2, 0]])


def _lengths(y: Any) -> Any:
    return tf.reduce_sum(tf.cast(y >= 0, tf.int32), 1)
