"""The log of a training run's metrics."""

from dataclasses import dataclass

from utils.fields import bounded, file_path


@dataclass(frozen=True)
class MetricsLogConfig:
    """How often averages are written, where Weights & Biases is, and how much may go wrong before the run stops."""

    print_every: int = bounded(20, 1, 1_000_000_000)
    wandb_log_every: int = bounded(50, 1, 1_000_000_000)
    wandb_project: str = "LVSM"
    wandb_exp_name: str = "LVSM"
    api_key_path: str = file_path("./configs/api_keys.yaml")
    max_unusable_share: float = bounded(0.01, 0, 1)
    max_consecutive_skips: int = bounded(100, 0, 1_000_000_000)
