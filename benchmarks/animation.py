"""The animation of the README: films through rooms, the two input views that they were made from below.

    python -m benchmarks.animation training.checkpoint_dir=weights/rooms_prefix.safetensors training.use_amp=false \\
        training.dataset_path=demo_output/scenes/test/full_list.txt \\
        --config configs/rooms_prefix.yaml --output docs/walk.webp --rooms 0 1 9

`make demo` makes the rooms. A film follows the clip's own camera from the first input to the last and back.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.dataset import ViewLoader
from data.scene import read_scene_list
from setup import load_renderer, read_config, set_threads_and_precision
from utils.cli import path_argument, run_main
from utils.distributed import process_group
from utils.errors import InputError
from utils.files import atomic_path
from utils.media import side_by_side, to_uint8
from viewer.session import Session, Sessions

# Pixels between pictures, and milliseconds a frame.
_GAP = 6
_PAUSE = 66
_QUALITY = 80


def film(session: Session) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Renders at the clip's cameras from the first input to the last, and back."""
    frames = range(session.inputs[0], session.inputs[-1] + 1)
    renders = [session.render(session.camera_of(frame)) for frame in frames]
    return renders + renders[-2:0:-1]


def panel(picture: UInt8[np.ndarray, "h w 3"], inputs: UInt8[np.ndarray, "2 h w 3"]) -> Image.Image:
    """A render at twice its size, above the inputs at their own."""
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (2 * width, 3 * height + _GAP), "white")
    canvas.paste(Image.fromarray(picture).resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    canvas.paste(Image.fromarray(side_by_side(inputs)), (0, 2 * height + _GAP))
    return canvas


def columns(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels beside one another."""
    width = panels[0].width + _GAP
    canvas = Image.new("RGB", (width * len(panels) - _GAP, panels[0].height), "white")
    for number, one in enumerate(panels):
        canvas.paste(one, (number * width, 0))
    return canvas


def write_animation(path: Path, sessions: Sequence[Session]) -> None:
    """Write the films of scenes with two inputs each as one animated WebP that runs for ever."""
    films = [film(session) for session in sessions]
    inputs = [to_uint8(session.views.to_float().images) for session in sessions]
    pictures = [
        columns([panel(*pair) for pair in zip(moment, inputs, strict=True)]) for moment in zip(*films, strict=True)
    ]
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary, save_all=True, append_images=pictures[1:], duration=_PAUSE, loop=0, quality=_QUALITY, method=6
        )


def main(argv: Sequence[str]) -> None:
    """Render and write the animation."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--config", type=path_argument, required=True)
    parser.add_argument("--output", type=path_argument, required=True, help="a .webp")
    parser.add_argument("--rooms", type=int, nargs="+", default=[0], help="places in the list of scenes")
    parser.add_argument("--inputs", type=int, nargs=2, default=[0, 30], help="frame numbers")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    config = read_config(given.config, given.overrides)
    set_threads_and_precision(config.training)
    tokenizer = config.model.image_tokenizer
    scenes = read_scene_list(Path(config.training.data.dataset_path))
    if not all(0 <= room < len(scenes) for room in given.rooms):
        raise InputError(f"--rooms: the list has the rooms 0 to {len(scenes) - 1}")
    with process_group() as process:
        renderer, _, config = load_renderer(config, process)
        sessions = Sessions(renderer, ViewLoader(config.training.data, tokenizer.image_size, tokenizer.patch_size))
        write_animation(given.output, [sessions.open(scenes[room], given.inputs) for room in given.rooms])


if __name__ == "__main__":
    run_main(main)
