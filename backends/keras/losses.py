"""The losses in TensorFlow: the mean over rows, from raw outputs.

z  # [B, C]; y  # labels [B] or targets [B, C]. Labels [B, T] have outputs [B, T, C]; the mean is
over rows and positions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from backends.keras.layers import constant
from runner.components.losses import COSINE_EPS


def build(loss: Any) -> Callable[[Any, Any], Any]:
    """Build the function that computes a batch's mean loss from a runner.components.losses.Loss."""
    if getattr(loss, "class_weights", None) is not None:
        return _weighted(loss)
    match loss.name:
        case "cross_entropy":
            return lambda z, y: _cross_entropy(z, y, loss.label_smoothing)
        case "binary_cross_entropy":
            return lambda z, y: tf.reduce_mean(
                tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=z)
            )
        case "mean_squared_error":
            return lambda z, y: tf.reduce_mean(tf.math.squared_difference(z, y))
        case "huber":
            return lambda z, y: _huber(z, y, loss.delta)
        case "focal":
            return lambda z, y: tf.reduce_mean(_focal(loss, z, y))
        case "cosine_similarity":
            return _cosine_similarity
    raise AssertionError(loss.name)


def _cross_entropy(z: Any, y: Any, smoothing: float) -> Any:
    label_loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z))
    if smoothing == 0:
        return label_loss
    uniform_loss = -tf.reduce_mean(tf.nn.log_softmax(z))
    return constant(1 - smoothing, z) * label_loss + constant(smoothing, z) * uniform_loss


def _huber(z: Any, y: Any, delta: float) -> Any:
    error, edge, half = tf.abs(z - y), constant(delta, z), constant(0.5, z)
    return tf.reduce_mean(
        tf.where(error <= edge, half * error * error, edge * (error - half * edge))
    )


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
    return tf.reduce_mean(1 - tf.reduce_sum(z * y, 1) / tf.sqrt(sizes))


def _weighted(loss: Any) -> Callable[[Any, Any], Any]:
    """Build a loss with class weights: the mean over rows of weight * value."""

    def mean(z: Any, y: Any) -> Any:
        labels = tf.cast(tf.reshape(y, [-1]), tf.int64)
        rows = tf.gather(tf.constant(loss.class_weights, z.dtype), labels)
        if loss.name == "binary_cross_entropy":
            values = tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=z)
            return tf.reduce_mean(rows * tf.reduce_mean(values, axis=1))
        if loss.name == "focal":
            return tf.reduce_mean(rows * tf.reshape(_focal(loss, z, y), [-1]))
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z)
        if smoothing := loss.label_smoothing:
            uniform = -tf.reduce_mean(tf.nn.log_softmax(z), axis=-1)
            values = constant(1 - smoothing, z) * values + constant(smoothing, z) * uniform
        return tf.reduce_mean(rows * tf.reshape(values, [-1]))

    return mean
