"""Serves the chat page, the documentation pages, and their static files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.staticfiles import StaticFiles


class PageFiles(StaticFiles):
    """Static files that browsers cache but revalidate each time, so that updates show at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return the file's response with `Cache-Control: no-cache`."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


PAGES = {
    "/": "index.html",
    "/docs": "docs.html",
    "/docs/websocket": "websocket_docs.html",
}


def add_pages(app: FastAPI, static_dir: Path) -> None:
    """Serve `static_dir` at `/static`, and each of its `PAGES` at a path of its own."""
    files = PageFiles(directory=static_dir)
    for path, name in PAGES.items():
        _add_page(app, files, path, name)
    app.mount("/static", files)


def _add_page(app: FastAPI, files: PageFiles, path: str, name: str) -> None:
    async def page(request: Request) -> Response:
        return await files.get_response(name, request.scope)

    app.add_route(path, page, methods=["GET"], include_in_schema=False)
