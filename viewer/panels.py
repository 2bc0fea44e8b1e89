"""The folders of controls in one client's window. What a client sends is checked: it may be anything."""

import functools
import io
import math
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from evaluation.metrics import psnr
from geometry.cameras import Cameras
from geometry.paths import spline_path
from utils.errors import InputError
from utils.media import to_uint8, write_video
from viewer.geometry import vertical_fov, with_fov
from viewer.paths import film_frames, join, model_cameras, new_file, parse_path, stored_camera, write_path
from viewer.session import MAX_INPUTS, inputs_between, parse_frames

if TYPE_CHECKING:
    from viewer.window import Window

# Degrees.
_NARROWEST = 10.0
_WIDEST = 120.0
# Seconds.
_LONGEST_FILM = 60.0
# Poses a second while a path is shown.
_STEPS = 20
# Points a keyframe of the line that shows a path.
_POINTS = 16


def bounded_number(value: Any, least: int | float, most: int | float) -> int | float:
    """A number that a client sent, brought into its range.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError("a number of the window is no number: reload the page")
    return min(max(value, least), most)


class ScenePanel:
    """The scenes of the list, one after another."""

    def __init__(self, window: "Window") -> None:
        self._window = window
        gui = window.client.gui
        count = len(window.viewer.scenes)
        if count == 1:
            return
        with gui.add_folder(f"{count} scenes"):
            self._number = gui.add_number("Number", 1, min=1, max=count, step=1)
            buttons = gui.add_button_group("Go to", ("Previous", "Next"))
        self._number.on_update(window.guarded(self._choose))
        buttons.on_click(window.guarded(lambda: self.step(-1 if buttons.value == "Previous" else 1)))
        for label, hotkey, step in (("Previous scene", "B", -1), ("Next scene", "N", 1)):
            command = gui.add_command(label, hotkey=hotkey)
            command.on_trigger(window.guarded(functools.partial(self.step, step)))

    def refresh(self) -> None:
        """Show the number of the scene that is shown."""
        if len(self._window.viewer.scenes) > 1:
            self._number.value = self._window.number + 1

    def step(self, step: int) -> None:
        """Show the scene so many further on in the list, which has no end."""
        self._window.open((self._window.number + step) % len(self._window.viewer.scenes))

    def _choose(self) -> None:
        number = round(bounded_number(self._number.value, 1, len(self._window.viewer.scenes))) - 1
        if number != self._window.number:
            self._window.open(number)


class InputsPanel:
    """Which frames the model is given."""

    def __init__(self, window: "Window") -> None:
        self._window = window
        gui = window.client.gui
        with gui.add_folder("Inputs"):
            self._frames = gui.add_text("Frames", "", hint="Numbers of frames, such as 0, 30")
            hint = "Spread so many over the cameras from the first to the last of the frames"
            self._count = gui.add_slider("How many", min=1, max=MAX_INPUTS, step=1, initial_value=1, hint=hint)
            self._encode = gui.add_button("Encode anew")
            self._progress = gui.add_progress_bar(0.0, visible=False)
        self._count.on_update(window.guarded(self._spread))
        self._encode.on_click(window.guarded(self._open))

    def refresh(self) -> None:
        """Show the inputs of the scene that is shown."""
        inputs = self._window.session.inputs
        self._count.value = len(inputs)
        self._frames.value = ", ".join(map(str, inputs))

    def show_progress(self, share: float, what: str) -> None:
        """Show how much of the encoding is done, and what is done now."""
        if not self._window.closed:
            self._progress.visible = True
            self._progress.value = 100 * share
            self._encode.label = f"{what} ..."
            self._encode.disabled = True

    def hide_progress(self) -> None:
        """The encoding is over."""
        if not self._window.closed:
            self._progress.visible = False
            self._encode.label = "Encode anew"
            self._encode.disabled = False

    def _spread(self) -> None:
        count = round(bounded_number(self._count.value, 1, MAX_INPUTS))
        frames = parse_frames(str(self._frames.value))
        scene = self._window.session.scene
        last = min(max(frames), len(scene) - 1)
        first = min(frames)
        if count != len(frames):
            reach = last if last - first + 1 >= count else min(len(scene) - 1, first + count - 1)
            self._frames.value = ", ".join(map(str, inputs_between(scene, count, first, reach)))

    def _open(self) -> None:
        self._window.open(self._window.number, parse_frames(str(self._frames.value)))


class ViewPanel:
    """The lens, what is shown beside the picture, the way back."""

    def __init__(self, window: "Window") -> None:
        self._window = window
        self.lens = window.session.lens
        gui = window.client.gui
        with gui.add_folder("View"):
            reset = gui.add_button("Back to the first input", hint="R", color="gray")
            self._locked = gui.add_checkbox("Lock lens", True, hint="See through the inputs' lens")
            self._fov = gui.add_slider(
                "Field of view", min=_NARROWEST, max=_WIDEST, step=1.0, initial_value=60.0, disabled=True
            )
            self._shown = gui.add_checkbox("Show cameras", True)
            shot = gui.add_button("Screenshot", hint="The picture as the model paints it, as PNG", color="gray")
        reset.on_click(window.guarded(self._back))
        gui.add_command("Back to the first input", hotkey="R").on_trigger(window.guarded(self._back))
        self._locked.on_update(window.guarded(self._change))
        self._fov.on_update(window.guarded(self._change))
        self._shown.on_update(window.guarded(self._show))
        shot.on_click(window.guarded(self._shoot))
        self.reset()

    @property
    def is_unlocked(self) -> bool:
        """Whether the field of view is another than the inputs'."""
        return not self._locked.value

    def reset(self) -> None:
        """See through the lens of the scene that is shown."""
        self.lens = self._window.session.lens
        self._locked.value = True
        self._fov.disabled = True
        self._fov.value = round(math.degrees(vertical_fov(self.lens)))

    def _back(self) -> None:
        self.reset()
        self._window.stand_at(self._window.session.lens)

    def _change(self) -> None:
        self._fov.disabled = not self.is_unlocked
        self.lens = self._window.session.lens
        if self.is_unlocked:
            self.lens = with_fov(self.lens, math.radians(bounded_number(self._fov.value, _NARROWEST, _WIDEST)))
        self._window.look()

    def _show(self) -> None:
        self._window.markers.shown = bool(self._shown.value)
        self._window.look()

    def _shoot(self) -> None:
        window = self._window
        look = window.painter.latest
        if look is not None:
            pixels = window.viewer.model.run(lambda: look.session.render(look.camera))
            name = new_file(window.viewer.out_dir, look.session.scene.name, ".png").name
            window.client.send_file_download(name, as_png(pixels), save_immediately=True)


