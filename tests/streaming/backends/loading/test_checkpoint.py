from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from streaming.backends.loading.checkpoint import open_checkpoint
from streaming.errors import ModelLoadError
from tests.streaming.backends import tiny_models

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of a complete model, for the test to damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("sharded"), max_shard_size="40KB")


def refusal(folder: Path, *, allow_pickle: bool = False) -> str:
    with pytest.raises(ModelLoadError) as caught:
        open_checkpoint(folder, allow_pickle=allow_pickle)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "FOLDER")


def test_complete_folders_open(folder: Path, sharded_folder: Path) -> None:
    checkpoint = open_checkpoint(folder, allow_pickle=False)
    assert checkpoint.config["model_type"] == "llama"
    assert not checkpoint.is_pickle
    assert not checkpoint.needs_remote_code
    assert len(list(sharded_folder.glob("*.safetensors"))) > 1
    open_checkpoint(sharded_folder, allow_pickle=False)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refusal(folder) == "FOLDER is not a model folder: config.json is missing"


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_broken_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, errors="surrogateescape")
    assert refusal(folder).startswith("FOLDER/config.json ")


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert refusal(folder) == "FOLDER has no weights: model.safetensors is missing"


def test_only_pickled_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert refusal(folder) == (
        "FOLDER has only pickled weights (pytorch_model.bin), which can run any code; "
        "pass --allow-pickle if you trust their source"
    )
    assert open_checkpoint(folder, allow_pickle=True).is_pickle


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert refusal(folder) == "FOLDER has no tokenizer files"


@pytest.mark.parametrize("num_bytes", [0, 5, 8, 100, 5000])
def test_a_truncated_download(folder: Path, num_bytes: int) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:num_bytes])
    expected = f"FOLDER is incomplete: model.safetensors is truncated at {num_bytes} bytes"
    assert refusal(folder) == expected


def test_a_cut_at_any_byte_is_detected(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    for num_bytes in range(0, len(content), 997):
        (folder / WEIGHTS).write_bytes(content[:num_bytes])
        assert "is truncated" in refusal(folder)


def test_a_web_page_instead_of_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((20).to_bytes(8, "little") + b"<html>no access</html>" * 9)
    assert refusal(folder) == "FOLDER/model.safetensors is not a safetensors file"


def test_missing_shard(sharded_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "model"))
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert refusal(folder) == f"FOLDER is incomplete: {shard.name} is missing"


def test_remote_code_is_detected(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(folder, allow_pickle=False).needs_remote_code
