"""timm's pretrained weights: from the local cache, or downloaded after announcing the URL."""

import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import timm
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import get_hf_file_metadata, hf_hub_url, repo_folder_name
from timm.models import PretrainedCfg, get_pretrained_cfg
from timm.models._hub import download_cached_file, get_cache_dir, hf_split
from torch import Tensor

from models.weights import first_line
from recipes.errors import UserError

_TIMEOUT = 5.0  # seconds for the server's first answer; a machine without internet access must not wait for minutes
_FILES = ("model.safetensors", "pytorch_model.bin")  # what timm looks for in a repository of the hub


def timm_pretrained(name: str, say: Callable[[str], None] = print) -> dict[str, Tensor]:
    """Return timm's pretrained weights of model `name`, under the names and in the shapes that timm gives them.

    Arguments and errors are those of `cached_timm_file`.
    """
    file = cached_timm_file(name, say)
    try:
        # Given a file, timm does not contact the hub. Otherwise it would wait for the hub even if weights are cached.
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}).state_dict()
    except Exception as error:  # whatever reading a damaged file raises
        raise UserError(
            f"timm's pretrained weights of {name} in {file} cannot be read ({first_line(error)}): delete the file"
        ) from None


def cached_timm_file(name: str, say: Callable[[str], None] = print) -> Path:
    """Return the file of timm's pretrained weights of model `name`; download it if the cache does not have it.

    Args:
        name: a model name, with or without the tag of its weights, e.g. ``convnext_tiny.fb_in22k``.
        say: called with a line that names URL and size before a download starts.

    Raises:
        UserError: timm has no weights of that name, or they cannot be downloaded; names the URL.
    """
    source = get_pretrained_cfg(name)
    if source is None or not source.has_weights:
        raise UserError(
            f"timm has no pretrained weights of {name}: add model.weights=null to train from scratch, "
            f"or model.weights=FILE"
        )
    return _from_hub(name, source, source.hf_hub_id, say) if source.hf_hub_id else _from_url(name, source, say)


def _from_hub(name: str, source: PretrainedCfg, hub_id: str, say: Callable[[str], None]) -> Path:
    repository, revision = hf_split(hub_id)
    files = (source.hf_hub_filename,) if source.hf_hub_filename else _FILES
    for file in files:
        cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    folder = repo_folder_name(repo_id=repository, repo_type="model")
    leftovers = [
        path for path in (_cache() / folder, _cache() / ".locks" / folder) if not path.exists()
    ]  # what an interrupted download would leave
    url = hf_hub_url(repository, files[0], revision=revision)
    try:
        for file in files:
            url = hf_hub_url(repository, file, revision=revision)
            try:
                # A short request first: without a network, the download itself would retry for more than a minute.
                size = get_hf_file_metadata(url, timeout=_TIMEOUT).size
            except EntryNotFoundError:
                continue
            say(_announcement(name, url, size))
            return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision, etag_timeout=_TIMEOUT))
        raise EntryNotFoundError(f"the repository has neither {' nor '.join(files)}")
    except Exception as error:  # the hub's client raises its own errors, those of its HTTP client, and OSError
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True)
        raise _unreachable(name, url, error) from None


def _from_url(name: str, source: PretrainedCfg, say: Callable[[str], None]) -> Path:
    if source.file or not source.url:
        return Path(source.file or "")
    url = str(source.url)
    cached = Path(get_cache_dir()) / url.rpartition("/")[2]
    if cached.is_file():
        return cached
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT) as answer:
            say(_announcement(name, url, int(answer.headers.get("Content-Length") or 0)))
        return Path(download_cached_file(url))
    except Exception as error:  # URLError, OSError, and what a proxy or a broken answer raise
        raise _unreachable(name, url, error) from None


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def _announcement(name: str, url: str, size: int | None) -> str:
    amount = f" ({size / 1e6:,.0f} MB)" if size else ""
    return f"weights: downloading timm's pretrained weights of {name} from {url}{amount}"


def _unreachable(name: str, url: str, error: Exception) -> UserError:
    return UserError(
        f"timm's pretrained weights of {name} cannot be downloaded from {url} ({first_line(error)}): download them "
        f"elsewhere and add model.weights=FILE, or add model.weights=null to train from scratch"
    )
