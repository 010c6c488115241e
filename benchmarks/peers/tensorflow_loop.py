"""A hand-written TensorFlow loop: a lower limit for Keras's layers and optimizer on TensorFlow.

Does: a fresh permutation each epoch, forward, backward and Keras's Adam in one tf.function per
epoch, rates from a precomputed table; XLA for dense models and the transformer, no XLA for other
models with convolutions, which it makes slower on the CPU; the validation accuracy after every
epoch. Does not: training metrics, checkpoints, logs; it does not keep the loss.
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
    model = network(job.model)
    x, y, rates = (
        tf.constant(job.train.x),
        tf.constant(job.train.y),
        tf.constant(job.rates(), tf.float32),
    )
    optimizer = keras.optimizers.Adam(jobs.LEARNING_RATE)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def update(rows: Any) -> None:
        optimizer.learning_rate.assign(tf.gather(rates, optimizer.iterations.value))
        with tf.GradientTape() as tape:
            value = loss(tf.gather(y, rows), model(tf.gather(x, rows), training=True))
        gradients = tape.gradient(value, [variable.value for variable in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)

    @tf.function(jit_compile="mlp" in job.model or job.model == "transformer", autograph=False)
    def epoch(whole: Any, rest: Any) -> None:
        def body(k: Any) -> Any:
            update(whole[k])
            return (k + 1,)

        tf.while_loop(lambda k: k < whole.shape[0], body, (0,), parallel_iterations=1)
        if rest.shape[0]:
            update(rest)

    evaluate = tf.function(lambda x: model(x, training=False), autograph=False)
    clock, num_whole = jobs.Clock(), len(x) // job.batch_size * job.batch_size
    clock.begin()
    for _ in range(job.num_epochs):
        order = np.random.permutation(len(x))
        epoch(
            tf.constant(order[:num_whole].reshape(-1, job.batch_size)),
            tf.constant(order[num_whole:]),
        )
        accuracy = jobs.accuracy(job.val, lambda x: evaluate(tf.constant(x)).numpy())
        clock.end_epoch()
    clock.print_result(int(optimizer.iterations), accuracy)


if __name__ == "__main__":
    main()
