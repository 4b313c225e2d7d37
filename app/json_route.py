"""Routes that take a JSON object, and nothing that only looks like one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.dependencies import get_caller, get_services
from app.errors import ErrorInfo, RequestRefused
from app.json_object import parse_object


class JSONRoute(APIRoute):
    """Reads the body more strictly than the framework does, before anything else looks at it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None
        needs_caller = any(each.call is get_caller for each in self.dependant.dependencies)

        async def handle_strictly(request: Request) -> Response:
            if takes_body:
                if needs_caller:  # before any time goes into the body
                    get_caller(request, get_services(request))
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
            RequestRefused: it is not JSON, not an object, or has a field twice.
        """
        body = await self.body()
        content_type = self.headers.get("content-type")
        if body and not _is_json(content_type):
            message = "The body must be JSON: send the header Content-Type: application/json."
            raise RequestRefused(ErrorInfo(code="unsupported_media_type", message=message))
        self._object = parse_object(body, what="body")

    async def json(self) -> Any:
        return self._object


def _is_json(content_type: str | None) -> bool:
    message = Message()
    message["content-type"] = content_type or ""
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )
