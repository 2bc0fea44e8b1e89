"""A run of Weights & Biases, where it is set up."""

import logging
import os
import uuid
from pathlib import Path
from typing import Any

import yaml

from utils.config_file import YAML_ERRORS
from utils.errors import InputError
from utils.files import write_text
from utils.text import one_line

log = logging.getLogger("lvsm")

# Seconds for which wandb may try to reach its server at the start.
_PATIENCE = 30


def start_wandb(*, project: str, name: str, folder: Path, config: dict[str, Any], key_file: Path) -> Any:
    """Open a wandb run, or return None with a word on why there is none.

    The key comes from `key_file` (`wandb: KEY`), WANDB_API_KEY or an earlier `wandb login`. WANDB_MODE=offline works
    without a key, WANDB_MODE=disabled turns it off. A restarted training goes on with the run noted in its folder.
    """
    mode = os.environ.get("WANDB_MODE", "")
    key = _read_key(key_file) or os.environ.get("WANDB_API_KEY", "")
    if mode == "disabled":
        log.info("wandb is off: WANDB_MODE=disabled")
        return None
    if not (key or mode in ("offline", "dryrun") or _logged_in()):
        log.info("wandb is off: put a key into %s, or set WANDB_API_KEY or WANDB_MODE=offline", key_file)
        return None
    try:
        import wandb

        log.info("wandb: connecting, for %d seconds at most; WANDB_MODE=offline or disabled does without", _PATIENCE)
        if key:
            os.environ["WANDB_API_KEY"] = key
        note = folder / "wandb_run_id"
        if not note.exists():
            write_text(note, uuid.uuid4().hex[:8])
        run_id = note.read_text(encoding="utf-8")
        settings = wandb.Settings(init_timeout=_PATIENCE)
        return wandb.init(
            project=project, name=name, dir=str(folder), config=config, id=run_id, resume="allow", settings=settings
        )
    except Exception as error:  # wandb raises many kinds; none of them is a reason not to train
        log.warning("wandb is off: %s: %s", type(error).__name__, " ".join(str(error).split())[:200])
        return None


def _read_key(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, *YAML_ERRORS) as error:
        raise InputError(f"training.api_key_path: {path} cannot be read: {one_line(error)}") from None
    return str(content.get("wandb") or "") if isinstance(content, dict) else ""


def _logged_in() -> bool:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
