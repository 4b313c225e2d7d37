"""Turns the errors of pydantic into one message, in the terms of JSON, that names the field.

Every transport uses it for requests, and the command line for settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, LiteralString

from pydantic_core import PydanticCustomError

from app.errors import ERRORS, ErrorInfo
from app.schemas.unsupported import HINTS

_MAX_MESSAGE_CHARS = 400
_MAX_PARAM_CHARS = 100
_MAX_VALUE_CHARS = 40
_UNION_TAG = re.compile(r"str|int|float|bool|[a-z-]+\[.*\]")
"""Parts of a location that name a member of a union, not a field."""

_REASONS = {
    "missing": "is required",
    "extra_forbidden": "unknown field",
    "none_required": "must be null",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "list_type": "must be an array",
    "tuple_type": "must be an array",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
}
"""The message for each type of error; the fields are those of its context."""
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
"""Python's constants, as JSON writes them."""
_UNSUPPORTED = {"extra_forbidden", "literal_error", "none_required"}
"""Errors of a field or value that another server may support: a hint says what to do instead."""
_WITHOUT_VALUE = {"missing", "extra_forbidden", "string_unicode"}
"""Errors that do not report the value."""
_SIZED = {"too_short", "too_long", "string_too_short", "string_too_long"}
"""Errors about a length. They report the length of the value."""
_SHORT_TEXT = {
    *("literal_error", "enum", "string_pattern_mismatch"),
    *("bool_parsing", "int_parsing", "float_parsing"),
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
}
"""Errors that quote a string. Any other string may be a prompt or a key: only its type is shown."""


def api_error(code: LiteralString, param: str, reason: str) -> PydanticCustomError:
    """Return an error for a validator to raise, which `to_error_info` turns into this API error.

    Args:
        code: a code of `ERRORS`.
        param: the path of the field at fault, which may lie below the validated value.
        reason: what is wrong with it.
    """
    assert code in ERRORS
    # pydantic puts the values into the message in this order, so a client's text stays as it is.
    return PydanticCustomError(code, "{message}", {"param": param, "message": f"{param}: {reason}"})


def to_error_info(
    errors: Iterable[Mapping[str, Any]], *, skip: Iterable[str] = ("body", "query", "path")
) -> ErrorInfo:
    """Return the first error of `ValidationError.errors()`, as a client reads it.

    A field that takes several types has an error for each. The error with the longest location
    wins, because the value matched that type furthest. Errors at one location are joined.

    Args:
        errors: at least one.
        skip: first parts of a location that are not fields.
    """
    located = [(_location(error, skip), error) for error in errors]
    first, _ = located[0]
    location = max(
        (location for location, _ in located if location[:1] == first[:1]),
        key=len,
    )
    alternatives = [error for other, error in located if other == location]
    error = alternatives[0]
    if error["type"] in ERRORS and "param" in error.get("ctx", {}):  # see `api_error`
        return ErrorInfo(code=error["type"], message=str(error["msg"]), param=error["ctx"]["param"])
    if error["type"] == "json_invalid":
        return ErrorInfo(code="invalid_json", message="The body is not valid JSON.")
    param = printable(_join(location)) or None
    reason = _join_reasons(alternatives)
    if param in HINTS and error["type"] in _UNSUPPORTED:
        what = "is not supported" if error["type"] == "extra_forbidden" else reason
        reason = f"{what}: {HINTS[param]}"
    message = f"{param}: {reason}" if param else reason
    return ErrorInfo(code="invalid_request", message=message[:_MAX_MESSAGE_CHARS], param=param)


def printable(text: str) -> str:
    """Return a client's text, cut to 100 characters and with lone surrogates replaced by `?`."""
    return text[:_MAX_PARAM_CHARS].encode(errors="replace").decode()


def _location(error: Mapping[str, Any], skip: Iterable[str]) -> list[str]:
    location = [f"[{part}]" if isinstance(part, int) else str(part) for part in error["loc"]]
    if location and location[0] in skip:
        location = location[1:]
    return location[:1] + [part for part in location[1:] if not _UNION_TAG.fullmatch(part)]


def _join(location: Iterable[str]) -> str:
    """Return the path of a field as OpenAI writes it, such as `messages[0].content`."""
    return re.sub(r"\.(?=\[\d+\])", "", ".".join(location))


def _join_reasons(errors: Iterable[Mapping[str, Any]]) -> str:
    """Return the reason of the first error, with the other types that the field takes.

    Errors at one location share a value, which is reported once.
    """
    first, *others = errors
    reason = _reason(first)
    if reason.startswith("must be "):
        more = (_reason(error) for error in others)
        types = dict.fromkeys(each.removeprefix("must be ") for each in more if each != reason)
        reason = " or ".join([reason, *types])
    return f"{reason}{_got(first)}"


def _reason(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind not in _REASONS:
        return str(error["msg"]).removeprefix("Value error, ")
    if context.get("min_length") == 1:
        return "must not be empty"
    return _REASONS[kind].format_map({name: _write_limit(each) for name, each in context.items()})


def _write_limit(limit: Any) -> str:
    text = f"{limit:g}" if isinstance(limit, float) else str(limit)
    return _CONSTANTS.get(text, text.replace("'", '"'))


def _got(error: Mapping[str, Any]) -> str:
    """Return the value at fault in parentheses, or nothing where it would not help."""
    kind, value = error["type"], error.get("input")
    if kind not in _REASONS or kind in _WITHOUT_VALUE or "input" not in error:
        return ""
    if kind in _SIZED:
        return f" (got {len(value)})" if value else ""
    return f" (got {_write_value(value, quotes=kind in _SHORT_TEXT)})"


def _write_value(value: Any, *, quotes: bool) -> str:
    match value:
        case None | bool() | int() | float():
            return _shorten(json.dumps(value))
        case str() if quotes:
            return json.dumps(_shorten(printable(value)), ensure_ascii=False)
        case str():
            return "a string"
        case list() | tuple():
            return "an array"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}…"
