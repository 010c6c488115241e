"""Data sets by name: what their keys are, and the arrays they give."""

from typing import Annotated, Union

from pydantic import Field

from runner.data.dataset import Dataset, Split
from runner.data.embedded import Diabetes, Digits
from runner.data.files import CSV, NPZ

__all__ = ["Data", "Dataset", "Split"]

Data = Annotated[Union[Digits, Diabetes, NPZ, CSV], Field(discriminator="name")]
