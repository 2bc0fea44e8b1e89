"""Pictures of what a training batch renders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from data.dataset import Batch
from utils.media import save_lines, side_by_side, to_uint8

# Scenes of a batch that a picture shows.
_SHOWN_SCENES = 4
_TEXT_HEIGHT = 14


def save_batch(
    path: Path, batch: Batch, images: Float[Tensor, "b t 3 h w"], renders: Float[Tensor, "b t 3 h w"]
) -> None:
    """Write one PNG: for each of the first scenes its name, the names of its targets, photographs, renders below."""
    frames = batch.frames.tolist()
    lines = []
    for i, scene in enumerate(batch.scenes[:_SHOWN_SCENES]):
        title = f"{scene}, inputs {', '.join(map(str, frames[i][: batch.num_inputs]))}"
        names = [f"frame {frames[i][view]}" for view in batch.targets[i].tolist()]
        photographs = side_by_side(to_uint8(images[i]))
        width = photographs.shape[1]
        lines += [_text_line([title], width), _text_line(names, width)]
        lines += [photographs, side_by_side(to_uint8(renders[i]))]
    save_lines(path, lines)


def _text_line(texts: Sequence[str], width: int) -> UInt8[np.ndarray, "h w 3"]:
    """White on black, one text a column of equal width."""
    line = Image.new("RGB", (width, _TEXT_HEIGHT))
    draw = ImageDraw.Draw(line)
    for number, text in enumerate(texts):
        draw.text((number * width // len(texts) + 2, 1), text, fill="white")
    return np.asarray(line)
