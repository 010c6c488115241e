"""Keras on TensorFlow as users write it: `compile` and `fit` on arrays.

Does: Adam with ExponentialDecay, the metric accuracy in training and validation, validation_data, a
ModelCheckpoint after every epoch; jit_compile is Keras's default (auto). Does not: a progress bar,
a log file, a trace of every step. Timed from the start of the first training batch to the end of
`fit`, including tracing and compilation.
"""

from typing import Any

import keras

from benchmarks.peers import job as jobs
from benchmarks.peers.keras_layers import network


class Timed(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.clock = jobs.Clock()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.clock.begin()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.clock.end_epoch()


def main() -> None:
    job = jobs.read()
    keras.utils.set_random_seed(0)
    model, timed = network(job.model), Timed()
    rate = keras.optimizers.schedules.ExponentialDecay(
        jobs.LEARNING_RATE, decay_steps=1, decay_rate=jobs.DECAY_RATE
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        job.train.x,
        job.train.y,
        batch_size=job.batch_size,
        epochs=job.num_epochs,
        validation_data=(job.val.x, job.val.y),
        callbacks=[keras.callbacks.ModelCheckpoint(job.folder / "{epoch:02d}.keras"), timed],
        verbose=0,
    )
    timed.clock.print_result(
        int(model.optimizer.iterations.numpy()), history.history["val_accuracy"][-1]
    )


if __name__ == "__main__":
    main()
