"""Routes that take a JSON object, and nothing that only looks like one."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.errors import ErrorInfo, RequestRefused
from app.schemas.validation import printable


class JSONRoute(APIRoute):
    """Reads the body more strictly than the framework does, before anything else looks at it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None

        async def handle_strictly(request: Request) -> Response:
            if takes_body:
                request = _JSONRequest(request.scope, request.receive)
                await request.read_object()
            return await handle(request)

        return handle_strictly


class _JSONRequest(Request):
    """A request whose body is parsed once, by our rules."""

    _object: dict[str, Any]

    async def read_object(self) -> None:
        """Parse the body.

        Raises:
            RequestRefused: it is not JSON, or not an object.
        """
        body = await self.body()
        content_type = self.headers.get("content-type")
        if body and not _is_json(content_type):
            raise _refused(
                "unsupported_media_type",
                "The body must be JSON: send the header Content-Type: application/json.",
            )
        try:
            value = json.loads(
                body, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates
            )
        except (ValueError, RecursionError) as error:
            # Of all of these only JSONDecodeError says something that helps and is safe to show.
            reason = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
            raise _refused("invalid_json", f"The body is not valid JSON{reason}.") from error
        if not isinstance(value, dict):
            raise _refused("invalid_request", "The body must be a JSON object.")
        self._object = value

    async def json(self) -> Any:
        return self._object


def _is_json(content_type: str | None) -> bool:
    message = Message()
    message["content-type"] = content_type or ""
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )


def _refuse_constant(name: str) -> None:
    """Refuse what Python's parser takes beyond RFC 8259: NaN and the infinities."""
    raise _refused("invalid_json", f"The body is not valid JSON: {name} is not a JSON number.")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a field given twice: which one counts would be a guess (RFC 8259 §4)."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise RequestRefused(
                ErrorInfo(
                    code="invalid_request",
                    message=f"{printable(name)}: given twice",
                    param=printable(name),
                )
            )
        fields[name] = value
    return fields


def _refused(code: str, message: str) -> RequestRefused:
    return RequestRefused(ErrorInfo(code=code, message=message))
