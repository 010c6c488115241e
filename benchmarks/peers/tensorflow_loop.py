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


def main(keeps_records: bool = False) -> None:
    """Train. With `keeps_records`, measure the loss and the accuracy of training and validation,
    and write a row per update and a checkpoint per epoch."""
    job = jobs.read()
    records = jobs.Records(job.folder) if keeps_records else None
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

    def update(rows: Any) -> Any:
        """Return the loss and the number of right rows; without records XLA drops them."""
        optimizer.learning_rate.assign(tf.gather(rates, optimizer.iterations.value))
        labels = tf.gather(y, rows)
        with tf.GradientTape() as tape:
            z = model(tf.gather(x, rows), training=True)
            value = loss(labels, z)
        gradients = tape.gradient(value, [variable.value for variable in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)
        return tf.stack([value, tf.reduce_sum(tf.cast(tf.argmax(z, 1) == labels, value.dtype))])

    @tf.function(jit_compile="mlp" in job.model or job.model == "transformer", autograph=False)
    def epoch(whole: Any, rest: Any) -> Any:
        taken = tf.TensorArray(tf.float32, whole.shape[0] + bool(rest.shape[0]), element_shape=(2,))

        def body(k: Any, taken: Any) -> Any:
            values = update(whole[k])
            return k + 1, taken.write(k, values) if keeps_records else taken

        start = (tf.constant(0), taken)
        _, taken = tf.while_loop(
            lambda k, _: k < whole.shape[0], body, start, parallel_iterations=1
        )
        if rest.shape[0]:
            values = update(rest)
            taken = taken.write(whole.shape[0], values) if keeps_records else taken
        return taken.stack() if keeps_records else None

    evaluate = tf.function(lambda x: model(x, training=False), autograph=False)
    clock, num_whole = jobs.Clock(), len(x) // job.batch_size * job.batch_size
    clock.begin()
    for _ in range(job.num_epochs):
        order = np.random.permutation(len(x))
        taken = epoch(
            tf.constant(order[:num_whole].reshape(-1, job.batch_size)),
            tf.constant(order[num_whole:]),
        )
        if records is None:
            accuracy = jobs.accuracy(job.val, lambda x: evaluate(tf.constant(x)).numpy())
        else:
            accuracy = _record(records, job, taken.numpy(), evaluate, loss)
            variables = [*model.variables, *optimizer.variables]
            values = {str(i): variable.numpy() for i, variable in enumerate(variables)}
            records.save(".npz", lambda path, values=values: np.savez(path, **values))
        clock.end_epoch()
    clock.print_result(int(optimizer.iterations), accuracy)


def _record(records: jobs.Records, job: jobs.Job, taken: Any, evaluate: Any, loss: Any) -> float:
    """Append the rows of an epoch. Return the validation accuracy."""
    z = tf.concat(
        [evaluate(tf.constant(job.val.x[i : i + jobs.VAL_BATCH_SIZE]))
         for i in range(0, len(job.val.x), jobs.VAL_BATCH_SIZE)], 0
    )  # fmt: skip
    accuracy = float((z.numpy().argmax(1) == job.val.y).mean())
    first, losses = records.num_steps, taken[:, 0]
    metrics = (losses.mean(), taken[:, 1].sum() / len(job.train.x), float(loss(job.val.y, z)))
    records.end_epoch(job.rates()[first : first + len(losses)], losses, (*metrics, accuracy))
    return accuracy


if __name__ == "__main__":
    main()
