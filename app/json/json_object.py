"""JSON from a client, read the same way on every transport: RFC 8259 and well-formed Unicode, with
no field given twice."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import partial
from itertools import accumulate, takewhile
from typing import Any, NoReturn

from app.errors import ErrorInfo, RequestRefused
from app.schemas.validation import printable

_MAX_CONTAINERS = 2**15
"""Most arrays and objects in one text. To read a megabyte of them takes 200 ms, and large texts are
read one at a time; so many take 65 at most (AMD EPYC, Zen 4)."""
_MAX_DEPTH = 512
"""Most of them within each other. Python reads near a thousand, and then cannot write them, nor
look at them, from where a few more calls are on its stack."""
_CONTAINER_MARK = re.compile(r"[\[\]{}]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class FieldsRefused(RequestRefused):
    """The object could be read, but not all of it means something.

    Attributes:
        fields: the object without what was given twice.
    """

    def __init__(self, reason: str, *, param: str | None, fields: dict[str, Any]) -> None:
        self.fields = fields
        message = reason if param is None else f"{param}: {reason}"
        super().__init__(ErrorInfo(code="invalid_request", message=message, param=param))


def parse_object(text: str | bytes, *, what: str) -> dict[str, Any]:
    """Return the JSON object that `text` is.

    Args:
        what: what the client calls the text: the body, the frame.

    Raises:
        FieldsRefused: a field is given twice (which one counts would be a guess, RFC 8259 §4), or
            has half a surrogate pair or a number that becomes infinite: that is no text, and no
            number, and could never be sent back.
        RequestRefused: it is no JSON, or no object, or has too many parts or too deep ones.
    """
    repeated: list[str] = []
    infinite: list[str] = []
    try:
        text = text.decode() if isinstance(text, bytes) else text
        num_containers = _num_containers(text)
        if num_containers > _MAX_CONTAINERS:
            reason = f"The {what} has more than {_MAX_CONTAINERS} arrays and objects."
            raise _refused("invalid_request", reason)
        if num_containers > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
            raise RecursionError
        value = json.loads(
            text,
            parse_float=partial(_to_float, infinite),
            parse_constant=partial(_refuse_constant, what),
            object_pairs_hook=partial(_to_fields, repeated),
        )
    except (ValueError, RecursionError) as error:
        # Of all of these only JSONDecodeError says something that helps and is safe to show.
        reason = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise _refused("invalid_json", f"The {what} is not valid JSON{reason}.") from error
    if not isinstance(value, dict):
        raise _refused("invalid_request", f"The {what} must be a JSON object.")
    if repeated:
        raise FieldsRefused("given twice", param=printable(repeated[0]), fields=value)
    if infinite:
        _check_finite(value)
    if _SURROGATE_ESCAPE.search(text):  # the text was UTF-8, so half a pair is an escape
        _check_unicode(value)
    return value


def _num_containers(text: str) -> int:
    """Return how many arrays and objects begin in a JSON text, or more, but not past the limit."""
    count = text.count("[") + text.count("{")
    if count <= _MAX_CONTAINERS:
        return count
    outside = _outside_strings(text)
    return outside.count("[") + outside.count("{")


def _depth(text: str) -> int:
    """Return how many arrays and objects of a JSON text are within each other."""
    marks = _CONTAINER_MARK.finditer(_outside_strings(text))
    depths = accumulate(1 if mark[0] in "[{" else -1 for mark in marks)
    return max(takewhile(lambda depth: depth >= 0, depths), default=0)  # below 0 it is no JSON


def _outside_strings(text: str) -> str:
    """Return a JSON text without its strings, every second part between unescaped quotes."""
    return "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])


def _to_fields(repeated: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for name, count in Counter(name for name, _ in pairs).items():
            if count > 1:
                repeated.append(name)
                del fields[name]
    return fields


def _to_float(infinite: list[str], text: str) -> float:
    number = float(text)
    if math.isinf(number):
        infinite.append(text)
    return number


def _check_finite(fields: dict[str, Any]) -> None:
    """Name the field that has an infinite number."""
    for name, value in fields.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            reason = "has a number that is too large"
            raise FieldsRefused(reason, param=printable(name), fields=fields) from error


def _check_unicode(fields: dict[str, Any]) -> None:
    if _is_unicode(fields):  # once for all: a text can have a hundred thousand fields
        return
    for name, value in fields.items():
        if not _is_unicode(name):
            reason = "A field's name has a lone surrogate."
            raise FieldsRefused(reason, param=None, fields=fields)
        if not _is_unicode(value):
            reason = "is not valid Unicode: it has a lone surrogate"
            raise FieldsRefused(reason, param=printable(name), fields=fields)


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(what: str, name: str) -> NoReturn:
    """Refuse what Python's parser takes beyond RFC 8259: NaN and the infinities."""
    raise _refused("invalid_json", f"The {what} is not valid JSON: {name} is not a JSON number.")


def _refused(code: str, message: str) -> RequestRefused:
    return RequestRefused(ErrorInfo(code=code, message=message))
