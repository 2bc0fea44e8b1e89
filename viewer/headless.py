"""A client without a browser, which speaks viser's protocol: for measurements and tests.

What a client sends is msgpack; what it gets is the length of a msgpack text, that of its zstd form, and that form
(viser 1.1, infra/_infra.py).
"""

import importlib.metadata
import io
import queue
import threading
import time
from typing import Any

import msgspec
import numpy as np
import websockets.exceptions
import zstandard
from jaxtyping import UInt8
from PIL import Image
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

# Bytes before the compressed text: two lengths.
_HEADER = 16
_PICTURE = "BackgroundImageMessage"


class HeadlessClient:
    """A window on a viewer at `address` (host and port) that shows nothing, open inside `with`.

    Args:
        origin: the site of the page that a browser would say it is.

    Attributes:
        messages: what came that is no picture, by type and in order.
    """

    def __init__(self, address: str, width: int = 1280, height: int = 800, origin: str | None = None) -> None:
        self._size = (width, height)
        self.messages: list[dict[str, Any]] = []
        self._pictures: queue.Queue[bytes | None] = queue.Queue()
        protocol = Subprotocol(f"viser-v{importlib.metadata.version('viser')}")
        site = None if origin is None else Origin(origin)
        self._socket = connect(f"ws://{address}", origin=site, subprotocols=[protocol], compression=None, max_size=None)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "HeadlessClient":
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()
        self._reader.join()

    def send(self, kind: str, **fields: Any) -> None:
        """Send a message of viser's protocol."""
        self.send_raw(msgspec.msgpack.encode({"type": kind, **fields}))

    def send_raw(self, content: bytes | str) -> None:
        """Send anything."""
        self._socket.send(content)

    def stand(self, position: Any, wxyz: Any = (1.0, 0.0, 0.0, 0.0), fov: float = 1.0) -> None:
        """Say that the camera stands there, in the window's world."""
        width, height = self._size
        place = {"wxyz": [*map(float, wxyz)], "position": [*map(float, position)], "look_at": [0.0, 0.0, 9.0]}
        size = {"fov": fov, "image_width": width, "image_height": height, "near": 0.01, "far": 1000.0}
        self.send("ViewerCameraMessage", **place, **size, up_direction=[0.0, -1.0, 0.0])

    def next_jpeg(self, timeout: int | float) -> bytes:
        """The next picture that came or comes, as its file.

        Raises:
            TimeoutError: none comes in `timeout` seconds.
            ConnectionError: the connection has ended.
        """
        try:
            picture = self._pictures.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"no picture came in {timeout:g} seconds") from None
        if picture is None:
            raise ConnectionError("the viewer has closed the connection")
        return picture

    def next_picture(self, timeout: int | float) -> UInt8[np.ndarray, "h w 3"]:
        """The next picture that came or comes, the whole window; raises as `next_jpeg` does."""
        return np.asarray(Image.open(io.BytesIO(self.next_jpeg(timeout))))

    def last_picture(self, quiet: float, timeout: int | float) -> UInt8[np.ndarray, "h w 3"]:
        """The picture after which none came for `quiet` seconds; raises as `next_jpeg` does."""
        deadline = time.monotonic() + timeout
        picture = self.next_picture(timeout)
        while time.monotonic() < deadline:
            try:
                picture = self.next_picture(quiet)
            except TimeoutError:
                return picture
        raise TimeoutError(f"pictures kept coming for {timeout:g} seconds")

    def drain(self) -> int:
        """Throw away the pictures that have come; how many there were."""
        count = 0
        while not self._pictures.empty():
            self._pictures.get()
            count += 1
        return count

    def _read(self) -> None:
        try:
            for content in self._socket:
                for message in _decode(content):
                    if message["type"] == _PICTURE and message["rgb_data"] is not None:
                        self._pictures.put(message["rgb_data"])
                    else:
                        self.messages.append(message)
        except websockets.exceptions.ConnectionClosed:
            pass  # told by `next_jpeg`
        self._pictures.put(None)


def _decode(content: Any) -> list[dict[str, Any]]:
    """The messages of a frame."""
    compressed = int.from_bytes(content[8:_HEADER], "little")
    text = zstandard.ZstdDecompressor().decompress(content[_HEADER : _HEADER + compressed])
    return msgspec.msgpack.decode(text)["messages"]
