"""Data sets that come with scikit-learn. The files are read directly, because importing the package
takes over a second."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from runner.data.dataset import Dataset, split_rows, standardize
from runner.errors import ConfigError
from runner.section import Section


def _file(name: str) -> Path:
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "this data set comes with scikit-learn, which is not installed: pip install "
            "scikit-learn"
        )
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


class Digits(Section):
    """1,797 images of handwritten digits, 8x8, 16 grey levels, 10 classes; x = level / 16.

    UCI, Alpaydin and Kaynak (1998); sklearn.datasets.load_digits. 1,280 training, 256 validation
    and 261 test rows of a fixed permutation, independent of the run's seed. `images: true` gives
    rows [8, 8, 1] instead of [64]; `auto` does so if the model needs images.
    """

    name: Literal["digits"]
    images: Literal["auto"] | bool

    def load(self) -> Dataset:
        rows = np.loadtxt(_file("digits.csv.gz"), delimiter=",")
        x, y = rows[:, :-1] / 16, rows[:, -1].astype(np.int64)
        train, val, test = split_rows(x, y, num_val=256, num_test=261, seed=0)
        classes, shape = tuple("0123456789"), (8, 8, 1)
        data = Dataset(train, val, test, "classification", classes, (), image_shape=shape)
        return data.as_images() if self.images is True else data


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
