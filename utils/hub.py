"""Weights on the Hugging Face hub, named `hf://OWNER/REPOSITORY/FILE` wherever a configuration names a checkpoint."""

import re
from pathlib import Path

from utils.errors import InputError

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)/([\w.-]+(?:/[\w.-]+)*)")


def is_hub_address(named: str | Path) -> bool:
    """Whether a configured path is an address on the hub."""
    return str(named).startswith("hf://")


def fetch_from_hub(address: str, key: str) -> Path:
    """The file behind `hf://OWNER/REPOSITORY/FILE` in the cache of `huggingface_hub`, fetched if it is not there.

    The package is needed for nothing else and may be absent. `key` is the configuration key that gave the address.

    Raises:
        InputError: the package is absent, there is no such repository or file, or it is not in the cache and cannot
            be fetched; the message says what to fetch by hand and where to put it.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(f"{key} is {address!r}; an address on the hub is hf://OWNER/REPOSITORY/FILE")
    repository, file = match.groups()
    page = f"https://huggingface.co/{repository}"
    by_hand = f"or fetch {page}/resolve/main/{file} and name the file as {key}"
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise InputError(f"{key}={address} needs `pip install huggingface_hub`, {by_hand}") from None
    try:
        return Path(hf_hub_download(repository, file))
    except errors.LocalEntryNotFoundError:
        raise InputError(
            f"{key}: {address} is not in the cache of huggingface_hub and the hub cannot be reached: "
            f"connect (and unset HF_HUB_OFFLINE), {by_hand}"
        ) from None
    except errors.EntryNotFoundError:
        raise InputError(f"{key}: the repository {page} has no file {file}") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{key}: there is no public repository {page}") from None
    except (OSError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{key}: {address} cannot be fetched ({reason}): try again, {by_hand}") from None
