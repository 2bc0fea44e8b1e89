"""Where a run's numbers go: JSON lines in the run folder always, Weights & Biases where it is set up."""

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.distributed import Process
from utils.errors import InputError
from utils.files import open_to_append, write_text

log = logging.getLogger("lvsm")

# Seconds for which wandb may try to reach its server at the start.
_PATIENCE = 30


class Tracker:
    """Writes numbers to `folder/metrics.jsonl` and to wandb; on ranks other than the main one, nowhere.

    Args:
        wandb_run: an open wandb run, or None.
    """

    def __init__(self, folder: Path, process: Process, wandb_run: Any = None) -> None:
        self._wandb = wandb_run
        self._file = None
        if process.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(folder / "metrics.jsonl")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append one JSON line; what is not finite becomes null."""
        if self._file is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")

    def write_wandb(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Send numbers to wandb, if there is a run."""
        if self._wandb is not None:
            self._wandb.log(dict(numbers), step=step)

    def write_picture(self, step: int, path: Path) -> None:
        """Send a picture to wandb, if there is a run."""
        if self._wandb is not None:
            import wandb

            self._wandb.log({"views": wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Finish all sinks."""
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


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
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"training.api_key_path: {path} cannot be read: {' '.join(str(error).split())}") from None
    return str(content.get("wandb") or "") if isinstance(content, dict) else ""


def _logged_in() -> bool:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
