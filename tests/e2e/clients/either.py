"""One test body for a client and its asynchronous twin."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


async def result(value: Any) -> Any:
    """Return what a call returned, awaited where it has to be."""
    return await value if inspect.isawaitable(value) else value


async def each(stream: Any) -> AsyncIterator[Any]:
    """Yield the entries of an iterable of either kind."""
    if hasattr(stream, "__aiter__"):
        async for entry in stream:
            yield entry
    else:
        for entry in stream:
            yield entry


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """Enter a context manager of either kind."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value
