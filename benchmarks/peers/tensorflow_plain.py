"""A typical hand-written TensorFlow loop: one tf.function per update, called from Python.

Does: a fresh permutation each epoch, forward, backward and Keras's Adam in a tf.function of one
batch, its rate set before each update; the validation accuracy after every epoch.
Does not: training metrics, checkpoints, logs; it does not keep the loss.
Timed from the first epoch's permutation to the end of the last epoch's validation.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.peers import job as jobs
from benchmarks.peers.keras_layers import network


def main() -> None:
    job = jobs.read()
    keras.utils.set_random_seed(0)
    model, optimizer = network(job.model), keras.optimizers.Adam(jobs.LEARNING_RATE)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def update(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    evaluate = tf.function(lambda x: model(x, training=False))
    x, y, rates, clock = job.train.x, job.train.y, iter(job.rates()), jobs.Clock()
    clock.begin()
    for _ in range(job.num_epochs):
        order = np.random.permutation(len(x))
        for begin in range(0, len(x), job.batch_size):
            rows = order[begin : begin + job.batch_size]
            optimizer.learning_rate = next(rates)
            update(x[rows], y[rows])
        accuracy = jobs.accuracy(job.val, lambda x: evaluate(x).numpy())
        clock.end_epoch()
    clock.print_result(int(optimizer.iterations), accuracy)


if __name__ == "__main__":
    main()
