"""Speech, recorded and spoken by a program: trained on both backends, and compared with networks
of scikit-learn on the same rows."""

import subprocess
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import load
from runner.run.run_folder import read_json
from tests.command_line import forked
from tests.real import SEEDS, assert_no_worse, equal_losses, program, real_file

pytestmark = pytest.mark.slow

MLP = ("trainer.max_epochs=20", "trainer.batch_size=16", "optimizer.lr=0.001", "device=cpu")
WITHOUT_VAL = ("data.val_fraction=0", "trainer.monitor=train/loss")


def accuracies(here: Path, *data: str) -> np.ndarray:
    """The test accuracies of five seeds of the default network."""
    found = []
    for seed in SEEDS:
        (done,) = forked(here, (*data, *MLP, f"seed={seed}"))
        assert (done.status, done.err) == (0, "")
        (tested,) = forked(here, ("task=evaluate", f"run={done.folder}"))
        assert (tested.status, tested.err) == (0, "")
        found.append(read_json(here / done.folder / "test.json")["test/accuracy"])
    return np.array(found)


def of_scikit_learn(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> np.ndarray:
    """Scores of a network of the same size, trained for as long, on standardized rows."""
    scaler = StandardScaler().fit(train[0])
    found = []
    for seed in SEEDS:
        network = MLPClassifier(
            (128,), alpha=0, batch_size=16, learning_rate_init=1e-3, max_iter=20, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(scaler.transform(train[0]), train[1])
        found.append(network.score(scaler.transform(test[0]), test[1]))
    return np.array(found)


def utterances(file: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Read a .ts file: a line per utterance, its 12 dimensions and its label between colons.
    # [T_i, 12] each, int64[N]"""
    lines = file.read_text("utf-8").partition("@data\n")[2].splitlines()
    rows, labels = [], []
    for line in lines:
        *dimensions, label = line.split(":")
        rows.append(np.array([d.split(",") for d in dimensions], np.float64).T)
        labels.append(int(label))
    return rows, np.array(labels)


def padded(rows: Sequence[np.ndarray], num_frames: int) -> np.ndarray:
    """Zeros follow the utterances.  # float64[N, num_frames, 12]"""
    return np.stack([np.pad(row, ((0, num_frames - len(row)), (0, 0))) for row in rows])


@pytest.fixture(scope="module")
def vowels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JapaneseVowels as train.npz and test.npz, in its own division."""
    here = tmp_path_factory.mktemp("vowels")
    folder = "sktime/datasets/data/JapaneseVowels/JapaneseVowels"
    for name, num in (("TRAIN", 270), ("TEST", 370)):
        rows, labels = utterances(real_file(f"{folder}_{name}.ts"))
        lengths = [len(row) for row in rows]
        assert len(rows) == num
        assert {row.shape[1] for row in rows} == {12}
        assert (min(lengths), max(lengths)) == ((7, 26) if name == "TRAIN" else (7, 29))
        np.savez(here / f"{name.lower()}.npz", x=padded(rows, 29), y=labels)
    return here


VOWELS = ("data=npz", "data.path=train.npz", "data.test_path=test.npz", "data.test_fraction=0")


def test_speakers_of_vowels_are_recognised_as_well_as_by_scikit_learn(vowels: Path) -> None:
    keys = (*VOWELS, *WITHOUT_VAL, "data.standardize=true")
    ours = accuracies(vowels, *keys)
    parts = []
    for name in ("train", "test"):
        with np.load(vowels / f"{name}.npz") as arrays:
            parts.append((arrays["x"].reshape(len(arrays["x"]), -1), arrays["y"]))
    assert_no_worse(ours, of_scikit_learn(*parts))
    assert ours.mean() > 0.95  # 0.977 by scikit-learn in earlier measurements; by chance 0.11


def test_vowels_have_equal_losses_on_both_backends(vowels: Path) -> None:
    equal_losses(vowels, *VOWELS, "data.standardize=true")


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = ("m1", "m2", "m3", "m4", "f1", "f2", "f3", "f4")


def files() -> Iterator[tuple[str, str, str, str]]:
    """The path, voice, pitch and word of each file."""
    for word in DIGITS:
        for voice in VOICES:
            for pitch in ("35", "50", "65"):
                yield f"{word}/{voice}_{pitch}.wav", voice, pitch, word


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten digits by eight voices at three pitches, as spoken/WORD/VOICE_PITCH.wav; and a table of
    them, with the voices as groups."""
    speaker, here = program("espeak-ng"), tmp_path_factory.mktemp("digits")
    lines = ["path,label,group"]
    for path, voice, pitch, word in files():
        file = here / "spoken" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        command = [speaker, "-v", f"en+{voice}", "-p", pitch, "-w", str(file), word]
        subprocess.run(command, check=True, timeout=60)
        lines.append(f"{path},{word},{voice}")
    (here / "spoken.csv").write_text("\n".join(lines) + "\n")
    return here


SPOKEN = ("data=audio_folder", "data.path=spoken", "data.table=spoken.csv", "data.split=grouped")


def test_digits_of_new_voices_are_recognised_as_well_as_by_scikit_learn(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both get the same features; two of the eight voices are for the test."""
    monkeypatch.chdir(digits)
    data = load(parse(compose([*SPOKEN, "data.val_fraction=0"])).data)
    assert len(data.test) == 60
    ours = accuracies(digits, *SPOKEN, *WITHOUT_VAL)
    parts = [(split.x.reshape(len(split), -1), split.y) for split in (data.train, data.test)]
    assert_no_worse(ours, of_scikit_learn(*parts))
    assert ours.mean() > 0.8  # by chance 0.1


@pytest.mark.parametrize("features", ["log_mel", "mfcc", "waveform"])
def test_digits_have_equal_losses_on_both_backends(digits: Path, features: str) -> None:
    equal_losses(digits, *SPOKEN, f"data.features={features}")
