"""What a training run goes on from."""

from dataclasses import dataclass

from utils.fields import file_path


@dataclass(frozen=True)
class RestoringConfig:
    """The checkpoint to start from, and whether only its weights count."""

    resume_ckpt: str = file_path("")
    reset_training_state: bool = False
