"""The practical limit of the small model on a CPU: JAX, with an epoch as one compiled lax.scan and
a hand-written Adam.

Does: a fresh permutation each epoch, forward, backward, Adam (Kingma and Ba, 2015), rates from a
precomputed table. Does not: validation, metrics, checkpoints, logs. Timed from the first epoch's
permutation to the end of the last update; the accuracy is computed later.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import job as jobs

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def forward(p: Any, x: Any) -> Any:
    return jnp.maximum(x @ p["w0"] + p["b0"], 0) @ p["w1"] + p["b1"]


def loss(p: Any, x: Any, y: Any) -> Any:
    z = jax.nn.log_softmax(forward(p, x))
    return -jnp.take_along_axis(z, y[:, None], 1).mean()


def main() -> None:
    job = jobs.read()
    x, y, rates = jnp.asarray(job.train.x), jnp.asarray(job.train.y), jnp.asarray(job.rates())
    draw = np.random.default_rng(0)
    shapes = {"w0": (64, 128), "b0": (128,), "w1": (128, 10), "b1": (10,)}
    p = {
        name: jnp.asarray(draw.normal(0, 0.1, shape), jnp.float32) for name, shape in shapes.items()
    }
    zeros = jax.tree.map(jnp.zeros_like, p)

    def update(state: Any, rows: Any) -> Any:
        p, m, v, t = state
        value, g = jax.value_and_grad(loss)(p, x[rows], y[rows])
        m = jax.tree.map(lambda m, g: _BETA1 * m + (1 - _BETA1) * g, m, g)
        v = jax.tree.map(lambda v, g: _BETA2 * v + (1 - _BETA2) * g * g, v, g)
        a, b, eta = 1 - _BETA1 ** (t + 1), 1 - _BETA2 ** (t + 1), rates[t]
        p = jax.tree.map(lambda p, m, v: p - eta * (m / a) / (jnp.sqrt(v / b) + _EPS), p, m, v)
        return (p, m, v, t + 1), value

    @jax.jit
    def epoch(state: Any, order: Any) -> Any:
        return jax.lax.scan(update, state, order)

    num_whole = len(x) // job.batch_size * job.batch_size
    assert num_whole == len(x), "the digits are whole batches of 32"
    state, clock = (p, zeros, zeros, 0), jobs.Clock()
    clock.begin()
    for _ in range(job.num_epochs):
        state, values = epoch(
            state, jnp.asarray(draw.permutation(len(x)).reshape(-1, job.batch_size))
        )
        values.block_until_ready()
        clock.end_epoch()
    num_steps, ended = int(state[3]), time.time()
    z = np.asarray(forward(state[0], job.val.x))
    clock.print_result(num_steps, float((z.argmax(1) == job.val.y).mean()), ended)


if __name__ == "__main__":
    main()
