"""What the viewer shows, and where it listens."""

from dataclasses import dataclass, field

from utils.fields import bounded, file_path


@dataclass(frozen=True)
class ViewerConfig:
    """The `viewer` section of a configuration file.

    `scene` is a scene's metadata file (`.json`) or a list of them; empty: the list that the configuration evaluates or
    trains on. `input_frames` are the inputs of the first scene shown; empty: as many as a training sample has, spread
    evenly. The window is served on `port` (0: any that is free) of the address `host`, which other machines cannot
    reach unless told. Camera paths and films are saved in `out_dir`. Pictures travel as JPEG of `jpeg_quality`.
    """

    scene: str = file_path("")
    input_frames: list[int] = field(default_factory=list)
    host: str = "127.0.0.1"
    port: int = bounded(8080, 0, 65535)
    out_dir: str = file_path("./experiments/viewer")
    jpeg_quality: int = bounded(90, 1, 100)
