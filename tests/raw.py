"""What tests of raw RealEstate10K need: camera files, images and videos whose frames say their numbers."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

from data.transforms import read_image
from tests.chunks import camera_rows, scene_of

SIZE = (64, 48)
# Frames are told apart by the colours of numbers below this.
MOST = 125
_STEP = 60


def number_image(number: int) -> np.ndarray:
    """An image whose colour says a number."""
    colour = [number % 5 * _STEP, number // 5 % 5 * _STEP, number // 25 % 5 * _STEP]
    return np.full((SIZE[1], SIZE[0], 3), colour, np.uint8)


def number_of(image: Image.Image) -> int:
    """The number that the colour of an image says."""
    red, green, blue = np.round(np.asarray(image).reshape(-1, 3).mean(0) / _STEP).astype(int).tolist()
    return red + 5 * green + 25 * blue


def numbers(out: Path, key: str) -> list[int | None]:
    """What the frames of a scene say; None for those that are lost."""
    paths = scene_of(out, key).image_paths
    return [None if path is None else number_of(read_image(path, key)) for path in paths]


def write_film(path: Path, times: Iterable[int], codec: str = "libx264", **options: str) -> Path:
    """A video whose frame n says n and is shown at the n-th time, in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 12
        stream.codec_context.thread_count = 1
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(in_yuv(number_image(number)), format="yuv420p")
            frame.pts = time
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def in_yuv(image: np.ndarray) -> np.ndarray:
    """An image as PyAV takes it without starting threads, which processes that fork would wait for."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)


def camera_lines(times: Sequence[int], address: str) -> list[str]:
    """The lines of a camera file; times are in milliseconds."""
    rows = camera_rows(len(times)).double().numpy()
    return [
        address,
        *(f"{1000 * time} " + " ".join(map(repr, row.tolist())) for time, row in zip(times, rows, strict=True)),
    ]


def write_cameras(base: Path, key: str, times: Sequence[int], video: str = "video", mode: str = "train") -> Path:
    """The camera file of a clip of a video."""
    path = base / mode / f"{key}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(camera_lines(times, f"https://www.youtube.com/watch?v={video}")) + "\n")
    return path


def write_stills(folder: Path, times: Iterable[int], suffix: str = "jpg") -> list[Path]:
    """Images of frames, named by their times, which are given in milliseconds; the n-th says n."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, time in enumerate(times):
        paths.append(folder / f"{1000 * time}.{suffix}")
        Image.fromarray(number_image(number)).save(paths[-1])
    return paths
