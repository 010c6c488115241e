"""Models of torchvision, timm and keras.applications with random weights, through the command line:
trained, killed, resumed to the same bits, evaluated, predicted, exported."""

import signal
from pathlib import Path

import numpy as np
import pytest

from runner.run.run_folder import read_columns, read_json
from tests.command_line import Running, forked


def _can_import(package: str) -> bool:
    """Return whether a package is installed and built for the installed torch: PyPI has
    torchvision for torch with CUDA only, and it cannot be imported with another one."""
    try:
        __import__(package)
    except (ImportError, RuntimeError):
        return False
    return True


MODELS = {
    "torchvision": ("torchvision.models.resnet18", "model.num_classes=3"),
    "timm": ("timm.create_model", "model.model_name=resnet10t", "model.num_classes=3"),
    "keras.applications": (
        "keras.applications.MobileNet",
        "model.input_shape=[32,32,3]",
        "model.alpha=0.25",
        "model.classes=3",
        "model.classifier_activation=null",
        "backend=keras",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", MODELS)
def test_a_published_model_has_what_built_in_models_have(tmp_path: Path, package: str) -> None:
    if not package.startswith("keras") and not _can_import(package):
        pytest.skip(f"{package} cannot be imported with this torch")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    x = (rng.normal(0, 0.3, (60, 32, 32, 3)) + y[:, None, None, None]).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=x, y=y)
    np.savez(tmp_path / "new.npz", x=x[:5])
    target, *more = MODELS[package]
    settings = ("device=cpu", "trainer.batch_size=12", "trainer.max_epochs=2", "schedule=cosine")
    line = (
        *("data=npz", "data.path=images.npz", "model=custom", f"model._target_={target}", *more),
        *(*settings, "trainer.checkpoint_every=1steps", "trainer.steps_per_call=1"),
    )
    (whole,) = forked(tmp_path, line)
    assert (whole.status, whole.err) == (0, "")
    with Running(tmp_path, *line, "output.root=part") as running:
        running.until(lambda: any(tmp_path.glob("part/runs/*/checkpoints/last")))
        running.end(signal.SIGKILL)
    (part,) = (tmp_path / "part" / "runs").iterdir()
    form, file = ("keras", "model.keras") if "backend=keras" in more else ("torch", "model.pt2")
    run = f"run={whole.folder}"
    each = forked(
        tmp_path,
        (f"resume={part}",),
        (run, "task=evaluate"),
        (run, "task=predict", "data.path=new.npz"),
        (run, "task=export", f"format={form}"),
    )
    assert [(done.status, done.err) for done in each] == [(0, "")] * 4
    folder = tmp_path / whole.folder
    hashes = [read_json(path / "result.json")["weights_sha256"] for path in (folder, part)]
    assert hashes[0] == hashes[1]
    rates = read_columns(folder / "trace.csv")["learning_rate"]
    # the cosine from 1e-3 to 0 over the 6 updates, in float32
    np.testing.assert_allclose(rates, 5e-4 * (1 + np.cos(np.pi * np.arange(6) / 6)), rtol=1e-6)
    assert 0 <= read_json(folder / "test.json")["test/accuracy"] <= 1
    outputs = np.load(folder / "predictions.npz")["outputs"]
    # float32 sums in another order
    np.testing.assert_allclose(_exported(folder / file, x[:5]), outputs, rtol=1e-4, atol=1e-4)


def _exported(path: Path, x: np.ndarray) -> np.ndarray:
    if path.suffix == ".keras":
        import keras

        return np.asarray(keras.models.load_model(path)(x, training=False))
    import torch

    found: np.ndarray = torch.export.load(path).module()(torch.from_numpy(x)).detach().numpy()
    return found
