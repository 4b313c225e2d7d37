"""The route class of REST requests: strict JSON, and large bodies parsed off the event loop."""

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
    """Parses the body itself, more strictly than FastAPI does, before FastAPI validates it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler that parses the body first."""
        handle = super().get_route_handler()
        takes_body = self.body_field is not None
        model = _model_of(self)
        needs_caller = any(each.call is get_caller for each in self.dependant.dependencies)

        async def handle_strictly(request: Request) -> Response:
            if takes_body:
                # First, so that no time is spent on the body of a request without a valid key.
                caller = get_caller(request, get_services(request)) if needs_caller else ANYONE
                request = _JSONRequest(request.scope, request.receive)
                await request.read_object(model, caller)
            return await handle(request)

        return handle_strictly


class _JSONRequest(Request):
    """A request whose body is parsed once, by `read_object`."""

    _parsed: dict[str, Any] | BaseModel

    async def read_object(self, model: type[BaseModel] | None, caller: str) -> None:
        """Parse the body.

        Args:
            model: a large body is also validated as this model off the event loop; FastAPI accepts
                an instance without validating it again.
            caller: the sender; callers share the threads that parse large bodies.

        Raises:
            RequestRefused: the body is not JSON, not an object, or has a field twice.
            RequestValidationError: the body is large and does not match the model.
        """
        body = await self.body()
        content_type = self.headers.get("content-type")
        if body and not _is_json(content_type):
            message = "The body must be JSON: set the header Content-Type: application/json."
            raise RequestRefused(ErrorInfo(code="unsupported_media_type", message=message))
        if len(body) > LARGE_INPUT_BYTES:
            large = get_services(self).large
            self._parsed = await large.run(caller, partial(_parse_large, body, model))
        else:
            self._parsed = parse_object(body, what="body")

    async def json(self) -> Any:
        """Return what `read_object` has parsed."""
        return self._parsed


def _parse_large(body: bytes, model: type[BaseModel] | None) -> dict[str, Any] | BaseModel:
    fields = parse_object(body, what="body")
    if model is None:
        return fields
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        located = [{**each, "loc": ("body", *each["loc"])} for each in errors]
        raise RequestValidationError(located) from error


def _model_of(route: APIRoute) -> type[BaseModel] | None:
    """Return the model of the whole body, if the route takes one."""
    kind = route.body_field.field_info.annotation if route.body_field is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _is_json(content_type: str | None) -> bool:
    message = Message()
    message["content-type"] = content_type or ""
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )
