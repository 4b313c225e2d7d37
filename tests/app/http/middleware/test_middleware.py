"""The order of the middleware stack, as the package's docstring lists it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI

from app.http import middleware
from app.http.middleware import add_middleware
from app.settings import Settings


def stack_of(**settings: Any) -> list[str]:
    """Return the names of the stack's classes, from the outside in."""
    app = FastAPI()
    add_middleware(app, Settings(**settings))
    return [str(getattr(each.cls, "__name__", "")) for each in app.user_middleware]


def test_the_docstring_lists_the_stack_from_the_outside_in():
    listed = re.findall(r"^\d\. `(\w+)`", middleware.__doc__ or "", re.MULTILINE)
    assert stack_of(allowed_origins="https://page.test") == listed


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({}, {"CORSMiddleware"}),
        ({"api_keys": "secret"}, {"CORSMiddleware", "HostCheck"}),
        ({"host": "0.0.0.0", "allow_anonymous": True}, {"CORSMiddleware", "HostCheck"}),
    ],
)
def test_some_middleware_depends_on_the_settings(settings: dict[str, Any], absent: set[str]):
    whole = set(stack_of(allowed_origins="https://page.test"))
    assert whole - set(stack_of(**settings)) == absent
