"""Compares what the documentation says with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from pydantic import BaseModel

from app.json.json_object import parse_object
from app.openai.schemas.chat import ChatRequest
from app.openai.schemas.completions import CompletionRequest
from app.schemas.sampling import SamplingFields
from app.stream.parsing import to_message
from app.stream.schemas.frames import ServerFrame
from tests.doc_tables import DOCS, TABLES, Table

ROOT = DOCS.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    ROOT / "streaming" / "DESIGN.md",
    *sorted(DOCS.glob("*.md")),
]
_BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
]
BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_is_up_to_date(table: Table):
    assert table.written == table.render(), "run `python -m tests.doc_tables`"


def test_client_frames_are_valid():
    frames = [
        line
        for language, block in _BLOCKS
        if language == "json"
        for line in block.splitlines()
        if '"type": "generate"' in line or '"type": "resume"' in line
    ]
    assert len(frames) >= 4
    for frame in frames:
        to_message(parse_object(frame, what="frame"))


@pytest.mark.parametrize("frame", get_args(ServerFrame))
def test_the_fields_of_a_server_frame_are_listed(frame: Any):
    name = get_args(get_type_hints(frame)["type"])[0]
    section = (DOCS / "websocket.md").read_text().partition("## Server frames")[2]
    row = section.partition(f"| `{name}` |")[2].partition("\n")[0]
    listed = re.findall(r"`(\w+)\??`", row)
    assert get_type_hints(frame).keys() - {"type", *listed} == set()


def test_every_sampling_field_is_listed():
    section = (DOCS / "websocket.md").read_text().partition("## Sampling fields")[2]
    listed = re.findall(r"`(\w+)`", section.partition("\n## ")[0])
    assert SamplingFields.model_fields.keys() - set(listed) == set()


def test_curl_commands_send_valid_bodies():
    commands = [block for _, block in _BLOCKS if block.startswith("curl")]
    assert len(commands) >= 2
    for command in commands:
        found = re.search(r"8000(\S+) .*-d '(.*)'", command, re.DOTALL)
        assert found
        BODIES[found[1]].model_validate(json.loads(found[2]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    links = re.findall(r"\]\(((?!http|#)[^)]+)\)", page.read_text())
    targets = [page.parent / link.partition("#")[0] for link in links]
    assert [str(target) for target in targets if not target.exists()] == []


def test_paths_of_the_recipes_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:app|benchmarks|docs|static|streaming|tests)/[\w./-]+)`", text)
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []
    assert len(paths) > 40


def test_the_site_builds(tmp_path: Path):
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert (tmp_path / "websocket" / "index.html").is_file()


def test_the_layout_in_the_design_is_the_tree():
    """Every package of `app` and `streaming` has a line, and every line a folder."""
    text = (ROOT / "streaming" / "DESIGN.md").read_text()
    tree = text.partition("## Layout")[2].partition("```")[2].partition("```")[0]
    parents: list[str] = []
    drawn = set()
    for line in tree.strip().splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        drawn.add("".join(parents).rstrip("/"))
    packages = {
        str(path.parent.relative_to(ROOT))
        for root in ("app", "streaming")
        for path in (ROOT / root).rglob("__init__.py")
    }
    assert {path for path in drawn if path.startswith(("app", "streaming"))} == packages
    assert [path for path in drawn if not (ROOT / path).is_dir()] == []