class ComparePanel:
    """The truth beside the render, at the camera of a frame."""

    def __init__(self, window: "Window") -> None:
        self._window = window
        self._frame_shown = -1
        gui = window.client.gui
        with gui.add_folder("Compare with the truth"):
            self._frame = gui.add_slider("Frame", min=0, max=1, step=1, initial_value=0)
            go = gui.add_button("Stand there", color="gray")
            self._images = gui.add_image(np.zeros((2, 4, 3), np.uint8), visible=False)
            self._score = gui.add_markdown("")
        self._frame.on_update(window.guarded(self.compare))
        go.on_click(window.guarded(lambda: self.go_to(self._chosen())))

    def refresh(self) -> None:
        """Offer the frames of the scene that is shown, and compare an input."""
        session = self._window.session
        self._frame.value = 0
        self._frame.max = max(1, len(session.scene) - 1)
        self._frame.value = session.inputs[0]
        self._images.visible = False
        self._score.content = "Left the frame, right what the model paints from there."

    def go_to(self, frame: int) -> None:
        """Stand at the camera of a frame, and compare."""
        self._frame.value = frame
        session = self._window.session
        truth = self._window.viewer.model.run(lambda: self._window.viewer.sessions.truth(session, frame))
        self._window.stand_at(truth.cameras)
        self.compare()

    def compare(self) -> None:
        """Show the frame beside its render.

        Raises:
            InputError: the frame cannot be used.
        """
        frame = self._chosen()
        session = self._window.session
        pair, decibels = self._window.viewer.model.run(lambda: self._pair(session, frame))
        if session is not self._window.session or frame != self._chosen():
            return
        kind = "an input" if frame in session.inputs else "not an input"
        self._images.image = pair
        self._images.visible = True
        self._score.content = f"Frame {frame}, {kind}: **{decibels:.2f} dB** PSNR"

    def _pair(self, session: Any, frame: int) -> tuple[np.ndarray, float]:
        truth = self._window.viewer.sessions.truth(session, frame).to_float()
        render = session.render(truth.cameras)
        image = np.moveaxis(render, -1, 0)[None] / 255
        decibels = psnr(truth.images.new_tensor(image), truth.images[None]).item()
        return np.concatenate([to_uint8(truth.images), render], axis=1), decibels

    def _chosen(self) -> int:
        return round(bounded_number(self._frame.value, 0, len(self._window.session.scene) - 1))


