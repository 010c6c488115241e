"""task=export to formats of TensorFlow: raw rows give the outputs of predict, without this
project."""

import json
from pathlib import Path

import numpy as np
import pytest

from runner import load_run
from tests.command_line import forked, in_new_process

SIZES = (1, 5, 2)  # of batches

ALONE = """
import json, sys
import numpy as np
import tensorflow as tf
folder, sizes = sys.argv[1], json.loads(sys.argv[2])
x = np.load("x.npy").astype(np.float32)
saved = tf.saved_model.load(f"{folder}/model.savedmodel")
lite = tf.lite.Interpreter(f"{folder}/model.tflite").get_signature_runner()
found = [[call(x[:n]) for n in sizes] for call in (
    lambda x: saved.serve(x)["y"].numpy().tolist(), lambda x: lite(x=x)["y"].tolist(),
)]
assert not any(name.partition(".")[0] in ("runner", "backends") for name in sys.modules)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lightning", "keras"])
def test_a_saved_model_and_a_tflite_file_take_raw_rows(tmp_path: Path, backend: str) -> None:
    """A year has an offset of 700 times its scale, of which float32 would lose three digits.

    1e-5 of the targets' scale: float32 sums in another order."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(2015, 2026, 60), rng.normal(0.1, 2.0, 60)], 1)
    y = 1000.0 * (x[:, 0] - 2020) + 50_000
    np.savez(tmp_path / "a.npz", x=x, y=y)
    keys = ("data=npz", "data.path=a.npz", "data.task=regression", "model=mlp", "device=cpu")
    (done,) = forked(tmp_path, (*keys, f"backend={backend}", "trainer.max_steps=9"))
    run = f"run={done.folder}"
    formats = ("savedmodel", "tflite", "savedmodel")  # the last one replaces the first
    exported = forked(tmp_path, *((run, "task=export", f"format={each}") for each in formats))
    assert [(each.status, each.err) for each in exported] == [(0, "")] * 3
    folder = tmp_path / done.folder
    assert json.loads((folder / "model.tflite.json").read_text())["inputs"] == "raw rows"
    assert not [*folder.glob(".export-*")]
    np.save(tmp_path / "x.npy", x[:5])
    code = ALONE.replace("sys.argv[1], json.loads(sys.argv[2])", f"{done.folder!r}, {SIZES}")
    expected = np.asarray(load_run(folder).predict(x[:5]))
    scale = np.std(y)
    for outputs in json.loads(in_new_process(tmp_path, code).splitlines()[-1]):
        for size, found in zip(SIZES, outputs, strict=True):
            np.testing.assert_allclose(
                np.ravel(found) / scale, np.ravel(expected[:size]) / scale, rtol=0, atol=1e-5
            )


@pytest.mark.slow
def test_a_tflite_file_holds_float32(tmp_path: Path) -> None:
    (done,) = forked(tmp_path, ("trainer.precision=float64", "trainer.max_steps=1", "device=cpu"))
    (exported,) = forked(tmp_path, (f"run={done.folder}", "task=export", "format=tflite"))
    assert (exported.status, exported.err) == (
        2,
        "error: format=tflite needs trainer.precision to be float32 or exact, got float64; "
        "format=savedmodel takes it\n",
    )
    assert not [*(tmp_path / done.folder).glob("model*")]
