"""The losses in TensorFlow: the mean over rows, from raw outputs.

z  # [B, C]; y  # labels [B] or targets [B, C]. Labels [B, T] have outputs [B, T, C]; the mean is
over rows and positions. Sequences of labels [B, L] have outputs [B, T, C + 1].
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from backends.keras import alignment
from backends.keras.layers import constant
from runner.components.losses import COSINE_EPS


def build(loss: Any, has_weights: bool = False) -> Callable[..., Any]:
    """Build the function (z, y) that computes a batch's mean loss from a
    runner.components.losses.Loss. If the rows have weights w [B], it is (z, y, w), the mean of the
    rows' losses times w; of weights of positions [B, T], the sum over a row's positions."""
    values = _values(loss)
    if has_weights:

        def weighted(z: Any, y: Any, w: Any) -> Any:
            by_row, w = tf.reshape(values(z, y), [tf.shape(w)[0], -1]), tf.cast(w, z.dtype)
            if len(w.shape) == 1:
                return tf.reduce_mean(tf.reduce_mean(by_row, axis=1) * w)
            return tf.reduce_mean(tf.reduce_sum(by_row * tf.reshape(w, tf.shape(by_row)), axis=1))

        return weighted
    has_one_mean = getattr(loss, "class_weights", None) is None
    match loss.name:  # one mean over rows and outputs takes less time than two
        case "cross_entropy" if has_one_mean:
            return lambda z, y: _cross_entropy(z, y, loss.label_smoothing)
        case "masked_tokens":
            return _masked_tokens
        case "soft_cross_entropy":  # TensorFlow's kernel takes only targets with the sum 1
            return lambda z, y: -tf.reduce_mean(tf.reduce_sum(y * tf.nn.log_softmax(z), axis=-1))
        case "binary_cross_entropy" if has_one_mean:
            return lambda z, y: tf.reduce_mean(
                tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=z)
            )
        case "mean_squared_error":
            return lambda z, y: tf.reduce_mean(tf.math.squared_difference(z, y))
        case "huber":
            return lambda z, y: tf.reduce_mean(_huber(z, y, loss.delta))
    return lambda z, y: tf.reduce_mean(values(z, y))


def _cross_entropy(z: Any, y: Any, smoothing: float) -> Any:
    label_loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z))
    if smoothing == 0:
        return label_loss
    uniform_loss = -tf.reduce_mean(tf.nn.log_softmax(z))
    return constant(1 - smoothing, z) * label_loss + constant(smoothing, z) * uniform_loss


def _masked_tokens(z: Any, y: Any) -> Any:
    has_label = tf.cast(y >= 0, z.dtype)
    labels = tf.maximum(y, 0)
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=z)
    return tf.reduce_sum(values * has_label) / tf.reduce_sum(has_label)


def _huber(z: Any, y: Any, delta: float) -> Any:
    error, edge, half = tf.abs(z - y), constant(delta, z), constant(0.5, z)
    return tf.where(error <= edge, half * error * error, edge * (error - half * edge))


def _focal(loss: Any, z: Any, y: Any) -> Any:
    """Return the loss of each label [B, ...], or of each output [B, C]."""
    gamma, alpha = constant(loss.gamma, z), constant(1 if loss.alpha is None else loss.alpha, z)
    if y.dtype.is_floating:  # several labels
        t = (2 * y - 1) * z
        values = tf.exp(-gamma * tf.math.softplus(t)) * tf.math.softplus(-t)
        return values if loss.alpha is None else tf.where(y > 0, alpha, 1 - alpha) * values
    log_p, is_label = tf.nn.log_softmax(z), tf.one_hot(y, z.shape[-1], True, False, dtype=tf.bool)
    log_others = tf.reduce_logsumexp(tf.where(is_label, constant(-np.inf, z), log_p), -1)
    of_label = tf.reduce_sum(tf.where(is_label, log_p, constant(0, z)), -1)
    return -alpha * tf.exp(gamma * log_others) * of_label


def _cosine_similarity(z: Any, y: Any) -> Any:
    eps = constant(COSINE_EPS, z)
    sizes = (tf.reduce_sum(z * z, 1) + eps) * (tf.reduce_sum(y * y, 1) + eps)
    return 1 - tf.reduce_sum(z * y, 1) / tf.sqrt(sizes)


def _contrastive(loss: Any, z: Any, y: Any) -> Any:
    u = z / tf.sqrt(tf.reduce_sum(z * z, 1, keepdims=True) + constant(COSINE_EPS, z))
    similarity = tf.matmul(u, u, transpose_b=True) / constant(loss.temperature, z)
    is_self = tf.eye(tf.shape(z)[0], dtype=tf.bool)
    # no infinity: a batch of one row has no others
    others = tf.where(is_self, constant(-1e30, z), similarity)
    total = tf.reduce_logsumexp(others, 1, keepdims=True)
    has_label = (y[:, None] == y) & ~is_self
    sums = tf.reduce_sum(tf.where(has_label, total - similarity, constant(0, z)), 1)
    return sums / tf.maximum(tf.reduce_sum(tf.cast(has_label, z.dtype), 1), constant(1, z))


def _values(loss: Any) -> Callable[[Any, Any], Any]:
    """Build the function that computes the loss of each label, or of each row of targets, times its
    class weight.  # [B T] or [B]"""

    def values(z: Any, y: Any) -> Any:
        match loss.name:
            case "cross_entropy":
                of_label = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z)
                if smoothing := loss.label_smoothing:
                    uniform = -tf.reduce_mean(tf.nn.log_softmax(z), axis=-1)
                    certain = constant(1 - smoothing, z) * of_label
                    of_label = certain + constant(smoothing, z) * uniform
                return tf.reshape(of_label, [-1])
            case "binary_cross_entropy":
                of_output = tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=z)
                return tf.reduce_mean(of_output, axis=1)
            case "mean_squared_error":
                return tf.reduce_mean(tf.math.squared_difference(z, y), axis=1)
            case "huber":
                return tf.reduce_mean(_huber(z, y, loss.delta), axis=1)
            case "focal":
                return tf.reshape(_focal(loss, z, y), [-1])
            case "cosine_similarity":
                return _cosine_similarity(z, y)
            case "contrastive":
                return _contrastive(loss, z, y)
            case "ctc":
                return alignment.negative_log_likelihood(z, y)
        raise AssertionError(loss.name)

    if getattr(loss, "class_weights", None) is None:
        return values

    def weighted(z: Any, y: Any) -> Any:
        labels = tf.cast(tf.reshape(y, [-1]), tf.int64)
        return tf.gather(tf.constant(loss.class_weights, z.dtype), labels) * values(z, y)

    return weighted
