"""Checks the files of a model folder before anything is loaded from it."""

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
    """A model folder whose files are all present and complete.

    Attributes:
        path: the folder.
        config: the content of its config.json.
        is_pickle: whether its weights are pickled, so that loading them can run any code.
    """

    path: Path
    config: dict[str, Any]
    is_pickle: bool

    @property
    def needs_remote_code(self) -> bool:
        """Whether the folder has Python code of its own that defines the model."""
        return "AutoModelForCausalLM" in self.config.get("auto_map", {})


def open_checkpoint(folder: Path, *, allow_pickle: bool) -> Checkpoint:
    """Check a folder's files and return it as a checkpoint.

    Raises:
        ModelLoadError: a file is missing or truncated, or the weights are pickled.
    """
    config = _read_json(folder, "config.json")
    is_pickle = not _check_weights(folder, allow_pickle=allow_pickle)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelLoadError(f"{folder} has no tokenizer files")
    return Checkpoint(path=folder, config=config, is_pickle=is_pickle)


def has_safetensors(folder: Path) -> bool:
    """Return whether a folder has weights in the safetensors format."""
    return any((folder / name).is_file() for name in (_WEIGHTS, f"{_WEIGHTS}.index.json"))


def _check_weights(folder: Path, *, allow_pickle: bool) -> bool:
    """Return whether the weights are safetensors, rather than pickled files."""
    if not has_safetensors(folder):
        pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        if not pickles:
            raise ModelLoadError(f"{folder} has no weights: {_WEIGHTS} is missing")
        if not allow_pickle:
            raise ModelLoadError(
                f"{folder} has only pickled weights ({pickles[0]}), which can run any code; "
                "pass --allow-pickle if you trust their source"
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
    """Check that a file has the size that its header states.

    The format is an 8-byte little-endian header size, a JSON header of that size, and the tensors
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
            f"{path.parent} is incomplete: {path.name} is truncated at {num_bytes} bytes"
        )


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text())
    except FileNotFoundError as error:
        raise ModelLoadError(f"{folder} is not a model folder: {name} is missing") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder / name} cannot be read") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{folder / name} is not a JSON object")
    return content
