"""What stands in the scene beside the picture: the inputs' cameras with their images, the camera path."""

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from geometry.cameras import Cameras
from utils.media import to_uint8
from viewer.geometry import WORLD_SCALE, Viewpoint, to_world

if TYPE_CHECKING:
    from viewer.window import Window

# Size of a camera's sign in units of the window's world, at most and at least.
_LARGEST = 0.35
_SMALLEST = 0.06
# How near the camera may come to a sign, in sizes of it, before that goes out of its way.
_NEAR = 1.5
_INPUT = (255, 200, 60)
_KEYFRAME = (90, 200, 250)
_LINE = "/path/line"
# Signs of keyframes, at most: the cameras of a loaded film are many.
_MOST_KEYFRAMES = 40


class Markers:
    """Signs in one client's scene."""

    def __init__(self, window: "Window") -> None:
        self._window = window
        self._inputs: list[Any] = []
        self._path: list[Any] = []
        self._scale = _LARGEST
        self.shown = True
        # Controls are answered in several threads at once.
        self._changing = threading.Lock()

    def refresh(self) -> None:
        """Put up the signs of the inputs of the scene that is shown."""
        with self._changing:
            for sign in self._inputs:
                sign.remove()
            session = self._window.session
            self._scale = sign_scale(session.views.cameras)
            self._inputs = [self._add_input(number) for number in range(len(session.inputs))]

    def hide_around(self, viewpoint: Viewpoint) -> None:
        """Take down the signs that would stand in front of the viewpoint."""
        here = viewpoint.c2w[:3, 3] * WORLD_SCALE
        with self._changing:
            for sign in self._inputs + self._path:
                far = sign.name == _LINE or np.linalg.norm(sign.position - here) > _NEAR * self._scale
                if sign.visible != (self.shown and far):
                    sign.visible = self.shown and far

    def show_path(self, keyframes: Cameras | None, line: np.ndarray) -> None:
        """Put up the keyframes [k] of a path, in the model's frame, and the line [n, 3] that it takes.

        None and an empty line take them down.
        """
        with self._changing:
            for sign in self._path:
                sign.remove()
            self._path = []
            if keyframes is not None:
                shown = range(min(len(keyframes.c2w), _MOST_KEYFRAMES))
                self._path = [self._add_sign(f"/path/{n}", keyframes[n], _KEYFRAME, 0.6) for n in shown]
            if len(line) > 1:
                self._path.append(self._add_line(line))

    def _add_line(self, line: np.ndarray) -> Any:
        points = (np.stack([line[:-1], line[1:]], axis=1) * WORLD_SCALE).astype(np.float32)
        add = self._window.client.scene.add_line_segments
        return add(_LINE, points, _KEYFRAME, thickness=2.0, thickness_units="screen", visible=self.shown)

    def _add_input(self, number: int) -> Any:
        window = self._window
        session = window.session
        camera = session.views.cameras[number]
        image = to_uint8(session.views[number].to_float().images)
        sign = self._add_sign(f"/inputs/{number}", camera, _INPUT, 1.0, image)
        frame = session.inputs[number]
        sign.on_click(window.guarded(lambda: window.compare_panel.go_to(frame)))
        return sign

    def _add_sign(
        self, name: str, camera: Cameras, color: tuple[int, int, int], size: float, image: np.ndarray | None = None
    ) -> Any:
        fx, fy, _, _ = camera.fxfycxcy.double().tolist()
        wxyz, position = to_world(camera.c2w.double().cpu().numpy())
        return self._window.client.scene.add_camera_frustum(
            name,
            fov=2 * math.atan(camera.height / 2 / fy),
            aspect=camera.width / fx / (camera.height / fy),
            scale=size * self._scale,
            thickness=2.0,
            thickness_units="screen",
            color=color,
            image=image,
            wxyz=wxyz,
            position=position,
            visible=self.shown,
        )


def sign_scale(cameras: Cameras) -> float:
    """The size of the signs of cameras [v], such that neighbours do not hide one another."""
    centres = cameras.c2w[:, :3, 3].double().cpu().numpy() * WORLD_SCALE
    gaps = np.linalg.norm(centres[:, None] - centres, axis=-1)
    nearest = float(np.median(np.min(gaps + np.diag([np.inf] * len(gaps)), axis=1))) if len(gaps) > 1 else _LARGEST
    return min(_LARGEST, max(_SMALLEST, nearest / 2))
