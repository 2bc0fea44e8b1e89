"""Where the frames of raw RealEstate10K lie: images named by their timestamps, or videos named by their ids."""

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from data.importers.re10k_cameras import ClipCameras, is_timestamp, read_camera_file
from data.transforms import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, encode_pixels
from data.writing import UnusableFrame
from utils.errors import InputError
from utils.files import check_plain_name, read_bytes
from utils.text import printable, shown

if TYPE_CHECKING:
    from data.importers.video import Video

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv")
# Milliseconds: half of what a frame is shown for at 20 frames a second.
TOLERANCE = 25.0

_VIDEO_ID = re.compile(r"(?:[?&]v=|youtu\.be/|/embed/)([A-Za-z0-9_-]{1,64})(?:[&?#/]|$)")


@dataclass(frozen=True)
class Media:
    """Where frames are looked for.

    Attributes:
        images: folders that hold a folder of images a clip.
        videos: folders of videos.
        tolerance: milliseconds that a frame of a video may be shown before or after its timestamp.
    """

    images: tuple[Path, ...]
    videos: tuple[Path, ...]
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        images = " or ".join(f"{place}/CLIP" for place in self.images)
        videos = " or ".join(f"{place}/ID" for place in self.videos)
        return printable(f"images in {images}, videos {videos} ({', '.join(VIDEO_SUFFIXES)})")

    def is_there(self) -> bool:
        """Whether there is a folder that may be of images, or one of videos."""
        return self.has_videos() or any(map(_has_folders, self.images))

    def has_videos(self) -> bool:
        """Whether there is a folder of videos."""
        return any(place.is_dir() for place in self.videos)


def _has_folders(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.is_dir() for entry in entries if not entry.name.startswith("."))


def usual_media(folder: Path, images: Path | None, videos: Path | None, tolerance: float) -> Media:
    """Where the frames of the clips of a split may be, `folder` being that of its camera files.

    Args:
        images: the folder that a person names; None: `frames` beside the split's folder, and the split's folder.
        videos: the folder that a person names; None: `videos` beside the split's folder.
    """
    frames = images or folder.parent / "frames"
    films = videos or folder.parent / "videos"
    beside = () if images else (folder,)
    return Media((frames / folder.name, frames, *beside), (films / folder.name, films), tolerance)


@dataclass(frozen=True)
class RawClip:
    """A clip and what there is of its frames.

    Attributes:
        images: by timestamp.
        video_id: None if the address is not that of a video.
        video: None if it is not there.
    """

    key: str
    cameras: ClipCameras
    images: dict[int, Path]
    video_id: str | None
    video: Path | None

    @property
    def has_all_images(self) -> bool:
        """Whether every frame has an image."""
        return len(self.images) == len(self.cameras.timestamps)

    @property
    def has_nothing(self) -> bool:
        """Whether no frame has an image, and the video is not there."""
        return not self.images and self.video is None

    @property
    def missing(self) -> str:
        """What would have to be fetched for frames that have no image."""
        if self.video_id is None:
            return f"its address {shown(self.cameras.url)} names no video"
        return f"no video {self.video_id}"


def find_clip(path: Path, media: Media) -> RawClip:
    """What there is of the clip of a camera file.

    Raises:
        InputError: the file is not a sound one of a clip, or a folder cannot be read.
    """
    key = check_plain_name(path.stem, "the name of its camera file")
    cameras = read_camera_file(path)
    _check_order(cameras)
    found = _VIDEO_ID.search(cameras.url)
    video_id = found[1] if found else None
    files = [place / f"{video_id}{suffix}" for place in media.videos for suffix in VIDEO_SUFFIXES if video_id]
    video = next((file for file in files if file.is_file()), None)
    images = _find_images([place / key for place in media.images], set(cameras.timestamps.tolist()))
    return RawClip(key, cameras, images, video_id, video)


def _check_order(cameras: ClipCameras) -> None:
    """Raises InputError for frames that do not follow one another."""
    wrong = np.flatnonzero(np.diff(cameras.timestamps) <= 0)
    if len(wrong):
        frame = int(wrong[0]) + 1
        before, now = cameras.timestamps[frame - 1 : frame + 1]
        raise InputError(f"its frame {frame} has timestamp {now}, which does not come after {before}: fetch it again")


def _find_images(folders: list[Path], wanted: set[int]) -> dict[int, Path]:
    """The images whose names are wanted timestamps; of two the first."""
    images: dict[int, Path] = {}
    for folder in folders:
        for name in _names(folder):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122  of names, thousands a second
            if suffix.lower() in IMAGE_SUFFIXES and is_timestamp(stem) and int(stem) in wanted:
                images.setdefault(int(stem), folder / name)
    return images


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208  names alone
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{printable(str(folder))} cannot be read: {error.strerror}") from None


class FrameReader:
    """Reads a clip's frames one after another: images as they are, the others from the video, decoded once."""

    def __init__(self, clip: RawClip, media: Media, image_format: str) -> None:
        self._clip = clip
        self._media = media
        self._format = image_format
        self._open = ExitStack()
        self._video: Video | None = None
        self._fault = ""

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def read(self, frame: int) -> bytes:
        """The content of a frame's image file.

        Raises:
            UnusableFrame: it has no image, and the video does not show it.
            OSError: its image cannot be read.
        """
        time = int(self._clip.cameras.timestamps[frame])
        image = self._clip.images.get(time)
        if image is not None:
            return read_bytes(image, MAX_IMAGE_BYTES)
        if self._clip.video is None:
            raise UnusableFrame(f"there is no image {time} ({', '.join(IMAGE_SUFFIXES)}) and {self._clip.missing}")
        pixels = self._opened(self._clip.video).pixels(time, round(1000 * self._media.tolerance))
        return encode_pixels(pixels, self._format)

    def _opened(self, path: Path) -> "Video":
        """The clip's video. It is opened once, also where that fails, which may take long."""
        if self._fault:
            raise UnusableFrame(self._fault)
        if self._video is None:
            from data.importers.video import open_video

            try:
                self._video = self._open.enter_context(open_video(path))
            except InputError as error:
                self._fault = str(error)
                raise UnusableFrame(self._fault) from None
        return self._video
