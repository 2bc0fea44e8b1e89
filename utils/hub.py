"""Weights on the Hugging Face hub, named `hf://OWNER/REPOSITORY/FILE` wherever a configuration names a checkpoint."""

import re
from pathlib import Path
from typing import Any

from utils.download import is_reachable
from utils.errors import InputError
from utils.text import printable, shown

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)/([\w.-]+(?:/[\w.-]+)*)")


def is_hub_address(named: str | Path) -> bool:
    """Whether a configured path is an address on the hub."""
    return str(named).startswith("hf://")


def fetch_from_hub(address: str, key: str) -> Path:
    """The file behind `hf://OWNER/REPOSITORY/FILE` in the cache of `huggingface_hub`, fetched if it is not there.

    A file that was fetched before is taken as it is. The package is needed for nothing else and may be absent. `key` is
    the configuration key that gave the address.

    Raises:
        InputError: the package is absent, there is no such repository or file, or it is not in the cache and cannot
            be fetched; the message says what to fetch by hand and where to put it.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or {".", ".."} & set(address.split("/")):
        raise InputError(f"{key} is {shown(address)}; an address on the hub is hf://OWNER/REPOSITORY/FILE")
    repository, file = match.groups()
    page = f"https://huggingface.co/{repository}"
    by_hand = f"or fetch {page}/resolve/main/{file} and name the file as {key}"
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError(f"{key}={address} needs `pip install huggingface_hub`, {by_hand}") from None
    try:
        return _fetch(huggingface_hub, repository, file)
    except errors.LocalEntryNotFoundError:
        raise InputError(
            f"{key}: {address} is not in the cache of huggingface_hub and the hub cannot be reached: "
            f"connect (and unset HF_HUB_OFFLINE), {by_hand}"
        ) from None
    except errors.EntryNotFoundError:
        raise InputError(f"{key}: the repository {page} has no file {file}: look there for its name") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{key}: there is no public repository {page}: check its name, {by_hand}") from None
    except (OSError, ValueError) as error:
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()), 200)
        raise InputError(f"{key}: {address} cannot be fetched ({reason}): try again, {by_hand}") from None


def _fetch(hub: Any, repository: str, file: str) -> Path:
    """The file's place in the cache; `hub` is the package."""
    try:
        return Path(hub.hf_hub_download(repository, file, local_files_only=True))
    except hub.errors.LocalEntryNotFoundError:
        # Asked once here, since the package would repeat its question for half a minute.
        if hub.constants.HF_HUB_OFFLINE or not is_reachable(hub.constants.ENDPOINT):
            raise
    return Path(hub.hf_hub_download(repository, file))
