"""Look at a model's folder before anything is loaded from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming.errors import ModelLoadError

_WEIGHTS = "model.safetensors"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder whose files are all there and whole.

    Attributes:
        config: what its config.json says.
        is_pickle: its weights can run any code when they are loaded.
    """

    path: Path
    config: dict[str, Any]
    is_pickle: bool

    @property
    def needs_remote_code(self) -> bool:
        """Whether it brings Python code for its own model."""
        return "AutoModelForCausalLM" in self.config.get("auto_map", {})


def open_checkpoint(folder: Path, *, allow_pickle: bool) -> Checkpoint:
    """Check the folder's files.

    Raises:
        ModelLoadError: one of them is missing or cut short, or the weights are pickled.
    """
    config = _read_json(folder, "config.json")
    is_pickle = not _check_weights(folder, allow_pickle=allow_pickle)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelLoadError(f"{folder} has no tokenizer")
    return Checkpoint(path=folder, config=config, is_pickle=is_pickle)


def has_safetensors(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (_WEIGHTS, f"{_WEIGHTS}.index.json"))


def _check_weights(folder: Path, *, allow_pickle: bool) -> bool:
    """Return whether there are safetensors to load."""
    if not has_safetensors(folder):
        pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        if not pickles:
            raise ModelLoadError(f"{folder} has no weights: there is no {_WEIGHTS}")
        if not allow_pickle:
            raise ModelLoadError(
                f"{folder} has only pickled weights ({pickles[0]}), which can run any code; "
                "--allow-pickle loads them if you trust their source"
            )
        return False
    if (folder / _WEIGHTS).is_file():
        names = [_WEIGHTS]
    else:
        index = _read_json(folder, f"{_WEIGHTS}.index.json")
        names = sorted(set(index.get("weight_map", {}).values()))
    for name in names:
        _check_safetensors(folder / name)
    return True


def _check_safetensors(path: Path) -> None:
    """Compare the file's size with what its header promises.

    The format: 8 bytes little-endian header size, that many bytes of JSON, then the tensors
    (huggingface/safetensors, README, "Format").
    """
    if not path.is_file():
        raise ModelLoadError(f"{path.parent} is incomplete: {path.name} is missing")
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        expected = 8 + header_size
        if num_bytes > 8 and num_bytes >= expected:
            try:
                header = json.loads(file.read(header_size))
                ends = [
                    tensor["data_offsets"][1]
                    for name, tensor in header.items()
                    if name != "__metadata__"
                ]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ModelLoadError(f"{path} is not a safetensors file") from error
            expected += max(ends, default=0)
    if num_bytes < max(expected, 9):
        raise ModelLoadError(
            f"{path.parent} is incomplete: {path.name} is cut short at {num_bytes} bytes"
        )


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text())
    except FileNotFoundError as error:
        raise ModelLoadError(f"{folder} has no {name}: it is no model's folder") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder / name} cannot be read") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{folder / name} is not a JSON object")
    return content
