"""The base of every part of a config: typed, closed, finite. A part that has a `name` or a `layer`
is found by it.

A part is declared once: a class whose fields are the keys that its YAML names (with their types and
ranges) and whose methods are what it means. Defaults live in conf/, none in the classes.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A group of keys. Unknown keys, missing keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


@dataclass(frozen=True)
class Mark:
    """Uses of a key besides its value, as `Annotated[TYPE, Mark(...)]`; a group's mark is for all
    of its keys."""

    outside_hash: bool = False  # the hash of the config leaves it out: it does not fix the run
    on_resume: bool = False  # may change when a run resumes
    on_run: bool = False  # a task on a finished run takes it
    command_line_only: bool = False  # in a file it would change nothing, or trust a stranger
    needs_run: bool = False  # goes with run=FOLDER


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
MOST = 2**63 - 1  # what a framework's integer holds
Count = Annotated[int, Field(ge=1, le=MOST)]
Index = Annotated[int, Field(ge=0, le=MOST)]


def _one(value: object) -> int:
    if type(value) is not int or value != 1:  # True == 1, so that Literal[1] takes it
        raise PydanticCustomError("one", "must be 1")
    return 1


One = Annotated[int, PlainValidator(_one), WithJsonSchema({"const": 1})]


def choices(annotation: Any) -> tuple[str, ...]:
    """The names in a `Literal[...]`."""
    assert getattr(annotation, "__origin__", None) is Literal
    return tuple(str(name) for name in get_args(annotation))


def keys(section: type[BaseModel]) -> dict[str, Any]:
    """The keys of a section as the user writes them -> their fields; `from` and `for` are no names
    in Python."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


# pydantic's kind of error -> what is allowed, from the error's context
ALLOWED = {
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be >= {ge:g}",
    "less_than": "must be < {lt:g}",
    "less_than_equal": "must be <= {le:g}",
    "finite_number": "must be finite",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    # the one key with a pattern is `device`
    "string_pattern_mismatch": "must be auto, cpu, cuda, cuda:N or mps",
    "list_type": "must be a list",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} items",
    "one": "must be 1",
    "value_error": "must be {error}",
    "model_type": "must be a group of keys",
    "model_attributes_type": "must be a group of keys",
    "dict_type": "must be a group of keys",
}
