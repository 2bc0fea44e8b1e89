"""The viewer's server: one port, a window for every client, an end without noise."""

import io
import logging
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import viser

from data.scene import read_scene_list
from geometry.paths import VideoConfig
from utils.errors import InputError
from utils.text import counted, one_line, printable, shown
from viewer.config import ViewerConfig
from viewer.geometry import fitting_fov, to_world, turning_point
from viewer.session import Session, Sessions
from viewer.window import Viewer, Window

log = logging.getLogger("lvsm")

# Cores that the model leaves to the server and to JPEG; its threads wait for one another where they share them.
SPARED_CORES = 1
# Loggers of what clients may make raise in the libraries underneath.
_TROUBLED = ("websockets.server", "asyncio")
_WIDE = 16 / 9


def find_scenes(cfg: ViewerConfig, fallback: str) -> list[Path]:
    """The metadata files that `viewer.scene` means: itself, or those of a list.

    Args:
        fallback: `training.dataset_path`, for when no scene is named.

    Raises:
        InputError: there is no such scene or list.
    """
    if not cfg.scene:
        return read_scene_list(Path(fallback))
    path = Path(cfg.scene)
    if path.is_dir():
        raise InputError(f"viewer.scene is the folder {shown(cfg.scene)}: name a scene's .json in it, or a list")
    return [path] if path.suffix == ".json" else read_scene_list(path, "viewer.scene")


def serve(cfg: ViewerConfig, video: VideoConfig, sessions: Sessions, scenes: Sequence[Path]) -> None:
    """Serve the window until SIGTERM or Ctrl-C.

    Raises:
        InputError: the first scene or one of its inputs cannot be used, or the address cannot be had.
    """
    stop = threading.Event()
    with _stopping(stop), Served(cfg, video, sessions, scenes) as served:
        log.info("%s of %s; Ctrl-C ends the viewer", served.viewer.first.scene.name, counted(len(scenes), "scene"))
        log.info("open http://%s", served.address)
        # Signals are handled between two waits.
        while not stop.wait(1.0):
            pass


class Served:
    """A viewer that is being served, inside `with`.

    Attributes:
        viewer: what all windows share.
        windows: those that are open, by the client's number.
    """

    def __init__(self, cfg: ViewerConfig, video: VideoConfig, sessions: Sessions, scenes: Sequence[Path]) -> None:
        check_address(cfg)
        self.windows: dict[int, Window] = {}
        self.viewer = Viewer(cfg, video, sessions, scenes)
        try:
            self.server = start_server(cfg, self.viewer.first)
        except BaseException:
            self.viewer.stop()
            raise
        self.server.on_client_connect(self._open)
        self.server.on_client_disconnect(self._close)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_error: object) -> None:
        for window in list(self.windows.values()):
            window.close()
        self.viewer.stop()
        with redirect_stdout(io.StringIO()):
            self.server.stop()

    @property
    def address(self) -> str:
        """Host and port, as a browser takes them."""
        host = self.viewer.cfg.host
        return f"{f'[{host}]' if ':' in host else host}:{self.server.get_port()}"

    def _open(self, client: viser.ClientHandle) -> None:
        if is_foreign(self.server, client):
            log.warning("client %d is a page of another site, which gets no window", client.client_id)
            return
        try:
            self.windows[client.client_id] = Window(self.viewer, client)
        except Exception:
            log.exception("client %d gets no window", client.client_id)
            return
        log.info("client %d came; %d here", client.client_id, len(self.windows))
        if client.client_id not in self.server.get_clients():
            # It left while its window was made.
            self._close(client)

    def _close(self, client: viser.ClientHandle) -> None:
        window = self.windows.pop(client.client_id, None)
        if window is not None:
            window.close()
            log.info("client %d left; %d here", client.client_id, len(self.windows))


class _Server(viser.ViserServer):
    """viser's server, which a client cannot ask to show itself to the world."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        """Refuse: viser would open a tunnel to a public address."""
        return None


def start_server(cfg: ViewerConfig, session: Session) -> viser.ViserServer:
    """The server, whose clients begin at the first input of a scene.

    Raises:
        InputError: the port is taken.
    """
    quieten()
    with redirect_stdout(io.StringIO()):
        server = _Server(host=cfg.host, port=cfg.port, label="LVSM", verbose=False)
    if cfg.port and server.get_port() != cfg.port:
        # viser takes the next free port.
        server.stop()
        raise InputError(_taken(cfg, "it is taken"))
    server.get_event_loop().set_exception_handler(_tell_of_nonsense)
    server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, brand_color=(60, 160, 200))
    server.gui.main_panel.dock_right()
    # For all scenes: browsers that are told of another one later put their cameras elsewhere. Each camera has its own.
    server.scene.set_up_direction("-y")
    pose = session.lens.c2w.double().numpy()
    _, position = to_world(pose)
    server.initial_camera.position = position
    server.initial_camera.look_at = turning_point(pose, session.orbit)
    server.initial_camera.up = -pose[:3, 1] if session.orbit is None else session.orbit.up
    server.initial_camera.fov = fitting_fov(session.lens, _WIDE)
    return server


def is_foreign(server: viser.ViserServer, client: viser.ClientHandle) -> bool:
    """Whether a client is a page that did not come from this server.

    A browser lets every page connect to this machine, and says which it is; viser takes all.
    """
    connection = server._websock_server._live_connections.get(client.client_id)
    if connection is None or connection.request is None:
        return False
    headers = connection.request.headers
    origin = headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("Host")


def check_address(cfg: ViewerConfig) -> None:
    """Raises InputError if nobody can listen at the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            cfg.host, cfg.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(_taken(cfg, reason)) from None


def _taken(cfg: ViewerConfig, reason: str) -> str:
    return (
        f"nothing can be served at viewer.host={shown(cfg.host)}, viewer.port={cfg.port} ({printable(reason, 100)}): "
        "choose another port; viewer.port=0 takes any that is free"
    )


class _OneLine(logging.Filter):
    """Makes one line of what a client's nonsense raised, without a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is worth a line: a connection that says nothing, as browsers make some, is not."""
        if record.msg == "opening handshake failed":
            return False
        if record.exc_info and record.exc_info[1] is not None:
            record.msg = _describe(record.exc_info[1])
            record.args = ()
            record.exc_info = None
        return True


def quieten() -> None:
    """Have the libraries underneath say in one line, if at all, what clients do."""
    logging.getLogger("websockets").setLevel(logging.WARNING)
    for name in _TROUBLED:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _OneLine) for known in logger.filters):
            logger.addFilter(_OneLine())
    # Of messages of the wrong shape and of clients that have just left.
    warnings.filterwarnings("ignore", message=r"\[viser\]")
    warnings.filterwarnings("ignore", message=r"Queued a \w+ on a closed connection")


def _tell_of_nonsense(_loop: Any, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log.warning("%s", _describe(error) if error is not None else printable(str(context.get("message")), 200))


def _describe(error: BaseException) -> str:
    kind = type(error).__name__
    return f"a client sent what cannot be used, and is not listened to: {kind} {one_line(error, 200)}"


class _stopping:
    """Inside, SIGTERM and Ctrl-C set an event; a second Ctrl-C ends at once."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._set)

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._stop.set()
