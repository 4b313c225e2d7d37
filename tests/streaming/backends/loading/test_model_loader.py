from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config

from streaming import ModelConfig
from streaming.backends.loading.model_loader import (
    LoadedModel,
    choose_device,
    choose_dtype,
    load_model,
)
from streaming.errors import ModelLoadError
from streaming.output_constraint import Grammar, GrammarKind
from tests.streaming.backends import tiny_models

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of a complete model, for the test to change."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def load(folder: Path, **options: Any) -> LoadedModel:
    config = ModelConfig(model=str(folder), **{"device": "cpu", **options})
    return load_model(config, on_progress=lambda *_: None)


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(Path(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "FOLDER")


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_loads_a_folder(llama_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load(llama_folder)
    info = loaded.info
    assert (info.max_model_len, info.vocab_size, info.has_chat_template) == (256, 100, True)
    assert (info.eos_token_ids, info.device) == (frozenset({2}), "cpu")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("hello you")) == "hello you"
    assert not loaded.model.training
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_weights_are_cast(llama_folder: Path, name: str) -> None:
    loaded = load(llama_folder, dtype=name)
    assert {weight.dtype for weight in loaded.model.parameters()} == {getattr(torch, name)}
    assert loaded.info.dtype == name


def test_grammars_end_with_the_models_end_tokens(llama_folder: Path) -> None:
    grammars = load(llama_folder).grammars
    assert grammars is not None
    [matcher] = grammars.compile(Grammar(GrammarKind.REGEX, ""))
    assert matcher.mask()[0] == 1 << 2


def test_a_tokenizer_without_grammars_serves_everything_else(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(folder / "tokenizer.json", decoder=None)
    with caplog.at_level(logging.WARNING):
        loaded = load(folder)
    assert loaded.grammars is None
    assert loaded.tokenizer.encode("hello") != []
    assert "response_format and tools are not available" in caplog.text


def test_end_tokens_of_model_and_tokenizer_are_joined(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[0, 5, 100_000])
    assert load(folder).info.eos_token_ids == {0, 2, 5}


def test_model_without_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert not load(folder).info.has_chat_template


def test_a_context_can_be_reduced_only(llama_folder: Path) -> None:
    assert load(llama_folder, max_model_len=100).info.max_model_len == 100
    assert refusal(llama_folder, max_model_len=257).endswith(
        "max_model_len 257 exceeds the model's limit of 256 tokens"
    )
    assert refusal(llama_folder, max_model_len=1) == "max_model_len must be at least 2 (got 1)"


def test_model_without_limit_takes_any_context(tmp_path: Path) -> None:
    tokenizer = tiny_models.ascii_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tiny_models.random_model(tiny_models.mamba_config(len(tokenizer))).save_pretrained(tmp_path)
    assert load(tmp_path).info.max_model_len == 8192
    assert load(tmp_path, max_model_len=100_000).info.max_model_len == 100_000


def test_num_threads(llama_folder: Path) -> None:
    load(llama_folder, num_threads=2)
    assert torch.get_num_threads() == 2
    assert refusal(llama_folder, num_threads=0) == "num_threads must be at least 1 (got 0)"


@pytest.mark.parametrize("name", ["float8", "float64", "bf16", ""])
def test_an_unknown_dtype_is_refused_first(name: str) -> None:
    expected = f"unknown dtype {name!r}; use auto, float32, bfloat16, float16"
    assert refusal("/no/such/folder", dtype=name) == expected


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", "cpu:x", ""])
def test_unknown_device(name: str) -> None:
    expected = f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps"
    assert refusal("/no/such/folder", device=name) == expected


def test_a_missing_device() -> None:
    assert "CUDA devices" in refusal("/no/such/folder", device="cuda:99")


def test_the_auto_device_exists() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu:0") == CPU


def test_auto_dtype() -> None:
    assert choose_dtype("auto", CUDA, stored=torch.float16) == torch.float16
    assert choose_dtype("auto", CUDA, stored=torch.float32) == torch.bfloat16
    assert choose_dtype("auto", CUDA, stored=None) == torch.bfloat16
    assert choose_dtype("auto", CPU, stored=None) in (torch.float32, torch.bfloat16)
    assert choose_dtype("float32", CUDA, stored=torch.float16) == torch.float32


def test_encoder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tiny_models.ascii_tokenizer().save_pretrained(tmp_path)
    expected = "BertForMaskedLM is not a causal language model"
    assert refusal(tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (T5Config(), "t5"),
        (BertConfig(), "bert"),
        (tiny_models.llama_config(100), None),
        (tiny_models.llama_config(100), "LlamaModel"),
    ],
    ids=["encoder-decoder", "encoder", "causal", "model without a head"],
)
def test_only_a_causal_model_loads(folder: Path, config: Any, name: str | None) -> None:
    if name == "LlamaModel":
        config.architectures = [name]
    config.save_pretrained(folder)
    if name is None:
        assert load(folder).info.vocab_size == 100
    else:
        expected = f"{name} is not a causal language model"
        assert refusal(folder) == expected


def test_unknown_model_type(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="zzz")
    assert refusal(folder) == "FOLDER: transformers does not support the model type 'zzz'"


def test_remote_code_is_not_run_unless_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers copies the code to this folder, by default in the user's cache.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    auto_map = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    edit_json(folder / "config.json", model_type="zzz", auto_map=auto_map)
    (folder / "modeling.py").write_text("raise SystemExit('code has run')")
    assert refusal(folder) == (
        "FOLDER needs its own Python code; "
        "pass --trust-remote-code to run it if you trust its source"
    )
    with pytest.raises(SystemExit, match="code has run"):
        load(folder, trust_remote_code=True)


def test_missing_tensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert refusal(folder) == (
        "FOLDER is incomplete: 1 tensors are missing, "
        "the first is model.layers.0.mlp.up_proj.weight"
    )


def test_weights_of_another_size(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=65)
    assert refusal(folder).startswith("model cannot be loaded: ")


def test_pickled_weights_load_only_if_asked(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "has only pickled weights" in refusal(folder)
    assert load(folder, allow_pickle=True).info.vocab_size == 100


def test_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 1}')
    assert refusal(folder).startswith("the tokenizer in FOLDER cannot be loaded: ")
