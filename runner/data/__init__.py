"""Data sets by name: what their keys are, and the arrays they give."""

from typing import Annotated, Union

from pydantic import Field

from runner.data.dataset import Dataset, Split
from runner.data.embedded import Diabetes, Digits
from runner.data.files import CSV, NPZ
from runner.data.stream import NPY

__all__ = ["Data", "Dataset", "Split"]

Data = Annotated[Union[Digits, Diabetes, NPZ, CSV, NPY], Field(discriminator="name")]
