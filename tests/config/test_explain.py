"""Canaries of pydantic's errors, which runner/config/explain.py reads. A failure names the release
that changed them."""

from typing import Annotated, Any, Literal

import pydantic
import pytest
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from runner.section import Section

RELEASE = f"pydantic {pydantic.VERSION}"


class Cat(Section):
    name: Literal["cat"]
    lives: int | Literal["many"]

    @model_validator(mode="after")
    def _together(self) -> "Cat":
        if self.lives == 0:
            raise ValueError("lives left")
        return self


class Dog(Section):
    name: Literal["dog"]
    tricks: list[bool]


ANIMAL = TypeAdapter(Annotated[Cat | Dog, Field(discriminator="name")])


def errors(value: Any) -> list[Any]:
    with pytest.raises(ValidationError) as raised:
        ANIMAL.validate_python(value)
    return raised.value.errors()


def test_a_location_has_the_chosen_member_s_name_before_its_keys() -> None:
    (error,) = errors({"name": "dog", "tricks": [True, 3]})
    assert (error["type"], error["loc"]) == ("bool_type", ("dog", "tricks", 1)), RELEASE
    assert error["input"] == 3, RELEASE


def test_unknown_and_missing_keys_end_their_locations() -> None:
    found = errors({"name": "dog", "trick": []})
    assert {(error["type"], error["loc"]) for error in found} == {
        ("missing", ("dog", "tricks")),
        ("extra_forbidden", ("dog", "trick")),
    }, RELEASE


def test_a_tag_that_is_unknown_or_missing() -> None:
    (unknown,), (missing,) = errors({"name": "cow"}), errors({})
    assert (unknown["type"], unknown["loc"]) == ("union_tag_invalid", ()), RELEASE
    assert unknown["ctx"]["discriminator"] == "'name'", RELEASE
    assert unknown["ctx"]["tag"] == "cow", RELEASE
    assert unknown["ctx"]["expected_tags"] == "'cat', 'dog'", RELEASE
    assert missing["type"] == "union_tag_not_found", RELEASE
    assert missing["ctx"]["discriminator"] == "'name'", RELEASE


def test_each_member_of_a_plain_union_gives_an_error_below_its_own_name() -> None:
    found = errors({"name": "cat", "lives": "few"})
    assert [error["type"] for error in found] == ["int_type", "literal_error"], RELEASE
    assert [error["loc"][:2] for error in found] == [("cat", "lives")] * 2, RELEASE
    assert found[1]["ctx"]["expected"] == "'many'", RELEASE


def test_an_error_of_keys_together_holds_the_exception_and_the_mapping() -> None:
    value = {"name": "cat", "lives": 0}
    (error,) = errors(value)
    assert (error["type"], error["input"]) == ("value_error", value), RELEASE
    assert str(error["ctx"]["error"]) == "lives left", RELEASE
