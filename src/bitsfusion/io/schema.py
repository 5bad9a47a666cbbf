"""Plain values, as files hold them, into checked types; what does not fit is one line."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bitsfusion.errors import InputError

Schema = TypeVar("Schema", bound=BaseModel)


class Checked(BaseModel):
    """Fields of a file: checked once, not changed afterwards; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def parse(schema: type[Schema], value: Any, where: str) -> Schema:
    """`value`, as read from a JSON or YAML file, as a `schema`.

    Raises:
        InputError: it does not fit; one line with the field, what was wanted there and what was got.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        got = repr(first["input"])
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if not field or len(got) > 60 else f", got {got}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{where}: {field + ': ' if field else ''}{message}{shown}{more}") from None


def named(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
