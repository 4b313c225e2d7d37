from __future__ import annotations

import os
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

from streaming.backends.loading.gguf_conversion import convert_gguf
from streaming.backends.loading.model_cache import ModelCache
from streaming.errors import ModelLoadError
from tests.streaming.backends.tiny_gguf import write_gguf


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf")


def convert(file: Path, cache_dir: Path, reports: list[tuple[str, float | None]]) -> Path:
    return convert_gguf(
        file,
        name="tiny",
        cache=ModelCache(cache_dir),
        on_progress=lambda text, fraction: reports.append((text, fraction)),
    )


def refusal(file: Path, cache_dir: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        convert(file, cache_dir, [])
    assert "\n" not in str(caught.value)
    assert ModelCache(cache_dir).entries() == []
    return str(caught.value).replace(str(file), "FILE")


def test_converts_once_and_reports(
    gguf_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reports: list[tuple[str, float | None]] = []
    folder = convert(gguf_file, tmp_path, reports)
    fractions = [fraction for _, fraction in reports if fraction is not None]
    assert len(fractions) == len(reports)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert fractions == sorted(fractions)
    assert {text for text, _ in reports} >= {
        "Converting tiny: reading the tokenizer",
        "Converting tiny: dequantizing the weights",
    }
    assert capfd.readouterr() == ("", "")

    reports.clear()
    assert convert(gguf_file, tmp_path, reports) == folder
    assert reports == []


def test_weights_are_dequantized_exactly(gguf_file: Path, tmp_path: Path) -> None:
    weights = load_file(convert(gguf_file, tmp_path, []) / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file).tensors}
    packed = tensors["blk.0.ffn_up.weight"]
    expected = gguf.dequantize(packed.data, packed.tensor_type)
    assert torch.equal(
        weights["model.layers.0.mlp.up_proj.weight"], torch.from_numpy(expected.copy())
    )


def test_a_copy_of_the_file_has_the_same_entry(gguf_file: Path, tmp_path: Path) -> None:
    folder = convert(gguf_file, tmp_path, [])
    other = tmp_path / "renamed.gguf"
    other.write_bytes(gguf_file.read_bytes())
    os.utime(other, (0, 0))
    assert convert(other, tmp_path, []) == folder


def test_other_weights_have_another_entry(gguf_file: Path, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", seed=1)
    assert other.stat().st_size == gguf_file.stat().st_size
    assert convert(other, tmp_path, []) != convert(gguf_file, tmp_path, [])


def test_other_file_type_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"PK\x03\x04")
    assert refusal(file, tmp_path) == "FILE is not a GGUF file"


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(gguf_file: Path, tmp_path: Path, share: float) -> None:
    content = gguf_file.read_bytes()
    file = tmp_path / "half.gguf"
    file.write_bytes(content[: int(len(content) * share)])
    assert refusal(file, tmp_path).startswith("FILE cannot be converted: ")


def test_unknown_architecture_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "unknown.gguf"
    file.write_bytes(gguf_file.read_bytes().replace(b"llama", b"zzzzz"))
    assert refusal(file, tmp_path).startswith("FILE cannot be converted: ")
