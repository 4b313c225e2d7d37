"""Imports point down. The tables below are the layering; a violation is named by file and line.

The rules:

* `app` sees the engine through its public face, `streaming`, and `streaming.errors`.
* `streaming` knows no web and, outside its backends, no JSON. Model libraries are imported under
  `streaming/backends/` only.
* Inside `streaming`, a module imports only modules of a lower rank.
* Inside `app`, the protocol is sans-I/O, and nothing below a route knows of routes.
* One module makes all threads, and none has both a thread and an event loop.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("app", "streaming") for path in (ROOT / package).rglob("*.py"))

STREAMING_RANKS = (
    {
        *("errors", "config", "detokenizer", "stop_checker", "kv_cache", "step_shape"),
        *("output_parser", "records", "store", "host"),
    },
    {"chat", "step_pacer", "tokens", "worker_pool"},
    {"grammar"},
    {"generation", "sampling_params"},
    {"request", "reader"},
    {"sequence", "chat_format"},
    {"backend", "fair_queue"},
    {"scheduler", "wait_estimator", "backends"},
    {"engine", "admission", "followers", "watchdog", "capacity"},
    {"engine_thread", "tokenizer_queue"},
    {"async_engine"},
    {""},  # the public face
)
"""From the bottom up. Modules of one rank do not know each other; `backends` is one module here."""

APP_IMPORTERS = {
    "app.cli": {"app.__main__"},
    "app.main": {"app.cli", "app.server"},
    "app.server": {"app.cli"},
    "app.routes": {"app.main"},
    "app.websocket": {"app.main", "app.routes"},
    "app.transport": {"app.server"},
    "app.middleware": {"app.main", "app.routes"},
    "app.asyncapi": {"app.main", "app.routes"},
    "app.protocol": {
        *("app.main", "app.routes", "app.websocket", "app.asyncapi", "app.request_limiter"),
    },
    "app.responses": {
        *("app.main", "app.cli", "app.dependencies", "app.routes", "app.websocket"),
        "app.asyncapi",
    },
}
"""Who may import the upper parts of `app`, besides themselves."""

APP_FOUNDATIONS: dict[str, set[str]] = {
    "app.errors": set(),
    "app.settings": {"app.errors", "app.socket_memory"},
    "app.schemas": {"app.errors"},
    "app.json_object": {"app.errors", "app.schemas"},
    "app.json_text": set(),
    "app.socket_memory": set(),
    "app.protocol": {"app.errors", "app.schemas", "app.json_object", "app.socket_memory"},
    "app.responses": {
        *("app.errors", "app.schemas", "app.settings", "app.json_text", "app.socket_memory"),
    },
}
"""All of `app` that its lower parts may import, besides themselves."""

MODEL_LIBRARIES = {
    *("torch", "transformers", "safetensors", "tokenizers", "gguf", "accelerate", "llguidance"),
}
WEB_LIBRARIES = {"fastapi", "starlette", "pydantic", "pydantic_settings", "uvicorn", "websockets"}
IO_LIBRARIES = {"fastapi", "starlette", "uvicorn", "websockets", "asyncio", "threading", "socket"}


def module_name(path: Path) -> str:
    """Return `a.b` for a/b.py and for a/b/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = frozenset(module_name(path) for path in FILES)


def imports(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield line and module of each import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if is_package else node.level
                parents = module.split(".")[: len(module.split(".")) - up]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node.lineno, submodule if submodule in MODULES else base


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def rank(module: str) -> int | None:
    name = ".".join(module.split(".")[1:2])
    return next((at for at, names in enumerate(STREAMING_RANKS) if name in names), None)


def violation(module: str, target: str) -> str | None:
    """Return why `module` may not import `target`, or None where it may."""
    root = target.partition(".")[0]
    in_backends = is_in(module, "streaming.backends")
    if root in MODEL_LIBRARIES and not in_backends:
        return f"{target} is for streaming/backends only"
    if is_in(module, "streaming"):
        if root in WEB_LIBRARIES | {"app"}:
            return f"streaming knows no {root}"
        if root == "json" and not in_backends:
            return "streaming speaks no JSON"
        if root == "threading" and not in_backends and module != "streaming.host":
            return "streaming.host makes all threads"
        if root == "streaming":
            return _upward(module, target)
        return None
    if root == "streaming":
        if target not in ("streaming", "streaming.errors"):
            return f"app imports streaming and streaming.errors, not {target}"
        return None
    if is_in(module, "app.protocol") and root in IO_LIBRARIES:
        return f"the protocol is sans-I/O, without {root}"
    return _sideways(module, target) if root == "app" else None


def _upward(module: str, target: str) -> str | None:
    if is_in(module, "streaming.backends") and is_in(target, "streaming.backends"):
        return None
    own, other = rank(module), rank(target)
    if own is None or other is None:
        return f"{module if own is None else target} has no rank: give it one in this file"
    return None if other < own else f"{target} is not below {module}"


def _sideways(module: str, target: str) -> str | None:
    for package, allowed in APP_FOUNDATIONS.items():
        if is_in(module, package) and not any(is_in(target, ok) for ok in allowed | {package}):
            return f"{package} does not import {target}"
    for package, importers in APP_IMPORTERS.items():
        if is_in(target, package) and not any(is_in(module, ok) for ok in importers | {package}):
            return f"{target} is above {module}"
    return None


def violations(source: str, path: Path) -> list[str]:
    """Return each broken rule of a file as `file:line: why`."""
    module = module_name(path)
    tree = ast.parse(source)
    found = list(imports(tree, module, is_package=path.name == "__init__.py"))
    broken = [(line, why) for line, target in found if (why := violation(module, target))]
    if {"asyncio", "threading"} <= {target for _, target in found}:
        line = max(line for line, target in found if target in ("asyncio", "threading"))
        broken.append((line, "no module has both a thread and an event loop"))
    if is_in(module, "app.protocol"):
        asynchronous = ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith
        broken += [
            (node.lineno, "the protocol never waits")
            for node in ast.walk(tree)
            if isinstance(node, asynchronous)
        ]
    return [f"{path.relative_to(ROOT)}:{line}: {why}" for line, why in sorted(broken)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    assert violations(path.read_text(encoding="utf-8"), path) == []


def test_every_streaming_module_has_one_rank_and_every_rank_its_modules():
    names = [name for names in STREAMING_RANKS for name in names]
    assert len(set(names)) == len(names)
    exist = {".".join(module.split(".")[1:2]) for module in MODULES if is_in(module, "streaming")}
    assert set(names) == exist


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_named_for_its_noun(path: Path):
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


# The checker itself.


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("app/routes/x.py", "import streaming\nfrom streaming import engine", [2]),
        ("app/routes/x.py", "from streaming import Generation\nimport streaming.errors", []),
        ("app/routes/x.py", "from streaming.engine import Engine", [1]),
        ("app/routes/x.py", "def f():\n    import torch", [2]),
        ("app/routes/x.py", "from app.websocket import connection\nfrom app import main", [2]),
        ("app/routes/x.py", "import asyncio\nimport json\nimport threading", [3]),
        (
            "app/websocket/x.py",
            "from app.routes import stream\nfrom ..main import create_app",
            [1, 2],
        ),
        ("app/websocket/x.py", "from app.protocol import frames\nimport asyncio", []),
        ("app/protocol/x.py", "from ..routes import stream\nfrom ..websocket.x import y", [1, 2]),
        ("app/protocol/x.py", "import asyncio\nfrom fastapi import WebSocket\nimport json", [1, 2]),
        ("app/protocol/x.py", "async def f():\n    await g()", [1, 2]),
        ("app/protocol/x.py", "async def f():\n  async for a in b:\n    pass", [1, 2]),
        ("app/protocol/x.py", "from app.dependencies import x\nfrom app.errors import y", [1]),
        ("app/errors.py", "from app.schemas import error", [1]),
        ("app/auth.py", "import app.cli\nimport app.errors", [1]),
        (
            "streaming/engine.py",
            "import app.errors\nimport fastapi, json\nimport pydantic",
            [1, 2, 2, 3],
        ),
        ("streaming/engine.py", "from streaming.async_engine import AsyncEngine", [1]),
        (
            "streaming/engine.py",
            "from streaming import admission\nfrom streaming import Reader",
            [1, 2],
        ),
        ("streaming/engine.py", "from . import scheduler\nfrom .admission import Admission", [2]),
        ("streaming/engine.py", "from streaming.newcomer import x", [1]),
        ("streaming/engine.py", "import transformers.utils\nimport threading", [1, 2]),
        ("streaming/grammar.py", "import llguidance\nfrom streaming import errors", [1]),
        ("streaming/generation.py", "import streaming.sequence\nimport streaming.errors", [1]),
        ("streaming/backends/x.py", "import torch, json\nimport streaming.scheduler", [2]),
        ("streaming/backends/x.py", "from . import scripted\nfrom ..engine import Engine", [2]),
        ("streaming/host.py", "import threading", []),
        ("streaming/host.py", "import threading\nimport asyncio", [2]),
        ("streaming/newcomer.py", "import streaming.errors", [1]),
    ],
)
def test_the_checker_names_the_line(path: str, source: str, expected: list[int]):
    found = violations(source, ROOT / path)
    assert [int(message.split(":")[1]) for message in found] == expected
    assert all(message.startswith(f"{path}:") for message in found)
