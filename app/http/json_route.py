"""Routes that take a JSON object, and nothing that only looks like one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from email.message import Message
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from app.dependencies import get_caller, get_services
from app.errors import ErrorInfo, RequestRefused
from app.json.json_object import parse_object
from app.json.large_json import LARGE_INPUT_BYTES
from streaming import ANYONE


class JSONRoute(APIRoute):
    """Reads the body more strictly than the framework does, before anything else looks at it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None
        model = _model_of(self)
        needs_caller = any(each.call is get_caller for each in self.dependant.dependencies)

        async def handle_strictly(request: Request) -> Response:
            if takes_body:
                # Before any time goes into the body.
                caller = get_caller(request, get_services(request)) if needs_caller else ANYONE
                request = _JSONRequest(request.scope, request.receive)
                await request.read_object(model, caller)
            return await handle(request)

        return handle_strictly


class _JSONRequest(Request):
    """A request whose body is parsed once, by our rules."""

    _parsed: dict[str, Any] | BaseModel

    async def read_object(self, model: type[BaseModel] | None, caller: str) -> None:
        """Parse the body.

        Args:
            model: what a large body is validated as where it is parsed, off the loop; the framework
                takes an instance for valid.
            caller: who sent it.

        Raises:
            RequestRefused: it is not JSON, not an object, or has a field twice.
            RequestValidationError: it is large, and not what the route takes.
        """
        body = await self.body()
        content_type = self.headers.get("content-type")
        if body and not _is_json(content_type):
            message = "The body must be JSON: send the header Content-Type: application/json."
            raise RequestRefused(ErrorInfo(code="unsupported_media_type", message=message))
        if len(body) > LARGE_INPUT_BYTES:
            large = get_services(self).large
            self._parsed = await large.run(caller, partial(_parse_large, body, model))
        else:
            self._parsed = parse_object(body, what="body")

    async def json(self) -> Any:
        return self._parsed


def _parse_large(body: bytes, model: type[BaseModel] | None) -> dict[str, Any] | BaseModel:
    fields = parse_object(body, what="body")
    if model is None:
        return fields
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        complaints = error.errors(include_url=False)
        located = [{**each, "loc": ("body", *each["loc"])} for each in complaints]
        raise RequestValidationError(located) from error


def _model_of(route: APIRoute) -> type[BaseModel] | None:
    """Return the model that the whole body is, if it is one."""
    kind = route.body_field.field_info.annotation if route.body_field is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _is_json(content_type: str | None) -> bool:
    message = Message()
    message["content-type"] = content_type or ""
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )
