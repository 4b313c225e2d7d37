"""Converts a `.gguf` file, once per machine, to a model folder that loads in seconds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from streaming.backends import OnProgress
from streaming.backends.loading.load_failure import as_load_error
from streaming.backends.loading.model_cache import ModelCache
from streaming.backends.loading.progress import progress_bar, quiet_transformers
from streaming.errors import ModelLoadError

_MAGIC = b"GGUF"


def convert_gguf(gguf_file: Path, *, name: str, cache: ModelCache, on_progress: OnProgress) -> Path:
    """Return the folder of the converted model, from the cache if the file was converted before.

    Weights are dequantized to float32, which represents every value of every GGUF format exactly.
    Quantized weights run many times slower on a CPU, and bfloat16 would round them.

    Raises:
        ModelLoadError: the file is corrupt, its architecture is unknown, or the disk is full.
    """
    with as_load_error(f"{gguf_file} cannot be read"), gguf_file.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ModelLoadError(f"{gguf_file} is not a GGUF file")
        file.seek(0)
        # Hash the whole file: two fine-tunes of one model may differ in the weights only.
        key = hashlib.file_digest(file, "sha256").hexdigest()

    def build(folder: Path) -> None:
        _convert(gguf_file, folder, name, on_progress)

    return cache.get_or_build(
        name=name, key=key, source=str(gguf_file), build=build, on_progress=on_progress
    )


def _convert(gguf_file: Path, folder: Path, name: str, on_progress: OnProgress) -> None:
    on_progress(f"Converting {name}: reading the tokenizer", 0.0)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers import modeling_gguf_pytorch_utils as gguf_loader

    # Dequantizing takes longest and has a progress bar. The other parts are reported by name.
    bar = progress_bar(
        on_progress, f"Converting {name}: dequantizing the weights", start=0.75, end=0.95
    )
    silent_bar = progress_bar(lambda *_: None, "")
    source = {"gguf_file": gguf_file.name, "local_files_only": True}
    with quiet_transformers(silent_bar), as_load_error(f"{gguf_file} cannot be converted"):
        previous_bar, gguf_loader.tqdm = gguf_loader.tqdm, bar  # no hook sets this one
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, **source)
            on_progress(f"Converting {name}: reading the weights", 0.35)
            model = AutoModelForCausalLM.from_pretrained(
                gguf_file.parent,
                dtype="float32",
                quantization_config=GgufConfig(dequantize=True),
                **source,
            )
        finally:
            gguf_loader.tqdm = previous_bar
    on_progress(f"Converting {name}: writing", 0.97)
    with quiet_transformers(silent_bar):
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    on_progress(f"Converting {name}", 1.0)
