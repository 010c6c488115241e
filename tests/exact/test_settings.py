"""The bits do not depend on how a framework computes: threads, compilation, libraries, instruction
set, updates a call."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.command_line import BACKENDS, REPOSITORY
from tests.exact.common import BASE, assert_same_bits
from tests.parity.test_parity import IMAGES
from tests.rows import long_but
from tests.training import train

RUN = [*BASE, "model=cnn", IMAGES, "schedule=cosine", "trainer.max_steps=3"]
_HASHES = f"""
import sys
from tests.training import train
from runner.run.certificate import hashes
trained = train(sys.argv[1], [*{RUN!r}, "trainer.threads=" + sys.argv[2]])
print(*hashes(trained.state, trained.losses).values())
"""
# a setting of the environment that moves sums, products or kernels, by the libraries' own names;
# `threads` is trainer.threads
SETTINGS = {
    "one thread": {},
    "two threads": {"threads": "2"},
    "three threads": {"threads": "3"},
    "oneDNN off": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "oneDNN on": {"TF_ENABLE_ONEDNN_OPTS": "1"},
    "SSE4.2, two threads": {"threads": "2", "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
                            "ONEDNN_MAX_CPU_ISA": "SSE41", "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
                            "TF_ENABLE_ONEDNN_OPTS": "0"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
             "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
}  # fmt: skip


def in_a_process(backend: str, setting: dict[str, str]) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        **{name: value for name, value in setting.items() if name != "threads"},
    }
    command = [sys.executable, "-c", _HASHES, backend, setting.get("threads", "1")]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def witness() -> str:
    from runner.run.certificate import hashes

    trained = train("witness", RUN)
    return " ".join(hashes(trained.state, trained.losses).values())


@pytest.mark.parametrize(
    "name", long_but(SETTINGS, slow=["two threads", "oneDNN off", "SSE4.2, two threads"])
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_libraries_and_instruction_set(backend: str, name: str, witness: str) -> None:
    assert in_a_process(backend, SETTINGS[name]) == witness


@pytest.mark.parametrize("backend", ["lightning", pytest.param("keras", marks=pytest.mark.slow)])
def test_updates_a_call(backend: str) -> None:
    short = [*BASE, "schedule=cosine", "trainer.max_steps=12"]
    assert_same_bits(
        train(backend, [*short, "trainer.steps_per_call=1"]),
        train(backend, [*short, "trainer.steps_per_call=6"]),
    )


@pytest.mark.slow
def test_convolutions_under_xla_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default only networks without convolutions are compiled."""
    from backends.keras import device

    as_usual = train("keras", RUN)
    monkeypatch.setattr(device, "uses_xla", lambda run: True)
    assert_same_bits(train("keras", RUN), as_usual)


@pytest.mark.slow
def test_keras_eager() -> None:
    import tensorflow as tf

    short = [*BASE, "schedule=cosine", "model=linear", "trainer.max_steps=4"]
    compiled = train("keras", short)
    tf.config.run_functions_eagerly(True)
    try:
        assert_same_bits(train("keras", short), compiled)
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.mark.slow
def test_exact_mode_learns_as_float32_does() -> None:
    """Four seeds of 200 updates. A rounding of 2^-24 is what float32 does too, so that the two
    differ by less than seeds do: the tolerance is the spread of float32's own last losses."""
    last: dict[str, list[float]] = {"exact": [], "float32": []}
    for precision, losses in last.items():
        for seed in range(4):
            run = train(
                "lightning",
                [
                    "device=cpu",
                    f"trainer.precision={precision}",
                    f"seed={seed}",
                    "trainer.max_steps=200",
                ],
            )
            losses.append(float(run.losses[-40:].mean()))
    exact, single = (np.array(values) for values in last.values())
    assert abs(exact.mean() - single.mean()) < single.std(ddof=1)
    assert single.mean() < 0.5  # it has learnt: ln 10 = 2.3 at first
