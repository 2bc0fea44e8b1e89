"""Scores of held-out scenes during training."""

from dataclasses import dataclass

from utils.fields import file_path


@dataclass(frozen=True)
class ValidationConfig:
    """The scenes to validate on, and the index of their views."""

    validation_path: str = file_path("")
    validation_index: str = file_path("")
