"""Frames of a video file at given times, decoded by PyAV."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from data.transforms import check_image_size
from data.writing import UnusableFrame
from utils.errors import InputError
from utils.files import open_regular
from utils.text import printable

# FFmpeg reads many more formats, some of which lead to other files and addresses.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
_SECOND = 1_000_000
# Microseconds before a time at which decoding begins: frames are stored in another order than they are shown.
_LEAD = _SECOND


@dataclass(frozen=True)
class _Shown:
    """A frame and when it is shown, in microseconds."""

    time: int
    frame: av.VideoFrame


class Video:
    """A video that is open. Asked for times that grow, it is decoded once, from the first of them on.

    Times are microseconds from the video's first frame. Where data are damaged, frames are missing until the next one
    that depends on no other.
    """

    def __init__(self, name: str, container: InputContainer, stream: VideoStream) -> None:
        self._name = name
        self._container = container
        self._stream = stream
        # One process a core decodes already; errors are told, not painted over.
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.options = {"err_detect": "explode"}
        self._reformatter = VideoReformatter()
        self._frames: Iterator[_Shown] = iter(())
        self._before: _Shown | None = None
        self._after: _Shown | None = None
        self._asked: int | None = None
        self._is_damaged = False

    def pixels(self, time: int, tolerance: int) -> UInt8[np.ndarray, "h w 3"]:
        """The frame that is nearest to a time, at most `tolerance` away; of two as near the earlier.

        Raises:
            UnusableFrame: there is none.
        """
        self._go_to(time)
        near = [shown for shown in (self._before, self._after) if shown is not None]
        nearest = min(near, key=lambda shown: abs(shown.time - time), default=None)
        if nearest is None or abs(nearest.time - time) > tolerance:
            raise UnusableFrame(self._fault(time, nearest, tolerance))
        return self._to_rgb(nearest.frame).to_ndarray()

    def _to_rgb(self, frame: av.VideoFrame) -> av.VideoFrame:
        try:
            return self._reformatter.reformat(frame, format="rgb24", threads=1)
        except TypeError:  # older releases have no such argument, and one thread
            return self._reformatter.reformat(frame, format="rgb24")

    def _go_to(self, time: int) -> None:
        """Have the last frame up to `time` and the first one after it."""
        is_ahead = self._asked is not None and time >= self._asked
        if not is_ahead and not self._seek(max(0, time - _LEAD), time):
            self._seek(0, time)
        self._asked = time
        while self._after is not None and self._after.time <= time:
            self._before = self._after
            self._after = next(self._frames, None)

    def _seek(self, start: int, time: int) -> bool:
        """Begin to decode near `start`; whether that is before `time`, which an index may get wrong."""
        self._frames = self._decoded_from(start)
        self._before = None
        self._after = next(self._frames, None)
        return self._after is not None and self._after.time <= time

    def _decoded_from(self, start: int) -> Iterator[_Shown]:
        unit = float(self._stream.time_base or 1) * _SECOND
        first = self._stream.start_time or 0
        is_whole = True
        for packet in self._packets(first + int(start / unit)):
            if not (is_whole or packet.is_keyframe):
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self._is_damaged = True
                is_whole = False
                continue
            is_whole = True
            for frame in frames:
                if frame.pts is not None and not frame.is_corrupt:
                    yield _Shown(round((frame.pts - first) * unit), frame)

    def _packets(self, start: int) -> Iterator[av.Packet]:
        try:
            self._container.seek(start, stream=self._stream)
            yield from self._container.demux(self._stream)
        except av.FFmpegError:
            self._is_damaged = True

    def _fault(self, time: int, nearest: _Shown | None, tolerance: int) -> str:
        damage = f"{self._name} is damaged (fetch it again)" if self._is_damaged else self._name
        if nearest is None:
            return f"{damage} shows no frame that can be decoded"
        where = f"its nearest to timestamp {time} is {abs(nearest.time - time) / 1000:,.0f} ms away"
        end = f", since it ends at {nearest.time / _SECOND:.3f} s" if self._after is None else ""
        return f"{damage} has no such frame: {where}{end}, and --tolerance is {tolerance / 1000:g} ms"


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video: MP4, WebM or Matroska.

    Raises:
        InputError: the file cannot be read or is no video of a size that is read.
    """
    name = printable(str(path))
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
            container = av.open(file, "r", options={"format_whitelist": _FORMATS}, metadata_errors="ignore")
            stack.enter_context(container)
            stream = _find_stream(container)
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{name} cannot be read (fetch it again): {printable(reason, 200)}") from None
        yield Video(name, container, stream)


def _find_stream(container: InputContainer) -> VideoStream:
    """The video of a file, not a picture of its cover.

    Raises:
        ValueError: there is none that can be decoded.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise ValueError("it has no video")
    # What the types do not say: there is no context where no decoder is known.
    if not stream.codec_context:
        raise ValueError("its video is of an unknown kind")
    check_image_size(stream.width, stream.height)
    return stream
