"""Downloads, from a server on this machine that does what servers do."""

import errno
import hashlib
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from model import perceptual
from tests.messages import check_names, check_told
from utils import download as module
from utils.download import DownloadError, download, is_reachable

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self):
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    """Each path is a way to behave."""

    def do_GET(self):
        with suppress(OSError):
            getattr(self, self.path[1:], self.missing)()

    do_HEAD = do_GET

    def start(self, length=None):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def whole(self):
        self.start(len(CONTENT))
        self.wfile.write(CONTENT)

    def unsized(self):
        self.start()
        self.wfile.write(CONTENT)

    def half(self):
        self.start(len(CONTENT))
        self.wfile.write(CONTENT[: len(CONTENT) // 2])

    def other(self):
        self.start()
        self.wfile.write(b"<html>Sign in")

    def endless(self):
        self.start()
        while not self.server.closing.is_set():
            self.wfile.write(CONTENT)

    def silent(self):
        self.server.closing.wait(60)

    def stalls(self):
        self.start(len(CONTENT))
        self.wfile.write(CONTENT[:100])
        self.server.closing.wait(60)

    def drips(self):
        self.start(len(CONTENT))
        while not self.server.closing.wait(0.05):
            self.wfile.write(b"x")

    def redirects(self):
        self.send_response(302)
        self.send_header("Location", "file:///etc/passwd")
        self.end_headers()

    def garbage(self):
        self.wfile.write(b"\x1b[31mno HTTP\r\n\r\n")

    def missing(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("way", ["whole", "unsized"])
@pytest.mark.parametrize(("digest", "algorithm"), [(DIGEST, "sha256"), (DIGEST[:8], "sha256"), (None, "md5")])
def test_a_sound_file_arrives(server, tmp_path, capfd, way, digest, algorithm):
    path = tmp_path / "new" / "file"
    download(f"{server}/{way}", path, digest or hashlib.md5(CONTENT).hexdigest(), algorithm)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("half", f"after {len(CONTENT) // 2} of {len(CONTENT)} bytes"),
        ("other", "SHA-256 [0-9a-f]{64}"),
        ("endless", "larger than 100000 bytes"),
        pytest.param("silent", "timed out", marks=pytest.mark.slow),
        pytest.param("stalls", "timed out", marks=pytest.mark.slow),
        pytest.param("drips", "[0-9]+ bytes in [0-9]+ s", marks=pytest.mark.slow),
        ("redirects", "file:"),
        ("garbage", "no HTTP"),
        ("missing", "404"),
    ],
)
def test_what_is_not_the_file_leaves_no_trace(server, tmp_path, monkeypatch, way, reason):
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=reason) as caught:
        download(f"{server}/{way}", tmp_path / "file", DIGEST, limit=100_000)
    check_names(str(caught.value))
    assert len(str(caught.value)) < 300
    assert not list(tmp_path.iterdir())
    assert time.monotonic() - start < 300


def test_a_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DownloadError):
        download("http://127.0.0.1:9/file", tmp_path / "file", DIGEST)


def test_a_file_that_was_there_stays_if_the_download_fails(server, tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(DownloadError):
        download(f"{server}/other", tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_text() == "old"


def test_a_disk_that_cannot_be_written_is_not_the_servers_fault(server, tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError) as caught:
        download(f"{server}/whole", tmp_path / "file", DIGEST)
    assert caught.value.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)


@pytest.mark.parametrize("way", ["missing", "half", "silent", "stalls"])
def test_vgg19_that_cannot_be_had_is_a_warning(server, tmp_path, monkeypatch, caplog, way):
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    monkeypatch.setattr(perceptual, "VGG19_URL", f"{server}/{way}")
    perceptual.fetch_vgg19(tmp_path / "vgg.mat")
    check_told(caplog.messages, f"{server}/{way}")
    assert not list(tmp_path.iterdir())


def test_a_server_is_reachable_if_it_answers_at_all(server):
    assert is_reachable(f"{server}/whole") and is_reachable(f"{server}/missing")
    assert not is_reachable(f"{server}/silent", patience=0.3)
    assert not is_reachable("http://127.0.0.1:9/")
    assert not is_reachable("no address")
