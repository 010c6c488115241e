"""Sayings in four languages, of Debian's packages fortunes, fortunes-de, fortunes-es and
fortunes-it: trained on both backends from text files to tell the language, and compared with a
network of scikit-learn."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import load
from runner.run.run_folder import read_json
from tests.command_line import forked
from tests.real import SEEDS, assert_no_worse, equal_losses

pytestmark = pytest.mark.slow

LANGUAGES = {"en": ".", "de": "de", "es": "es", "it": "it"}
MOST = 150_000  # bytes of a language: about a thousand sayings
DATA = (
    "data=text_classes", "data.path=languages", "data.record_separator=%", "data.context=64",
    "data.val_fraction=0", "model=text_classifier",
)  # fmt: skip
KEYS = ("trainer.max_epochs=4", "trainer.batch_size=64", "optimizer.lr=0.005", "device=cpu")


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """languages/LANGUAGE/FILE.txt, the smallest files first."""
    here = tmp_path_factory.mktemp("fortunes")
    root = Path(os.environ.get("REAL_DATA", ""), "usr/share/games/fortunes")
    if not (root / "debian").is_file():
        pytest.skip("the packages of fortunes are not in the folder REAL_DATA")
    for language, folder in LANGUAGES.items():
        (here / "languages" / language).mkdir(parents=True)
        found = [path for path in (root / folder).iterdir() if path.suffix not in (".dat", ".u8")]
        files = [path for path in found if path.is_file() and not path.is_symlink()]
        size = 0
        for path in sorted(files, key=lambda path: (path.stat().st_size, path.name)):
            content = path.read_bytes()
            size += len(content)
            if size > MOST:
                break
            (here / "languages" / language / f"{path.name}.txt").write_bytes(content)
    return here


def test_languages_have_equal_losses_on_both_backends(languages: Path) -> None:
    equal_losses(languages, *DATA, "trainer.batch_size=256", "trainer.monitor=train/loss")


def test_languages_are_told_apart_as_well_as_by_scikit_learn(
    languages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network there has the share of each word in a text as its input, so its first layer is
    the mean of embedded words too, but for its relu and bias."""
    monkeypatch.chdir(languages)
    data = load(parse(compose(list(DATA))).data)
    ours, theirs = [], []
    for seed in SEEDS:
        (done,) = forked(languages, (*DATA, *KEYS, "trainer.monitor=train/loss", f"seed={seed}"))
        assert (done.status, done.err) == (0, "")
        (tested,) = forked(languages, ("task=evaluate", f"run={done.folder}"))
        assert (tested.status, tested.err) == (0, "")
        ours.append(read_json(languages / done.folder / "test.json")["test/accuracy"])
        network = MLPClassifier(
            (64, 64), alpha=0, batch_size=64, learning_rate_init=5e-3, max_iter=4, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(shares(data.train.x, data.num_tokens), data.train.y)
        theirs.append(network.score(shares(data.test.x, data.num_tokens), data.test.y))
    assert_no_worse(np.array(ours), np.array(theirs))
    assert np.mean(ours) > 0.95


def shares(x: np.ndarray, num_tokens: int) -> csr_matrix:
    """The share of each token in each row, without padding."""
    rows, _ = np.nonzero(x)
    values = np.repeat(1 / (x > 0).sum(axis=1), (x > 0).sum(axis=1))
    return csr_matrix((values, (rows, x[x > 0])), (len(x), num_tokens))
