"""The socket that `vcls serve` listens on."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from vllm_cls.errors import ConfigError
from vllm_cls.server.transport import listening
from vllm_cls.server.transport.listening import listen, listen_at


def test_no_part_of_an_answer_waits_for_the_receipt_of_another() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_path_where_nothing_is(tmp_path: Path) -> None:
    with listen_at(tmp_path / "socket") as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
        listener.accept()[0].close()


def test_a_socket_of_a_server_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    script = (
        "import os, sys, signal; from vllm_cls.server.transport.listening import listen_at; from pathlib import Path\n"
    )
    script += "kept = listen_at(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", script, path]).returncode == -signal.SIGKILL
    assert path.is_socket()
    with listen_at(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_of_a_server_that_runs_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(path))
        running.listen(0)
        for _ in range(3):  # the last ones find no place in the line
            with pytest.raises(ConfigError, match="a server listens there"):
                listen_at(path)
    assert path.is_socket()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    dead, plain, folder, link, broken = (tmp_path / name for name in ("dead", "plain", "folder", "link", "broken"))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    plain.write_text("text")
    folder.mkdir()
    link.symlink_to(dead)
    broken.symlink_to(tmp_path / "nothing")
    for path in (plain, folder, link, broken):
        with pytest.raises(ConfigError, match=r"a file, a folder or a link.*--uds"):
            listen_at(path)
    assert (
        plain.read_text() == "text"
        and folder.is_dir()
        and link.is_symlink()
        and broken.is_symlink()
        and dead.is_socket()
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere/socket", "there is no folder"), ("plain/socket", "there is no folder"), ("s" * 200, "too long")],
)
def test_a_path_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "plain").write_text("text")
    with pytest.raises(ConfigError, match=f"{message}.*--uds"):
        listen_at(tmp_path / name)


def test_of_servers_that_start_at_once_one_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them find the socket of one that was killed, and none takes away that of another."""
    path, remove = tmp_path / "socket", listening._remove_dead_socket

    def remove_slowly(path: Path) -> None:
        remove(path)
        time.sleep(0.02)

    monkeypatch.setattr(listening, "_remove_dead_socket", remove_slowly)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as left, suppress(FileNotFoundError):
            path.unlink()
            left.bind(str(path))
        start = threading.Barrier(4)

        def one(start: threading.Barrier = start) -> socket.socket | ConfigError:
            start.wait()
            try:
                return listen_at(path)
            except ConfigError as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            results = [each.result() for each in [pool.submit(one) for _ in range(4)]]
        (listener,) = (each for each in results if isinstance(each, socket.socket))
        with listener, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert sum("a server listens there" in str(each) for each in results) == 3


def test_a_socket_goes_with_its_process_and_one_that_took_its_place_stays(tmp_path: Path) -> None:
    script = "import os, sys; from vllm_cls.server.transport.listening import listen_at; from pathlib import Path\n"
    script += "os.chdir(sys.argv[1]); kept = listen_at(Path('socket')); os.chdir('/'); exec(sys.argv[2])"
    path = tmp_path / "socket"
    for what, stays in (("pass", False), ("os.unlink(sys.argv[1] + '/socket'); listen_at(Path(sys.argv[1] + '/other'))", False),
                        ("path = sys.argv[1] + '/socket'; os.unlink(path); open(path, 'w').close()", True)):  # fmt: skip
        assert subprocess.run([sys.executable, "-c", script, tmp_path, what]).returncode == 0
        assert path.exists() is stays and not (tmp_path / "other").exists()