class PathPanel:
    """A camera path: keyframes, its film, its file."""

    def __init__(self, window: "Window") -> None:
        self._window = window
        self._keyframes: list[Cameras] = []
        self._playing = threading.Event()
        self._filming = threading.Lock()
        gui = window.client.gui
        with gui.add_folder("Camera path", expand_by_default=False):
            add = gui.add_button("Add keyframe", hint="K: where you stand now")
            change = gui.add_button_group("Keyframes", ("Remove last", "Remove all"))
            self._count = gui.add_markdown("")
            self._seconds = gui.add_slider("Seconds", min=0.5, max=_LONGEST_FILM, step=0.5, initial_value=4.0)
            play = gui.add_button("Play", color="gray")
            save = gui.add_button("Save path", color="gray")
            load = gui.add_upload_button("Load path", mime_type="application/json", color="gray")
            self._film = gui.add_button("Render film")
            self._progress = gui.add_progress_bar(0.0, visible=False)
        add.on_click(window.guarded(self.add))
        gui.add_command("Add keyframe", hotkey="K").on_trigger(window.guarded(self.add))
        change.on_click(window.guarded(lambda: self._remove(everything=change.value != "Remove last")))
        play.on_click(window.guarded(self._play))
        save.on_click(window.guarded(self._save))
        load.on_upload(window.guarded(lambda: self._load(load.value.content)))
        self._film.on_click(window.guarded(self._start_film))

    def clear(self) -> None:
        """Remove all keyframes."""
        self._keyframes = []
        self.refresh()

    def refresh(self) -> None:
        """Show the path in the scene."""
        count = len(self._keyframes)
        self._count.content = f"{count} keyframes" if count != 1 else "1 keyframe"
        if not count:
            self._window.markers.show_path(None, np.zeros((0, 3)))
            return
        keyframes = model_cameras(self._window.session, join(self._keyframes))
        line = spline_path(keyframes, _POINTS * count).c2w[:, :3, 3].double().numpy()
        self._window.markers.show_path(keyframes, line)

    def add(self) -> None:
        """Make a keyframe of where the client stands."""
        look = self._window.painter.latest
        if look is not None:
            self._keyframes.append(stored_camera(look.session, look.camera))
            self.refresh()
            self._window.look()

    def _remove(self, everything: bool) -> None:
        self._keyframes = [] if everything else self._keyframes[:-1]
        self.refresh()

    def _load(self, content: bytes) -> None:
        self._keyframes = parse_path(content, self._window.session)
        self.refresh()

    def _frames(self) -> int:
        """The number of frames of the film.

        Raises:
            InputError: there is no path yet.
        """
        if len(self._keyframes) < 2:
            raise InputError("a path needs two keyframes: stand somewhere and press K, then elsewhere")
        seconds = bounded_number(self._seconds.value, 0.1, _LONGEST_FILM)
        return max(2, round(seconds * self._window.viewer.fps))

    def _play(self) -> None:
        """Move along the path; pressed again, stop."""
        if self._playing.is_set():
            self._playing.clear()
            return
        window = self._window
        frames = self._frames()
        steps = max(2, round(frames / window.viewer.fps * _STEPS))
        path = spline_path(model_cameras(window.session, join(self._keyframes)), steps)
        self._playing.set()
        start = time.monotonic()
        for step in range(steps):
            if window.closed or not self._playing.is_set():
                break
            window.place(path[step])
            time.sleep(max(0.0, start + (step + 1) / _STEPS - time.monotonic()))
        self._playing.clear()

    def _save(self) -> None:
        window = self._window
        file = write_path(window.viewer.out_dir, window.session, self._keyframes, self._frames())
        window.client.send_file_download(file.name, file.read_bytes())
        window.notify("Path saved", f"as {file.name}, in the viewer's folder")

    def _start_film(self) -> None:
        if not self._filming.acquire(blocking=False):
            raise InputError("a film is being rendered: wait until it is done")
        try:
            window = self._window
            session = window.session
            file = write_path(window.viewer.out_dir, session, self._keyframes, self._frames())
            self._film.disabled = True
            self._progress.visible = True
            film = file.with_suffix(".mp4")
            renderer = window.viewer.sessions.renderer
            # All that touches the GPU is done in one thread: another one's work spoils kernels that are recorded.
            frames, count = window.viewer.model.run(lambda: film_frames(renderer, session, file))
            write_video(film, self._in_background(frames, count), window.viewer.fps)
            window.notify("Film rendered", f"{film.name}, in the viewer's folder")
            if not window.closed:
                window.client.send_file_download(film.name, film.read_bytes())
        finally:
            self._filming.release()
            if not self._window.closed:
                self._film.disabled = False
                self._progress.visible = False

    def _in_background(self, frames: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
        """The frames of a film, rendered when nobody moves."""
        done = 0
        following = functools.partial(next, frames, None)
        while (chunk := self._window.viewer.model.run_later(following)) is not None:
            yield chunk
            done += len(chunk)
            if not self._window.closed:
                self._progress.value = 100 * done / count


def as_png(pixels: np.ndarray) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
