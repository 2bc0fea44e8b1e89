"""One client's window: its scene, where it stands, what it is told. Every client has its own."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from geometry.cameras import Cameras
from geometry.paths import VideoConfig
from utils.errors import InputError
from utils.text import printable
from viewer.config import ViewerConfig
from viewer.geometry import Viewpoint, fitting_fov, read_viewpoint, to_world, turning_point, up_direction
from viewer.markers import Markers
from viewer.painter import Look, Painter
from viewer.panels import ComparePanel, InputsPanel, PathPanel, ScenePanel, ViewPanel
from viewer.session import Session, Sessions
from viewer.worker import Stopped, Worker

log = logging.getLogger("lvsm")

# Change in radians from which a field of view is another one.
_OTHER_FOV = 1e-3
# Seconds between two messages about speed.
_PAUSE = 0.5


class Viewer:
    """What all windows share: the model and its thread, the scenes, where files are saved."""

    def __init__(self, cfg: ViewerConfig, video: VideoConfig, sessions: Sessions, scenes: Sequence[Path]) -> None:
        self.cfg = cfg
        self.fps = video.fps
        self.sessions = sessions
        self.scenes = scenes
        self.model = Worker("model")
        self.encoder = Worker("encoder")
        self.first = self.model.run(lambda: sessions.open(scenes[0], cfg.input_frames))

    @property
    def out_dir(self) -> Path:
        """The folder for paths and films."""
        return Path(self.cfg.out_dir)

    def stop(self) -> None:
        """End the threads."""
        self.model.stop()
        self.encoder.stop()


class Window:
    """The window of one client of viser.

    Attributes:
        session: the scene that is shown.
        number: its place in the list.
        closed: the client is gone.
    """

    def __init__(self, viewer: Viewer, client: Any) -> None:
        self.viewer = viewer
        self.client = client
        self.session = viewer.first
        self.number = 0
        self.closed = False
        self.painter = Painter(viewer.model, viewer.encoder, self._send)
        self._anchor: Cameras | None = self.session.lens
        self._warned = False
        self._told = 0.0
        self._opening = threading.Lock()
        self.markers = Markers(self)
        self._status = client.gui.add_markdown("")
        self.scene_panel = ScenePanel(self)
        self.inputs_panel = InputsPanel(self)
        self.view_panel = ViewPanel(self)
        self.compare_panel = ComparePanel(self)
        self.path_panel = PathPanel(self)
        self._refresh()

        @client.camera.on_update
        async def _(_camera: Any) -> None:
            self.look()

        self.stand_at(self.session.lens)

    def close(self) -> None:
        """The client is gone: paint nothing more."""
        self.closed = True
        self.painter.stop()

    def look(self) -> None:
        """Paint what the client looks at now."""
        viewpoint = self.viewpoint()
        if viewpoint is None or self.closed:
            return
        self._fit(viewpoint)
        self.markers.hide_around(viewpoint)
        anchor = None if self.view_panel.is_unlocked else self._anchor
        self.painter.look(Look(self.session, viewpoint, self.view_panel.lens, anchor, time.monotonic()))

    def viewpoint(self) -> Viewpoint | None:
        """Where the client stands; None if what it says cannot be, which is told once."""
        camera = self.client.camera
        try:
            return read_viewpoint(camera.wxyz, camera.position, camera.fov, camera.image_width, camera.image_height)
        except (InputError, TypeError, ValueError, OverflowError) as error:
            if not self._warned:
                log.warning(
                    "client %d sends a camera that cannot be, which is ignored: %s", self.client.client_id, error
                )
            self._warned = True
            return None

    def stand_at(self, camera: Cameras) -> None:
        """Put the client at a camera [] of the model."""
        self._anchor = camera
        self.place(camera)
        self.look()

    def place(self, camera: Cameras) -> None:
        """Move the client's camera to a pose []; it keeps its lens."""
        pose = camera.c2w.double().cpu().numpy()
        wxyz, position = to_world(pose)
        with self.client.atomic():
            self.client.camera.position = position
            self.client.camera.look_at = turning_point(pose, self.session.orbit)
            self.client.camera.up_direction = up_direction(self.session.orbit)
            self.client.camera.wxyz = wxyz
        self.client.flush()

    def open(self, number: int, frames: Sequence[int] = ()) -> None:
        """Show a scene of the list, encoded from `frames`, or from some that are spread over it.

        Raises:
            InputError: the scene or a frame cannot be used, or another scene is being opened.
        """
        if not self._opening.acquire(blocking=False):
            raise InputError("another scene is being encoded: wait until it is there")
        try:
            path = self.viewer.scenes[number]
            session = self.viewer.model.run(
                lambda: self.viewer.sessions.open(path, frames, self.inputs_panel.show_progress)
            )
            self._show(number, session)
        finally:
            self._opening.release()
            self.inputs_panel.hide_progress()

    def _show(self, number: int, session: Session) -> None:
        before = self.session
        same = number == self.number
        here = self.viewpoint() if same else None
        self.session = session
        self.number = number
        self.view_panel.reset()
        self._refresh()
        if here is None:
            self.path_panel.clear()
            self.stand_at(session.lens)
        else:
            self._anchor = None
            self.place(moved(here, before, session))
            self.look()

    def _refresh(self) -> None:
        """Bring all that is shown in line with the scene."""
        self.markers.refresh()
        for panel in (self.scene_panel, self.inputs_panel, self.compare_panel, self.path_panel):
            panel.refresh()
        self._tell()

    def notify(self, title: str, body: str, *, failed: bool = False) -> None:
        """Tell the client something that goes away by itself."""
        if not self.closed:
            color = "red" if failed else "teal"
            self.client.add_notification(title, body, auto_close_seconds=12.0 if failed else 6.0, color=color)

    def guarded(self, work: Callable[[], None]) -> Callable[[Any], None]:
        """`work` as a callback: bad input is told to the client in a line, everything else stands in the log."""

        def callback(event: Any) -> None:
            if event.client is None:
                return  # a value that was set here, not there
            try:
                work()
            except InputError as error:
                self.notify("That cannot be", printable(str(error), 300), failed=True)
            except Stopped:
                return
            except Exception:
                log.exception("client %d: what it asked for failed", self.client.client_id)
                self.notify("That failed", "The viewer's terminal says why.", failed=True)

        return callback

    def _fit(self, viewpoint: Viewpoint) -> None:
        """Have the picture fill the window, whatever the window's shape."""
        fov = fitting_fov(self.view_panel.lens, viewpoint.width / viewpoint.height)
        if abs(fov - viewpoint.fov) > _OTHER_FOV:
            self.client.camera.fov = fov

    def _send(self, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        if self.closed:
            return
        self.client.scene.set_background_image(pixels, format="jpeg", jpeg_quality=self.viewer.cfg.jpeg_quality)
        self.client.flush()
        if time.monotonic() - self._told > _PAUSE:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._status.content = f"**{self.session.scene.name}**  \n{self.painter.rates}"


def moved(viewpoint: Viewpoint, before: Session, after: Session) -> Cameras:
    """The camera [] of another encoding of the same scene that stands where the viewpoint stands in the one before."""
    c2w = before.transform.normalization.inverse(viewpoint.c2w[None])
    lens = after.lens
    poses = after.transform.normalization(c2w).astype(np.float32)
    return Cameras(lens.c2w.new_tensor(poses[0]), lens.fxfycxcy, lens.height, lens.width)
