"""What a run was made of: code version, packages, command."""

import functools
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "omegaconf", "lpips", "scikit-image", "av")
_ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def git_revision() -> str:
    """The commit of the code, with "+changes" if files differ from it; "unknown" outside a git checkout.

    Asked once a process: later changes are not what runs.
    """
    try:
        revision = _git("rev-parse", "HEAD")
        return revision + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of Python and the main packages, those that are installed."""
    versions = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def provenance() -> dict[str, object]:
    """Code version, package versions and the command of this process."""
    return {"git": git_revision(), "packages": package_versions(), "command": sys.argv}
