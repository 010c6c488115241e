"""The base class of all sections of a config.

A section is one class. Its fields are the keys of its YAML, with types and ranges; its methods
implement it. A `name` or `layer` key selects the class. Defaults are in conf/, never in a class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PrivateAttr,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema


class Section(BaseModel):
    """A group of keys. Unknown keys, missing keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,
    )


class Holder(Section):
    """A section that can hold an object that was passed in Python. The object is no key: it is
    neither hashed nor saved."""

    _given: Any = PrivateAttr(default=None)

    @property
    def given(self) -> Any:
        """The object; None if there is none."""
        return self._given

    def holding(self, given: Any) -> Self:
        """Return a copy that holds the object."""
        copied = self.model_copy()
        copied._given = given
        return copied


class OwnCode(Holder):
    """A section that names the user's own code by Hydra's convention: `_target_`, and its
    arguments, which are the keys that are no fields of the class."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(alias="_target_")  # MODULE.NAME

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, as in the config."""
        return dict(self.model_extra or {})

    @property
    def section(self) -> dict[str, Any]:
        """`_target_` and its arguments, for runner.user_code.make."""
        return {"_target_": self.code, **self.arguments}


@dataclass(frozen=True)
class Mark:
    """Properties of a key, as `Annotated[TYPE, Mark(...)]`. A group's mark applies to all of its
    keys."""

    outside_hash: bool = False  # not in the config's hash: it does not change a run's numbers
    on_resume: bool = False  # may change when a run resumes
    on_run: bool = False  # a task on a finished run accepts it
    command_line_only: bool = False  # in a file it would have no effect, or trust unknown code
    needs_run: bool = False  # only with run=FOLDER


@dataclass(frozen=True)
class OneOf:
    """A union of sections, as `Annotated[Union[...], OneOf(TAG)]`: the value of the key `TAG`
    selects the section. It refuses what pydantic's `Field(discriminator=TAG)` refuses, with the
    same errors. pydantic prepares all sections of such a union before the first config is checked;
    here each one is prepared when a config first selects it. There are some 150 sections, and a
    config has about ten.
    """

    tag: str

    def __get_pydantic_core_schema__(self, union: Any, _: GetCoreSchemaHandler) -> CoreSchema:
        lazily = {
            section: core_schema.no_info_plain_validator_function(
                section.model_validate, metadata={SECTION: section}
            )
            for section in get_args(union)
        }
        return core_schema.tagged_union_schema(
            {
                name: schema
                for section, schema in lazily.items()
                for name in choices(section.model_fields[self.tag].annotation)
            },
            discriminator=self.tag,
        )


SECTION = "section"  # the class, in the metadata of a section that is prepared later


def value_at(values: Any, key: str) -> Any:
    """Return the value of a dotted key, such as `optimizer.lr`; None if there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def has_key(values: Any, key: str) -> bool:
    """Return whether there is a value, or a section, at a dotted key."""
    parent, _, last = key.rpartition(".")
    section = value_at(values, parent) if parent else values
    return isinstance(section, Mapping) and last in section


# of a number that a user may also leave to the runner
OR_AUTO = WithJsonSchema({"anyOf": [{"exclusiveMinimum": 0, "type": "number"}, {"const": "auto"}]})
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
MOST = 2**63 - 1  # the largest int64
Count = Annotated[int, Field(ge=1, le=MOST)]
Index = Annotated[int, Field(ge=0, le=MOST)]


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the names in a `Literal[...]`."""
    assert getattr(annotation, "__origin__", None) is Literal
    return tuple(str(name) for name in get_args(annotation))


def keys(section: type[BaseModel]) -> dict[str, Any]:
    """Return the keys of a section, as the user writes them -> fields. A field has another name
    where the key is a Python keyword: `from`, `for`."""
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
    # `device` is the only key with a pattern
    "string_pattern_mismatch": "must be auto, cpu, cuda, cuda:N or mps",
    "list_type": "must be a list",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "too_few": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "one": "must be 1",
    "value_error": "must be {error}",
    "model_type": "must be a group of keys",
    "model_attributes_type": "must be a group of keys",
    "dict_type": "must be a group of keys",
}
