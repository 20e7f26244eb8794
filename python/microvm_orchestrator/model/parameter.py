"""Parameters of templates: what a caller may put in, and whether a value fits.

Patterns are matched by pydantic's engine, which takes time linear in the text and knows no
look-around: no pattern a user saves can hold the daemon up.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import SchemaError, SchemaValidator, core_schema

from microvm_orchestrator.model.values import MAX_TEXT, Int, Json, Line, Number, Text

NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
ParameterName = Annotated[str, Field(pattern=f"^{NAME}$")]
Bound = Int | Number
# The context in which what the store kept is read.
KEPT = MappingProxyType({"kept": True})


class ParameterType(StrEnum):
    """What kind of value a parameter takes."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    CHOICE = "choice"
    STRINGS = "strings"


_SIZED = {
    ParameterType.STRING,
    ParameterType.INTEGER,
    ParameterType.NUMBER,
    ParameterType.STRINGS,
}
_WORDED = {ParameterType.STRING, ParameterType.STRINGS}
_CALLED = {
    ParameterType.STRING: "a string",
    ParameterType.INTEGER: "an integer",
    ParameterType.NUMBER: "a number",
    ParameterType.BOOLEAN: "true or false",
    ParameterType.STRINGS: "a list of strings",
}


class Parameter(BaseModel):
    """A hole in a template. It has a default, or a value must be given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: ParameterType = Field(
        default=ParameterType.STRING, description="`strings` is a list of strings"
    )
    description: Line = ""
    required: StrictBool | None = Field(
        default=None, description="whether a value must be given: so unless there is a default"
    )
    default: Json = None
    min: Bound | None = Field(
        default=None, description="least value; of a string its least length, of a list of items"
    )
    max: Bound | None = Field(
        default=None, description="greatest value; of a string its length, of a list of items"
    )
    pattern: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None,
        description="regular expression that the whole of each string must match; "
        "without look-around and back-references",
    )
    choices: Annotated[list[Text], Field(max_length=1000)] = Field(
        default=[], description="what a `choice` chooses from"
    )

    @property
    def needed(self) -> bool:
        return self.default is None

    def fit(self, value: JsonValue) -> JsonValue:
        """Give the value back if it fits.

        Raises: ValueError with what would.
        """
        if not self._is_of_type(value):
            raise ValueError(f"must be {self._called}")
        match value:
            case str():
                self._fit_bounds(len(value), " characters long")
                self._fit_pattern(value)
            case list():
                self._fit_bounds(len(value), " items long")
                for item in value:
                    self._fit_pattern(str(item))
            case int() | float():
                self._fit_bounds(value, "")
            case _:
                pass
        return value

    def sample(self, name: str) -> JsonValue:
        """A value of the right type, for looking at a template before anybody has given one."""
        match self.type:
            case ParameterType.STRING:
                return name
            case ParameterType.STRINGS:
                return [name]
            case ParameterType.BOOLEAN:
                return True
            case ParameterType.CHOICE:
                return self.choices[0]
            case ParameterType.INTEGER | ParameterType.NUMBER:
                bounds = (bound for bound in (self.min, self.max) if bound is not None)
                return next(bounds, 1)

    def _is_of_type(self, value: JsonValue) -> bool:
        match self.type, value:
            case ParameterType.BOOLEAN, bool():
                return True
            case _, bool():
                # In JSON `true` is no number, though in Python it is.
                return False
            case ParameterType.STRING, str():
                return True
            case ParameterType.CHOICE, str():
                return value in self.choices
            case ParameterType.INTEGER | ParameterType.NUMBER, int():
                return True
            case ParameterType.NUMBER, float():
                return True
            case ParameterType.STRINGS, list():
                return all(isinstance(item, str) for item in value)
            case _:
                return False

    @property
    def _called(self) -> str:
        if self.type is ParameterType.CHOICE:
            return f"one of {', '.join(self.choices[:20])}"
        return _CALLED[self.type]

    def _fit_bounds(self, size: float, unit: str) -> None:
        if self.min is not None and size < self.min:
            raise ValueError(f"must be at least {self.min}{unit}")
        if self.max is not None and size > self.max:
            raise ValueError(f"must be at most {self.max}{unit}")

    def _fit_pattern(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise ValueError(f"must be at most {MAX_TEXT} characters long")
        if self.pattern is not None and not _matches(self.pattern, text):
            raise ValueError(f"must match {self.pattern}")

    @model_validator(mode="after")
    def _makes_sense(self, info: ValidationInfo) -> Parameter:
        if info.context is KEPT:
            # It was looked at when it was saved, and a pattern can take long to compile.
            return self
        if self.required is not None and self.required is not self.needed:
            raise ValueError("is either required or has a default")
        if self.type not in _SIZED and (self.min is not None or self.max is not None):
            raise ValueError(f"min and max mean nothing for a {self.type}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is greater than max")
        if (self.type is ParameterType.CHOICE) is not bool(self.choices):
            raise ValueError("choices go with the type choice, and it needs some")
        if self.pattern is not None:
            if self.type not in _WORDED:
                raise ValueError(f"a pattern means nothing for a {self.type}")
            _compile(self.pattern)
        if self.default is not None:
            try:
                self.fit(self.default)
            except ValueError as error:
                raise ValueError(f"the default {error}") from error
        return self


# Few: compiled, a pattern may take twenty megabytes.
@lru_cache(maxsize=8)
def _compile(pattern: str) -> SchemaValidator:
    try:
        # Alone first: an unbalanced bracket must not undo the anchors around it.
        SchemaValidator(core_schema.str_schema(pattern=pattern))
        return SchemaValidator(core_schema.str_schema(pattern=f"^(?:{pattern})$"))
    except SchemaError as error:
        # The engine draws where the pattern breaks; the last line says why.
        raise ValueError(f"the pattern is not usable: {str(error).splitlines()[-1]}") from error


def _matches(pattern: str, text: str) -> bool:
    try:
        _compile(pattern).validate_python(text)
    except ValidationError:
        return False
    return True
