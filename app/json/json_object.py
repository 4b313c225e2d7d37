"""Parses a JSON object from a client, strictly and in the same way on every transport.

The text must follow RFC 8259, hold well-formed Unicode and give no field twice.
"""

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
"""Most arrays and objects in one text. A megabyte of them takes 200 ms to parse, and large texts
are parsed one at a time. This many take at most 65 ms (AMD EPYC, Zen 4)."""
_MAX_DEPTH = 512
"""Deepest nesting of arrays and objects. Python parses almost a thousand levels, but writing or
traversing that many exceeds its recursion limit deeper in the call stack."""
_CONTAINER_MARK = re.compile(r"[\[\]{}]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class FieldsRefused(RequestRefused):
    """The text is a JSON object, but some of its fields are refused.

    Attributes:
        fields: the object, without the fields that were given twice.
    """

    def __init__(self, reason: str, *, param: str | None, fields: dict[str, Any]) -> None:
        self.fields = fields
        message = reason if param is None else f"{param}: {reason}"
        super().__init__(ErrorInfo(code="invalid_request", message=message, param=param))


def parse_object(text: str | bytes, *, what: str) -> dict[str, Any]:
    """Return the JSON object in a text.

    Args:
        text: a string, or UTF-8.
        what: names the text in error messages, such as "body" or "frame".

    Raises:
        FieldsRefused: a field is given twice (RFC 8259 §4 leaves open which one counts), has a
            lone surrogate, or has a number that overflows to infinity. JSON could not carry the
            last two back to the client.
        RequestRefused: the text is not JSON or not an object, or has too many or too deeply
            nested arrays and objects.
    """
    repeated: list[str] = []
    infinite: list[str] = []
    try:
        text = text.decode() if isinstance(text, bytes) else text
        num_containers = _num_containers(text)
        if num_containers > _MAX_CONTAINERS:
            reason = f"The {what} must have at most {_MAX_CONTAINERS} arrays and objects."
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
        # The text of JSONDecodeError helps the client and is safe to show; others may not be.
        reason = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise _refused("invalid_json", f"The {what} is not valid JSON{reason}.") from error
    if not isinstance(value, dict):
        raise _refused("invalid_request", f"The {what} must be a JSON object.")
    if repeated:
        raise FieldsRefused("must be given only once", param=printable(repeated[0]), fields=value)
    if infinite:
        _check_finite(value)
    if _SURROGATE_ESCAPE.search(text):  # in UTF-8, only an escape can make a lone surrogate
        _check_unicode(value)
    return value


def _num_containers(text: str) -> int:
    """Return the number of arrays and objects in a JSON text.

    The result may be too high, but only up to the limit: brackets in strings count, too, as long
    as the text is within the limit with them.
    """
    count = text.count("[") + text.count("{")
    if count <= _MAX_CONTAINERS:
        return count
    outside = _outside_strings(text)
    return outside.count("[") + outside.count("{")


def _depth(text: str) -> int:
    """Return the deepest nesting of arrays and objects in a JSON text."""
    marks = _CONTAINER_MARK.finditer(_outside_strings(text))
    depths = accumulate(1 if mark[0] in "[{" else -1 for mark in marks)
    return max(takewhile(lambda depth: depth >= 0, depths), default=0)  # negative: not JSON


def _outside_strings(text: str) -> str:
    """Return a JSON text without its strings: every second part between unescaped quotes."""
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
    """Refuse the first field that has an infinite number."""
    for name, value in fields.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            reason = "has a number beyond the range of a 64-bit float"
            raise FieldsRefused(reason, param=printable(name), fields=fields) from error


def _check_unicode(fields: dict[str, Any]) -> None:
    if _is_unicode(fields):  # one check for all fields: there may be a hundred thousand
        return
    for name, value in fields.items():
        if not _is_unicode(name):
            reason = "The name of a field is not valid Unicode: it has a lone surrogate."
            raise FieldsRefused(reason, param=None, fields=fields)
        if not _is_unicode(value):
            reason = "must be valid Unicode (got a lone surrogate)"
            raise FieldsRefused(reason, param=printable(name), fields=fields)


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(what: str, name: str) -> NoReturn:
    """Refuse NaN and the infinities, which Python's parser accepts but RFC 8259 does not."""
    raise _refused("invalid_json", f"The {what} is not valid JSON: {name} is not a JSON number.")


def _refused(code: str, message: str) -> RequestRefused:
    return RequestRefused(ErrorInfo(code=code, message=message))
