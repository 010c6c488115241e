"""Data sets that come with scikit-learn. The files are read directly, because importing the package
takes over a second."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from runner.data.augment import Augment
from runner.data.dataset import Dataset, split_rows, standardize
from runner.data.files import package_folder
from runner.data.mixing import Alpha
from runner.errors import ConfigError
from runner.section import Section


def _file(name: str) -> Path:
    folder = package_folder("sklearn")
    if folder is None:
        raise ConfigError(
            "this data set comes with scikit-learn, which is not installed: pip install "
            "scikit-learn"
        )
    return folder / "datasets" / "data" / name


class DigitImages(Section):
    """Images of the ten digits, in rows of their levels."""

    name: str
    images: Literal["auto"] | bool
    augment: Augment
    mixup: Alpha
    cutmix: Alpha

    def divided(
        self, x: np.ndarray, y: np.ndarray, size: int, num_val: int, num_test: int
    ) -> Dataset:
        """Divide rows by a fixed permutation.  # float[N, size * size], int64[N]"""
        splits = split_rows(x, y, num_val=num_val, num_test=num_test, seed=0)
        shape = (size, size, 1)
        data = Dataset(*splits, "classification", tuple("0123456789"), (), image_shape=shape)
        return data.as_images() if self.images is True else data


class Digits(DigitImages):
    """1,797 images of handwritten digits, 8x8, 16 grey levels, 10 classes; x = level / 16.

    UCI, Alpaydin and Kaynak (1998); sklearn.datasets.load_digits. 1,280 training, 256 validation
    and 261 test rows of a fixed permutation, independent of the run's seed. `images: true` gives
    rows [8, 8, 1] instead of [64]; `auto` does so if the model needs images.
    """

    name: Literal["digits"]

    def load(self) -> Dataset:
        rows = np.loadtxt(_file("digits.csv.gz"), delimiter=",")
        x, y = rows[:, :-1] / 16, rows[:, -1].astype(np.int64)
        return self.divided(x, y, size=8, num_val=256, num_test=261)


class Diabetes(Section):
    """442 patients, 10 baseline measurements, disease progression after a year; all standardized
    over the training rows.

    Efron et al. (2004); sklearn.datasets.load_diabetes(scaled=False). 310 training, 66 validation
    and 66 test rows of a fixed permutation. The loss is in units of the target's variance: always
    predicting the mean gives 1.
    """

    name: Literal["diabetes"]

    def load(self) -> Dataset:
        x = np.loadtxt(_file("diabetes_data_raw.csv.gz"))
        y = np.loadtxt(_file("diabetes_target.csv.gz"))[:, None]
        features = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
        train, val, test = split_rows(x, y, num_val=66, num_test=66, seed=0)
        return standardize(Dataset(train, val, test, "regression", (), features), x=True, y=True)


def _table(file: str, features: Sequence[str], held_out: int) -> Dataset:
    """Read a CSV file of a classification: its first line has the numbers of rows and columns and
    the names of the classes, its last column the class. `held_out` rows each are for validation and
    for the test."""
    path = _file(file)
    with path.open(encoding="utf-8") as lines:
        classes = tuple(lines.readline().strip().split(",")[2:])
        rows = np.loadtxt(lines, delimiter=",")
    x, y = rows[:, :-1], rows[:, -1].astype(np.int64)
    splits = split_rows(x, y, num_val=held_out, num_test=held_out, seed=0)
    return standardize(
        Dataset(*splits, "classification", classes, tuple(features)), x=True, y=False
    )


class Iris(Section):
    """150 flowers of three species of iris, 50 each: length and width of sepals and petals in
    centimetres, standardized over the training rows.

    Fisher (1936), from R; sklearn.datasets.load_iris. 90 training, 30 validation and 30 test rows
    of a fixed permutation, independent of the run's seed.
    """

    name: Literal["iris"]

    def load(self) -> Dataset:
        parts = [
            f"{part} {size} (cm)" for part in ("sepal", "petal") for size in ("length", "width")
        ]
        return _table("iris.csv", parts, held_out=30)


class Wine(Section):
    """178 wines from three growers in one region of Italy, 13 results of a chemical analysis,
    standardized over the training rows.

    UCI, Aeberhard and Forina (1992); sklearn.datasets.load_wine. 106 training, 36 validation and 36
    test rows of a fixed permutation, independent of the run's seed.
    """

    name: Literal["wine"]

    def load(self) -> Dataset:
        features = (
            "alcohol",
            "malic_acid",
            "ash",
            "alcalinity_of_ash",
            "magnesium",
            "total_phenols",
            "flavanoids",
            "nonflavanoid_phenols",
            "proanthocyanins",
            "color_intensity",
            "hue",
            "od280/od315_of_diluted_wines",
            "proline",
        )
        return _table("wine_data.csv", features, held_out=36)


class BreastCancer(Section):
    """569 tumours, malignant or benign: mean, standard error and largest value of ten measurements
    of the cell nuclei in an image, standardized over the training rows.

    UCI, Wolberg, Mangasarian, Street and Street (1995), "Wisconsin, diagnostic";
    sklearn.datasets.load_breast_cancer. 341 training, 114 validation and 114 test rows of a fixed
    permutation, independent of the run's seed.
    """

    name: Literal["breast_cancer"]

    def load(self) -> Dataset:
        measured = (
            "radius",
            "texture",
            "perimeter",
            "area",
            "smoothness",
            "compactness",
            "concavity",
            "concave points",
            "symmetry",
            "fractal dimension",
        )
        features = [
            *(f"mean {name}" for name in measured),
            *(f"{name} error" for name in measured),
            *(f"worst {name}" for name in measured),
        ]
        return _table("breast_cancer.csv", features, held_out=114)
