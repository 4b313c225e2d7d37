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
        *("errors", "config", "detokenizer", "stop_checker", "host"),
        *("chat.output_parser", "log.records", "log.store"),
        *("scheduling.block_manager", "scheduling.padding"),
    },
    {"chat.messages", "log.tokens", "scheduling.prefill_budget", "admission.worker_pool"},
    {"output_constraint"},
    {"log.generation", "sampling_params"},
    {"request", "log.reader"},
    {"backend", "chat.format"},
    {"sequence", "backends"},
    {"scheduling.fair_queue", "scheduling.schedule"},
    {"scheduling.scheduler", "scheduling.wait_estimator"},
    {
        *("engine.engine", "engine.watchdog", "log.subscribers"),
        *("admission.input_processor", "admission.capacity"),
    },
    {"engine.engine_thread", "admission.tokenizer_queue"},
    {"admission.controller"},
    {"engine.async_engine"},
    {""},  # the public face
)
"""From the bottom up. Modules of one rank do not know each other; `backends` is one module here."""

APP_IMPORTERS = {
    "app.cli": {"app.__main__"},
    "app.main": {"app.cli", "app.server"},
    "app.server": {"app.cli"},
    "app.transport": {"app.server"},
    "app.asyncapi.route": {"app.main"},
    "app.stream": {"app.main", "app.asyncapi"},
    "app.openai": {"app.main"},
    "app.responses": {"app.main", "app.cli", "app.dependencies", "app.asyncapi", "app.settings"},
}
"""Who may import the upper parts of `app`, besides themselves."""

APP_FOUNDATIONS: dict[str, set[str]] = {
    "app.errors": set(),
    "app.settings": {"app.errors", "app.responses.dialect", "app.websocket.socket_memory"},
    "app.responses.dialect": set(),
    "app.schemas": {"app.errors"},
    "app.json": {"app.errors", "app.schemas"},
    "app.websocket.socket_memory": set(),
    "app.websocket.protocol": {"app.errors", "app.schemas", "app.json"},
    "app.stream.protocol": {
        *("app.errors", "app.schemas", "app.websocket.protocol"),
        *("app.stream.frames", "app.stream.parsing", "app.stream.schemas"),
    },
    "app.responses.protocol": {
        *("app.errors", "app.schemas", "app.websocket.protocol", "app.websocket.socket_memory"),
        "app.responses.schemas",
    },
    "app.responses.storage": {"app.errors", "app.json", "app.responses"},
}
"""All of `app` that its lower parts may import, besides themselves."""

SANS_IO = ("app.websocket.protocol", "app.stream.protocol", "app.responses.protocol")
"""The conversation cores: frames in, commands and frames out."""

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


def ranked_name(module: str) -> str:
    """Return the module's name in the table: a path below `streaming`, or `backends`."""
    name = module.partition(".")[2]
    return "backends" if is_in(name, "backends") else name


def _is_sans_io(module: str) -> bool:
    return any(is_in(module, core) for core in SANS_IO)


def rank(module: str) -> int | None:
    name = ranked_name(module)
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
    if _is_sans_io(module) and root in IO_LIBRARIES:
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
    if _is_sans_io(module):
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
    exist = {
        ranked_name(module_name(path))
        for path in FILES
        if path.parts[len(ROOT.parts)] == "streaming" and path.read_text(encoding="utf-8")
    }
    assert set(names) == exist


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_named_for_its_noun(path: Path):
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


# The checker itself.


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("app/openai/x.py", "import streaming\nfrom streaming import engine", [2]),
        ("app/openai/x.py", "from streaming import Generation\nimport streaming.errors", []),
        ("app/openai/x.py", "from streaming.engine.engine import Engine", [1]),
        ("app/openai/x.py", "def f():\n    import torch", [2]),
        ("app/openai/x.py", "from app.websocket import connection\nfrom app import main", [2]),
        ("app/openai/x.py", "from app.stream.schemas import messages", [1]),
        ("app/openai/x.py", "import asyncio\nimport json\nimport threading", [3]),
        (
            "app/websocket/x.py",
            "from app.stream import route\nfrom ..main import create_app",
            [1, 2],
        ),
        ("app/websocket/x.py", "from app.websocket.protocol import frames\nimport asyncio", []),
        (
            "app/websocket/protocol/x.py",
            "from ...stream import route\nfrom ...websocket import connection",
            [1, 2],
        ),
        (
            "app/stream/protocol.py",
            "import asyncio\nfrom fastapi import WebSocket\nimport json",
            [1, 2],
        ),
        ("app/responses/protocol/x.py", "async def f():\n    await g()", [1, 2]),
        ("app/websocket/protocol/x.py", "async def f():\n  async for a in b:\n    pass", [1, 2]),
        (
            "app/stream/protocol.py",
            "from app.dependencies import x\nfrom app.errors import y",
            [1],
        ),
        ("app/errors.py", "from app.schemas import error", [1]),
        ("app/auth.py", "import app.cli\nimport app.errors", [1]),
        (
            "streaming/engine/engine.py",
            "import app.errors\nimport fastapi, json\nimport pydantic",
            [1, 2, 2, 3],
        ),
        (
            "streaming/engine/engine.py",
            "from streaming.engine.async_engine import AsyncEngine",
            [1],
        ),
        (
            "streaming/engine/engine.py",
            "from streaming.admission import controller\nfrom streaming import Reader",
            [1, 2],
        ),
        (
            "streaming/engine/engine.py",
            "from ..scheduling import scheduler\nfrom ..admission.capacity import Capacity",
            [2],
        ),
        ("streaming/engine/engine.py", "from streaming.newcomer import x", [1]),
        ("streaming/engine/engine.py", "import transformers.utils\nimport threading", [1, 2]),
        ("streaming/output_constraint.py", "import llguidance\nfrom streaming import errors", [1]),
        ("streaming/log/generation.py", "import streaming.sequence\nimport streaming.errors", [1]),
        (
            "streaming/backends/x.py",
            "import torch, json\nimport streaming.scheduling.scheduler",
            [2],
        ),
        (
            "streaming/backends/x.py",
            "from . import scripted\nfrom ..engine.engine import Engine",
            [2],
        ),
        ("streaming/host.py", "import threading", []),
        ("streaming/host.py", "import threading\nimport asyncio", [2]),
        ("streaming/newcomer.py", "import streaming.errors", [1]),
    ],
)
def test_the_checker_names_the_line(path: str, source: str, expected: list[int]):
    found = violations(source, ROOT / path)
    assert [int(message.split(":")[1]) for message in found] == expected
    assert all(message.startswith(f"{path}:") for message in found)
