"""What one client sees: the latest viewpoint is rendered, a smaller picture first where that helps, and sent."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from geometry.cameras import Cameras
from viewer.geometry import Viewpoint, at_viewpoint, is_at, letterbox
from viewer.session import Session
from viewer.worker import Worker

# Seconds without a new viewpoint after which the camera stands still.
_STILL = 0.2
# Seconds over which pictures are counted.
_RECENT = 2.0
# Pictures of which the middle one says how long the model takes.
_MEDIAN_OF = 15


@dataclass(frozen=True)
class Look:
    """What is to be painted: a scene from a viewpoint through a lens [].

    `anchor` is a camera [] that the client was put at: while it stands there, the picture is of exactly that camera,
    as an evaluation renders it.
    """

    session: Session
    viewpoint: Viewpoint
    lens: Cameras
    anchor: Cameras | None
    since: float

    @property
    def camera(self) -> Cameras:
        """The camera [] to render."""
        if self.anchor is not None and is_at(self.viewpoint, self.anchor):
            return self.anchor
        return at_viewpoint(self.viewpoint, self.lens)


class Rates:
    """How long the model takes for a picture, and how many are sent a second.

    Attributes:
        model_seconds: of the last pictures.
    """

    def __init__(self) -> None:
        self.model_seconds: deque[float] = deque(maxlen=200)
        self._sent: deque[float] = deque(maxlen=200)

    def clear(self) -> None:
        """Forget what was."""
        self.model_seconds.clear()
        self._sent.clear()

    def sent(self) -> None:
        """A picture was sent."""
        self._sent.append(time.monotonic())

    def __str__(self) -> str:
        recent = [moment for moment in list(self._sent) if moment > time.monotonic() - _RECENT]
        taken = list(self.model_seconds)[-_MEDIAN_OF:]
        model = f"{1000 * float(np.median(taken)):.0f} ms" if taken else "–"
        pictures = f"{(len(recent) - 1) / (recent[-1] - recent[0]):.0f}" if len(recent) > 2 else "–"
        return f"model {model} · {pictures} pictures/s"


class Painter:
    """Paints for one client.

    Rendering is done by `model`, a thread for all clients, the rest by `encoder`, another one: a picture becomes a
    JPEG and is sent while the next one is rendered.

    Args:
        send: takes the whole window [h, w, 3].

    Attributes:
        latest: what is to be painted; None before the first and after the end.
    """

    def __init__(self, model: Worker, encoder: Worker, send: Callable[[UInt8[np.ndarray, "h w 3"]], None]) -> None:
        self.rates = Rates()
        self._model = model
        self._encoder = encoder
        self._send = send
        self.latest: Look | None = None

    def look(self, look: Look) -> None:
        """Have this painted as soon as may be, instead of what was to be."""
        self.latest = look
        self._model.wish(self, self._paint)

    def stop(self) -> None:
        """Paint nothing more."""
        self.latest = None
        self._model.forget(self)
        self._encoder.forget(self)

    def _paint(self) -> None:
        look = self.latest
        if look is None:
            return
        moves = time.monotonic() - look.since < _STILL
        preview = look.session.preview if moves else None
        start = time.perf_counter()
        pixels = (preview or look.session.render)(look.camera)
        self.rates.model_seconds.append(time.perf_counter() - start)
        self._encoder.wish(self, lambda: self._finish(pixels, look))
        if preview:
            self._model.wish(self, self._paint, after=_STILL)

    def _finish(self, pixels: UInt8[np.ndarray, "h w 3"], look: Look) -> None:
        if self.latest is not None:
            self._send(letterbox(pixels, look.camera, look.viewpoint))
            self.rates.sent()
