"""The evaluation of a model on the scenes of an index."""

from dataclasses import dataclass, field

from evaluation.metrics import METRICS
from geometry.paths import VideoConfig
from utils.fields import file_path, some_of


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated and written; the published files have all keys but the last three."""

    compute_metrics: bool = True
    generate_website: bool = True
    render_video: bool = False
    view_idx_file_path: str = file_path("./data/evaluation_index_re10k.json")
    render_video_config: VideoConfig = field(default_factory=VideoConfig)
    metrics: list[str] = some_of(["psnr", "ssim", "lpips"], lambda: METRICS)
    allow_missing: bool = False
    nearest_input: bool = False
