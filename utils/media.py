"""Pictures and videos."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from utils.files import atomic_path
from utils.host_copy import HostCopy


def to_uint8(images: Float[Tensor, "*n 3 h w"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """Images in [0, 1] as 8-bit arrays, channels last."""
    return start_to_uint8(images)()


def start_to_uint8(images: Float[Tensor, "*n 3 h w"]) -> Callable[[], UInt8[np.ndarray, "*n h w 3"]]:
    """Begin what `to_uint8` does; the function returned waits for it alone."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = rearrange(pixels, "... c h w -> ... h w c").contiguous()
    copy = HostCopy(pixels)
    return lambda: copy.read().numpy()


def save_grid(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Write rows of 8-bit images [n h w 3] as one PNG: a row's images side by side, rows below one another, no gaps."""
    save_lines(path, [side_by_side(row) for row in rows])


def side_by_side(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "h nw 3"]:
    """One picture of all images."""
    return rearrange(images, "n h w c -> h (n w) c")


def save_lines(path: Path, lines: Sequence[np.ndarray]) -> None:
    """Write lines [h w 3] of one width below one another."""
    with atomic_path(path) as temporary:
        # A higher level takes nine times as long and saves a tenth of the bytes.
        Image.fromarray(np.concatenate(lines)).save(temporary, compress_level=1)


def write_video(path: Path, chunks: Iterable[UInt8[np.ndarray, "n h w 3"]], fps: int = 30) -> None:
    """Write an H.264 video that browsers play: yuv420p, even sizes (an odd edge is repeated), index in front.

    Frames are encoded chunk by chunk, so that a long video is never in memory as a whole; all are of one size.
    """
    fast_start = {"movflags": "+faststart"}
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4", options=fast_start) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "fast"})
        stream.pix_fmt = "yuv420p"
        for frame in (frame for chunk in chunks for frame in _pad_to_even(chunk)):
            if not stream.codec_context.is_open:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _pad_to_even(frames: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n even_h even_w 3"]:
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
