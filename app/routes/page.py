"""The chat page, the docs page, and the files of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.staticfiles import StaticFiles


class PageFiles(StaticFiles):
    """Files that browsers keep but ask about each time, so that an update shows at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def add_pages(app: FastAPI, static_dir: Path) -> None:
    """Serve `static_dir` at `/static`, its `index.html` at `/` and its `docs.html` at `/docs`."""
    files = PageFiles(directory=static_dir)

    async def chat_page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    async def docs_page(request: Request) -> Response:
        return await files.get_response("docs.html", request.scope)

    app.add_route("/", chat_page, methods=["GET"], include_in_schema=False)
    app.add_route("/docs", docs_page, methods=["GET"], include_in_schema=False)
    app.mount("/static", files)
