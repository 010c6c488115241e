"""The losses in TensorFlow: the mean over rows, from raw outputs.

z  # [B, C]; y  # labels [B] or targets [B, C]. Labels [B, T] have outputs [B, T, C]; the mean is
over rows and positions.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from backends.keras.layers import constant


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


def _weighted(loss: Any) -> Callable[[Any, Any], Any]:
    """Build a loss with class weights: the mean over rows of weight * value."""

    def mean(z: Any, y: Any) -> Any:
        labels = tf.cast(tf.reshape(y, [-1]), tf.int64)
        rows = tf.gather(tf.constant(loss.class_weights, z.dtype), labels)
        if loss.name == "binary_cross_entropy":
            values = tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=z)
            return tf.reduce_mean(rows * tf.reduce_mean(values, axis=1))
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z)
        if smoothing := loss.label_smoothing:
            uniform = -tf.reduce_mean(tf.nn.log_softmax(z), axis=-1)
            values = constant(1 - smoothing, z) * values + constant(smoothing, z) * uniform
        return tf.reduce_mean(rows * tf.reshape(values, [-1]))

    return mean
