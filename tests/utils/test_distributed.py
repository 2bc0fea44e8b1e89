"""The loss of another process, or of the store, is told in one line."""

import sys
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.messages import check_names
from utils.cli import run_main
from utils.distributed import _lost_processes_told
from utils.errors import InputError

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"
LOST = [
    RuntimeError(GLOO),
    dist.DistError("Socket Timeout"),
    dist.DistBackendError("NCCL error: remote process exited\nLast error:\nsocket closed"),
    dist.DistNetworkError("Connection reset by peer"),
    dist.DistStoreError("wait timeout after 600000ms, keys: /lvsm/saving"),
]
OTHERS = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), InputError("scene0 has no frames"), OSError("x")]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_lost_processes_end_in_one_line(monkeypatch, capsys, error):
    def main(argv):
        with _lost_processes_told():
            raise error

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    check_names(line, "error: another process", str(error).splitlines()[0])


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, _lost_processes_told():
        raise error
    assert raised.value is error


def test_a_store_that_is_gone_is_told():
    server = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, None, False, timedelta(seconds=5))
    client.set("here", "1")
    del server
    with pytest.raises(ConnectionError, match="another process"), _lost_processes_told():
        for _ in range(10):
            client.set("here", "2")
            client.get("here")


def test_words_of_a_library_are_short_and_safe():
    with pytest.raises(ConnectionError) as told, _lost_processes_told():
        raise dist.DistBackendError("\x1b[31mred\x07" + "x" * 10_000 + "\nmore")
    assert str(told.value).isprintable() and len(str(told.value)) < 500
